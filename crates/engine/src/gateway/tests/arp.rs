use std::net::{IpAddr, Ipv4Addr};

use crate::gateway::solicit;
use crate::stats::Drop;
use crate::testing::*;

const NOBODY: vmlan_wire::Mac = vmlan_wire::Mac([0; 6]);

fn request(n: u8, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(1, BROADCAST, (mac(n), sender), (NOBODY, target))
}

#[test]
fn own_addresses_are_answered_to_the_asker_alone() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    for own in [GATEWAY, DNS] {
        world.send(port, &request(1, guest(15), own));
        let expected = arp(2, mac(1), (GATEWAY_MAC, own), (mac(1), guest(15)));
        assert_eq!(world.one(port), expected);
        // The request was flooded, the answer was not.
        assert_eq!(world.one(other), request(1, guest(15), own));
    }
    assert!(world.ask(port, &request(1, guest(15), guest(16))).is_empty());
}

#[test]
fn a_probe_for_an_own_address_is_answered_and_teaches_nothing() {
    let mut world = World::new();
    let port = world.attach();
    world.send(port, &request(1, Ipv4Addr::UNSPECIFIED, GATEWAY));
    let answer = arp(2, mac(1), (GATEWAY_MAC, GATEWAY), (mac(1), Ipv4Addr::UNSPECIFIED));
    assert_eq!(world.one(port), answer);
    assert!(world.engine.leases().is_empty());
}

#[test]
fn senders_are_learned_and_nobody_takes_an_address_that_is_taken() {
    let mut world = World::new();
    let (port, thief) = (world.attach(), world.attach());
    announce(&mut world, port, 1, guest(15));
    world.sent(thief);
    let known = world.engine.net.neighbors.get(guest(15).into()).unwrap();
    assert_eq!((known.mac, known.port), (mac(1), port));

    assert!(world.ask(thief, &request(2, guest(15), GATEWAY)).is_empty());
    assert!(world.ask(thief, &request(2, GATEWAY, guest(15))).is_empty());
    assert!(world.ask(thief, &request(2, Ipv4Addr::new(10, 0, 0, 1), GATEWAY)).is_empty());
    assert_eq!((world.dropped(Drop::Source), world.dropped(Drop::Spoofed)), (2, 1));
    assert_eq!(world.engine.net.neighbors.get(guest(15).into()).unwrap().mac, mac(1));
    assert_eq!(world.engine.net.neighbors.get(GATEWAY.into()), None);
}

#[test]
fn what_is_not_arp_for_ethernet_and_ipv4_is_dropped() {
    let mut world = World::new();
    let port = world.attach();
    let good = request(1, guest(15), GATEWAY);
    for cut in 14..42 {
        assert!(world.ask(port, &good[..cut]).is_empty());
    }
    assert_eq!(world.dropped(Drop::Malformed), 28);
    for (at, value) in [(15, 6), (16, 9), (18, 8), (19, 16), (21, 9)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert!(world.ask(port, &bad).is_empty(), "byte {at}");
    }
    // A sender's address that is not the frame's.
    let mut bad = good.clone();
    bad[22] ^= 2;
    assert!(world.ask(port, &bad).is_empty());
    assert_eq!(world.dropped(Drop::Spoofed), 1);
    // Padded to Ethernet's minimum, as real cards do.
    assert_eq!(world.ask(port, &[&good[..], &[0; 18]].concat()).len(), 1);
}

#[test]
fn a_silent_guest_is_asked_for_and_its_answer_is_learned() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    world.io(|engine, io| solicit(&mut engine.net, io, IpAddr::V4(guest(20))));
    let asked = arp(1, BROADCAST, (GATEWAY_MAC, GATEWAY), (NOBODY, guest(20)));
    assert_eq!(world.one(port), asked);
    assert_eq!(world.one(other), asked);
    world.send(port, &arp(2, GATEWAY_MAC, (mac(5), guest(20)), (GATEWAY_MAC, GATEWAY)));
    assert_eq!(world.engine.net.neighbors.get(guest(20).into()).unwrap().mac, mac(5));
}

#[test]
fn guests_cannot_tell_each_other_that_they_are_the_gateway() {
    let mut world = World::new();
    let (port, thief) = (world.attach(), world.attach());
    announce(&mut world, port, 1, guest(15));
    announce(&mut world, thief, 2, guest(16));
    world.sent(port);
    for own in [GATEWAY, DNS] {
        world.send(thief, &arp(2, mac(1), (mac(2), own), (mac(1), guest(15))));
        world.send(thief, &arp(1, BROADCAST, (mac(2), own), (NOBODY, own)));
        world.send(thief, &arp(2, GATEWAY_MAC, (mac(2), own), (GATEWAY_MAC, GATEWAY)));
    }
    assert!(world.sent(port).is_empty());
    assert_eq!((world.dropped(Drop::Source), world.dropped(Drop::Spoofed)), (2, 4));
    // What they tell of themselves passes.
    world.send(thief, &arp(2, mac(1), (mac(2), guest(16)), (mac(1), guest(15))));
    assert_eq!(world.sent(port).len(), 1);
}
