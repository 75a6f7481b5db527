//! What one guest may say to another about addresses, and what it may not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use vmlan_wire::Mac;

use crate::io::PortId;
use crate::stats::Drop;
use crate::testing::*;

const VICTIM: u8 = 1;
const THIEF: u8 = 2;
const WATCHER: u8 = 3;

/// Three guests whose addresses are known: .101 and so on, in both families.
struct Net {
    world: World,
    ports: [PortId; 3],
}

impl Net {
    fn new() -> Self {
        let mut world = World::new();
        let ports = [world.attach(), world.attach(), world.attach()];
        for (n, port) in (1..).zip(ports) {
            announce(&mut world, port, n, v4(n));
            world.send(port, &to_mac(mac(9), n, &ip(v6(n), v6(9), 17, 64, &udp(1, 1, b""))));
        }
        world.links.sent.clear();
        Self { world, ports }
    }

    /// The thief sends a frame; whether the watcher gets it.
    fn arrives(&mut self, frame: &[u8]) -> bool {
        self.world.send(self.ports[1], frame);
        self.world.sent(self.ports[0]);
        self.world.sent(self.ports[2]).iter().any(|got| got == frame)
    }

    /// The thief sends a frame that nobody gets, and it is counted once.
    #[track_caller]
    fn stopped(&mut self, frame: &[u8], reason: Drop) {
        let before = self.world.dropped(reason);
        assert!(!self.arrives(frame), "{frame:02x?}");
        assert_eq!(self.world.dropped(reason), before + 1, "{frame:02x?}");
    }

    #[track_caller]
    fn passes(&mut self, frame: &[u8]) {
        assert!(self.arrives(frame), "{frame:02x?}");
    }
}

fn v4(n: u8) -> Ipv4Addr {
    guest(100 + n)
}

fn v6(n: u8) -> IpAddr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x100 + u16::from(n)).into()
}

/// Everything that one guest can say to another alone, and to all.
const BOTH: [Mac; 2] = [BROADCAST, Mac([0x52, 0x54, 0, 0, 0, WATCHER])];

fn advertisement(target: IpAddr, card: u8, flags: u8) -> Vec<u8> {
    let IpAddr::V6(target) = target else { panic!() };
    [&[136, 0, 0, 0, flags, 0, 0, 0][..], &target.octets(), &[2, 1], &mac(card).0].concat()
}

fn nd(from: IpAddr, message: &[u8]) -> Vec<u8> {
    ip(from, "ff02::1".parse().unwrap(), 58, 255, message)
}

#[test]
fn arp_in_another_guest_s_name_goes_nowhere() {
    let mut net = Net::new();
    let (own, nobody) = (mac(THIEF), (Mac([0; 6]), v4(WATCHER)));
    for dst in BOTH {
        for op in [1, 2] {
            net.stopped(&arp(op, dst, (own, v4(VICTIM)), nobody), Drop::Source);
            net.stopped(&arp(op, dst, (own, GATEWAY), nobody), Drop::Spoofed);
            net.stopped(&arp(op, dst, (own, "10.9.9.9".parse().unwrap()), nobody), Drop::Source);
            net.passes(&arp(op, dst, (own, v4(THIEF)), nobody));
        }
        // Its own address at the victim's card, the victim's address at the victim's card.
        for address in [v4(THIEF), v4(VICTIM)] {
            let mut lie = arp(2, dst, (mac(VICTIM), address), nobody);
            lie[6..12].copy_from_slice(&own.0);
            net.stopped(&lie, Drop::Spoofed);
        }
        // Gratuitous, and with a hardware type that receivers take for Ethernet's.
        let mut gratuitous = arp(1, dst, (own, v4(VICTIM)), (own, v4(VICTIM)));
        net.stopped(&gratuitous, Drop::Source);
        gratuitous[15] = 6;
        net.stopped(&gratuitous, Drop::Source);
    }
    // Of free addresses a guest may have several.
    net.passes(&arp(1, BROADCAST, (own, guest(77)), nobody));
}

#[test]
fn packets_in_another_guest_s_name_go_nowhere() {
    let mut net = Net::new();
    let data = udp(1000, 2000, b"x");
    let packet = |src, dst| ip(src, dst, 17, 64, &data);
    for dst in BOTH {
        for (n, reason) in [(VICTIM, Drop::Source), (THIEF, Drop::Rogue)] {
            let mut send = |packet: &[u8]| {
                let frame = to_mac(dst, THIEF, packet);
                if reason == Drop::Source {
                    net.stopped(&frame, reason);
                } else {
                    net.passes(&frame);
                }
            };
            send(&packet(v4(n).into(), v4(WATCHER).into()));
            send(&packet(v6(n), v6(WATCHER)));
            send(&ip(v4(n).into(), v4(WATCHER).into(), 6, 64, &[0; 20]));
            send(&ip(v6(n), v6(WATCHER), 6, 64, &[0; 20]));
            let mut later = packet(v4(n).into(), v4(WATCHER).into());
            later[7] = 9;
            fix_ipv4(&mut later);
            send(&later);
        }
        let outside: IpAddr = "8.8.8.8".parse().unwrap();
        net.stopped(&to_mac(dst, THIEF, &packet(outside, v4(WATCHER).into())), Drop::Source);
        let own = packet(DNS.into(), v4(WATCHER).into());
        net.stopped(&to_mac(dst, THIEF, &own), Drop::Spoofed);
    }
}

#[test]
fn neighbours_are_advertised_by_themselves_only() {
    let mut net = Net::new();
    for dst in [Mac([0x33, 0x33, 0, 0, 0, 1]), mac(WATCHER)] {
        let frame = |packet: &[u8]| to_mac(dst, THIEF, packet);
        for flags in [0x20, 0x60] {
            // In its own name about another, in another's name, with another's card.
            net.stopped(
                &frame(&nd(v6(THIEF), &advertisement(v6(VICTIM), THIEF, flags))),
                Drop::Source,
            );
            net.stopped(
                &frame(&nd(v6(VICTIM), &advertisement(v6(THIEF), THIEF, flags))),
                Drop::Source,
            );
            net.stopped(
                &frame(&nd(v6(THIEF), &advertisement(v6(THIEF), VICTIM, flags))),
                Drop::Spoofed,
            );
            net.passes(&frame(&nd(v6(THIEF), &advertisement(v6(THIEF), THIEF, flags))));
        }
        // A solicitation teaches its receiver the sender's card.
        let IpAddr::V6(target) = v6(WATCHER) else { panic!() };
        let ask = |card: u8| {
            [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[1, 1], &mac(card).0].concat()
        };
        net.stopped(&frame(&nd(v6(VICTIM), &ask(THIEF))), Drop::Source);
        net.stopped(&frame(&nd(v6(THIEF), &ask(VICTIM))), Drop::Spoofed);
        net.passes(&frame(&nd(v6(THIEF), &ask(THIEF))));
        // Nobody but the gateway is a router.
        let mut redirect = vec![137, 0, 0, 0, 0, 0, 0, 0];
        redirect.extend([0; 32]);
        net.stopped(&frame(&nd(v6(THIEF), &redirect)), Drop::Rogue);
        let redirect = ip(v4(THIEF).into(), v4(WATCHER).into(), 1, 64, &[5; 36]);
        net.stopped(&frame(&redirect), Drop::Rogue);
    }
}

#[test]
fn whoever_asks_whether_an_address_is_free_has_it() {
    let mut net = Net::new();
    let wish = "fe80::abcd".parse().unwrap();
    let probe = |n: u8, target: Ipv6Addr| {
        let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
        let nobody = Ipv6Addr::UNSPECIFIED.into();
        to_mac(BROADCAST, n, &ip(nobody, "ff02::1:ff00:abcd".parse().unwrap(), 58, 255, &message))
    };
    net.world.send(net.ports[0], &probe(VICTIM, wish));
    let lie = nd(v6(THIEF), &advertisement(wish.into(), THIEF, 0x20));
    net.stopped(&to_mac(BROADCAST, THIEF, &lie), Drop::Source);
    // Who has an address hears the question, and may say so.
    net.world.links.sent.clear();
    let IpAddr::V6(watchers) = v6(WATCHER) else { panic!() };
    net.passes(&probe(THIEF, watchers));
    let truth = nd(v6(WATCHER), &advertisement(v6(WATCHER), WATCHER, 0x20));
    net.world.send(net.ports[2], &to_mac(BROADCAST, WATCHER, &truth));
    assert_eq!(net.world.sent(net.ports[1]).len(), 1);
}

#[test]
fn an_address_that_is_made_of_a_card_s_is_that_card_s() {
    let mut net = Net::new();
    let made_of = |n: u8| {
        let Mac([a, b, c, d, e, f]) = mac(n);
        let octets = [[0xfe, 0x80, 0, 0, 0, 0, 0, 0], [a ^ 2, b, c, 0xff, 0xfe, d, e, f]].concat();
        IpAddr::from(<[u8; 16]>::try_from(octets).unwrap())
    };
    let says = |ip| to_mac(BROADCAST, THIEF, &nd(ip, &advertisement(ip, THIEF, 0x20)));
    // Before its owner first says so.
    net.stopped(&says(made_of(VICTIM)), Drop::Source);
    net.passes(&says(made_of(THIEF)));
    net.passes(&says(made_of(77)));
}

#[test]
fn a_silent_guest_s_card_is_not_taken_over() {
    let mut net = Net::new();
    let data = ip(v4(VICTIM).into(), v4(WATCHER).into(), 17, 64, &udp(1, 2, b"x"));
    for _ in 0..3 {
        net.world.pass(Duration::from_secs(400));
        net.stopped(&to_mac(BROADCAST, VICTIM, &data), Drop::Spoofed);
        net.stopped(&to_mac(mac(WATCHER), VICTIM, &data), Drop::Spoofed);
        net.stopped(&to_mac(GATEWAY_MAC, VICTIM, &data), Drop::Spoofed);
    }
    // Its frames still go to it.
    let to_victim = ip(v4(WATCHER).into(), v4(VICTIM).into(), 17, 64, &udp(1, 2, b"y"));
    net.world.links.sent.clear();
    net.world.send(net.ports[2], &to_mac(mac(VICTIM), WATCHER, &to_victim));
    assert_eq!(net.world.sent(net.ports[0]).len(), 1);
    assert!(net.world.sent(net.ports[1]).is_empty());
}

#[test]
fn the_owner_of_a_card_that_is_claimed_is_asked_now_and_then() {
    let mut net = Net::new();
    let frame = to_mac(BROADCAST, VICTIM, &ip(v4(9).into(), v4(8).into(), 17, 64, &udp(1, 2, b"")));
    for _ in 0..50 {
        net.world.send(net.ports[1], &frame);
    }
    assert_eq!(net.world.sent(net.ports[0]).len(), 1);
    assert!(net.world.sent(net.ports[2]).is_empty());
    // It left without a word: the next who has the card is it.
    let port = net.ports[0];
    net.world.io(|engine, io| engine.remove_port(port, io));
    net.passes(&arp(1, BROADCAST, (mac(VICTIM), v4(VICTIM)), (Mac([0; 6]), v4(WATCHER))));
}

#[test]
fn what_was_given_to_a_guest_waits_for_it() {
    let mut world = World::new();
    let (first, second) = (world.attach(), world.attach());
    let now = world.now;
    let (four, _) = world.engine.assign(mac(1), Some(first), None, now).unwrap();
    let claim = |n: u8| arp(1, BROADCAST, (mac(n), four), (Mac([0; 6]), four));
    world.send(second, &claim(2));
    assert!(world.sent(first).is_empty());
    world.io(|engine, io| engine.remove_port(first, io));
    world.send(second, &claim(2));
    assert_eq!(world.dropped(Drop::Source), 2);
    let again = world.attach();
    world.send(again, &claim(1));
    assert_eq!(world.sent(second).len(), 1);

    // The same from one daemon to the next.
    let saved = world.engine.saved_leases();
    let mut next = World::new();
    let (first, second) = (next.attach(), next.attach());
    for lease in saved {
        assert!(next.engine.restore_lease(lease, next.now));
    }
    next.send(second, &claim(2));
    assert!(next.sent(first).is_empty());
    next.send(first, &claim(1));
    assert_eq!(next.sent(second).len(), 1);
}

#[test]
fn a_guest_from_outside_has_its_card_whoever_used_it_before() {
    let mut world = World::new();
    let (thief, port) = (world.attach(), world.attach());
    announce(&mut world, thief, 1, guest(50));
    let now = world.now;
    let (four, _) = world.engine.assign(mac(1), Some(port), None, now).unwrap();
    world.links.sent.clear();
    world.send(port, &arp(1, BROADCAST, (mac(1), four), (Mac([0; 6]), four)));
    assert_eq!(world.sent(thief).len(), 1);
    world.send(thief, &arp(1, BROADCAST, (mac(1), guest(50)), (Mac([0; 6]), four)));
    assert_eq!(world.dropped(Drop::Spoofed), 1);
}
