use super::*;
use crate::io::Failure;
use crate::testing::{MS, World, parse_ip, udp_frame};
use crate::{Drop, SockId};

const GUEST: &str = "192.168.5.15:53";
const GATEWAY: &str = "192.168.5.2";

fn add(world: &mut World, text: &str) -> Result<ForwardId, String> {
    let parsed = parse_forward(text, "192.168.5.15".parse().unwrap()).unwrap();
    world.io(|engine, io| engine.add_forward(parsed[0].clone(), io))
}

/// A world with one forward, whose guest has been heard of.
fn with(text: &str) -> (World, SockId) {
    let mut world = World::with_guest();
    add(&mut world, text).unwrap();
    let sock = world.host.sockets()[0];
    world.udp("192.168.5.15:9", "203.0.113.9:9", b"here I am");
    world.host.sent.clear();
    (world, sock)
}

/// TCP segments that guests got: source, destination, flags.
fn segments(world: &mut World) -> Vec<(String, u16, u8)> {
    let frames = std::mem::take(&mut world.links.sent);
    let tcp = |frame: &[u8]| {
        let (src, _, protocol, segment) = parse_ip(frame)?;
        let port = u16::from_be_bytes([segment[2], segment[3]]);
        (protocol == 6).then(|| (src.to_string(), port, segment[13]))
    };
    frames.iter().filter_map(|(_, frame)| tcp(frame)).collect()
}

#[test]
fn connections_are_opened_towards_the_guest() {
    let (mut world, sock) = with("8080=80");
    world.host.backlog.entry(sock).or_default().push_back("127.0.0.1:1".parse().unwrap());
    world.ready(sock);
    assert_eq!(segments(&mut world), [(GATEWAY.into(), 80, 2)]);
}

#[test]
fn the_client_s_address_is_kept_where_the_guest_can_answer_it() {
    let (mut world, sock) = with("0.0.0.0:8080=80,source=keep");
    for client in ["203.0.113.1:1000", "127.0.0.1:1000", "192.168.5.99:1000", "169.254.0.1:1"] {
        world.host.backlog.entry(sock).or_default().push_back(client.parse().unwrap());
    }
    world.ready(sock);
    let sources: Vec<String> = segments(&mut world).into_iter().map(|s| s.0).collect();
    assert_eq!(sources, ["203.0.113.1", GATEWAY, GATEWAY, GATEWAY]);
    let keeps = |client: &str| {
        let config = world.engine.config();
        kept_source(config, true, GUEST.parse().unwrap(), client.parse().unwrap()).is_some()
    };
    assert!(keeps("203.0.113.1:1"));
    assert!(!keeps("[2001:db8::1]:1"), "another family");
}

#[test]
fn a_long_backlog_is_worked_off_in_turns() {
    let (mut world, sock) = with("8080=80");
    let clients = (1..=150).map(|n| SocketAddr::from(([127, 0, 0, 1], n)));
    world.host.backlog.insert(sock, clients.collect());
    world.ready(sock);
    assert_eq!(world.host.accepts, BUDGET);
    assert_eq!(world.engine.next_timeout(), Some(Instant::ZERO));
    // An event that comes meanwhile changes nothing.
    world.ready(sock);
    assert_eq!(world.host.accepts, BUDGET);
    world.pass(MS);
    assert_eq!(segments(&mut world).len(), 150);
    assert_eq!(world.host.accepts, 151);
}

#[test]
fn without_descriptors_it_asks_again_after_a_while() {
    let (mut world, sock) = with("8080=80");
    world.host.backlog.entry(sock).or_default().push_back("127.0.0.1:1".parse().unwrap());
    world.host.refuse = Some(Failure::Exhausted);
    world.ready(sock);
    world.ready(sock);
    assert_eq!(world.host.accepts, 1);
    world.pass(170 * MS);
    assert_eq!(world.host.accepts, 4);
    world.host.refuse = None;
    world.pass(50 * MS);
    assert_eq!(segments(&mut world).len(), 1);
}

#[test]
fn what_cannot_be_forwarded_is_refused_with_words() {
    let mut world = World::with_guest();
    let id = add(&mut world, "8080=80").unwrap();
    add(&mut world, "8080=80/udp").unwrap();
    world.host.occupied.insert(ListenAddr::Tcp("127.0.0.1:81".parse().unwrap()));
    world.host.occupied.insert(ListenAddr::Udp("127.0.0.1:81".parse().unwrap()));
    for (text, words) in [
        ("8080=81", "127.0.0.1:8080 is forwarded to 192.168.5.15:80 already"),
        ("8080=81/udp", "127.0.0.1:8080/udp is forwarded to 192.168.5.15:80 already"),
        ("81=81", "cannot listen on 127.0.0.1:81: in use"),
        ("81=81/udp", "cannot listen on 127.0.0.1:81/udp: in use"),
        ("82=192.168.5.2:80", "192.168.5.2 is the gateway's own address, not a guest's"),
        (
            "82=10.0.0.1:80",
            "10.0.0.1 is not in the network (192.168.5.0/24, fd76:6d6c:c0a8:500::/64)",
        ),
        (
            "82=[2001:db8::1]:80",
            "2001:db8::1 is not in the network (192.168.5.0/24, fd76:6d6c:c0a8:500::/64)",
        ),
    ] {
        assert_eq!(add(&mut world, text), Err(words.into()));
    }
    assert_eq!(world.host.open.len(), 2);
    assert!(world.io(|engine, io| engine.remove_forward(id, io)));
    assert!(!world.io(|engine, io| engine.remove_forward(id, io)));
    assert!(add(&mut world, "8080=81").is_ok_and(|new| new > id));
    assert_eq!(world.engine.forwards().count(), 2);
    world.io(|engine, io| engine.shutdown(io));
    assert!(world.host.open.is_empty());
    assert_eq!(world.engine.forwards().count(), 0);
}

#[test]
fn datagrams_go_to_the_guest_and_answers_back() {
    let (mut world, sock) = with("5353=53/udp");
    world.host.deliver(sock, "127.0.0.1:4000", b"who?");
    world.host.deliver(sock, "203.0.113.7:4000", b"where?");
    world.ready(sock);
    let got = world.got_udp();
    let (first, second) = (got[0].0.clone(), got[1].0.clone());
    assert_eq!(first, "192.168.5.2:4000", "the port is the client's own where it can be");
    assert!(second.starts_with("192.168.5.2:") && second != first, "{second}");
    assert_eq!((got[0].1.as_str(), &got[0].2[..]), (GUEST, &b"who?"[..]));
    let answers = [
        udp_frame(GUEST, &second, b"there"),
        udp_frame(GUEST, &first, b"me"),
        udp_frame(GUEST, &first, b"really"),
    ];
    world.frames(&answers);
    let sent: Vec<_> =
        world.host.sent.iter().map(|s| (s.0, s.1.to_string(), s.2.ttl, s.3.concat())).collect();
    let expected = [
        (sock, "203.0.113.7:4000".into(), 64, b"there".to_vec()),
        (sock, "127.0.0.1:4000".into(), 64, b"mereally".to_vec()),
    ];
    assert_eq!(sent, expected);
    world.udp("192.168.5.15:54", &first, b"from another port");
    assert_ne!(world.host.sent[2].0, sock, "that is nothing of the forward's");
}

#[test]
fn a_kept_client_is_answered_too() {
    let (mut world, sock) = with("0.0.0.0:5353=53/udp,source=keep");
    world.host.deliver(sock, "203.0.113.7:4000", b"where?");
    world.ready(sock);
    assert_eq!(world.got_udp()[0].0, "203.0.113.7:4000");
    world.udp(GUEST, "203.0.113.7:4000", b"there");
    assert_eq!((world.host.sent[0].0, world.host.sent[0].2.ttl), (sock, 63));
}

#[test]
fn clients_are_forgotten_and_limited() {
    let (mut world, sock) = with("5353=53/udp");
    let mut ports = std::collections::HashSet::new();
    for n in 0..5000u32 {
        let client = SocketAddr::from((n.to_be_bytes(), 4000));
        world.host.deliver(sock, &client.to_string(), b"x");
        if n % 50 == 49 {
            world.ready(sock);
            ports.extend(world.got_udp().into_iter().map(|d| d.0));
        }
    }
    let clients =
        |world: &World| world.engine.flows().iter().filter(|f| f.remote.is_some()).count();
    assert!(clients(&world) <= 4097, "{}", clients(&world));
    assert!(ports.len() > 4096);
    world.pass(61_000 * MS);
    assert_eq!(clients(&world), 0);
    assert_eq!(world.host.sockets(), [sock]);
}

#[test]
fn a_guest_not_heard_of_yet_is_asked_for() {
    let mut world = World::with_guest();
    add(&mut world, "5353=53/udp").unwrap();
    let sock = world.host.sockets()[0];
    for n in 0..6 {
        world.host.deliver(sock, "127.0.0.1:4000", &[n]);
    }
    world.ready(sock);
    let arp = |frame: &[u8]| frame[12..14] == [0x08, 0x06];
    assert_eq!(world.links.sent.iter().filter(|(_, frame)| arp(frame)).count(), 1);
    assert!(world.got_udp().is_empty());
    assert_eq!(world.engine.stats().dropped(Drop::Limit), 2);
    world.udp("192.168.5.15:9", "203.0.113.9:9", b"here I am");
    let got: Vec<u8> = world.got_udp().iter().map(|d| d.2[0]).collect();
    assert_eq!(got, [0, 1, 2, 3]);
}

#[test]
fn a_guest_that_does_not_answer_costs_what_was_kept() {
    let mut world = World::with_guest();
    add(&mut world, "5353=53/udp").unwrap();
    let sock = world.host.sockets()[0];
    world.host.deliver(sock, "127.0.0.1:4000", b"x");
    world.ready(sock);
    world.pass(1_100 * MS);
    assert_eq!(world.engine.stats().dropped(Drop::NoFlow), 1);
    world.udp("192.168.5.15:9", "203.0.113.9:9", b"here I am");
    assert!(world.got_udp().is_empty());
}

#[test]
fn a_removed_udp_forward_leaves_nothing() {
    let (mut world, sock) = with("5353=53/udp");
    world.host.deliver(sock, "127.0.0.1:4000", b"x");
    world.ready(sock);
    let (id, _) = world.engine.forwards().next().unwrap();
    world.io(|engine, io| engine.remove_forward(id, io));
    assert!(!world.host.open.contains_key(&sock));
    world.udp(GUEST, "192.168.5.2:4000", b"y");
    assert_eq!(world.host.sent[0].1, "127.0.0.1:4000".parse().unwrap(), "an ordinary flow");
    assert_ne!(world.host.sent[0].0, sock);
}
