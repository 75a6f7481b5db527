//! Clients of the host that the engine's owner carries to guests: dials, and relayed datagrams,
//! with a real stack as guest.
#![allow(clippy::cast_possible_truncation)]

use std::net::IpAddr;
use std::time::Duration;

use vmlan_engine::io::Failure;
use vmlan_engine::{DialId, RelayId, Relayed};
use vmlan_testkit::{End, Ending, LinkOptions, Pattern, Remote, Seen, World, addr, packet};

const SEC: Duration = Duration::from_secs(1);
const GUEST: &str = "192.168.5.15:80";
const GUEST6: &str = "[fd76:6d6c:c0a8:500::f]:80";

fn world() -> World {
    let mut world = World::new(1);
    world.add_guest(LinkOptions::plain(1500));
    world
}

fn dial(world: &mut World, to: &str) -> DialId {
    world.io(|engine, io| engine.dial(addr(to), io)).expect("a guest's address")
}

/// Waits for the outcome of a dial.
fn outcome(world: &mut World, dial: DialId) -> Result<(), Failure> {
    for _ in 0..6000 {
        world.run_for(Duration::from_millis(10));
        if let Some((id, outcome)) = world.engine.next_dialed() {
            assert_eq!(id, dial);
            assert_eq!(world.engine.next_dialed(), None, "told once");
            return outcome;
        }
    }
    panic!("no outcome: {:?}", world.engine.flows());
}

#[test]
fn bytes_flow_once_the_stream_is_there() {
    for guest in [GUEST, GUEST6] {
        let mut world = world();
        let server = world.guests[0].listen(80);
        let bytes = 1 << 20;
        world.guests[0].expect(server, Pattern(1));
        world.guests[0].send(server, Pattern(2), bytes);
        let id = dial(&mut world, guest);
        assert_eq!(outcome(&mut world, id), Ok(()));
        // What the guest says meanwhile is held.
        world.run_for(SEC);
        assert!(world.guests[0].app(server).established);
        let client = Remote::accept().sends(Pattern(1), bytes).expects(Pattern(2));
        world.attach(id, client.then(Ending::Fin), &[]);
        world.run_until(60 * SEC, |w| {
            w.guests[0].app(server).end.is_some() && w.engine.flows().is_empty()
        });
        let app = world.guests[0].app(server);
        assert_eq!((app.received, app.mismatch, app.end), (bytes, None, Some(End::Fin)));
        let conn = &world.host.conns[0];
        assert_eq!((conn.read, conn.mismatch, conn.seen), (bytes, None, Some(Seen::Fin)));
        assert_eq!(world.host.open_sockets(), 0);
    }
}

#[test]
fn what_was_read_before_comes_first() {
    let mut world = world();
    let server = world.guests[0].listen(80);
    world.guests[0].expect(server, Pattern(1));
    let id = dial(&mut world, GUEST);
    assert_eq!(outcome(&mut world, id), Ok(()));
    let mut early = vec![0; 3000];
    Pattern(1).fill(0, &mut early);
    world.attach(id, Remote::accept().then(Ending::Hold), &early);
    world.run_for(SEC);
    let app = world.guests[0].app(server);
    assert_eq!((app.received, app.mismatch), (3000, None));
}

#[test]
fn too_much_of_it_is_a_reset_for_both() {
    let mut world = world();
    let server = world.guests[0].listen(80);
    let id = dial(&mut world, GUEST);
    assert_eq!(outcome(&mut world, id), Ok(()));
    world.attach(id, Remote::accept().then(Ending::Hold), &vec![0; 200_000]);
    world.run_for(SEC);
    assert_eq!(world.host.conns[0].seen, Some(Seen::Reset));
    assert_eq!(world.guests[0].app(server).end, Some(End::Reset));
    assert!(world.engine.flows().is_empty());
}

#[test]
fn failures_are_told_as_what_they_are() {
    let mut world = world();
    // Nobody listens.
    let id = dial(&mut world, GUEST);
    assert_eq!(outcome(&mut world, id), Err(Failure::Refused));
    // Nobody has the address.
    let id = dial(&mut world, "192.168.5.99:80");
    assert_eq!(outcome(&mut world, id), Err(Failure::HostUnreachable));
    // Somebody has, and says nothing.
    let silent = world.add_port(LinkOptions::plain(1500));
    let mac = vmlan_wire::Mac([2, 0, 0, 0, 0, 9]);
    let hello =
        packet::arp_request(mac, "192.168.5.77".parse().unwrap(), "192.168.5.2".parse().unwrap());
    world.inject(silent, hello);
    let id = dial(&mut world, "192.168.5.77:80");
    assert_eq!(outcome(&mut world, id), Err(Failure::TimedOut));
    assert!(world.engine.flows().is_empty());
}

/// A guest whose firewall rejects, by whatever error.
#[test]
fn errors_of_the_guest_s_firewall_end_a_call() {
    let mac = vmlan_wire::Mac([2, 0, 0, 0, 0, 9]);
    let (v4, v6) = ("192.168.5.77:80", "[fd76:6d6c:c0a8:500::4d]:80");
    for (to, kind, code, expected) in [
        (v4, 3, 3, Failure::Refused),
        (v4, 3, 13, Failure::Prohibited),
        (v4, 3, 1, Failure::HostUnreachable),
        (v6, 1, 4, Failure::Refused),
        (v6, 1, 1, Failure::Prohibited),
        (v6, 1, 0, Failure::NetUnreachable),
    ] {
        let mut world = World::new(1);
        let port = world.add_port(LinkOptions::plain(1500));
        let gateway = world.engine.config().gateway_mac;
        let guest = addr(to);
        let own: IpAddr = match guest.ip() {
            IpAddr::V4(_) => world.engine.config().gateway.into(),
            IpAddr::V6(_) => world.engine.config().ipv6.gateway().into(),
        };
        // It is known by what it sends.
        let hello = packet::udp(mac, gateway, (guest.ip(), 9).into(), (own, 9).into(), b"x");
        world.inject(port, hello);
        let id = dial(&mut world, to);
        world.run_for(Duration::ZERO);
        let frames = std::iter::from_fn(|| world.take(port)).map(|f| f.data);
        let is_syn = |f: &Vec<u8>| {
            packet::parse(f).is_some_and(|p| p.tcp().is_some_and(|t| t.has(packet::SYN)))
        };
        let syn = frames.filter(is_syn).last().expect("a call");
        let error = |kind: u8, seq: u8| {
            let mut quote = syn[14..].to_vec();
            // The last byte of the segment's number, behind the IP header.
            let at = if guest.is_ipv6() { 40 } else { 20 } + 7;
            quote[at] = quote[at].wrapping_add(seq);
            let message = [&[kind, code, 0, 0, 0, 0, 0, 0], &quote[..]].concat();
            let protocol = if guest.is_ipv6() { 58 } else { 1 };
            packet::ip_frame(mac, gateway, guest.ip(), own, protocol, &message)
        };
        // About something else, and nothing that is an error.
        for other in [error(kind, 1), error(11, 0)] {
            world.inject(port, other);
            assert_eq!(world.engine.next_dialed(), None);
        }
        world.inject(port, error(kind, 0));
        assert_eq!(world.engine.next_dialed(), Some((id, Err(expected))), "{to} {kind} {code}");
        assert!(world.engine.flows().iter().all(|flow| flow.protocol != "tcp"));
    }
}

#[test]
fn only_guests_are_called() {
    let mut world = world();
    let config = world.engine.config();
    let outside = [
        "192.168.5.2:80".to_owned(),
        "192.168.5.3:53".to_owned(),
        "192.168.5.0:80".to_owned(),
        "192.168.5.255:80".to_owned(),
        "192.168.6.15:80".to_owned(),
        "127.0.0.1:80".to_owned(),
        "192.168.5.15:0".to_owned(),
        format!("[{}]:80", config.ipv6.host()),
        "[::1]:80".to_owned(),
        "[::ffff:192.168.5.15]:80".to_owned(),
    ];
    for to in outside {
        let dialed = world.io(|engine, io| engine.dial(addr(&to), io));
        assert_eq!(dialed, Err(Failure::Prohibited), "{to}");
        let relayed = world.io(|engine, io| engine.relay(RelayId(0), 5000, addr(&to), b"x", io));
        assert_eq!(relayed, Err(Failure::Prohibited), "{to}");
    }
}

#[test]
fn a_dial_can_be_given_up_at_any_time() {
    let mut world = world();
    world.guests[0].listen(80);
    for to in ["192.168.5.99:80", GUEST] {
        let id = dial(&mut world, to);
        world.io(|engine, io| engine.hang_up(id, io));
        world.run_for(60 * SEC);
        assert_eq!(world.engine.next_dialed(), None, "{to}");
        assert!(world.engine.flows().is_empty(), "{to}");
    }
    let id = dial(&mut world, GUEST);
    world.run_for(SEC);
    world.io(|engine, io| engine.hang_up(id, io));
    assert_eq!(world.engine.next_dialed(), None);
    assert!(world.engine.flows().is_empty());
    // A number that is used again is another one.
    let other = dial(&mut world, GUEST);
    assert_ne!(other, id);
    world.io(|engine, io| engine.hang_up(id, io));
    assert_eq!(world.engine.flows().len(), 1);
}

#[test]
fn a_guest_that_leaves_before_the_stream_comes_is_a_reset() {
    let mut world = world();
    let server = world.guests[0].listen(80);
    let id = dial(&mut world, GUEST);
    assert_eq!(outcome(&mut world, id), Ok(()));
    world.guests[0].abort(server);
    world.run_for(SEC);
    world.attach(id, Remote::accept().then(Ending::Hold), b"x");
    world.run_for(SEC);
    assert_eq!(world.host.conns[0].seen, Some(Seen::Reset));
    assert_eq!(world.host.open_sockets(), 0);
}

#[test]
fn datagrams_are_relayed_and_answered() {
    let mut world = world();
    let echo = world.guests[0].udp(7);
    let relay = RelayId(3);
    for guest in ["192.168.5.15:7", "[fd76:6d6c:c0a8:500::f]:7"] {
        // The first has to wait until the guest is found.
        for text in [&b"one"[..], b"two"] {
            world.io(|engine, io| engine.relay(relay, 40_000, addr(guest), text, io)).unwrap();
            world.run_for(SEC);
            let (from, data) = world.guests[0].udp_recv(echo).expect("it has come");
            assert_eq!(data, text);
            let gateway: IpAddr = world.engine.config().gateway.into();
            assert_eq!((from.port(), from.ip() == gateway), (40_000, from.is_ipv4()));
            world.guests[0].udp_send(echo, from, b"answer");
            world.run_for(SEC);
            let answer = Relayed { relay, guest: addr(guest), data: b"answer".to_vec() };
            assert_eq!(world.engine.next_relayed(), Some(answer));
        }
    }
    world.engine.end_relay(relay);
    assert!(world.engine.flows().is_empty());
}

#[test]
fn two_relays_with_one_port_are_told_apart() {
    let mut world = world();
    let echo = world.guests[0].udp(7);
    let guest = addr("192.168.5.15:7");
    for n in [1, 2] {
        world.io(|engine, io| engine.relay(RelayId(n), 40_000, guest, &[n as u8], io)).unwrap();
        world.run_for(SEC);
    }
    while let Some((from, data)) = world.guests[0].udp_recv(echo) {
        world.guests[0].udp_send(echo, from, &data);
    }
    world.run_for(SEC);
    for n in [1, 2] {
        let answer = world.engine.next_relayed().expect("an answer");
        assert_eq!((answer.relay, answer.data), (RelayId(n), vec![n as u8]));
    }
    assert_eq!(world.engine.next_relayed(), None);
    // They are forgotten after a while.
    world.run_for(200 * SEC);
    assert!(world.engine.flows().is_empty());
}

#[test]
fn answers_that_nobody_takes_are_bounded() {
    let mut world = world();
    let echo = world.guests[0].udp(7);
    let relay = RelayId(0);
    world.io(|engine, io| engine.relay(relay, 40_000, addr("192.168.5.15:7"), b"x", io)).unwrap();
    world.run_for(SEC);
    let (from, _) = world.guests[0].udp_recv(echo).expect("it has come");
    for _ in 0..3000 {
        world.guests[0].udp_send(echo, from, b"flood");
        world.run_for(Duration::from_millis(1));
    }
    let mut taken = 0;
    while world.engine.next_relayed().is_some() {
        taken += 1;
    }
    assert!((1000..2000).contains(&taken), "{taken}");
    assert!(world.engine.stats().dropped(vmlan_engine::Drop::Limit) > 0);
}
