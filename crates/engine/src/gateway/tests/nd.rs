use std::net::{IpAddr, Ipv6Addr};

use crate::gateway::solicit;
use crate::stats::Drop;
use crate::testing::*;

/// EUI-64 of the gateway's MAC 52:55:c0:a8:05:02.
const GATEWAY_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5055, 0xc0ff, 0xfea8, 0x0502);
const GUEST_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x15);
const UNSPECIFIED: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn gateway() -> Ipv6Addr {
    config().ipv6.gateway()
}

fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// A neighbour solicitation with a source link-layer address option, if wanted.
fn ns(target: Ipv6Addr, lladdr: Option<u8>) -> Vec<u8> {
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
    if let Some(n) = lladdr {
        message.extend([1, 1]);
        message.extend(mac(n).0);
    }
    message
}

fn na(flags: u8, target: Ipv6Addr, lladdr: Option<u8>) -> Vec<u8> {
    let mut message = [&[136, 0, 0, 0, flags, 0, 0, 0][..], &target.octets()].concat();
    if let Some(n) = lladdr {
        message.extend([2, 1]);
        message.extend(mac(n).0);
    }
    message
}

fn frame(n: u8, src: Ipv6Addr, dst: Ipv6Addr, hops: u8, message: &[u8]) -> Vec<u8> {
    let to = if dst.is_multicast() {
        let [.., a, b, c, d] = dst.octets();
        vmlan_wire::Mac([0x33, 0x33, a, b, c, d])
    } else {
        GATEWAY_MAC
    };
    to_mac(to, n, &ip(src.into(), dst.into(), 58, hops, message))
}

fn advertisement(target: Ipv6Addr, flags: u8) -> Vec<u8> {
    [&[flags, 0, 0, 0][..], &target.octets(), &[2, 1], &GATEWAY_MAC.0].concat()
}

#[test]
fn own_addresses_are_advertised() {
    let mut world = World::new();
    let port = world.attach();
    let v6 = config().ipv6;
    for own in [v6.gateway(), v6.host(), v6.dns(), GATEWAY_LL] {
        let asked = frame(1, GUEST_LL, solicited_node(own), 255, &ns(own, Some(1)));
        world.send(port, &asked);
        let answer = Parsed::new(&world.one(port));
        assert_eq!((answer.dst_mac, answer.ttl, answer.protocol), (mac(1), 255, 58));
        assert_eq!((answer.src, answer.dst), (own.into(), GUEST_LL.into()));
        assert_eq!(answer.payload[..2], [136, 0]);
        // Router, solicited, override.
        assert_eq!(answer.payload[4..], advertisement(own, 0xe0));
    }
    assert_eq!(world.engine.net.neighbors.get(GUEST_LL.into()).unwrap().mac, mac(1));
    let other = v6.nth(0x99);
    assert!(
        world
            .ask(port, &frame(1, GUEST_LL, solicited_node(other), 255, &ns(other, Some(1))))
            .is_empty()
    );
}

#[test]
fn unreachability_detection_is_answered_unicast_without_an_option() {
    let mut world = World::new();
    let port = world.attach();
    world.send(port, &frame(1, GUEST_LL, gateway(), 255, &ns(gateway(), None)));
    let answer = Parsed::new(&world.one(port));
    assert_eq!((answer.src, answer.dst), (gateway().into(), GUEST_LL.into()));
    assert_eq!(answer.payload[4..], advertisement(gateway(), 0xe0));
}

#[test]
fn a_guest_that_would_take_an_own_address_is_told_by_everybody_s_address() {
    let mut world = World::new();
    let port = world.attach();
    world.send(port, &frame(1, UNSPECIFIED, solicited_node(gateway()), 255, &ns(gateway(), None)));
    let answer = Parsed::new(&world.one(port));
    assert_eq!(answer.dst_mac.0, [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(answer.dst, "ff02::1".parse::<IpAddr>().unwrap());
    // Not solicited: nobody has an address yet.
    assert_eq!(answer.payload[4..], advertisement(gateway(), 0xa0));
    assert!(world.engine.leases().is_empty());
}

#[test]
fn what_did_not_come_from_the_link_itself_or_is_malformed_is_dropped() {
    let mut world = World::new();
    let port = world.attach();
    let group = solicited_node(gateway());
    let good = ns(gateway(), Some(1));
    let with = |message: &[u8]| frame(1, GUEST_LL, group, 255, message);
    let mut code = good.clone();
    code[1] = 1;
    let mut no_length = good.clone();
    no_length[25] = 0;
    let mut too_long = good.clone();
    too_long[25] = 2;
    for bad in [
        frame(1, GUEST_LL, group, 254, &good),
        with(&code),
        with(&no_length),
        with(&too_long),
        with(&good[..20]),
        with(&ns("ff02::1".parse().unwrap(), Some(1))),
        // From the unspecified address: with an option, or not to the solicited-node group.
        frame(1, UNSPECIFIED, group, 255, &good),
        frame(1, UNSPECIFIED, "ff02::1".parse().unwrap(), 255, &ns(gateway(), None)),
    ] {
        assert!(world.ask(port, &bad).is_empty());
    }
    assert_eq!(world.dropped(Drop::Malformed), 8);
    let mut sum = with(&good);
    sum[57] ^= 1;
    assert!(world.ask(port, &sum).is_empty());
    assert_eq!(world.dropped(Drop::Checksum), 1);
}

#[test]
fn a_silent_guest_is_solicited_and_only_its_own_word_is_believed() {
    let mut world = World::new();
    let (port, thief) = (world.attach(), world.attach());
    let target = config().ipv6.nth(0xab_cdef);
    world.io(|engine, io| solicit(&mut engine.net, io, target.into()));
    let asked = Parsed::new(&world.one(port));
    assert_eq!(asked.dst_mac.0, [0x33, 0x33, 0xff, 0xab, 0xcd, 0xef]);
    assert_eq!((asked.src, asked.dst), (gateway().into(), solicited_node(target).into()));
    assert_eq!(asked.ttl, 255);
    let expected = [&target.octets()[..], &[1, 1], &GATEWAY_MAC.0].concat();
    assert_eq!(asked.payload[8..], expected);

    // Somebody answers for another, or for the gateway, or with an address outside.
    let group = "ff02::1".parse().unwrap();
    world.send(thief, &frame(2, GUEST_LL, gateway(), 255, &na(0x60, target, Some(9))));
    world.send(thief, &frame(2, GUEST_LL, group, 255, &na(0x20, gateway(), Some(2))));
    world.send(
        thief,
        &frame(2, GUEST_LL, group, 255, &na(0x20, "2001:db8::1".parse().unwrap(), Some(2))),
    );
    assert_eq!((world.dropped(Drop::Source), world.dropped(Drop::Spoofed)), (2, 1));
    assert_eq!(world.engine.net.neighbors.get(target.into()), None);

    let own_ll = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x16);
    world.send(port, &frame(1, own_ll, gateway(), 255, &na(0x60, target, Some(1))));
    assert_eq!(world.engine.net.neighbors.get(target.into()).unwrap().mac, mac(1));
    world.send(thief, &frame(2, GUEST_LL, gateway(), 255, &na(0x60, target, Some(2))));
    assert_eq!(world.engine.net.neighbors.get(target.into()).unwrap().mac, mac(1));
}

#[test]
fn guests_cannot_tell_each_other_that_they_are_the_gateway() {
    let mut world = World::new();
    let (port, thief) = (world.attach(), world.attach());
    let group: Ipv6Addr = "ff02::1".parse().unwrap();
    let other = config().ipv6.nth(0x99);
    for (src, message) in [
        (GUEST_LL, na(0x20, gateway(), Some(2))),
        (GUEST_LL, na(0x20, GATEWAY_LL, Some(2))),
        (gateway(), ns(other, Some(2))),
        (GATEWAY_LL, vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        world.send(thief, &frame(2, src, group, 255, &message));
    }
    assert!(world.sent(port).is_empty());
    assert_eq!(world.dropped(Drop::Spoofed), 4);
    world.send(thief, &frame(2, GUEST_LL, group, 255, &na(0x20, other, Some(2))));
    assert_eq!(world.sent(port).len(), 1);
}
