//! Messages that no honest resolver sends, and those that few do.

use std::io::{Read, Write};
use std::time::Duration;

use vmlan_e2e::dns_client::{Client, Transport, receive, send};
use vmlan_e2e::dns_message::{
    A, FORMERR, Message, NOERROR, NOTIMP, Query, RECURSION, REFUSED, TXT, answer,
};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::upstream::Asked;
use vmlan_e2e::world::DNS;
use vmlan_e2e::{Upstream, World};

use crate::scene::{FIRST, TRUE, world};

#[track_caller]
fn scene() -> (World, Upstream) {
    let world = world(&[FIRST]);
    let upstream = Upstream::serve(&world.outside, FIRST, |asked: &Asked| {
        if asked.name().starts_with("slow") {
            std::thread::sleep(Duration::from_secs(2));
        }
        vec![asked.with(TRUE, 60)]
    });
    (world, upstream)
}

/// A header with these counts and flags, and what follows it.
fn raw(id: u16, flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let head = [id, flags, counts[0], counts[1], counts[2], counts[3]];
    [&head.map(u16::to_be_bytes).concat()[..], rest].concat()
}

const QUESTION: &[u8] = b"\x03one\x04test\0\0\x01\0\x01";
const OTHER: &[u8] = b"\x03two\x04test\0\0\x01\0\x01";

/// The rcode of the answer to a message, whose question may be left out.
#[track_caller]
fn rcode(guest: &mut Client<'_>, message: &[u8]) -> u16 {
    let reply = guest.exchange_udp(message, SOON);
    let reply = reply.unwrap_or_else(|error| panic!("{message:02x?}: {error}"));
    let reply = Message::decode(&reply).expect("a reply");
    assert!(reply.is_reply());
    reply.rcode
}

#[test]
fn other_numbers_of_questions_are_refused() {
    let (world, upstream) = scene();
    let mut guest = Client::new(&world.guest, DNS);
    assert_eq!(rcode(&mut guest, &raw(1, RECURSION, [0; 4], &[])), FORMERR);
    let two = [QUESTION, OTHER].concat();
    assert_eq!(rcode(&mut guest, &raw(2, RECURSION, [2, 0, 0, 0], &two)), FORMERR);
    // A question that is not there.
    assert_eq!(rcode(&mut guest, &raw(3, RECURSION, [1, 0, 0, 0], &[])), FORMERR);
    assert_eq!(rcode(&mut guest, &raw(4, RECURSION, [1, 0, 0, 0], &QUESTION[..12])), FORMERR);
    let _ = upstream;
}

#[test]
fn other_opcodes_are_the_nameservers_business() {
    let (world, _upstream) = scene();
    let mut guest = Client::new(&world.guest, DNS);
    for opcode in [1, 2, 4, 5] {
        let message = raw(opcode, RECURSION | opcode << 11, [1, 0, 0, 0], QUESTION);
        let rcode = rcode(&mut guest, &message);
        // The nameserver of the test answers to everything.
        assert!([NOERROR, NOTIMP, REFUSED, FORMERR].contains(&rcode), "{opcode}: {rcode}");
    }
}

#[test]
fn malformed_messages_do_no_harm() {
    let (world, _upstream) = scene();
    let mut guest = Client::new(&world.guest, DNS);
    let long_name = [&[63][..], &[b'x'; 63]].concat().repeat(5);
    let rest: [&[u8]; 8] = [
        b"\xc0\x0c\0\x01\0\x01",
        b"\xff\xff\0\x01\0\x01",
        b"\x40xxx\0\0\x01\0\x01",
        &[&long_name[..], &[0, 0, 1, 0, 1]].concat(),
        b"\x03one",
        b"\x03one\x04test\0\0",
        &[QUESTION, &[0, 0, 41, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 1]].concat(),
        &[QUESTION, &[0; 3000]].concat(),
    ];
    for (n, rest) in (1..).zip(rest) {
        for counts in [[1, 0, 0, 0], [1, 0, 0, 1], [0xffff; 4], [1, 0xffff, 0, 0xffff]] {
            guest.send_udp(&raw(n, RECURSION, counts, rest));
        }
    }
    for length in 0..12 {
        guest.send_udp(&raw(9, RECURSION, [1, 0, 0, 0], QUESTION)[..length]);
    }
    // What is an answer is none to be answered.
    let reply = raw(0x7777, 0x8180, [1, 0, 0, 0], QUESTION);
    assert!(guest.exchange_udp(&reply, Duration::from_millis(500)).is_err());
    assert_eq!(guest.udp("one.test", A).addresses(), ["203.0.113.1"]);
}

#[test]
fn malformed_streams_do_no_harm() {
    let (world, _upstream) = scene();
    let question = Query::new("one.test", A).encode(1);
    for bytes in [&[0_u8, 0][..], &[0, 5, 1, 2, 3, 4, 5], &[0xff, 0xff, 0], &[0], &[]] {
        let mut stream = world.guest.connect((DNS, 53)).expect("a nameserver");
        stream.write_all(bytes).expect("some bytes can be sent");
        stream.shutdown(std::net::Shutdown::Write).expect("an end");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{bytes:02x?} gave {rest:02x?}");
    }
    // One byte at a time is slow, and right.
    let mut stream = world.guest.connect((DNS, 53)).expect("a nameserver");
    stream.set_nodelay(true).expect("a socket option");
    let length = u16::try_from(question.len()).expect("a short question").to_be_bytes();
    for byte in length.into_iter().chain(question) {
        stream.write_all(&[byte]).expect("a byte can be sent");
    }
    let reply = Message::decode(&receive(&mut stream).expect("an answer")).expect("a reply");
    assert_eq!(reply.addresses(), ["203.0.113.1"]);
}

/// Many questions on one connection, answered as their answers come (RFC 7766 section 6.2.1.1).
#[test]
fn a_connection_is_not_held_up_by_one_question() {
    let (world, _upstream) = scene();
    let mut stream = world.guest.connect((DNS, 53)).expect("a nameserver");
    send(&mut stream, &Query::new("slow.test", A).encode(0)).expect("a question");
    for id in 1..=100 {
        send(&mut stream, &Query::new(&format!("n{id}.test"), A).encode(id)).expect("a question");
    }
    let mut ids = Vec::new();
    for _ in 0..=100 {
        let reply = receive(&mut stream).expect("an answer to each");
        let reply = Message::decode(&reply).expect("a reply");
        assert_eq!(reply.addresses(), ["203.0.113.1"]);
        ids.push(reply.id);
    }
    assert_eq!(ids.pop(), Some(0), "the slow one was waited for");
    ids.sort_unstable();
    assert!(ids.into_iter().eq(1..=100));
}

/// Who says that he can take little is given little: nobody else can be hit with it.
#[test]
fn nobody_is_given_more_than_asked_for() {
    let world = world(&[FIRST]);
    let _upstream = Upstream::serve(&world.outside, FIRST, |asked| {
        // A nameserver that does not care for the size.
        vec![answer(&asked.message, NOERROR, 60, &vec![[&[200][..], &[b'x'; 200]].concat(); 20])]
    });
    let mut guest = Client::new(&world.guest, DNS);
    for _ in 0..2 {
        for edns in [None, Some(0), Some(512), Some(1232)] {
            let query = Query::new("big.test", TXT).edns(edns.map(|size| (size, false)));
            let reply = guest.ask(&query, Transport::Udp);
            let limit = usize::from(edns.unwrap_or(512).max(512));
            assert!(reply.len <= limit && reply.truncated(), "{edns:?}: {} bytes", reply.len);
        }
    }
}
