//! What the agent tells leads to servers and sockets, for as long as it says so.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use vmlan_api::Client;
use vmlan_e2e::netns::SOON;
use vmlan_e2e::server::{echo, echo_udp, exchange, serve_one};
use vmlan_e2e::world::GUEST;
use vmlan_vm::ports::{Local, PortEvent};

use crate::scene::{LOOPBACK, PROMPTLY, Scene, echoes, is_refused, within};

#[test]
fn servers_on_any_address_are_reached_on_both_loopbacks() {
    let scene = Scene::with_agent("  []");
    for (port, at) in
        [(8001, "127.0.0.1"), (8002, "[::1]"), (8003, "0.0.0.0"), (8004, "[::]"), (8005, "[::]")]
    {
        // The last one is for IPv6 alone.
        let v6only = if port == 8005 { "1" } else { "0" };
        scene.guest().sysctl("net/ipv6/bindv6only", v6only);
        let server = scene.tcp(&format!("{at}:{port}"));
        echo(server);
        let udp = scene.udp(&format!("{at}:{port}"));
        echo_udp(udp);
    }
    for port in 8001..=8005 {
        for host in ["127.0.0.1", "[::1]"] {
            let to = format!("{host}:{port}");
            echoes(scene.connect(&to));
            let client = scene.world.host.udp(
                if host == "[::1]" { "[::1]:0" } else { "127.0.0.1:0" }
                    .parse::<SocketAddr>()
                    .unwrap(),
            );
            client.set_read_timeout(Some(Duration::from_millis(200))).expect("a deadline");
            let to: SocketAddr = to.parse().unwrap();
            within(PROMPTLY, to, || {
                client.send_to(b"hello", to).ok()?;
                let mut answer = [0; 16];
                let (n, from) = client.recv_from(&mut answer).ok()?;
                (answer.get(..n) == Some(b"hello") && from == to).then_some(())
            });
        }
    }
}

#[test]
fn a_forward_goes_with_its_server() {
    let scene = Scene::with_agent("  []");
    for at in ["127.0.0.1:8000", "0.0.0.0:8000"] {
        let server = scene.tcp(at);
        drop(scene.connect("127.0.0.1:8000"));
        drop(server);
        let to: SocketAddr = "127.0.0.1:8000".parse().expect("an address");
        within(PROMPTLY, at, || {
            let refused = scene.world.host.connect(to).is_err_and(|e| is_refused(&e));
            refused.then_some(())
        });
        within(PROMPTLY, at, || scene.list().is_empty().then_some(()));
    }
}

#[test]
fn a_lift_carries_all_bytes_and_every_end() {
    let scene = Scene::with_agent("  []");
    let server = serve_one(scene.tcp("127.0.0.1:8000"), |stream| stream);
    let client = scene.connect("127.0.0.1:8000");
    exchange(client, server.join().expect("a connection"), 16 << 20);

    let server = serve_one(scene.tcp("[::1]:8001"), |mut stream| {
        let mut word = [0; 5];
        stream.read_exact(&mut word).expect("a word");
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("linger");
    });
    let mut client = scene.connect("127.0.0.1:8001");
    client.write_all(b"hello").expect("a word can be sent");
    server.join().expect("a connection");
    let error = client.read(&mut [0; 1]).expect_err("the server has reset the connection");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn nobody_but_the_gateway_may_use_a_lift() {
    let scene = Scene::with_agent("  []");
    echo(scene.tcp("127.0.0.1:8000"));
    echo_udp(scene.udp("127.0.0.1:8000"));
    echoes(scene.connect("127.0.0.1:8000"));
    let lifts = within(PROMPTLY, "two lifts", || {
        let there: Vec<vmlan_api::network::Forward> =
            Client::new(&scene.world.netd.control()).get("/v1/forwards").expect("the daemon");
        let of = |protocol| {
            let found = there.iter().find(|forward| forward.protocol == protocol)?;
            found.target.parse::<SocketAddr>().ok()
        };
        Some([of("tcp")?, of("udp")?])
    });
    for lift in lifts {
        assert_eq!(lift.ip(), GUEST);
        assert_ne!(lift.port(), 8000);
    }
    // The guest's own programs are not the gateway.
    let inside = scene.guest().connect(lifts[0]);
    let heard = inside.and_then(|mut stream| stream.read(&mut [0; 16]));
    assert!(heard.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "{heard:?}");
    let inside = scene.udp("0.0.0.0:0");
    inside.set_read_timeout(Some(Duration::from_millis(300))).expect("a deadline");
    inside.send_to(b"hello", lifts[1]).expect("a datagram");
    assert!(inside.recv_from(&mut [0; 16]).is_err(), "a stranger is answered");
}

#[test]
fn a_port_that_is_taken_is_told_with_its_holder_and_had_when_it_is_free() {
    let scene = Scene::with_agent("  []");
    let holder = scene.world.host.listen(SocketAddr::from((LOOPBACK, 8000)));
    echo(scene.tcp("127.0.0.1:8000"));
    let conflict = scene.until(|event| matches!(event, PortEvent::Conflict { .. }));
    let PortEvent::Conflict { port, why } = conflict else { unreachable!("it is one") };
    assert_eq!(port.local, Local::Tcp((LOOPBACK, 8000).into()));
    assert!(why.contains("127.0.0.1:8000 is already in use by ports"), "{why}");
    let problems: Vec<_> = scene.list().into_iter().filter_map(|state| state.problem).collect();
    assert_eq!(problems, [why]);
    // The other one of localhost's addresses is free.
    echoes(scene.connect("[::1]:8000"));
    drop(holder);
    scene.until(|event| matches!(event, PortEvent::Opened(opened) if *opened == port));
    echoes(scene.connect("127.0.0.1:8000"));
}

#[test]
fn what_rules_fix_is_there_without_an_agent() {
    let mut scene = Scene::new(
        "- {guestPortRange: [8000, 8001], hostPortRange: [9000, 9001], static: true}\n\
         - {guestPort: 8002, proto: tcp, hostSocket: DIR/s.sock, static: true}\n",
    );
    echo(scene.tcp("0.0.0.0:8000"));
    echo(scene.tcp("127.0.0.1:8001"));
    echoes(scene.connect("127.0.0.1:9000"));
    within(PROMPTLY, "a socket", || UnixStream::connect(scene.dir.path().join("s.sock")).ok());
    // Its guest has nobody there that the network could reach.
    let mut lost = scene.connect("127.0.0.1:9001");
    assert!(!matches!(lost.read(&mut [0; 1]), Ok(1..)));
    scene.start_agent();
    within(PROMPTLY, "a lift", || {
        let mut stream = scene.connect("127.0.0.1:9001");
        stream.write_all(b"x").ok()?;
        stream.read_exact(&mut [0; 1]).ok()
    });
}

#[test]
fn sockets_lead_in_and_out() {
    let scene = Scene::with_agent(
        "- {guestSocket: DIR/guest.sock, hostSocket: DIR/new/host.sock}\n\
         - {guestSocket: DIR/door.sock, hostSocket: DIR/service.sock, reverse: true}\n\
         - {guestPort: 8000, hostSocket: DIR/port.sock}\n",
    );
    let path = |name: &str| scene.dir.path().join(name);
    // Both ends see the same files here: only the streams pass through the network.
    let inside = UnixListener::bind(path("guest.sock")).expect("a socket");
    let mut outside =
        within(PROMPTLY, "a socket", || UnixStream::connect(path("new/host.sock")).ok());
    talk(&mut outside, &mut inside.accept().expect("a client").0);
    let service = UnixListener::bind(path("service.sock")).expect("a socket");
    let mut client = within(PROMPTLY, "a door", || UnixStream::connect(path("door.sock")).ok());
    talk(&mut client, &mut service.accept().expect("a client").0);
    let server = scene.tcp("127.0.0.1:8000");
    let mut client = within(PROMPTLY, "a socket", || UnixStream::connect(path("port.sock")).ok());
    talk(&mut client, &mut server.accept().expect("a client").0);
    // Nobody there is an end, not silence.
    drop(inside);
    let mut lost = UnixStream::connect(path("new/host.sock")).expect("a forward");
    lost.set_read_timeout(Some(SOON)).expect("a deadline");
    assert!(!matches!(lost.read(&mut [0; 1]), Ok(1..)));
}

#[test]
fn forwards_outlive_the_agent_and_end_with_the_host_side() {
    let mut scene = Scene::with_agent("  []");
    echo(scene.tcp("127.0.0.1:8000"));
    echoes(scene.connect("127.0.0.1:8000"));
    drop(scene.agent.take());
    scene.until(|event| *event == PortEvent::AgentDown);
    scene.start_agent();
    within(PROMPTLY, "a new lift", || {
        let mut stream = scene.connect("127.0.0.1:8000");
        stream.write_all(b"x").ok()?;
        stream.read_exact(&mut [0; 1]).ok()
    });
    drop(scene.ports.take());
    let to: SocketAddr = "127.0.0.1:8000".parse().expect("an address");
    assert!(scene.world.host.connect(to).is_err_and(|e| is_refused(&e)));
}

#[test]
fn a_machine_that_lies_gets_nothing_that_rules_ignore() {
    let scene = Scene::new("- {guestPort: 7000, ignore: true}\n");
    let path = scene.dir.path().join("agent.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let (mut machine, _) = listener.accept().expect("the host side looks for its agent");
    machine.set_write_timeout(Some(SOON)).expect("a deadline");
    let mut orders = [0; 1024];
    assert!(machine.read(&mut orders).expect("orders") > 0);
    let listeners = |ports: std::ops::Range<u32>, ip: &str| {
        let all: Vec<_> =
            ports.map(|port| format!(r#"{{"proto":"tcp","at":"{ip}:{port}"}}"#)).collect();
        all.join(",")
    };
    let state = |listeners: &str, lifts: &str| {
        format!("{{\"state\":{{\"heard\":1,\"listeners\":[{listeners}],\"lifts\":[{lifts}]}}}}\n")
    };
    // A line without an end, nonsense, places of the host, and more than there may be.
    machine.write_all(&vec![b'['; 1 << 20]).expect("it is read, if slowly");
    machine.write_all(b"\n{}\n\xff\n").expect("it is read");
    let lies = listeners(7000..7001, "0.0.0.0") + "," + &listeners(22..23, "127.0.0.1");
    machine.write_all(state(&lies, "").as_bytes()).expect("it is read");
    scene.until(|event| *event == PortEvent::AgentUp);
    let all = listeners(10_000..12_000, "0.0.0.0");
    machine
        .write_all(state(&all, r#"{"to":{"tcp":"127.0.0.1:1"},"port":0}"#).as_bytes())
        .expect("");
    within(SOON, "as many as may be", || (scene.list().len() >= 1000).then_some(()));
    let list = scene.list();
    // Both addresses of localhost; the allowance is spent, and the rest comes slowly.
    assert!(list.len() <= 2000, "{}", list.len());
    for state in list {
        let Local::Tcp(local) = state.port.local else { panic!("{state:?}") };
        assert!(local.ip().is_loopback() && (10_000..11_000).contains(&local.port()), "{local}");
    }
    // It changes its mind all the time: events do not come faster than the allowance.
    while scene.events.try_recv().is_ok() {}
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        let _ = machine.write_all(state("", "").as_bytes());
        let _ = machine.write_all(state(&all, "").as_bytes());
    }
    let count = scene.events.try_iter().count();
    assert!(count < 1500, "{count} changes in {:?}", start.elapsed());
}

/// Both directions, each with its end.
#[track_caller]
fn talk(client: &mut (impl Read + Write + Ends), server: &mut (impl Read + Write + Ends)) {
    client.write_all(b"question").expect("bytes can be sent");
    client.end();
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).expect("a question");
    assert_eq!(heard, b"question");
    server.write_all(b"answer").expect("bytes can be sent");
    server.end();
    heard.clear();
    client.read_to_end(&mut heard).expect("an answer");
    assert_eq!(heard, b"answer");
}

trait Ends {
    fn end(&self);
}

impl Ends for TcpStream {
    fn end(&self) {
        self.shutdown(Shutdown::Write).expect("a direction can be ended");
    }
}

impl Ends for UnixStream {
    fn end(&self) {
        self.shutdown(Shutdown::Write).expect("a direction can be ended");
    }
}
