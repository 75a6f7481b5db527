//! Nameservers that take their time or never answer: no name waits for another, and nobody asks
//! more of a nameserver than he must.

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use vmlan_e2e::Upstream;
use vmlan_e2e::dns_client::Client;
use vmlan_e2e::dns_message::{A, Message, NOERROR, Query, SERVFAIL};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::eventually;
use vmlan_e2e::upstream::Asked;
use vmlan_e2e::world::DNS;

use crate::scene::{FIRST, PATIENCE, SECOND, TRUE, expect_truth, resolve, world};

/// Answers come when they come, and in the meantime those of other names.
#[test]
fn one_that_takes_five_seconds() {
    let world = world(&[FIRST]);
    let _first = Upstream::serve(&world.outside, FIRST, |asked| {
        if asked.name().starts_with("slow") {
            thread::sleep(Duration::from_secs(5));
        }
        vec![asked.with(TRUE, 60)]
    });
    thread::scope(|scope| {
        let slow: Vec<_> = (0..20)
            .map(|n| format!("slow{n}.test"))
            .map(|name| {
                scope.spawn({
                    let world = &world;
                    move || expect_truth(world, &name)
                })
            })
            .collect();
        let mut guest = Client::new(&world.guest, DNS);
        let start = Instant::now();
        for n in 0..100 {
            assert_eq!(resolve(&mut guest, &format!("quick{n}.test")).rcode, NOERROR);
        }
        // Had only a few of them waited for a slow one, it would be more.
        assert!(start.elapsed() < PATIENCE, "{:?} for 100 names", start.elapsed());
        for slow in slow {
            slow.join().expect("the truth, late");
        }
    });
}

/// Whoever asks for what nobody answers gets to know that, and holds nobody up.
#[test]
fn ones_that_never_answer() {
    let world = world(&[FIRST, SECOND]);
    let behave = |asked: &Asked| {
        let silent = asked.name().starts_with("silent");
        if silent { vec![] } else { vec![asked.with(TRUE, 60)] }
    };
    let _first = Upstream::serve(&world.outside, FIRST, behave);
    let _second = Upstream::serve(&world.outside, SECOND, behave);
    // Far more than wait for anything in earnest, and less than a guest may have waiting: what
    // comes on top is refused at once.
    let flood = Client::new(&world.guest, DNS);
    for n in 0..1500 {
        let message = Query::new(&format!("silent{n}.test"), A).encode(n);
        flood.send_udp(&message);
    }
    expect_truth(&world, "one.test");
    let mut guest = Client::new(&world.guest, DNS);
    let message = Query::new("silent.test", A).encode(7);
    let start = Instant::now();
    let reply = eventually("an answer that there is none", 2 * SOON, || {
        guest.exchange_udp(&message, PATIENCE).ok()
    });
    let reply = Message::decode(&reply).expect("a reply");
    assert_eq!(reply.rcode, SERVFAIL, "after {:?}", start.elapsed());
    expect_truth(&world, "two.test");
}

/// Who guesses has to guess both: the id of every question, and one of several ports.
#[test]
fn ones_who_cannot_foresee_ids_and_ports() {
    const COUNT: usize = 200;
    let world = world(&[FIRST]);
    let upstream = Upstream::of(&world.outside, FIRST, TRUE);
    let mut guest = Client::new(&world.guest, DNS);
    for n in 0..COUNT {
        resolve(&mut guest, &format!("name{n}.test"));
    }
    let asked = upstream.asked();
    let ids: HashSet<u16> = asked.iter().map(|asked| asked.query.id).collect();
    let ports: HashSet<u16> = asked.iter().map(|asked| asked.from.port()).collect();
    assert!(ids.len() > COUNT * 9 / 10, "{} ids of {COUNT}", ids.len());
    assert!(ports.len() > 10, "{} ports of {COUNT}", ports.len());
}

#[test]
fn identical_questions_are_asked_once() {
    let world = world(&[FIRST]);
    let upstream = Upstream::serve(&world.outside, FIRST, |asked| {
        // Long enough for the others to come.
        thread::sleep(Duration::from_secs(1));
        vec![asked.with(TRUE, 0)]
    });
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| expect_truth(&world, "same.test"));
        }
    });
    // More than one only if the fifty took more than a second to come.
    assert!(upstream.count("same.test") < 5, "{} times", upstream.count("same.test"));
}

/// A datagram may be lost, on its way there as on its way back: who has asked once is answered
/// before he would ask again.
#[test]
fn ones_that_miss_a_question() {
    let world = world(&[FIRST]);
    let missed = Mutex::new(HashSet::new());
    let _first = Upstream::serve(&world.outside, FIRST, move |asked| {
        let first = missed.lock().expect("nobody panics with it").insert(asked.name());
        if first { vec![] } else { vec![asked.with(TRUE, 60)] }
    });
    let mut guest = Client::new(&world.guest, DNS);
    for n in 0..3 {
        let message = Query::new(&format!("name{n}.test"), A).encode(n);
        let reply = guest.exchange_udp(&message, PATIENCE).expect("an answer in time");
        assert_eq!(Message::decode(&reply).expect("a reply").addresses(), ["203.0.113.1"]);
    }
}
