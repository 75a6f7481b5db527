//! Nameservers of the host's that are dead or lying: guests get the truth all the same.

use std::time::{Duration, Instant};

use vmlan_e2e::Upstream;
use vmlan_e2e::dns_client::{Client, Transport};
use vmlan_e2e::dns_message::{
    A, NOERROR, NXDOMAIN, Query, REFUSED, SERVFAIL, TRUNCATED, TXT, answer,
};
use vmlan_e2e::upstream::Asked;
use vmlan_e2e::world::DNS;

use crate::scene::{FALSE, FIRST, SECOND, SILENT, THIRD, TRUE, expect_truth, resolve, world};

/// As `expect_truth`, with a first nameserver like this and a true second one.
#[track_caller]
fn expect_truth_beside(behave: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static) {
    let world = world(&[FIRST, SECOND]);
    let first = Upstream::serve(&world.outside, FIRST, behave);
    let _second = Upstream::of(&world.outside, SECOND, TRUE);
    expect_truth(&world, "one.test");
    // What was learnt about the first does not harm, and nor does what was not.
    for n in 0..20 {
        expect_truth(&world, &format!("name{n}.test"));
    }
    assert!(!first.asked().is_empty(), "the first one was not even asked");
}

#[test]
fn one_where_nobody_listens() {
    let world = world(&[FIRST, SECOND]);
    let _second = Upstream::of(&world.outside, SECOND, TRUE);
    expect_truth(&world, "one.test");
}

#[test]
fn ones_that_are_silent() {
    let world = world(&[SILENT, FIRST, SECOND]);
    let _first = Upstream::serve(&world.outside, FIRST, |_| vec![]);
    let _second = Upstream::of(&world.outside, SECOND, TRUE);
    expect_truth(&world, "one.test");
    // Not every name pays for the silence again: so many would take minutes.
    let start = Instant::now();
    for n in 0..50 {
        expect_truth(&world, &format!("name{n}.test"));
    }
    assert!(start.elapsed() < Duration::from_secs(50), "{:?} for 50 names", start.elapsed());
}

#[test]
fn one_that_sends_garbage() {
    expect_truth_beside(|asked| {
        let whole = asked.with(FALSE, 60);
        let noise = (0..200_u8).map(|n| n.wrapping_mul(167) ^ 0x5a).collect();
        let id = &asked.message[..2];
        vec![
            noise,
            vec![],
            id.to_vec(),
            whole[..11].to_vec(),
            // A header that promises what does not follow.
            [id, &[0x81, 0x80, 0, 1, 0xff, 0xff, 0, 0, 0, 0]].concat(),
        ]
    });
}

#[test]
fn one_with_wrong_ids() {
    expect_truth_beside(|asked| {
        let wrong = |by: u8| {
            let mut reply = asked.with(FALSE, 60);
            reply[1] = reply[1].wrapping_add(by);
            reply
        };
        (1..=255).map(wrong).collect()
    });
}

#[test]
fn one_that_answers_other_questions() {
    expect_truth_beside(|asked| {
        let id = u16::from_be_bytes([asked.message[0], asked.message[1]]);
        let of = |query: Query| answer(&query.encode(id), NOERROR, 60, &[FALSE.to_vec()]);
        let name = asked.name();
        let mut none = asked.with(FALSE, 60);
        none[5] = 0;
        vec![
            of(Query::new("other.test", A)),
            of(Query::new(&format!("x.{name}"), A)),
            of(Query::new(&name, TXT)),
            of(Query { class: 3, ..Query::new(&name, A) }),
            // The query itself.
            asked.message.clone(),
            none,
        ]
    });
}

#[test]
fn one_that_lies_from_elsewhere() {
    let world = world(&[FIRST, SECOND]);
    let liar = world.outside.udp((THIRD, 53));
    let neighbour = world.outside.udp((FIRST, 5353));
    let _first = Upstream::serve(&world.outside, FIRST, move |asked| {
        for socket in [&liar, &neighbour] {
            let _ = socket.send_to(&asked.with(FALSE, 60), asked.from);
        }
        vec![]
    });
    let _second = Upstream::of(&world.outside, SECOND, TRUE);
    for n in 0..5 {
        expect_truth(&world, &format!("name{n}.test"));
    }
}

/// What is true counts, though lies came before it.
#[test]
fn one_that_is_outrun_by_liars() {
    let world = world(&[FIRST]);
    let _first = Upstream::serve(&world.outside, FIRST, |asked| {
        let mut wrong = asked.with(FALSE, 60);
        wrong[0] ^= 0xff;
        let id = u16::from_be_bytes([asked.message[0], asked.message[1]]);
        let other = Query::new("other.test", A).encode(id);
        vec![
            vec![0; 5],
            wrong,
            answer(&other, NOERROR, 60, &[FALSE.to_vec()]),
            asked.with(TRUE, 60),
        ]
    });
    for n in 0..20 {
        expect_truth(&world, &format!("name{n}.test"));
    }
}

#[test]
fn ones_that_give_up() {
    expect_truth_beside(|asked| vec![asked.code(SERVFAIL)]);
    expect_truth_beside(|asked| vec![asked.code(REFUSED)]);
    // When all do, the guest is told.
    let world = world(&[FIRST, SECOND]);
    let _first = Upstream::serve(&world.outside, FIRST, |asked| vec![asked.code(SERVFAIL)]);
    let _second = Upstream::serve(&world.outside, SECOND, |asked| vec![asked.code(SERVFAIL)]);
    let mut guest = Client::new(&world.guest, DNS);
    assert_eq!(resolve(&mut guest, "one.test").rcode, SERVFAIL);
    assert_eq!(guest.ask(&Query::new("two.test", A), Transport::Tcp).rcode, SERVFAIL);
}

/// That a name does not exist is an answer, and the next nameserver is not asked for another.
#[test]
fn one_that_knows_better_than_the_next() {
    let world = world(&[FIRST, SECOND]);
    let _first = Upstream::of(&world.outside, FIRST, TRUE);
    let second = Upstream::of(&world.outside, SECOND, FALSE);
    let mut guest = Client::new(&world.guest, DNS);
    for n in 0..5 {
        assert_eq!(resolve(&mut guest, &format!("missing.n{n}.test")).rcode, NXDOMAIN);
    }
    assert!(second.asked().is_empty(), "{:?}", second.asked());
}

#[test]
fn one_that_cuts_what_would_fit() {
    let world = world(&[FIRST]);
    let upstream = Upstream::serve(&world.outside, FIRST, |asked| {
        let mut reply = asked.with(TRUE, 60);
        if asked.transport == Transport::Udp {
            reply = answer(&asked.message, NOERROR | TRUNCATED, 0, &[]);
        }
        vec![reply]
    });
    let mut guest = Client::new(&world.guest, DNS);
    // The cut answer or the whole one, but no cut one that looks whole.
    let reply = resolve(&mut guest, "one.test");
    assert!(reply.truncated() || reply.addresses() == ["203.0.113.1"], "{reply:?}");
    let reply = guest.ask(&Query::new("one.test", A), Transport::Tcp);
    assert_eq!(reply.addresses(), ["203.0.113.1"]);
    assert!(upstream.asked().iter().any(|asked| asked.transport == Transport::Tcp));
}
