use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use smoltcp::wire::EthernetFrame;
use vmlan_wire::{Frame, Offload};

use crate::gateway::icmp::{self, Unreachable};
use crate::io::PortId;
use crate::packet::Packet;
use crate::stats::Drop;
use crate::testing::*;

const REMOTE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const REMOTE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

fn guest6() -> Ipv6Addr {
    config().ipv6.nth(0x15)
}

fn echo(src: impl Into<IpAddr>, dst: impl Into<IpAddr>, data: &[u8]) -> Vec<u8> {
    let (src, dst) = (src.into(), dst.into());
    let (protocol, kind) = if src.is_ipv4() { (1, 8) } else { (58, 128) };
    let message = [&[kind, 0, 0, 0, 0x12, 0x34, 0, 7][..], data].concat();
    from_guest(1, &ip(src, dst, protocol, 64, &message))
}

fn datagram(src: impl Into<IpAddr>, dst: impl Into<IpAddr>, ttl: u8, data: &[u8]) -> Vec<u8> {
    from_guest(1, &ip(src.into(), dst.into(), 17, ttl, &udp(5000, 6000, data)))
}

/// Calls `f` with a frame parsed as the engine does.
fn about(
    world: &mut World,
    frame: &[u8],
    f: impl FnOnce(&mut crate::net::Net, &mut crate::Io<'_>, &Packet<'_>),
) {
    let eth = EthernetFrame::new_checked(frame).unwrap();
    let packet =
        Packet::parse(PortId(0), &eth, &Frame { data: frame, offload: Offload::NONE }).unwrap();
    world.io(|engine, io| f(&mut engine.net, io, &packet));
}

fn unreachable(world: &mut World, frame: &[u8], why: Unreachable) -> Vec<Vec<u8>> {
    about(world, frame, |net, io, packet| icmp::unreachable(net, io, packet, why));
    world.sent(PortId(0))
}

#[test]
fn echo_to_own_addresses_comes_back_as_it_was() {
    let mut world = World::new();
    let port = world.attach();
    let v6 = config().ipv6;
    let pairs: [(IpAddr, IpAddr); 5] = [
        (guest(15).into(), GATEWAY.into()),
        (guest(15).into(), DNS.into()),
        (guest6().into(), v6.host().into()),
        (guest6().into(), v6.dns().into()),
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(), config().link_local().into()),
    ];
    for (src, dst) in pairs {
        for data in [&b""[..], b"x", &[0xa5; 1400]] {
            world.send(port, &echo(src, dst, data));
            let reply = Parsed::new(&world.one(port));
            assert_eq!((reply.src, reply.dst, reply.dst_mac), (dst, src, mac(1)));
            let kind = if src.is_ipv4() { 0 } else { 129 };
            assert_eq!(reply.payload[..2], [kind, 0]);
            assert_eq!(reply.payload[4..], [&[0x12, 0x34, 0, 7][..], data].concat());
        }
    }
}

#[test]
fn echo_to_all_nodes_is_answered_by_the_gateway() {
    let mut world = World::new();
    let port = world.attach();
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    world.send(port, &echo(guest6(), all, b"hi"));
    assert_eq!(Parsed::new(&world.one(port)).src, config().ipv6.gateway());
    // For IPv4 a broadcast stays unanswered.
    let broadcast = ip(guest(15).into(), guest(255).into(), 1, 64, &[8, 0, 0, 0, 0, 1, 0, 1]);
    assert!(world.ask(port, &to_mac(BROADCAST, 1, &broadcast)).is_empty());
}

#[test]
fn a_damaged_echo_is_not_answered() {
    let mut world = World::new();
    let port = world.attach();
    for src in [IpAddr::from(guest(15)), guest6().into()] {
        let dst: IpAddr = if src.is_ipv4() { GATEWAY.into() } else { config().ipv6.host().into() };
        let mut bad = echo(src, dst, b"payload");
        *bad.last_mut().unwrap() ^= 1;
        assert!(world.ask(port, &bad).is_empty());
        let short = from_guest(
            1,
            &ip(
                src,
                dst,
                if src.is_ipv4() { 1 } else { 58 },
                64,
                &[if src.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 1],
            ),
        );
        assert!(world.ask(port, &short).is_empty());
    }
    assert_eq!(world.dropped(Drop::Checksum), 2);
    assert_eq!(world.dropped(Drop::Malformed), 2);
}

#[test]
fn each_kind_of_unreachable_says_what_it_is() {
    let mut world = World::new();
    let port = world.attach();
    announce(&mut world, port, 1, guest(15));
    let v4 = datagram(guest(15), REMOTE, 64, &[9; 100]);
    let v6 = datagram(guest6(), REMOTE6, 64, &[9; 100]);
    for (why, code4, (kind6, code6, rest6)) in [
        (Unreachable::Net, 0, (1, 0, 0)),
        (Unreachable::Host, 1, (1, 3, 0)),
        (Unreachable::Protocol, 2, (4, 1, 6)),
        (Unreachable::Port, 3, (1, 4, 0)),
        (Unreachable::Prohibited, 13, (1, 1, 0)),
    ] {
        let from_remote = why == Unreachable::Port;
        let sent = unreachable(&mut world, &v4, why);
        let error = Parsed::new(&sent[0]);
        assert_eq!(error.src, if from_remote { REMOTE } else { GATEWAY });
        assert_eq!((error.dst, error.dst_mac), (guest(15).into(), mac(1)));
        assert_eq!(error.payload[..2], [3, code4]);
        assert_eq!(error.payload[4..8], [0; 4]);
        assert_eq!(error.payload[8..], v4[14..]);

        let sent = unreachable(&mut world, &v6, why);
        let error = Parsed::new(&sent[0]);
        assert_eq!(error.src, if from_remote { REMOTE6 } else { config().ipv6.gateway() });
        assert_eq!(error.payload[..2], [kind6, code6]);
        assert_eq!(error.payload[4..8], u32::to_be_bytes(rest6));
        assert_eq!(error.payload[8..], v6[14..]);
    }
}

#[test]
fn quotes_are_cut_so_that_every_host_takes_them() {
    let mut world = World::new();
    let port = world.attach();
    announce(&mut world, port, 1, guest(15));
    let v4 = datagram(guest(15), REMOTE, 64, &[9; 1400]);
    let sent = unreachable(&mut world, &v4, Unreachable::Net);
    assert_eq!(sent[0].len(), 14 + 576);
    assert_eq!(Parsed::new(&sent[0]).payload[8..], v4[14..14 + 548]);
    let v6 = datagram(guest6(), REMOTE6, 64, &[9; 1400]);
    let sent = unreachable(&mut world, &v6, Unreachable::Net);
    assert_eq!(sent[0].len(), 14 + 1280);
    assert_eq!(Parsed::new(&sent[0]).payload[8..], v6[14..14 + 1232]);
}

#[test]
fn some_packets_are_never_complained_about() {
    let mut world = World::new();
    let port = world.attach();
    announce(&mut world, port, 1, guest(15));
    let (g4, g6) = (IpAddr::from(guest(15)), IpAddr::from(guest6()));
    for kind in [3, 4, 5, 11, 12] {
        let frame = from_guest(1, &ip(g4, REMOTE.into(), 1, 64, &[kind, 0, 0, 0, 0, 0, 0, 0]));
        assert!(unreachable(&mut world, &frame, Unreachable::Host).is_empty(), "type {kind}");
    }
    for kind in [1, 2, 3, 4, 100, 127, 137] {
        let frame = from_guest(1, &ip(g6, REMOTE6.into(), 58, 64, &[kind, 0, 0, 0, 0, 0, 0, 0]));
        assert!(unreachable(&mut world, &frame, Unreachable::Host).is_empty(), "type {kind}");
    }
    let mut fragment = datagram(guest(15), REMOTE, 64, &[9; 100]);
    fragment[21] = 3;
    fix_ipv4(&mut fragment[14..]);
    let broadcast = to_mac(BROADCAST, 1, &ip(g4, REMOTE.into(), 17, 64, &udp(1, 2, b"")));
    for frame in [
        fragment,
        broadcast,
        datagram(guest(15), guest(255), 64, b""),
        datagram(guest(15), Ipv4Addr::BROADCAST, 64, b""),
        datagram(guest(15), Ipv4Addr::new(224, 0, 0, 1), 64, b""),
        datagram(Ipv4Addr::UNSPECIFIED, REMOTE, 64, b""),
        datagram(guest6(), "ff02::1".parse::<Ipv6Addr>().unwrap(), 64, b""),
    ] {
        assert!(unreachable(&mut world, &frame, Unreachable::Host).is_empty());
    }
    // An echo request is not an error.
    let frame = echo(guest(15), REMOTE, b"");
    assert_eq!(unreachable(&mut world, &frame, Unreachable::Host).len(), 1);
}

#[test]
fn ttl_that_runs_out_is_reported_for_the_outside_only() {
    let mut world = World::new();
    let port = world.attach();
    let frame = datagram(guest(15), REMOTE, 1, b"probe");
    let error = Parsed::new(&world.ask(port, &frame)[0]);
    assert_eq!((error.src, error.payload[0], error.payload[1]), (GATEWAY.into(), 11, 0));
    assert_eq!(error.payload[8..], frame[14..]);
    let frame = datagram(guest6(), REMOTE6, 1, b"probe");
    let error = Parsed::new(&world.ask(port, &frame)[0]);
    assert_eq!((error.src, error.payload[0]), (config().ipv6.gateway().into(), 3));
    assert_eq!(world.dropped(Drop::Expired), 2);
    let mut last_hop = echo(guest(15), GATEWAY, b"");
    last_hop[22] = 1;
    fix_ipv4(&mut last_hop[14..]);
    assert_eq!(Parsed::new(&world.ask(port, &last_hop)[0]).payload[0], 0);
}

#[test]
fn errors_are_rare_enough_not_to_be_a_load() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    let frame = datagram(guest(15), REMOTE, 1, b"");
    world.send_all(port, &vec![frame; 5000]);
    assert_eq!(world.sent(port).len(), 100);
    assert_eq!(world.dropped(Drop::Limit), 4900);
    let mut theirs = from_guest(2, &ip(guest(16).into(), REMOTE.into(), 17, 1, &udp(1, 2, b"")));
    assert_eq!(world.ask(other, &theirs).len(), 1);
    world.pass(Duration::from_secs(1));
    theirs[6..12].copy_from_slice(&mac(2).0);
    assert_eq!(world.ask(other, &theirs).len(), 1);
}

#[test]
fn an_unknown_protocol_is_named_by_its_place_in_the_packet() {
    let mut world = World::new();
    let port = world.attach();
    let error =
        world.ask(port, &from_guest(1, &ip(guest(15).into(), REMOTE.into(), 132, 64, &[0; 12])));
    assert_eq!(Parsed::new(&error[0]).payload[..2], [3, 2]);
    // SCTP behind destination options: the pointer names their "next header".
    let options = [&[132, 0, 1, 4, 0, 0, 0, 0][..], &[0; 12]].concat();
    let error =
        world.ask(port, &from_guest(1, &ip(guest6().into(), REMOTE6.into(), 60, 64, &options)));
    let error = Parsed::new(&error[0]);
    assert_eq!(error.payload[..2], [4, 1]);
    assert_eq!(error.payload[4..8], [0, 0, 0, 40]);
    assert_eq!(world.dropped(Drop::UnknownProtocol), 2);
}

#[test]
fn errors_from_outside_keep_their_sender() {
    let mut world = World::new();
    let port = world.attach();
    announce(&mut world, port, 1, guest(15));
    let router: IpAddr = "198.51.100.1".parse().unwrap();
    let router6: IpAddr = "2001:db8::77".parse().unwrap();
    let quote4 = datagram(guest(15), REMOTE, 64, b"abcdefgh")[14..].to_vec();
    let quote6 = datagram(guest6(), REMOTE6, 64, b"abcdefgh")[14..].to_vec();
    let alias = config().ipv6.host();
    let to_alias = datagram(guest6(), alias, 64, b"abcdefgh")[14..].to_vec();
    let (g4, g6) = (IpAddr::from(guest(15)), IpAddr::from(guest6()));
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    let loopback6 = IpAddr::from(Ipv6Addr::LOCALHOST);
    for (guest, offender, kind, quote, (src, expected)) in [
        (g4, router, (11, 0, 0), &quote4, (router, [11, 0, 0, 0, 0, 0])),
        (g4, router, (3, 4, 1400), &quote4, (router, [3, 4, 0, 0, 0x05, 0x78])),
        (g4, router, (3, 4, 70_000), &quote4, (router, [3, 4, 0, 0, 0xff, 0xff])),
        (g6, router6, (2, 0, 1400), &quote6, (router6, [2, 0, 0, 0, 0x05, 0x78])),
        (g4, loopback, (3, 3, 0), &quote4, (REMOTE.into(), [3, 3, 0, 0, 0, 0])),
        (g6, loopback6, (1, 4, 0), &to_alias, (alias.into(), [1, 4, 0, 0, 0, 0])),
        // The alias fell back from ::1 to 127.0.0.1.
        (g6, loopback, (3, 3, 0), &to_alias, (alias.into(), [1, 4, 0, 0, 0, 0])),
        (g6, loopback, (3, 4, 1400), &to_alias, (alias.into(), [2, 0, 0, 0, 0x05, 0x8c])),
        (g4, router6, (1, 0, 0), &quote4, (REMOTE.into(), [3, 1, 0, 0, 0, 0])),
        (g4, router6, (3, 0, 0), &vec![], (GATEWAY.into(), [11, 0, 0, 0, 0, 0])),
    ] {
        world.io(|engine, io| {
            icmp::relayed(&mut engine.net, io, mac(1), guest, offender, kind, quote);
        });
        let error = Parsed::new(&world.one(port));
        assert_eq!((error.src, error.dst, error.dst_mac), (src, guest, mac(1)), "{kind:?}");
        assert_eq!([&error.payload[..2], &error.payload[4..8]].concat(), expected, "{kind:?}");
        assert_eq!(error.payload[8..], quote[..]);
    }
}
