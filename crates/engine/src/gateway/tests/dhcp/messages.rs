//! What messages carry, and which are none.

use super::*;

#[test]
fn broadcast_is_answered_by_broadcast_to_the_client_alone() {
    let mut world = World::new();
    let port = world.attach();
    let mut discover = message(1, DISCOVER);
    discover.flags = 0x8000;
    let offer = ask(&mut world, port, &discover);
    assert_eq!((offer.dst_mac, offer.dst), (mac(1), Ipv4Addr::BROADCAST));
    assert_eq!(be16(&offer.bytes, 10), 0x8000);
    assert_eq!(offer.option(119), None);
    assert_eq!(offer.option(61), None);
}

#[test]
fn information_without_an_address() {
    let mut world = World::new();
    let port = world.attach();
    let ack = ask(&mut world, port, &message(1, INFORM).client(guest(9)));
    assert_eq!((ack.kind(), ack.yiaddr(), ack.dst), (ACK, NONE, guest(9)));
    assert_eq!(ack.option(51), None);
    assert_eq!(ack.option(6), Some(DNS.octets().to_vec()));
    assert_eq!(neighbor(&world, guest(9)), Some((mac(1), false)));
}

#[test]
fn reservations_are_kept() {
    let mut config = config();
    config.reservations = vec![(mac(5), guest(15)), (mac(6), guest(9))];
    let mut world = World::with(config);
    let (port, other) = (world.attach(), world.attach());
    assert_eq!(join(&mut world, port, 1), guest(16));
    // Even from one who uses it without asking.
    announce(&mut world, other, 9, guest(15));
    assert_eq!(join(&mut world, port, 5), guest(15));
    assert_eq!(neighbor(&world, guest(15)), Some((mac(5), true)));
    assert_eq!(join(&mut world, port, 6), guest(9));
    assert_eq!(ask(&mut world, port, &message(1, REQUEST).wants(guest(9))).kind(), NAK);
}

#[test]
fn malformed_and_forged_messages_are_dropped() {
    let mut world = World::new();
    let port = world.attach();
    let good = message(1, DISCOVER).bytes();
    let send = |world: &mut World, bytes: &[u8]| {
        let sent = world.ask(port, &frame(mac(1), BROADCAST, NONE, Ipv4Addr::BROADCAST, bytes));
        sent.len()
    };
    let change = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    // A reply, no Ethernet address, address lengths up to the absurd, no cookie, no such message.
    let bad = [(0, 2), (1, 6), (2, 0), (2, 5), (2, 16), (2, 255), (238, 0), (242, 99), (242, 2)];
    for (at, value) in bad {
        assert_eq!(send(&mut world, &change(at, value)), 0, "byte {at}");
    }
    for cut in [0, 1, 28, 100, 239] {
        assert_eq!(send(&mut world, &good[..cut]), 0, "{cut} bytes");
    }
    // From another's address, and through a relay.
    assert_eq!(send(&mut world, &change(33, 9)), 0);
    assert_eq!(send(&mut world, &change(24, 10)), 0);
    assert_eq!(world.dropped(Drop::Spoofed), 2);
    // Options that run out: what was read before counts.
    for options in [&[53, 1, 1][..], &[53, 1, 1, 50], &[53, 1, 1, 50, 200, 1], &[53, 1, 1, 50, 0]] {
        assert_eq!(send(&mut world, &[&good[..240], options].concat()), 1);
    }
    assert_eq!(send(&mut world, &[&good[..240], &[53, 200, 1]].concat()), 0);
    assert_eq!(send(&mut world, &good[..240]), 0);
    // Options as long as a datagram can hold.
    let mut long = good[..243].to_vec();
    for _ in 0..4 {
        long.extend([61, 255]);
        long.extend([7; 255]);
    }
    assert_eq!(send(&mut world, &long), 1);
}

#[test]
fn long_search_lists_are_left_out_where_the_client_has_no_room() {
    let mut config = config();
    config.search = ('a'..='i').map(|c| c.to_string().repeat(50)).collect();
    let mut world = World::with(config);
    let port = world.attach();
    assert_eq!(ask(&mut world, port, &message(1, DISCOVER)).option(119), None);
    let roomy = message(1, DISCOVER).with(57, &1400u16.to_be_bytes());
    let offer = ask(&mut world, port, &roomy);
    assert!(offer.option(119).unwrap().len() > 255);
    assert_eq!(offer.option(15), None);
}
