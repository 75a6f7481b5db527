use std::net::Ipv6Addr;
use std::time::Duration;

use crate::io::PortId;
use crate::stats::Drop;
use crate::testing::*;

const GATEWAY_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5055, 0xc0ff, 0xfea8, 0x0502);
const GUEST_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x15);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

fn rs(src: Ipv6Addr, hops: u8) -> Vec<u8> {
    let packet = ip(src.into(), ALL_ROUTERS.into(), 58, hops, &[133, 0, 0, 0, 0, 0, 0, 0]);
    to_mac(vmlan_wire::Mac([0x33, 0x33, 0, 0, 0, 2]), 1, &packet)
}

#[test]
fn a_solicitation_is_answered_with_the_whole_network() {
    let mut config = config();
    config.search = vec!["corp.example".to_owned(), "a.b".to_owned(), "not..a name".to_owned()];
    let mut world = World::with(config);
    let (port, other) = (world.attach(), world.attach());
    world.send(port, &rs(GUEST_LL, 255));
    let answer = Parsed::new(&world.one(port));
    assert_eq!(answer.dst_mac, mac(1));
    assert_eq!((answer.src, answer.dst, answer.ttl), (GATEWAY_LL.into(), GUEST_LL.into(), 255));
    let expected: &[&[u8]] = &[
        // Hop limit 64, other configuration, router for 1800 s.
        &[64, 0x40, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0],
        &[1, 1, 0x52, 0x55, 192, 168, 5, 2],
        &[5, 1, 0, 0, 0, 0, 0x05, 0xdc],
        // /64, on link and autonomous, valid a day, preferred four hours.
        &[3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0],
        &[0xfd, 0x76, 0x6d, 0x6c, 192, 168, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[25, 3, 0, 0, 0, 0, 0x07, 0x08],
        &[0xfd, 0x76, 0x6d, 0x6c, 192, 168, 5, 0, 0, 0, 0, 0, 0, 0, 0, 3],
        &[31, 4, 0, 0, 0, 0, 0x07, 0x08],
        b"\x04corp\x07example\0\x01a\x01b\0\0\0\0\0\0",
    ];
    assert_eq!(answer.payload[..2], [134, 0]);
    assert_eq!(answer.payload[4..], expected.concat());
    // The solicitation was flooded, the answer was not.
    assert_eq!(world.sent(other).len(), 1);

    world.pass(Duration::from_secs(1));
    world.send(port, &rs(Ipv6Addr::UNSPECIFIED, 255));
    assert_eq!(Parsed::new(&world.one(port)).dst, "ff02::1".parse::<Ipv6Addr>().unwrap());
}

#[test]
fn a_flood_of_solicitations_gets_few_answers_and_leaves_others_theirs() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    world.send_all(port, &vec![rs(GUEST_LL, 255); 1000]);
    assert_eq!(world.sent(port).len(), 4);
    assert_eq!(world.dropped(Drop::Limit), 996);
    world.sent(other);
    let mut from_other = rs(GUEST_LL, 255);
    from_other[11] = 2;
    from_other[37] = 0x16;
    let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x16);
    fill_checksum(source.into(), ALL_ROUTERS.into(), 58, &mut from_other[54..]);
    assert_eq!(world.ask(other, &from_other).len(), 1);
    assert!(world.ask(port, &rs(GUEST_LL, 64)).is_empty());
}

#[test]
fn advertisements_come_by_themselves_every_few_minutes_while_somebody_is_there() {
    let mut world = World::new();
    assert_eq!(world.engine.next_timeout(), None);
    let (port, other) = (world.attach(), world.attach());
    let mut last = world.now;
    for _ in 0..50 {
        let next = world.engine.next_timeout().unwrap();
        let wait = next.since(last).as_secs();
        assert!((200..=600).contains(&wait), "{wait} s");
        world.pass(next.since(world.now));
        last = next;
        let sent = Parsed::new(&world.one(port));
        assert_eq!(sent.dst, "ff02::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(sent.dst_mac.0, [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(world.sent(other).len(), 1);
    }
    for port in [port, other] {
        world.io(|engine, io| engine.remove_port(port, io));
    }
    assert_eq!(world.engine.next_timeout(), None);
    world.pass(Duration::from_secs(3600));
    assert!(world.sent(PortId(0)).is_empty());
}

#[test]
fn search_domains_that_change_are_advertised_at_once_and_the_old_ones_taken_back() {
    let mut config = config();
    config.search = vec!["old.example".to_owned(), "a.b".to_owned()];
    let mut world = World::with(config);
    let port = world.attach();
    let now = world.now;
    world.engine.set_search(vec!["a.b".to_owned(), "new.example".to_owned()], now);
    assert_eq!(world.engine.next_timeout(), Some(now));
    world.pass(Duration::ZERO);
    let sent = Parsed::new(&world.one(port));
    let expected: &[&[u8]] = &[
        &[31, 4, 0, 0, 0, 0, 0x07, 0x08],
        b"\x01a\x01b\0\x03new\x07example\0\0\0\0\0\0\0",
        &[31, 3, 0, 0, 0, 0, 0, 0],
        b"\x03old\x07example\0\0\0\0",
    ];
    let expected = expected.concat();
    assert_eq!(sent.payload[sent.payload.len() - expected.len()..], expected);
    // And from now on as before.
    assert!(world.engine.next_timeout().unwrap().since(now) >= Duration::from_secs(200));
}
