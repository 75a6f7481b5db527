use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::io::{PortId, Token};
use crate::stats::Drop;
use crate::testing::*;

const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";

fn query(n: u8, from: u16, server: impl Into<IpAddr>, message: &[u8]) -> Vec<u8> {
    let server = server.into();
    let src: IpAddr = if server.is_ipv4() {
        guest(n + 14).into()
    } else {
        config().ipv6.nth(u64::from(n) + 14).into()
    };
    from_guest(n, &ip(src, server, 17, 64, &udp(from, 53, message)))
}

fn answer(world: &mut World, token: Token, message: &[u8]) {
    world.io(|engine, io| engine.handle_dns_answers([(token, message)], io));
}

#[test]
fn the_answer_comes_from_where_the_question_went() {
    let mut world = World::new();
    let port = world.attach();
    let v6 = config().ipv6;
    let servers: [IpAddr; 4] = [DNS.into(), GATEWAY.into(), v6.dns().into(), v6.gateway().into()];
    for (i, server) in servers.into_iter().enumerate() {
        let from = 40_000 + i as u16;
        world.send(port, &query(1, from, server, QUERY));
        assert!(world.sent(port).is_empty());
        let (token, message) = world.host.queries.pop().unwrap();
        assert_eq!(message, QUERY);
        for len in [12, 13, 512, 1400] {
            if len != 12 {
                world.send(port, &query(1, from, server, QUERY));
            }
            let token = world.host.queries.pop().map_or(token, |q| q.0);
            let reply = vec![0xab; len];
            answer(&mut world, token, &reply);
            let sent = Parsed::new(&world.one(port));
            assert_eq!((sent.src, sent.dst_mac, sent.protocol), (server, mac(1), 17));
            assert_eq!([be16(&sent.payload, 0), be16(&sent.payload, 2)], [53, from]);
            assert_eq!(usize::from(be16(&sent.payload, 4)), 8 + len);
            assert_eq!(sent.payload[8..], reply);
        }
    }
    assert_eq!(world.engine.stats().dns_queries, 16);
    assert_eq!(world.engine.stats().drops().count(), 0);
}

#[test]
fn an_answer_is_given_once_and_only_to_its_question() {
    let mut world = World::new();
    let port = world.attach();
    world.send(port, &query(1, 1000, DNS, QUERY));
    let (first, _) = world.host.queries.pop().unwrap();
    answer(&mut world, first, b"an answer, 1");
    assert_eq!(world.sent(port).len(), 1);
    world.send(port, &query(1, 1001, DNS, QUERY));
    let (second, _) = world.host.queries.pop().unwrap();
    // The same slot, another question.
    assert_eq!(first.index(), second.index());
    answer(&mut world, first, b"an answer, again");
    answer(&mut world, Token(u64::MAX >> 2), b"an answer to nothing");
    assert!(world.sent(port).is_empty());
    assert_eq!(world.dropped(Drop::NoFlow), 2);
    answer(&mut world, second, b"an answer, 2");
    assert_eq!(be16(&Parsed::new(&world.one(port)).payload, 2), 1001);
}

#[test]
fn answers_that_come_together_leave_together_each_to_its_guest() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    for from in 1000..1040 {
        world.send(port, &query(1, from, DNS, QUERY));
    }
    world.send(other, &query(2, 2000, GATEWAY, QUERY));
    let tokens: Vec<Token> = world.host.queries.drain(..).map(|q| q.0).collect();
    let answers = tokens.iter().map(|token| (*token, &b"an answer"[..]));
    let stale = [(Token(u64::MAX >> 2), &b"to nothing"[..]), (tokens[0], b"once more")];
    let before = world.links.calls;
    let answers = answers.clone().take(1).chain(stale).chain(answers.skip(1));
    world.io(|engine, io| engine.handle_dns_answers(answers, io));
    assert_eq!(world.links.calls - before, 3, "32, 8, and the other guest's");
    let to: Vec<u16> =
        world.sent(port).iter().map(|frame| be16(&Parsed::new(frame).payload, 2)).collect();
    assert_eq!(to, (1000..1040).collect::<Vec<u16>>());
    let sent = Parsed::new(&world.one(other));
    assert_eq!((sent.src, be16(&sent.payload, 2)), (GATEWAY.into(), 2000));
    assert_eq!(world.dropped(Drop::NoFlow), 2);
}

#[test]
fn what_is_no_question_does_not_reach_the_host() {
    let mut world = World::new();
    let port = world.attach();
    let mut is_answer = QUERY.to_vec();
    is_answer[2] |= 0x80;
    let good = query(1, 1000, DNS, QUERY);
    let mut longer = good.clone();
    longer[38..40].copy_from_slice(&9u16.to_be_bytes());
    for bad in [
        query(1, 1000, DNS, &QUERY[..11]),
        query(1, 1000, DNS, &is_answer),
        query(1, 0, DNS, QUERY),
        longer,
        from_guest(1, &ip(guest(15).into(), DNS.into(), 17, 64, &udp(1000, 53, b"")[..6])),
    ] {
        world.send(port, &bad);
    }
    assert_eq!(world.dropped(Drop::Malformed), 5);
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    world.send(port, &damaged);
    assert_eq!(world.dropped(Drop::Checksum), 1);
    let nobody = ip(Ipv4Addr::UNSPECIFIED.into(), DNS.into(), 17, 64, &udp(1000, 53, QUERY));
    world.send(port, &from_guest(1, &nobody));
    assert_eq!(world.dropped(Drop::Source), 1);
    assert!(world.host.queries.is_empty());
}

#[test]
fn a_guest_that_left_gets_nothing_and_nobody_else_does() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    announce(&mut world, other, 2, guest(16));
    world.send(port, &query(1, 1000, DNS, QUERY));
    world.io(|engine, io| engine.remove_port(port, io));
    world.sent(other);
    let (token, _) = world.host.queries.pop().unwrap();
    answer(&mut world, token, b"an answer, late");
    assert!(world.sent(other).is_empty());
    assert_eq!(world.dropped(Drop::NoFlow), 1);
}

#[test]
fn questions_without_answers_are_bounded_and_given_up() {
    let mut world = World::new();
    let ports: Vec<PortId> = (0..10).map(|_| world.attach()).collect();
    for n in 0..2136 {
        world.send(ports[0], &query(1, n + 1, DNS, QUERY));
    }
    assert_eq!(world.host.queries.len(), 2048);
    assert_eq!(world.dropped(Drop::Limit), 88);
    world.send(ports[1], &query(2, 9, DNS, QUERY));
    assert_eq!(world.host.queries.len(), 2049);
    for (i, port) in ports.iter().enumerate().skip(1) {
        for n in 0..2136 {
            world.send(*port, &query(i as u8 + 1, n + 1, DNS, QUERY));
        }
    }
    assert_eq!(world.host.queries.len(), 8192);
    world.pass(Duration::from_secs(16));
    assert_eq!(world.dropped(Drop::Expired), 8192);
    world.host.queries.clear();
    world.send(ports[0], &query(1, 77, DNS, QUERY));
    assert_eq!(world.host.queries.len(), 1);
}

#[test]
fn a_large_answer_goes_in_fragments() {
    let mut world = World::new();
    let port = world.attach();
    world.send(port, &query(1, 1000, DNS, QUERY));
    let (token, _) = world.host.queries.pop().unwrap();
    answer(&mut world, token, &[7; 4000]);
    assert_eq!(world.sent(port).len(), 3);
}
