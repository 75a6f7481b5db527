//! How addresses are given, kept, and come back.

use std::net::Ipv6Addr;

use super::*;

#[test]
fn the_first_guest_gets_15_at_once_with_all_that_it_needs() {
    let mut config = config();
    config.search = vec!["corp.example".to_owned()];
    let mut world = World::with(config);
    let port = world.attach();
    let offer = ask(&mut world, port, &message(1, DISCOVER).with(61, &[1, 2, 3]));
    assert_eq!((offer.kind(), offer.yiaddr()), (OFFER, guest(15)));
    assert_eq!((offer.dst_mac, offer.dst), (mac(1), guest(15)));
    assert_eq!(offer.bytes[4..8], [0xde, 0xad, 0xbe, 1]);
    assert_eq!(offer.bytes[28..34], mac(1).0);
    assert_eq!(neighbor(&world, guest(15)), None);
    let request = message(1, REQUEST).server(GATEWAY).wants(guest(15)).with(61, &[1, 2, 3]);
    let ack = ask(&mut world, port, &request);
    for reply in [&offer, &ack] {
        for (code, expected) in [
            (1, vec![255, 255, 255, 0]),
            (3, vec![192, 168, 5, 2]),
            (6, vec![192, 168, 5, 3]),
            (15, b"corp.example".to_vec()),
            (26, vec![0x05, 0xdc]),
            (28, vec![192, 168, 5, 255]),
            (51, 86_400u32.to_be_bytes().to_vec()),
            (54, vec![192, 168, 5, 2]),
            (58, 43_200u32.to_be_bytes().to_vec()),
            (59, 75_600u32.to_be_bytes().to_vec()),
            (61, vec![1, 2, 3]),
            (119, b"\x04corp\x07example\0".to_vec()),
        ] {
            assert_eq!(reply.option(code), Some(expected), "option {code}");
        }
    }
    assert_eq!((ack.kind(), ack.yiaddr()), (ACK, guest(15)));
    assert_eq!(neighbor(&world, guest(15)), Some((mac(1), true)));
}

#[test]
fn a_guest_comes_back_to_its_address_and_may_ask_for_one() {
    let mut world = World::new();
    let port = world.attach();
    assert_eq!(join(&mut world, port, 1), guest(15));
    assert_eq!(join(&mut world, port, 2), guest(16));
    assert_eq!(join(&mut world, port, 1), guest(15));
    let offer = ask(&mut world, port, &message(3, DISCOVER).wants(guest(77)));
    assert_eq!(offer.yiaddr(), guest(77));
    // What is taken, not in the pool, or not here is not given.
    for (n, wanted) in [(4, guest(15)), (5, guest(2)), (6, guest(10)), (7, guest(255))] {
        let offer = ask(&mut world, port, &message(n, DISCOVER).wants(wanted));
        assert_eq!(offer.yiaddr(), guest(13 + n), "{wanted}");
    }
    let offer = ask(&mut world, port, &message(8, DISCOVER).wants(Ipv4Addr::new(10, 0, 0, 9)));
    assert_eq!(offer.yiaddr(), guest(21));
}

#[test]
fn renewal_goes_on_and_expiry_frees() {
    let mut world = World::new();
    let port = world.attach();
    join(&mut world, port, 1);
    for _ in 0..3 {
        world.pass(Duration::from_secs(43_200));
        let ack = ask(&mut world, port, &message(1, REQUEST).client(guest(15)));
        assert_eq!((ack.kind(), ack.yiaddr()), (ACK, guest(15)));
        assert_eq!((ack.dst, ack.dst_mac), (guest(15), mac(1)));
        assert_eq!(ack.bytes[12..16], guest(15).octets());
    }
    world.pass(Duration::from_secs(86_401));
    assert_eq!(neighbor(&world, guest(15)), None);
    // Not needed by anybody else meanwhile, it is given again.
    assert_eq!(join(&mut world, port, 1), guest(15));
}

#[test]
fn a_release_frees_and_only_the_owner_s_does() {
    let mut world = World::new();
    let port = world.attach();
    join(&mut world, port, 1);
    join(&mut world, port, 2);
    let mut forged = message(2, RELEASE).client(guest(15)).server(GATEWAY);
    silent(&mut world, port, &forged);
    forged.ciaddr = guest(99);
    silent(&mut world, port, &forged);
    assert_eq!(world.dropped(Drop::Source), 2);
    assert_eq!(neighbor(&world, guest(15)), Some((mac(1), true)));
    silent(&mut world, port, &message(1, RELEASE).client(guest(15)).server(GATEWAY));
    assert_eq!(neighbor(&world, guest(15)), None);
    let ack = ask(&mut world, port, &message(3, REQUEST).wants(guest(15)));
    assert_eq!(ack.kind(), ACK);
}

#[test]
fn what_is_not_ours_to_give_gets_a_nak() {
    let mut world = World::new();
    let port = world.attach();
    join(&mut world, port, 1);
    join(&mut world, port, 2);
    let cases = [
        // After a restart, on another network; somebody else's; the gateway's; the wrong own one.
        message(3, REQUEST).wants(Ipv4Addr::new(10, 0, 0, 5)),
        message(3, REQUEST).wants(guest(15)),
        message(3, REQUEST).wants(GATEWAY),
        message(3, REQUEST).wants(guest(255)),
        message(1, REQUEST).wants(guest(40)),
        // Selecting an address that was never free.
        message(3, REQUEST).server(GATEWAY).wants(guest(16)),
    ];
    for case in cases {
        let nak = ask(&mut world, port, &case);
        assert_eq!((nak.kind(), nak.yiaddr()), (NAK, NONE));
        assert_eq!((nak.dst, nak.dst_mac), (Ipv4Addr::BROADCAST, case.mac));
        assert_eq!(nak.option(54), Some(GATEWAY.octets().to_vec()));
        assert_eq!((nak.option(51), nak.option(1)), (None, None));
    }
    assert_eq!(neighbor(&world, guest(15)), Some((mac(1), true)));
}

/// A guest that was elsewhere, or asleep, renews from the address that it had: of another network,
/// of another guest by now. Nothing else is taken from there.
#[test]
fn a_renewal_from_an_address_that_is_not_the_guest_s_gets_its_nak() {
    let mut world = World::new();
    let port = world.attach();
    join(&mut world, port, 1);
    for old in [Ipv4Addr::new(10, 0, 0, 5), guest(15)] {
        let renewal = message(3, REQUEST).client(old);
        for (to, dst) in [(GATEWAY_MAC, GATEWAY), (BROADCAST, Ipv4Addr::BROADCAST)] {
            let sent = world.ask(port, &frame(mac(3), to, old, dst, &renewal.bytes()));
            let nak = Reply::new(&sent[0]);
            assert_eq!((nak.kind(), nak.dst, nak.dst_mac), (NAK, Ipv4Addr::BROADCAST, mac(3)));
        }
    }
    assert_eq!(neighbor(&world, Ipv4Addr::new(10, 0, 0, 5)), None);
    assert_eq!(neighbor(&world, guest(15)), Some((mac(1), true)));
    silent(&mut world, port, &message(3, INFORM).client(Ipv4Addr::new(10, 0, 0, 5)));
    silent(&mut world, port, &message(3, RELEASE).client(guest(15)));
    assert_eq!(neighbor(&world, guest(15)), Some((mac(1), true)));
}

#[test]
fn a_lease_that_a_restart_forgot_is_confirmed_if_it_is_free() {
    let mut world = World::new();
    let port = world.attach();
    let reboot = ask(&mut world, port, &message(1, REQUEST).wants(guest(33)));
    assert_eq!((reboot.kind(), reboot.yiaddr()), (ACK, guest(33)));
    let renewal = ask(&mut world, port, &message(2, REQUEST).client(guest(34)));
    assert_eq!((renewal.kind(), renewal.yiaddr()), (ACK, guest(34)));
    // Unless somebody uses it.
    announce(&mut world, port, 9, guest(35));
    assert_eq!(ask(&mut world, port, &message(3, REQUEST).wants(guest(35))).kind(), NAK);
}

#[test]
fn an_offer_that_is_not_taken_is_free_again() {
    let mut world = World::new();
    let port = world.attach();
    assert_eq!(ask(&mut world, port, &message(1, DISCOVER)).yiaddr(), guest(15));
    assert_eq!(ask(&mut world, port, &message(1, DISCOVER)).yiaddr(), guest(15));
    assert_eq!(ask(&mut world, port, &message(2, DISCOVER)).yiaddr(), guest(16));
    // The first took another server's; the second never came back.
    silent(&mut world, port, &message(1, REQUEST).server(guest(200)).wants(guest(200)));
    let ack = ask(&mut world, port, &message(3, REQUEST).wants(guest(15)));
    assert_eq!(ack.kind(), ACK);
    world.pass(Duration::from_secs(61));
    assert_eq!(ask(&mut world, port, &message(4, REQUEST).wants(guest(16))).kind(), ACK);
}

#[test]
fn a_declined_address_rests() {
    let mut world = World::new();
    let port = world.attach();
    join(&mut world, port, 1);
    silent(&mut world, port, &message(2, DECLINE).server(GATEWAY).wants(guest(15)));
    assert_eq!(neighbor(&world, guest(15)), Some((mac(1), true)));
    silent(&mut world, port, &message(1, DECLINE).server(GATEWAY).wants(guest(15)));
    assert_eq!(neighbor(&world, guest(15)), None);
    assert_eq!(join(&mut world, port, 1), guest(16));
    assert_eq!(ask(&mut world, port, &message(2, REQUEST).wants(guest(15))).kind(), NAK);
    world.pass(Duration::from_secs(601));
    assert_eq!(ask(&mut world, port, &message(2, REQUEST).wants(guest(15))).kind(), ACK);
}

/// Of what a guest configures itself, its name's address is what the network has seen from its card.
#[test]
fn a_guest_with_a_lease_has_the_ipv6_address_that_it_uses() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    assert_eq!(join(&mut world, port, 1), guest(15));
    let six = |world: &World| world.engine.present_leases().next().unwrap().address6;
    assert_eq!(six(&world), None);
    let v6 = config().ipv6;
    let changes = world.engine.address_changes();
    let uses = |world: &mut World, port, n: u8, src: Ipv6Addr| {
        // An unknown next header: nobody answers, and the source is taken all the same.
        let frame = to_mac(GATEWAY_MAC, n, &ip(src.into(), v6.gateway().into(), 59, 64, b""));
        world.send(port, &frame);
    };
    let (temporary, outside) = (v6.nth(0x1234_5678_9abc), "2001:db8::1".parse().unwrap());
    uses(&mut world, port, 1, outside);
    assert_eq!(six(&world), None);
    // Somebody else's is not its own.
    uses(&mut world, other, 2, v6.nth(0x2222));
    uses(&mut world, port, 1, v6.nth(0x2222));
    uses(&mut world, port, 1, v6.gateway());
    assert_eq!(six(&world), None);
    uses(&mut world, port, 1, temporary);
    assert_eq!(six(&world), Some(temporary));
    assert_ne!(world.engine.address_changes(), changes);
    // That of its card, 02:00:00:00:00:01 or the like, comes first.
    let [a, b, c, d, e, f] = mac(1).0;
    let card = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    uses(&mut world, port, 1, v6.nth(card));
    assert_eq!(six(&world), Some(v6.nth(card)));
    uses(&mut world, port, 1, v6.nth(0x3333));
    assert_eq!(six(&world), Some(v6.nth(card)));
    // One that it was given comes first, once it uses it.
    let given = world.engine.assign(mac(1), Some(port), None, world.now).unwrap().1;
    assert_eq!(six(&world), Some(v6.nth(card)));
    let changes = world.engine.address_changes();
    uses(&mut world, port, 1, given);
    assert_eq!(six(&world), Some(given));
    assert_ne!(world.engine.address_changes(), changes);
}

/// The question whether anybody has an address is the first that is heard of it.
#[test]
fn an_address_that_a_guest_asks_for_is_its_own_unless_it_is_anothers() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    let v6 = config().ipv6;
    let asks = |world: &mut World, port, n: u8, target: Ipv6Addr| {
        let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
        let nobody = Ipv6Addr::UNSPECIFIED.into();
        let low = target.octets();
        let group = [0xff00 | u16::from(low[13]), u16::from_be_bytes([low[14], low[15]])];
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, group[0], group[1]);
        let to = Mac([0x33, 0x33, 0xff, low[13], low[14], low[15]]);
        world.send(port, &to_mac(to, n, &ip(nobody, group.into(), 58, 255, &message)));
    };
    let wish = v6.nth(0x1234_5678_9abc);
    asks(&mut world, port, 1, wish);
    assert_eq!(world.engine.ipv6_in_use(mac(1), port), Some(wish));
    asks(&mut world, other, 2, wish);
    asks(&mut world, other, 2, "2001:db8::1".parse().unwrap());
    asks(&mut world, other, 2, v6.gateway());
    assert_eq!(world.engine.ipv6_in_use(mac(2), other), None);
    // However many it makes up, it has room for one in a name.
    for n in 0..2000 {
        asks(&mut world, other, 2, v6.nth(0x1_0000 + n));
    }
    assert!(world.engine.leases().len() < 100);
    assert!(world.engine.ipv6_in_use(mac(2), other).is_some());
}

#[test]
fn leases_outlive_the_daemon() {
    let mut world = World::new();
    let port = world.attach();
    let before = world.engine.lease_changes();
    for n in 1..=3 {
        join(&mut world, port, n);
    }
    assert_eq!(world.engine.lease_changes(), before + 3);
    silent(&mut world, port, &message(1, RELEASE).client(guest(15)).server(GATEWAY));
    world.pass(Duration::from_secs(100));
    let mut saved = world.engine.saved_leases();
    saved.sort_by_key(|l| l.ip);
    let list: Vec<_> = saved.iter().map(|l| (l.ip, l.mac)).collect();
    assert_eq!(list, [(guest(16).into(), mac(2)), (guest(17).into(), mac(3))]);

    let mut world = World::new();
    let port = world.attach();
    let now = world.now;
    for lease in saved {
        assert!(world.engine.restore_lease(lease, now), "{lease:?}");
    }
    let over = SavedLease { ip: guest(20).into(), mac: mac(4), until: now };
    assert!(!world.engine.restore_lease(over, now));
    for ip in [GATEWAY, guest(16), guest(255), Ipv4Addr::new(10, 0, 0, 1)] {
        let lease = SavedLease { ip: ip.into(), mac: mac(4), until: now + Duration::from_secs(9) };
        assert!(!world.engine.restore_lease(lease, now), "{ip}");
    }
    assert_eq!(ask(&mut world, port, &message(9, REQUEST).wants(guest(16))).kind(), NAK);
    let renewal = ask(&mut world, port, &message(2, REQUEST).client(guest(16)));
    assert_eq!((renewal.kind(), renewal.yiaddr()), (ACK, guest(16)));
    assert_eq!(join(&mut world, port, 3), guest(17));
    assert_eq!(join(&mut world, port, 9), guest(15));
}

#[test]
fn guests_that_come_back_to_another_daemon_are_known_by_their_leases() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    let now = world.now;
    let until = now + Duration::from_secs(60);
    let v6 = config().ipv6;
    let (own, shared) = (v6.nth(0x1234_5678_9abc), v6.nth(0x2222));
    for (n, ip) in [(1, guest(20)), (2, guest(21))] {
        let lease = SavedLease { ip: ip.into(), mac: mac(n), until: now + 2 * (until.since(now)) };
        assert!(world.engine.restore_lease(lease, now));
    }
    world.engine.restore_guest(mac(1), Some(own), Some("one"), until);
    world.engine.restore_guest(mac(2), Some(shared), None, until);
    // Without a lease, or with an address that no guest has.
    world.engine.restore_guest(mac(3), Some(v6.nth(0x3333)), Some("three"), until);
    world.engine.restore_guest(mac(2), Some(v6.gateway()), None, until);
    assert_eq!(world.engine.present_leases().count(), 0);

    let says = |world: &mut World, port, n: u8, ip: Ipv4Addr| {
        world.send(port, &arp(1, BROADCAST, (mac(n), ip), (Mac([0; 6]), ip)));
    };
    let uses = |world: &mut World, port, n: u8, src: Ipv6Addr| {
        let frame = to_mac(GATEWAY_MAC, n, &ip(src.into(), v6.gateway().into(), 59, 64, b""));
        world.send(port, &frame);
    };
    let present = |world: &World| {
        let known = world.engine.present_leases();
        let mut known: Vec<_> = known.map(|l| (l.mac, l.address6, l.host_name)).collect();
        known.sort_by_key(|known| known.0);
        known.into_iter().map(|(_, six, name)| (six, name.map(str::to_owned))).collect::<Vec<_>>()
    };
    // What somebody else took before its guest was back is that one's.
    uses(&mut world, other, 4, shared);
    says(&mut world, port, 1, guest(20));
    says(&mut world, other, 2, guest(21));
    assert_eq!(present(&world), [(Some(own), Some("one".to_owned())), (None, None)]);
    // Nobody takes it from a guest that is there, whose own word counts for more.
    uses(&mut world, other, 4, own);
    assert_eq!(world.engine.ipv6_in_use(mac(4), other), Some(shared));
    let changed = v6.nth(0x4444);
    uses(&mut world, port, 1, changed);
    assert_eq!(present(&world)[0].0, Some(changed));
    // It goes with its guest, and does not come back a second time to one that was there.
    world.io(|engine, io| engine.remove_port(port, io));
    uses(&mut world, other, 5, own);
    assert_eq!(world.engine.ipv6_in_use(mac(5), other), Some(own));
}

#[test]
fn guests_that_join_another_daemon_have_what_they_used_in_time() {
    for (late, want) in [(0, true), (61, false)] {
        let mut world = World::new();
        let port = world.attach();
        let own = config().ipv6.nth(0x1234_5678_9abc);
        let lease = SavedLease {
            ip: guest(20).into(),
            mac: mac(1),
            until: world.now + Duration::from_secs(1000),
        };
        assert!(world.engine.restore_lease(lease, world.now));
        let until = world.now + Duration::from_secs(60);
        world.engine.restore_guest(mac(1), Some(own), None, until);
        world.pass(Duration::from_secs(late));
        let (four, _) = world.engine.assign(mac(1), Some(port), None, world.now).unwrap();
        assert_eq!(four, guest(20));
        assert_eq!(world.engine.ipv6_in_use(mac(1), port), want.then_some(own));
    }
}
