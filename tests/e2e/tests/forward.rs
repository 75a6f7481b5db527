//! Forwards: ports and sockets of the host that lead to a guest.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use vmlan_e2e::binary::vmlan;
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::Process;
use vmlan_e2e::server::{echo_udp, exchange, serve_one};
use vmlan_e2e::world::{GUEST, OUTSIDE};
use vmlan_e2e::{World, pattern};

const LENGTH: usize = 16 << 20;

#[test]
fn tcp_leads_to_the_guest_with_all_its_bytes() {
    let world = World::with(&[
        "--forward",
        "127.0.0.1:8080=192.168.5.15:80",
        "--forward",
        "[::1]:8080=192.168.5.15:80",
        "--forward",
        "0.0.0.0:8081=192.168.5.15:80",
    ]);
    for (from, to) in [
        (&world.host, "127.0.0.1:8080"),
        (&world.host, "[::1]:8080"),
        (&world.host, "127.0.0.1:8081"),
        (&world.outside, "198.51.100.1:8081"),
    ] {
        let server = serve_one(world.guest.listen((GUEST, 80)), |stream| {
            let peer = stream.peer_addr().expect("a peer");
            assert_eq!(peer.ip().to_string(), "192.168.5.2", "forwards come from the gateway");
            stream
        });
        let to: std::net::SocketAddr = to.parse().expect("an address");
        let client = from.connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
        exchange(client, server.join().expect("a connection"), LENGTH);
    }
}

#[test]
fn the_clients_own_address_is_kept_on_request() {
    let world = World::with(&["--forward", "0.0.0.0:8080=192.168.5.15:80,source=keep"]);
    let server = serve_one(world.guest.listen((GUEST, 80)), |stream| {
        (stream.peer_addr().expect("a peer").ip(), stream)
    });
    let client = world.outside.connect(([198, 51, 100, 1], 8080)).expect("a forward");
    let (peer, server) = server.join().expect("a connection");
    assert_eq!(peer, OUTSIDE);
    exchange(client, server, LENGTH);
}

#[test]
fn a_unix_socket_leads_to_the_guest() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("forward.sock");
    let world = World::with(&["--forward", &format!("{}=192.168.5.15:80", path.display())]);
    let server = serve_one(world.guest.listen((GUEST, 80)), |mut stream| {
        pattern::expect(&mut stream, 3, LENGTH);
    });
    let mut client = UnixStream::connect(&path).expect("a forward");
    client.set_write_timeout(Some(SOON)).expect("a deadline");
    pattern::send(&mut client, 3, LENGTH).expect("bytes can be sent");
    drop(client);
    server.join().expect("all the bytes");
    let mut world = world;
    assert!(world.netd.stop().success());
    assert!(!path.exists(), "the socket is left behind");
}

#[test]
fn udp_leads_to_the_guest_and_back() {
    let world = World::with(&["--forward", "127.0.0.1:5353=192.168.5.15:53/udp"]);
    echo_udp(world.guest.udp((GUEST, 53)));
    let clients = [world.host.udp(([127, 0, 0, 1], 0)), world.host.udp(([127, 0, 0, 1], 0))];
    let forward = std::net::SocketAddr::from(([127, 0, 0, 1], 5353));
    let mut received = [0; 2000];
    for (client, word) in clients.iter().zip([b"one", b"two"]) {
        client.send_to(word, forward).expect("a datagram can be sent");
        let (length, from) = client.recv_from(&mut received).expect("an echo");
        assert_eq!((&received[..length], from), (word.as_slice(), forward));
    }
}

#[test]
fn a_closed_port_of_the_guest_resets_the_client() {
    let world = World::with(&["--forward", "127.0.0.1:8080=192.168.5.15:80"]);
    // The host's kernel completes the handshake before the guest can be asked; the reset that follows
    // may be there before the client has looked.
    let read = |mut client: TcpStream| client.read(&mut [0; 16]);
    let connected = world.host.connect(([127, 0, 0, 1], 8080));
    let error = connected.and_then(read).expect_err("nobody listens in the guest");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_taken_port_is_named_with_its_holder() {
    let world = World::new();
    let _holder = world.host.listen(([127, 0, 0, 1], 8080));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = world.host.command(vmlan());
    command.args(["netd", "--forward", "127.0.0.1:8080=192.168.5.15:80", "--listen-qemu"]);
    command.arg(dir.path().join("qemu.sock")).stdin(Stdio::null());
    let mut second = Process::spawn(&mut command);
    assert!(!second.wait(Duration::from_secs(10)).success());
    let text = second.stderr();
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    assert!(text.contains("127.0.0.1:8080"), "{text}");
    assert!(text.contains(&std::process::id().to_string()), "the holder is this process: {text}");
}
