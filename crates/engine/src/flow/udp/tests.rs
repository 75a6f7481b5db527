use std::net::IpAddr;

use super::*;
use crate::Config;
use crate::io::DatagramOptions;
use crate::testing::{MS, Parsed, SimError, World, be16, config, parse_ip, udp_frame};

const GUEST: &str = "192.168.5.15:4000";
const GUEST6: &str = "[fd76:6d6c:c0a8:500::15]:4000";
const HOST6: &str = "[fd76:6d6c:c0a8:500::2]:7000";
const OUTSIDE: &str = "203.0.113.9:9000";

#[test]
fn a_question_and_its_answer() {
    let mut world = World::with_guest();
    world.udp(GUEST, OUTSIDE, b"ping");
    let sock = world.host.sockets()[0];
    let options = DatagramOptions { ttl: 63, tos: 0, dont_fragment: false };
    let expected = (sock, OUTSIDE.parse().unwrap(), options, vec![b"ping".to_vec()]);
    assert_eq!(world.host.sent, [expected]);
    world.host.deliver(sock, OUTSIDE, b"pong");
    world.ready(sock);
    assert_eq!(world.got_udp(), [(OUTSIDE.into(), GUEST.into(), b"pong".to_vec())]);
}

#[test]
fn one_socket_for_all_destinations_of_an_endpoint() {
    let mut world = World::with_guest();
    world.udp(GUEST, OUTSIDE, b"a");
    world.udp(GUEST, "198.51.100.1:53", b"b");
    assert_eq!(world.host.open.len(), 1);
    world.udp("192.168.5.15:4001", OUTSIDE, b"c");
    assert_eq!(world.host.open.len(), 2);
}

#[test]
fn strangers_are_not_heard() {
    let mut world = World::with_guest();
    world.udp(GUEST, OUTSIDE, b"a");
    let sock = world.host.sockets()[0];
    for stranger in ["203.0.113.9:9001", "203.0.113.8:9000", "127.0.0.1:9000"] {
        world.host.deliver(sock, stranger, b"boo");
    }
    world.ready(sock);
    assert!(world.got_udp().is_empty());
    assert_eq!(world.engine.stats().dropped(Drop::UnknownPeer), 3);
}

#[test]
fn the_host_alias_leads_to_loopback_and_back() {
    let mut world = World::with_guest();
    world.udp(GUEST, "192.168.5.2:7000", b"a");
    let sock = world.host.sockets()[0];
    assert_eq!(world.host.sent[0].1, "127.0.0.1:7000".parse().unwrap());
    assert_eq!(world.host.sent[0].2.ttl, 64, "no hop away");
    world.host.deliver(sock, "127.0.0.1:7000", b"b");
    world.ready(sock);
    assert_eq!(world.got_udp(), [("192.168.5.2:7000".into(), GUEST.into(), b"b".to_vec())]);
}

#[test]
fn ipv6_works_the_same() {
    let mut world = World::with_guest();
    let outside = "[2001:db8::9]:9000";
    world.udp(GUEST6, outside, b"a");
    world.udp(GUEST6, HOST6, b"b");
    let sock = world.host.sockets()[0];
    assert_eq!(world.host.open[&sock].1, Some(DatagramKind::Udp6));
    assert_eq!(world.host.sent[1].1, "[::1]:7000".parse().unwrap());
    world.host.deliver(sock, outside, b"c");
    world.host.deliver(sock, "[::1]:7000", b"odd");
    world.ready(sock);
    let expected = [
        (outside.into(), GUEST6.into(), b"c".to_vec()),
        (HOST6.into(), GUEST6.into(), b"odd".to_vec()),
    ];
    assert_eq!(world.got_udp(), expected);
}

#[test]
fn what_refuses_at_v6_loopback_is_asked_over_v4() {
    let mut world = World::with_guest();
    world.udp(GUEST6, HOST6, b"hello");
    let first = world.host.sockets()[0];
    let to = "[::1]:7000".parse().unwrap();
    let refused =
        SimError { kind: 1, code: 4, mtu: 0, offender: None, to, data: b"hello".to_vec() };
    world.host.errors.entry(first).or_default().push_back(refused);
    world.error(first);
    let again = world.host.sent.last().unwrap();
    assert_eq!((again.1, &again.3), ("127.0.0.1:7000".parse().unwrap(), &vec![b"hello".to_vec()]));
    let second = again.0;
    world.host.deliver(second, "127.0.0.1:7000", b"yes");
    world.ready(second);
    assert_eq!(world.got_udp(), [(HOST6.into(), GUEST6.into(), b"yes".to_vec())]);
    world.udp(GUEST6, HOST6, b"more");
    assert_eq!(world.host.sent.last().unwrap().0, second, "no detour any more");
}

#[test]
fn a_batch_for_one_place_is_one_call() {
    let mut world = World::with_guest();
    let to = |dst: &str, n: u8| udp_frame(GUEST, dst, &[n; 3]);
    let other = "198.51.100.1:53";
    world.frames(&[to(OUTSIDE, 1), to(OUTSIDE, 2), to(OUTSIDE, 3), to(other, 4), to(OUTSIDE, 5)]);
    let runs: Vec<usize> = world.host.sent.iter().map(|s| s.3.len()).collect();
    assert_eq!(runs, [3, 1, 1]);
    assert_eq!(world.host.sent[0].3, [vec![1; 3], vec![2; 3], vec![3; 3]]);
    let many: Vec<Vec<u8>> = (0..150).map(|n| to(OUTSIDE, n)).collect();
    world.host.sent.clear();
    world.frames(&many);
    let runs: Vec<usize> = world.host.sent.iter().map(|s| s.3.len()).collect();
    assert_eq!(runs, [64, 64, 22]);
}

#[test]
fn what_the_host_does_not_take_is_counted() {
    let mut world = World::with_guest();
    world.host.takes = Some(1);
    let frames = vec![udp_frame(GUEST, OUTSIDE, b"x"); 4];
    world.frames(&frames);
    assert_eq!(world.engine.stats().dropped(Drop::HostFull), 3);
}

#[test]
fn a_batch_of_replies_is_one_call_and_the_rest_comes_in_turns() {
    let mut world = World::with_guest();
    world.udp(GUEST, OUTSIDE, b"a");
    let sock = world.host.sockets()[0];
    for n in 0..100u8 {
        world.host.deliver(sock, OUTSIDE, &[n; 100]);
    }
    world.ready(sock);
    assert_eq!((world.links.sent.len(), world.links.calls), (BUDGET, 2));
    assert_eq!(world.engine.next_timeout(), Some(Instant::ZERO), "more is to be done at once");
    world.io(|engine, io| engine.handle_timeout(io));
    let payloads: Vec<u8> = world.got_udp().iter().map(|d| d.2[0]).collect();
    assert_eq!(payloads, (0..100).collect::<Vec<u8>>());
    assert!(world.engine.next_timeout().is_some_and(|at| at > world.now));
}

#[test]
fn a_full_link_leaves_the_rest_in_the_socket() {
    let mut world = World::with_guest();
    world.udp(GUEST, OUTSIDE, b"a");
    let sock = world.host.sockets()[0];
    for n in 0..200u8 {
        world.host.deliver(sock, OUTSIDE, &[n]);
    }
    world.links.room = 10;
    world.ready(sock);
    assert_eq!(world.engine.stats().dropped(Drop::LinkFull), 54);
    world.ready(sock);
    world.pass(10 * MS);
    assert_eq!(world.host.inbox[&sock].len(), 136, "nothing is read for a full link");
    world.links.room = usize::MAX;
    let port = world.port;
    world.io(|engine, io| engine.handle_port_writable(port, io));
    world.pass(MS);
    assert_eq!(world.got_udp().len(), 146);
}

#[test]
fn idle_flows_end_and_streams_live_longer() {
    let mut world = World::with_guest();
    world.udp(GUEST, OUTSIDE, b"a");
    world.udp("192.168.5.15:4001", OUTSIDE, b"a");
    let stream = world.host.sockets()[1];
    for _ in 0..2 {
        world.udp("192.168.5.15:4001", OUTSIDE, b"a");
        world.host.deliver(stream, OUTSIDE, b"b");
        world.ready(stream);
    }
    world.pass(29_000 * MS);
    assert_eq!(world.host.open.len(), 2);
    world.pass(2_000 * MS);
    assert_eq!(world.host.sockets(), [stream]);
    world.pass(148_000 * MS);
    assert_eq!(world.host.open.len(), 1);
    world.pass(2_000 * MS);
    assert!(world.host.open.is_empty());
    assert!(world.engine.next_timeout().is_none() || world.engine.flows().is_empty());
}

#[test]
fn a_guest_has_its_limit_and_the_idle_make_room() {
    let mut world = World::with_guest_and(|config| config.max_flows = 20);
    for n in 0..200u16 {
        world.udp(&format!("192.168.5.15:{}", 5000 + n), OUTSIDE, b"a");
        world.pass(MS);
    }
    assert_eq!(world.host.open.len(), 20);
    assert_eq!(world.host.sent.len(), 200);
    let ports: Vec<u16> = world.engine.flows().iter().map(|f| f.guest.port()).collect();
    assert!(ports.contains(&5199));
    assert!(ports.iter().filter(|p| **p >= 5150).count() > 10, "old ones went first: {ports:?}");
}

#[test]
fn no_descriptor_left_is_counted_and_old_flows_live() {
    let mut world = World::with_guest();
    world.udp(GUEST, OUTSIDE, b"a");
    world.host.refuse = Some(Failure::Exhausted);
    world.udp("192.168.5.15:4001", OUTSIDE, b"a");
    world.udp(GUEST, OUTSIDE, b"a");
    assert_eq!(world.engine.stats().dropped(Drop::HostExhausted), 1);
    assert_eq!(world.host.sent.len(), 2);
}

#[test]
fn checksums_and_lengths_are_looked_at() {
    let mut world = World::with_guest();
    let good = udp_frame(GUEST, OUTSIDE, b"data");
    let good6 = udp_frame(GUEST6, HOST6, b"data");
    let change = |frame: &[u8], at: usize, value: [u8; 2]| {
        let mut frame = frame.to_vec();
        frame[at..at + 2].copy_from_slice(&value);
        frame
    };
    let (sum, sum6, len) = (14 + 20 + 6, 14 + 40 + 6, 14 + 20 + 4);
    world.frames(&[change(&good, sum, [0, 1]), change(&good6, sum6, [0, 0])]);
    assert_eq!(world.engine.stats().dropped(Drop::Checksum), 2);
    let zero_port = change(&good, 14 + 20 + 2, [0, 0]);
    world.frames(&[change(&good, len, [0, 7]), change(&good, len, [0, 13]), zero_port]);
    assert_eq!(world.engine.stats().dropped(Drop::Malformed), 3);
    assert!(world.host.sent.is_empty());
    world.frames(&[change(&good, sum, [0, 0])]);
    assert_eq!(world.host.sent.len(), 1, "no checksum is fine over IPv4");
}

#[test]
fn forbidden_places_get_no_socket() {
    let mut world = World::with_guest();
    for dst in ["169.254.169.254:80", "127.0.0.1:53", "192.168.5.77:1"] {
        world.udp(GUEST, dst, b"a");
    }
    assert!(world.host.open.is_empty());
    assert_eq!(world.engine.stats().dropped(Drop::Forbidden), 2);
    assert_eq!(world.engine.stats().dropped(Drop::NoFlow), 1);
}

#[test]
fn a_guest_that_moves_takes_its_flows_along() {
    let mut world = World::with_guest();
    world.udp(GUEST, OUTSIDE, b"a");
    let sock = world.host.sockets()[0];
    let old = world.port;
    world.io(|engine, io| engine.remove_port(old, io));
    world.engine.add_port(crate::PortCaps { mtu: 1500, ..Default::default() }).unwrap();
    world.port =
        world.engine.add_port(crate::PortCaps { mtu: 1500, ..Default::default() }).unwrap();
    world.udp(GUEST, OUTSIDE, b"b");
    world.host.deliver(sock, OUTSIDE, b"c");
    world.ready(sock);
    assert_eq!(world.host.open.len(), 1);
    assert_eq!(world.links.sent.last().map(|s| s.0), Some(world.port));
}

#[test]
fn shutdown_closes_everything() {
    let mut world = World::with_guest();
    for n in 0..50 {
        world.udp(&format!("192.168.5.15:{}", 5000 + n), OUTSIDE, b"a");
    }
    world.io(|engine, io| engine.shutdown(io));
    assert!(world.host.open.is_empty());
    assert!(world.engine.flows().is_empty());
}

/// What the guest is told when the host's error queue says `error` about its datagram to `dst`:
/// source, type, code and MTU of the ICMP message, and the destination that it quotes.
fn told(guest: &str, dst: &str, error: SimError) -> (String, u8, u8, u16, String) {
    let mut world = World::with_guest();
    world.udp(guest, dst, b"hello");
    let sock = world.host.sockets()[0];
    world.host.errors.entry(sock).or_default().push_back(error);
    world.error(sock);
    assert_eq!(world.links.sent.len(), 1);
    let (src, to, protocol, icmp) = parse_ip(&world.links.sent[0].1).unwrap();
    assert_eq!(SocketAddr::new(to, 4000), guest.parse().unwrap());
    assert!(protocol == 1 || protocol == 58);
    let quoted = Parsed::of(&icmp[8..]);
    let udp = quoted.payload;
    assert_eq!((quoted.src, quoted.protocol, be16(&udp, 0)), (to, 17, 4000));
    let asked = SocketAddr::new(quoted.dst, be16(&udp, 2));
    let mtu = u16::from_be_bytes([icmp[6], icmp[7]]);
    (src.to_string(), icmp[0], icmp[1], mtu, asked.to_string())
}

#[test]
fn errors_reach_the_guest_with_the_addresses_it_knows() {
    let error = |to: &str, kind, code, mtu, offender: Option<&str>| SimError {
        kind,
        code,
        mtu,
        offender: offender.map(|o| o.parse().unwrap()),
        to: to.parse().unwrap(),
        data: b"hello".to_vec(),
    };
    let outside6 = "[2001:db8::9]:9000";
    let alias = "192.168.5.2:7000";
    for (guest, dst, error, src, what) in [
        // A router on the way: time exceeded.
        (GUEST, OUTSIDE, error(OUTSIDE, 11, 0, 0, Some("10.0.0.1")), "10.0.0.1", (11, 0, 0)),
        (GUEST6, outside6, error(outside6, 3, 0, 0, Some("2001:db8::1")), "2001:db8::1", (3, 0, 0)),
        // The destination.
        (GUEST, OUTSIDE, error(OUTSIDE, 3, 3, 0, Some("203.0.113.9")), "203.0.113.9", (3, 3, 0)),
        // The host itself, behind the alias.
        (
            GUEST,
            alias,
            error("127.0.0.1:7000", 3, 3, 0, Some("127.0.0.1")),
            "192.168.5.2",
            (3, 3, 0),
        ),
        // Too big for the host's own link, which says so without a port.
        (GUEST, OUTSIDE, error("203.0.113.9:0", 3, 4, 1400, None), "192.168.5.2", (3, 4, 1400)),
        (
            GUEST6,
            outside6,
            error(outside6, 2, 0, 1400, None),
            "fd76:6d6c:c0a8:500::1",
            (2, 0, 1400),
        ),
        // No route on the host.
        (GUEST, OUTSIDE, error(OUTSIDE, 3, 0, 0, None), "192.168.5.2", (3, 0, 0)),
    ] {
        let (kind, code, mtu) = what;
        let expected = (src.into(), kind, code, mtu, dst.into());
        assert_eq!(told(guest, dst, error), expected);
    }
}

#[test]
fn what_the_guest_s_link_does_not_carry_comes_in_fragments() {
    let mut world = World::with(Config { mtu: 9000, ..config() });
    world.host.refuse = None;
    let caps = crate::PortCaps { mtu: 1500, ..crate::PortCaps::default() };
    world.port = world.engine.add_port(caps).unwrap();
    world.udp(GUEST, OUTSIDE, b"ping");
    let sock = world.host.sockets()[0];
    for size in [1472, 3000, 10] {
        world.host.deliver(sock, OUTSIDE, &vec![1; size]);
    }
    world.ready(sock);
    let sent = world.sent(world.port);
    let lengths: Vec<usize> = sent.iter().map(|frame| frame.len() - 34).collect();
    assert_eq!(lengths, [1480, 1480, 1480, 48, 18]);
}

#[test]
fn nobody_at_either_loopback_is_told_once_from_the_alias() {
    let mut world = World::with_guest();
    world.udp(GUEST6, HOST6, b"hello");
    let refused = |to: &str, kind, code| SimError {
        kind,
        code,
        mtu: 0,
        offender: None,
        to: to.parse().unwrap(),
        data: b"hello".to_vec(),
    };
    let first = world.host.sockets()[0];
    world.host.errors.entry(first).or_default().push_back(refused("[::1]:7000", 1, 4));
    world.error(first);
    assert!(world.links.sent.is_empty());
    let second = world.host.sockets()[1];
    world.host.errors.entry(second).or_default().push_back(refused("127.0.0.1:7000", 3, 3));
    world.error(second);
    let (src, _, _, icmp) = parse_ip(&world.links.sent[0].1).unwrap();
    assert_eq!((src.to_string(), icmp[0], icmp[1]), ("fd76:6d6c:c0a8:500::2".into(), 1, 4));
    world.udp(GUEST6, HOST6, b"again");
    assert_eq!(world.host.sent.last().unwrap().1, "[::1]:7000".parse().unwrap());
}

#[test]
fn the_next_datagram_goes_the_way_of_the_last() {
    let mut world = World::with_guest();
    let sent =
        |world: &World| world.host.sent.iter().map(|s| (s.1, s.3.concat())).collect::<Vec<_>>();
    for (guest, dst) in [(GUEST, OUTSIDE), (GUEST6, "[2001:db8::9]:9000")] {
        world.host.sent.clear();
        for data in [&b"one"[..], b"", b"three, which is longer"] {
            world.udp(guest, dst, data);
        }
        world.udp(guest, dst.replace('9', "8").as_str(), b"elsewhere");
        let to: SocketAddr = dst.parse().unwrap();
        let other: SocketAddr = dst.replace('9', "8").parse().unwrap();
        let expected = [
            (to, b"one".to_vec()),
            (to, Vec::new()),
            (to, b"three, which is longer".to_vec()),
            (other, b"elsewhere".to_vec()),
        ];
        assert_eq!(sent(&world), expected);
        assert_eq!(world.engine.stats().dropped(Drop::Malformed), 0);
    }
}

#[test]
fn a_datagram_like_the_last_is_still_looked_at() {
    let mut world = World::with_guest();
    let good = udp_frame(GUEST, OUTSIDE, b"data");
    world.frames(std::slice::from_ref(&good));
    let change = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    // Payload, UDP length, IP checksum, a frame that is cut off.
    world.frames(&[change(44, b'x'), change(39, 13), change(24, 1), good[..45].to_vec()]);
    assert_eq!(world.host.sent.len(), 1);
    assert_eq!(world.engine.stats().dropped(Drop::Checksum), 2);
    assert_eq!(world.engine.stats().dropped(Drop::Malformed), 2);
    let mut expired = good.clone();
    expired[22] = 1;
    world.frames(&[expired]);
    assert_eq!(world.host.sent.len(), 1, "another TTL is another datagram");
}

#[test]
fn what_has_changed_counts_for_the_next_datagram() {
    let mut world =
        World::with_guest_and(|config| config.host_loopback = crate::config::HostLoopback::None);
    world.udp(GUEST, OUTSIDE, b"a");
    world.engine.set_host_addresses(vec!["203.0.113.9".parse().unwrap()]);
    world.udp(GUEST, OUTSIDE, b"b");
    assert_eq!(world.host.sent.len(), 1);
    assert_eq!(world.engine.stats().dropped(Drop::Forbidden), 1);
    world.engine.set_host_addresses(Vec::new());
    world.udp(GUEST, OUTSIDE, b"c");
    assert_eq!(world.host.sent.len(), 2);
    let port = world.port;
    world.io(|engine, io| engine.remove_port(port, io));
    world.port = world.engine.add_port(crate::PortCaps::default()).unwrap();
    world.udp(GUEST, OUTSIDE, b"d");
    assert!(
        world.engine.leases().iter().any(|l| l.ip == "192.168.5.15".parse::<IpAddr>().unwrap())
    );
}

#[test]
fn a_steady_sender_stays_known() {
    let mut world = World::with_guest();
    for _ in 0..400 {
        world.udp(GUEST, OUTSIDE, b"a");
        world.pass(100 * MS);
    }
    assert_eq!(world.host.open.len(), 1);
    assert_eq!(world.host.closed.len(), 0);
    assert_eq!(world.host.sent.len(), 400);
}
