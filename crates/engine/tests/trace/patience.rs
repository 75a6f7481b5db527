//! How long a guest is waited for: timeouts, closed windows, silence.

use std::time::Duration;

use vmlan_engine::Instant;
use vmlan_testkit::packet::{ACK, RST};
use vmlan_testkit::{Remote, Seen, Trace};

use crate::{Opened, SEC, sends};

#[test]
fn a_timeout_sends_again_and_backs_off_until_it_gives_up() {
    let mut t = Trace::new(sends(1000));
    t.open_data();
    let start = t.world.now;
    let first = t.expect();
    let mut last = Duration::ZERO;
    let mut count = 0;
    loop {
        let (again, took) = t.expect_within(130 * SEC);
        if again.has(RST) {
            break;
        }
        assert_eq!((again.seq, &again.payload), (first.seq, &first.payload));
        assert!(took >= last || took >= 59 * SEC, "{took:?} after {last:?}");
        (last, count) = (took, count + 1);
        assert!(count < 50, "it never gives up");
    }
    assert!(count >= 5);
    assert_given_up(&t, start);
}

#[test]
fn a_closed_window_of_the_guest_is_probed_until_it_opens() {
    let mut t = Trace::new(sends(100_000));
    t.window = 3000;
    t.open_data();
    let mut got = Vec::new();
    while let Some(packet) = t.packet() {
        let segment = packet.tcp().unwrap().clone();
        got.extend_from_slice(&segment.payload);
        t.ack = segment.next_seq();
    }
    assert!(got.len() <= 3000, "{} bytes for a window of 3000", got.len());
    t.window = 0;
    t.acknowledge();
    let mut last = Duration::ZERO;
    for _ in 0..5 {
        let (probe, took) = t.expect_within(120 * SEC);
        assert!(probe.payload.len() <= 1);
        assert!(took >= last, "probes come faster and faster: {took:?} after {last:?}");
        last = took;
        t.acknowledge();
    }
    // The guest lives: it answers. However long it takes, the connection stays.
    for _ in 0..100 {
        let (probe, _) = t.expect_within(120 * SEC);
        assert!(!probe.has(RST) && probe.payload.len() <= 1, "{probe:?}");
        t.acknowledge();
    }
    t.window = 65_535;
    t.acknowledge();
    let mut next = t.ack;
    while let Some(packet) = t.packet() {
        let segment = packet.tcp().unwrap().clone();
        assert_eq!(segment.seq, next, "the probe's byte comes first");
        next = segment.next_seq();
    }
    assert!(next.wrapping_sub(t.ack) > 60_000);
}

#[test]
fn unanswered_probes_of_a_closed_window_end() {
    let mut t = Trace::new(sends(100_000));
    t.window = 1460;
    t.open_data();
    t.ack = t.expect().next_seq();
    t.window = 0;
    t.acknowledge();
    // As long as it answers it may take its time, with pauses too.
    for _ in 0..40 {
        t.expect_within(60 * SEC);
        t.acknowledge();
    }
    t.world.run_for(800 * SEC);
    while t.packet().is_some() {}
    t.acknowledge();
    let start = t.world.now;
    while !t.expect_within(61 * SEC).0.has(RST) {}
    assert_given_up(&t, start);
}

#[test]
fn opening_and_closing_the_window_is_no_acknowledgement() {
    let mut t = Trace::new(sends(100_000));
    t.open_data();
    t.expect();
    let start = t.world.now;
    while t.world.host.open_sockets() > 0 && t.world.now.since(start) < 2000 * SEC {
        for window in [0, 65_535] {
            t.window = window;
            t.acknowledge();
        }
        t.world.run_for(SEC);
        while t.packet().is_some() {}
    }
    assert_given_up(&t, start);
}

/// The guest was given up after what it did at `start`.
fn assert_given_up(t: &Trace, start: Instant) {
    let took = t.world.now.since(start);
    assert!((900 * SEC..1100 * SEC).contains(&took), "given up after {took:?}");
    assert_eq!(t.world.host.open_sockets(), 0);
    assert_eq!(t.world.host.conns[0].seen, Some(Seen::Reset));
}

#[test]
fn a_silent_connection_is_probed_and_then_reset() {
    let mut t = Trace::new(Remote::accept());
    t.open();
    let (probe, took) = t.expect_within(8000 * SEC);
    assert_eq!((probe.seq.wrapping_add(1), probe.payload.len()), (t.ack, 0));
    assert!(took >= 7000 * SEC, "{took:?}");
    t.acknowledge();
    let (_, took) = t.expect_within(8000 * SEC);
    assert!(took >= 7000 * SEC, "an answer starts the clock again: {took:?}");
    let mut probes = 1;
    while t.world.host.open_sockets() > 0 {
        t.world.run_for(75 * SEC);
        while t.packet().is_some() {
            probes += 1;
        }
        assert!(probes < 20);
    }
    assert!(probes >= 5, "{probes}");
    assert!(t.world.engine.flows().is_empty());
}

#[test]
fn a_guest_s_keepalive_is_answered() {
    let mut t = Trace::new(Remote::accept());
    t.open();
    t.send(&t.segment(ACK).seq(t.seq - 1));
    assert_eq!(t.expect().ack, t.seq);
    t.send(&t.segment(ACK).seq(t.seq - 1).data(b"x"));
    assert_eq!(t.expect().ack, t.seq);
    assert_eq!(t.world.host.conns[0].received, 0);
}
