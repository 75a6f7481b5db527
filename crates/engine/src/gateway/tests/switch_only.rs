//! Networks that are the host's, by a port that leads to its bridge: some on which there is nothing but
//! the switch, and others on which addresses and names are served.

use std::net::Ipv4Addr;

use vmlan_wire::Mac;

use crate::Config;
use crate::config::Ipv4Net;
use crate::stats::Drop;
use crate::testing::*;

fn world() -> World {
    World::with(Config::switch(1500, [7; 16]).unwrap())
}

#[test]
fn nothing_is_answered_and_every_address_is_allowed() {
    let mut world = world();
    let (one, two) = (world.attach(), world.attach());
    let elsewhere = [10, 0, 0, 9].into();
    let request = arp(1, BROADCAST, (mac(1), elsewhere), (mac(0), GATEWAY));
    assert_eq!(world.ask(one, &request), Vec::<Vec<u8>>::new());
    assert_eq!(world.one(two), request);
    let discover = udp(68, 67, &[0; 300]);
    let discover = ip([0; 4].map(u8::from).into(), [255; 4].into(), 17, 64, &discover);
    assert_eq!(world.ask(one, &to_mac(BROADCAST, 1, &discover)).len(), 0);
    world.sent(two);
    // Not even at the address that the gateway would have.
    let lie = ip(GATEWAY.into(), elsewhere.into(), 17, 64, &udp(67, 68, b"an offer"));
    let lie = to_mac(GATEWAY_MAC, 1, &lie);
    world.send(one, &lie);
    assert_eq!(world.one(two), lie);
    assert_eq!(world.engine.stats().drops().count(), 0);
    assert_eq!(world.engine.next_timeout(), None);
}

#[test]
fn known_unicast_goes_to_one_port_and_a_card_s_address_stays_there() {
    let mut world = world();
    let ports = [world.attach(), world.attach(), world.attach()];
    for (port, n) in ports.into_iter().zip(1..) {
        world.send(port, &arp(1, BROADCAST, (mac(n), guest(n)), (mac(0), guest(9))));
    }
    world.links.sent.clear();
    let frame = to_mac(mac(2), 1, &ip(guest(1).into(), guest(2).into(), 17, 64, &udp(1, 2, b"x")));
    world.send_all(ports[0], &[frame.clone(), frame.clone()]);
    assert_eq!(world.sent(ports[1]), [frame.clone(), frame]);
    // The third says that it is the second.
    world.send(ports[2], &arp(1, BROADCAST, (mac(2), guest(2)), (mac(0), guest(9))));
    assert_eq!((world.dropped(Drop::Spoofed), world.links.sent.len()), (1, 0));
}

#[test]
fn many_are_behind_the_uplink() {
    let mut world = world();
    let (uplink, port) = (world.attach(), world.attach());
    world.engine.set_uplink(uplink, world.now);
    for n in 0..5000u16 {
        let [a, b] = n.to_be_bytes();
        let from = Mac([2, 9, 0, 0, a, b]);
        world.send(uplink, &ethernet(BROADCAST, from, 0x88b5, b"here"));
    }
    assert_eq!(world.sent(port).len(), 5000);
    assert_eq!(world.engine.stats().drops().count(), 0);
}

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 105, 1);
const ROUTER_MAC: Mac = Mac([0x52, 0x55, 192, 168, 105, 1]);

#[test]
fn the_router_brings_what_is_from_elsewhere_and_its_addresses_are_its_own() {
    let net = Ipv4Net::new([192, 168, 105, 0].into(), 24).unwrap();
    let last = [192, 168, 105, 254].into();
    let mut world = World::with(Config::beside(net, ROUTER, ROUTER_MAC, last, [7; 16]).unwrap());
    let (uplink, port) = (world.attach(), world.attach());
    world.engine.set_uplink(uplink, world.now);
    let guest = Ipv4Addr::new(192, 168, 105, 9);
    // Before the router has said anything, somebody says that it is the router.
    for (card, address) in [(ROUTER_MAC, guest), (mac(1), ROUTER)] {
        let lie = arp(1, BROADCAST, (card, address), (mac(0), guest));
        world.send(port, &lie);
        // Its owner may be asked, but nobody is told.
        assert!(!world.sent(uplink).contains(&lie), "{address}");
    }
    let request = arp(1, BROADCAST, (mac(1), guest), (mac(0), ROUTER));
    world.send(port, &request);
    assert_eq!(world.sent(uplink), [request]);

    let elsewhere: Ipv4Addr = [203, 0, 113, 9].into();
    let answer = ip(elsewhere.into(), guest.into(), 17, 64, &udp(53, 9, b"answer"));
    let answer = [&mac(1).0[..], &ROUTER_MAC.0, &[8, 0], &answer].concat();
    world.send_all(uplink, &[answer.clone(), answer.clone()]);
    assert_eq!(world.sent(port), [answer.clone(), answer]);
    // From another card it is a lie, as from any guest.
    let forged = ip(elsewhere.into(), guest.into(), 17, 64, &udp(53, 9, b"answer"));
    world.send(uplink, &to_mac(mac(1), 7, &forged));
    assert_eq!((world.sent(port).len(), world.dropped(Drop::Source)), (0, 2));
}
