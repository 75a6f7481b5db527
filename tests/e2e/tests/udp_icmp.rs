//! UDP and ICMP of a namespace guest: datagrams of every size, and errors that are true.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use vmlan_e2e::World;
use vmlan_e2e::netns::SOON;
use vmlan_e2e::server::echo_udp;
use vmlan_e2e::world::{DNS, HOST, OUTSIDE, OUTSIDE6};

/// Sends and waits for the same to come back. The first packet that is too big for the path beyond
/// the host is lost, as on any network: the guest is told the path's MTU, and cuts what follows.
#[track_caller]
fn expect_echo(socket: &UdpSocket, to: SocketAddr, size: usize) {
    let sent: Vec<u8> = (0..=250).cycle().take(size).collect();
    let mut received = vec![0; 65_536];
    socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a deadline");
    for _ in 0..3 {
        socket.send_to(&sent, to).expect("a datagram can be sent");
        let Ok((length, from)) = socket.recv_from(&mut received) else { continue };
        assert_eq!(from, to);
        assert_eq!(received[..length], sent);
        return;
    }
    panic!("no echo of {size} bytes from {to}");
}

/// An address that a socket which talks to `peer` can be bound to.
fn any(peer: IpAddr) -> SocketAddr {
    match peer {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[test]
fn datagrams_of_every_size_come_back() {
    let world = World::new();
    echo_udp(world.outside.udp((OUTSIDE, 7)));
    echo_udp(world.outside.udp((OUTSIDE6, 7)));
    echo_udp(world.host.udp(([127, 0, 0, 1], 7)));
    let v4 = world.guest.udp(any(OUTSIDE));
    let v6 = world.guest.udp(any(OUTSIDE6));
    for size in [0, 1, 1472, 9000, 60_000] {
        expect_echo(&v4, (OUTSIDE, 7).into(), size);
        expect_echo(&v4, (HOST, 7).into(), size);
        expect_echo(&v6, (OUTSIDE6, 7).into(), size);
    }
}

#[test]
fn fragments_are_put_together_both_ways() {
    let world = World::with(&["--mtu", "1500"]);
    echo_udp(world.outside.udp((OUTSIDE, 7)));
    echo_udp(world.outside.udp((OUTSIDE6, 7)));
    let v4 = world.guest.udp(any(OUTSIDE));
    let v6 = world.guest.udp(any(OUTSIDE6));
    for size in [1472, 1473, 5000, 30_000] {
        expect_echo(&v4, (OUTSIDE, 7).into(), size);
        expect_echo(&v6, (OUTSIDE6, 7).into(), size);
    }
}

#[test]
fn a_closed_port_says_so() {
    let world = World::new();
    for closed in [OUTSIDE, OUTSIDE6] {
        let socket = world.guest.udp(any(closed));
        socket.connect((closed, 9)).expect("a socket can be connected");
        socket.send(b"anybody?").expect("a datagram can be sent");
        let error = socket.recv(&mut [0; 16]).expect_err("nobody listens there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{closed}");
    }
}

#[test]
fn only_peers_that_were_asked_may_answer() {
    let world = World::new();
    let asked = world.outside.udp((OUTSIDE, 7));
    let stranger = world.outside.udp((OUTSIDE, 8));
    let guest = world.guest.udp(any(OUTSIDE));
    guest.send_to(b"question", (OUTSIDE, 7)).expect("a datagram can be sent");
    let mut received = [0; 16];
    let (_, from) = asked.recv_from(&mut received).expect("the question");
    stranger.send_to(b"not for you", from).expect("a datagram can be sent");
    asked.send_to(b"answer", from).expect("a datagram can be sent");
    let (length, from) = guest.recv_from(&mut received).expect("the answer");
    assert_eq!((&received[..length], from), (b"answer".as_slice(), (OUTSIDE, 7).into()));
}

#[test]
fn ping_is_answered_by_whom_it_asks() {
    let world = World::new();
    for target in [HOST, DNS, OUTSIDE, OUTSIDE6] {
        world.guest.run(&format!("ping -n -c 2 -i 0.2 -W 5 {target}"));
    }
    let output = world.guest.capture("ping -n -c 1 -W 5 203.0.113.1", SOON);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("From 198.51.100.2 icmp_seq=1 Destination Host Unreachable"), "{text}");
}

#[test]
fn a_ping_too_big_for_the_path_is_told_its_mtu() {
    let world = World::new();
    for (target, complaint) in
        [(OUTSIDE, "Frag needed and DF set (mtu = 1500)"), (OUTSIDE6, "Packet too big: mtu=1500")]
    {
        let output =
            world.guest.capture(&format!("ping -n -c 3 -i 0.2 -s 5000 -W 5 {target}"), SOON);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&format!("icmp_seq=1 {complaint}")), "{text}");
        assert!(text.contains("icmp_seq=3 ttl=64"), "what follows is cut to fit: {text}");
    }
}

#[test]
fn traceroute_sees_each_hop() {
    let world = World::new();
    for (flags, target, hops) in [
        ("-4", OUTSIDE, ["192.168.5.2", "198.51.100.2"]),
        ("-4 -I", OUTSIDE, ["192.168.5.2", "198.51.100.2"]),
    ] {
        let text = world.guest.run(&format!("traceroute {flags} -n -q 1 -w 5 -m 4 {target}"));
        let seen: Vec<&str> =
            text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(seen, hops, "{text}");
    }
}
