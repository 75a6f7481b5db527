//! What has been answered once is not asked again, for as long as the nameserver said and no longer.

use std::fs;
use std::time::{Duration, Instant};

use vmlan_e2e::dns_client::{Client, Transport};
use vmlan_e2e::dns_message::{
    A, AAAA, MX, NOERROR, NXDOMAIN, Query, SERVFAIL, TRUNCATED, TXT, UNCHECKED, answer, nothing,
};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::eventually;
use vmlan_e2e::upstream::Asked;
use vmlan_e2e::world::{DNS, HOST};
use vmlan_e2e::{Upstream, World};

use crate::scene::{FIRST, TRUE, world};

struct Scene {
    world: World,
    upstream: Upstream,
}

impl Scene {
    #[track_caller]
    fn new(behave: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let world = world(&[FIRST]);
        let upstream = Upstream::serve(&world.outside, FIRST, behave);
        Self { world, upstream }
    }

    fn guest(&self) -> Client<'_> {
        Client::new(&self.world.guest, DNS)
    }

    /// How many questions have reached the nameserver.
    fn asked(&self) -> usize {
        self.upstream.asked().len()
    }
}

#[test]
fn a_name_is_asked_for_once() {
    let scene = Scene::new(|asked| vec![asked.with(TRUE, 60)]);
    for (name, id) in [("one.test", 1), ("ONE.test", 2), ("one.TEST", 3)] {
        // Over each transport, at each address, with and without EDNS.
        for server in [DNS, HOST] {
            let mut guest = Client::new(&scene.world.guest, server);
            for transport in [Transport::Udp, Transport::Tcp] {
                for edns in [None, Some((1232, false))] {
                    let reply = guest.ask(&Query::new(name, A).edns(edns), transport);
                    assert_eq!(reply.addresses(), ["203.0.113.1"], "{id} {transport:?} {edns:?}");
                    // The letters are those of this question.
                    assert_eq!(reply.question[0].0, name);
                    assert_eq!(reply.edns.is_some(), edns.is_some());
                }
            }
        }
    }
    // Once for each way in which a nameserver may answer differently, at most.
    assert!(scene.asked() <= 4, "{:?}", scene.upstream.asked());
    let before = scene.asked();
    assert_eq!(scene.guest().udp("one.test", AAAA).addresses(), [] as [&str; 0]);
    assert_eq!(scene.asked(), before + 1, "another type is another question");
}

#[test]
fn an_answer_grows_old_and_is_asked_for_again() {
    let scene = Scene::new(|asked| vec![asked.with(TRUE, 4)]);
    let mut guest = scene.guest();
    let start = Instant::now();
    let mut least = 4;
    while scene.asked() < 2 {
        let before = start.elapsed();
        let reply = guest.udp("one.test", A);
        assert!(before < SOON, "it is never asked for again");
        if scene.asked() == 1 {
            let ttl = reply.answer[0].ttl;
            // Never younger than it is, nor older than its time allows.
            assert!(
                ttl <= least && u64::from(ttl) + before.as_secs() <= 4 + 1,
                "{ttl} at {before:?}"
            );
            least = ttl;
        } else {
            assert!(start.elapsed() >= Duration::from_secs(4), "{:?}", start.elapsed());
            assert_eq!(reply.answer[0].ttl, 4);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(least < 4, "its time never passed");
}

#[test]
fn what_must_not_be_kept_is_not() {
    let scene = Scene::new(|asked| match asked.name().as_str() {
        "zero.test" => vec![asked.with(TRUE, 0)],
        _ => vec![asked.code(SERVFAIL)],
    });
    let mut guest = scene.guest();
    for _ in 0..5 {
        assert_eq!(guest.udp("zero.test", A).addresses(), ["203.0.113.1"]);
    }
    assert_eq!(scene.asked(), 5);
    // A failure passes, and whoever asks after it must not be told of it.
    for _ in 0..3 {
        let before = scene.asked();
        assert_eq!(guest.udp("broken.test", A).rcode, SERVFAIL);
        eventually("another question", SOON, || {
            guest.udp("broken.test", A);
            (scene.asked() > before).then_some(())
        });
    }
}

#[test]
fn what_does_not_exist_is_known_for_a_while() {
    let scene = Scene::new(|asked| {
        let (ttl, minimum) =
            if asked.name().starts_with("short") { (3600, 1) } else { (3600, 600) };
        let rcode = if asked.name().contains("missing") { NXDOMAIN } else { NOERROR };
        vec![nothing(&asked.message, rcode, ttl, minimum)]
    });
    let mut guest = scene.guest();
    for (name, rcode) in [("missing.test", NXDOMAIN), ("empty.test", NOERROR)] {
        for kind in [A, MX] {
            let before = scene.asked();
            for _ in 0..5 {
                let reply = guest.udp(name, kind);
                assert_eq!((reply.rcode, reply.answer.len()), (rcode, 0));
                assert_eq!(reply.authority.len(), 1);
            }
            let asked = scene.asked() - before;
            assert!(asked <= 1, "{name} {kind} was asked for {asked} times");
        }
    }
    // The lesser of the two times counts.
    guest.udp("short.missing.test", A);
    eventually("another question", SOON, || {
        guest.udp("short.missing.test", A);
        (scene.upstream.count("short.missing.test") > 1).then_some(())
    });
}

/// Whoever wants signatures, or wants none checked, has questions of his own.
#[test]
fn other_questions_are_not_answered_with_it() {
    let scene = Scene::new(|asked| {
        // What it answers depends on all that may matter.
        let dnssec = asked.query.edns.is_some_and(|(_, dnssec)| dnssec);
        let unchecked = asked.query.flags & UNCHECKED != 0;
        vec![asked.with([203, 0, 113, 10 + u8::from(dnssec) + 2 * u8::from(unchecked)], 60)]
    });
    let mut guest = scene.guest();
    for _ in 0..2 {
        for (edns, flags, expected) in [
            (Some((1232, false)), 0, "203.0.113.10"),
            (Some((1232, true)), 0, "203.0.113.11"),
            (Some((1232, false)), UNCHECKED, "203.0.113.12"),
            (Some((1232, true)), UNCHECKED, "203.0.113.13"),
            (None, 0, "203.0.113.10"),
        ] {
            let mut query = Query::new("one.test", A).edns(edns);
            query.flags |= flags;
            let reply = guest.ask(&query, Transport::Udp);
            assert_eq!(reply.addresses(), [expected], "{query:?}");
        }
    }
}

/// What came over TCP is not pressed into a datagram, and what was cut is no answer for TCP.
#[test]
fn sizes_are_each_askers_own() {
    let scene = Scene::new(|asked| {
        let records = vec![[&[250][..], &[b'x'; 250]].concat(); 10];
        let whole = answer(&asked.message, NOERROR, 60, &records);
        let limit = match asked.transport {
            Transport::Tcp => usize::MAX,
            Transport::Udp => asked.query.edns.map_or(512, |(size, _)| size.into()),
        };
        let cut = NOERROR | TRUNCATED;
        let fits = whole.len() <= limit;
        vec![if fits { whole } else { answer(&asked.message, cut, 60, &[]) }]
    });
    let mut guest = scene.guest();
    for _ in 0..2 {
        for (transport, edns, whole) in [
            (Transport::Udp, None, false),
            (Transport::Tcp, None, true),
            (Transport::Udp, Some(1232), false),
            (Transport::Udp, Some(4096), true),
            (Transport::Udp, None, false),
            (Transport::Tcp, Some(512), true),
        ] {
            let query = Query::new("big.test", TXT).edns(edns.map(|size| (size, false)));
            let reply = guest.ask(&query, transport);
            assert_eq!(reply.truncated(), !whole, "{transport:?} {edns:?}");
            assert!(!whole || reply.answer.len() == 10, "{transport:?} {edns:?}");
            let limit = edns.unwrap_or(512).max(512);
            assert!(transport == Transport::Tcp || reply.len <= usize::from(limit));
        }
    }
}

/// A guest that asks for ever more names does not make the daemon grow with them.
#[test]
fn it_does_not_grow_without_end() {
    const NAMES: u16 = 30_000;
    let scene = Scene::new(|asked| {
        let records = vec![[&[200][..], &[b'x'; 200]].concat(); 5];
        vec![answer(&asked.message, NOERROR, 3600, &records)]
    });
    let memory = || {
        let status = format!("/proc/{}/status", scene.world.netd.id());
        let text = fs::read_to_string(status).expect("the daemon is running");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number")
    };
    // Two clients, lest the reply to one be taken for that to the other.
    let (crowd, mut guest) = (scene.guest(), scene.guest());
    let query = |n: u16| Query::new(&format!("name{n}.test"), TXT).edns(Some((4096, false)));
    guest.ask(&query(0), Transport::Udp);
    let before = memory();
    for n in 1..NAMES {
        crowd.send_udp(&query(n).encode(n));
        // Not faster than they are answered.
        if n % 50 == 0 {
            guest.ask(&query(n), Transport::Udp);
        }
    }
    // Thirty megabytes went by.
    let grown = memory().saturating_sub(before);
    assert!(grown < 20_000, "grown by {grown} kB");
    let reply = guest.ask(&query(NAMES), Transport::Udp);
    assert_eq!(reply.answer.len(), 5);
}
