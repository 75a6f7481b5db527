//! What the guest sends: acknowledgements, gaps, the window.

use std::time::Duration;

use vmlan_testkit::packet::{ACK, PSH};
use vmlan_testkit::{Remote, Trace};

use crate::{MS, SEC, SOON};

#[test]
fn a_short_segment_is_acknowledged_soon_and_two_full_ones_at_once() {
    let mut t = Trace::new(Remote::accept());
    t.open();
    t.data(b"x");
    let (ack, took) = t.expect_within(40 * MS);
    assert_eq!((ack.flags, ack.ack), (ACK, t.seq));
    assert!(took > Duration::ZERO, "not delayed");
    t.data(&[1; 1460]);
    t.data(&[2; 1460]);
    assert_eq!(t.expect().ack, t.seq);
}

#[test]
fn data_ahead_of_a_gap_is_kept_and_reported() {
    let mut t = Trace::new(Remote::accept());
    t.open();
    let start = t.seq;
    let ahead = t.segment(PSH).seq(start + 10).data(b"0123456789");
    t.send(&ahead);
    let ack = t.expect();
    assert_eq!((ack.ack, ack.sack()), (start, vec![(start + 10, start + 20)]));
    let far = t.segment(PSH).seq(start + 30).data(b"xyz");
    t.send(&far);
    let ack = t.expect();
    assert_eq!(ack.sack(), vec![(start + 30, start + 33), (start + 10, start + 20)]);
    t.send(&t.segment(PSH).data(b"abcdefghij"));
    let ack = t.expect();
    assert_eq!((ack.ack, ack.sack()), (start + 20, vec![(start + 30, start + 33)]));
    assert_eq!(t.world.host.conns[0].head, b"abcdefghij0123456789");
}

#[test]
fn every_segment_ahead_of_a_gap_brings_a_duplicate_ack_in_a_batch_too() {
    let mut t = Trace::new(Remote::accept());
    t.open();
    let start = t.seq;
    let ahead: Vec<_> =
        (1..5).map(|i| t.segment(ACK).seq(start + i * 1000).data(&[7; 1000])).collect();
    t.send_all(&ahead);
    let mut duplicates = 0;
    while let Some(packet) = t.packet() {
        assert_eq!(packet.tcp().unwrap().ack, start);
        duplicates += 1;
    }
    assert!(duplicates >= 3, "{duplicates} duplicate ACKs start no fast retransmit");
}

#[test]
fn data_seen_before_is_acknowledged_again_and_not_delivered_twice() {
    let mut t = Trace::new(Remote::accept());
    t.open();
    let segment = t.segment(PSH).data(b"once");
    t.data(b"once");
    t.expect_within(SOON);
    t.send(&segment);
    assert_eq!(t.expect().ack, t.seq);
    let overlapping = segment.data(b"once more");
    t.send(&overlapping);
    assert_eq!(t.expect_within(SOON).0.ack, t.seq + 5);
    assert_eq!(t.world.host.conns[0].head, b"once more");
}

#[test]
fn the_window_closes_with_the_socket_and_opens_with_it() {
    let mut t = Trace::new(Remote::accept().send_buffer(1000).reads(0, Duration::ZERO));
    let syn_ack = t.open();
    let shift = syn_ack.window_scale().unwrap();
    // As much as is allowed, whatever that is.
    let mut edge = syn_ack.ack.wrapping_add(u32::from(syn_ack.window));
    let mut sent = 0u32;
    for _ in 0..2000 {
        let room = edge.wrapping_sub(t.seq) as usize;
        if room == 0 {
            break;
        }
        sent += room.min(1400) as u32;
        t.data(&vec![9; room.min(1400)]);
        t.world.run_for(SOON);
        while let Some(packet) = t.packet() {
            let ack = packet.tcp().unwrap().clone();
            let right = ack.ack.wrapping_add(u32::from(ack.window) << shift);
            assert!(right.wrapping_sub(edge) < 1 << 31, "the window shrank");
            edge = right;
        }
    }
    assert_eq!(edge, t.seq, "the window never closed");
    // A probe beyond it is answered and not taken, but for what scaling hid.
    t.send(&t.segment(ACK).data(&[9; 100]));
    let answer = t.expect_within(SOON).0;
    let taken = answer.ack.wrapping_sub(t.seq);
    assert!(taken < 1 << shift && answer.window == 0, "{answer:?}");
    sent += taken;
    t.world.host.far_reads(0, usize::MAX);
    let (update, _) = t.expect_within(SOON);
    assert!(update.window > 0);
    t.world.run_for(SEC);
    assert_eq!(t.world.host.conns[0].read, u64::from(sent));
}

/// Each tiny segment has the closing window rounded up anew; what is promised stays within a ring.
#[test]
fn a_window_that_closes_by_tiny_segments_promises_no_more_than_can_be_held() {
    let mut t = Trace::new(Remote::accept().send_buffer(1000).reads(0, Duration::ZERO));
    let shift = t.open().window_scale().unwrap();
    let start = t.seq;
    let mut edge = start;
    while t.seq == start || t.seq != edge {
        // Large ones first: it would take long.
        let room = edge.wrapping_sub(t.seq) as usize;
        let len = if room > 20_000 { 1460 } else { room.clamp(1, 61) };
        t.data(&vec![9; len]);
        t.world.run_for(SOON);
        while let Some(packet) = t.packet() {
            let ack = packet.tcp().unwrap();
            assert_eq!(ack.ack, t.seq, "what was promised is taken");
            edge = ack.ack.wrapping_add(u32::from(ack.window) << shift);
        }
        assert!(edge.wrapping_sub(start) <= (4 << 20) + 1000, "beyond what is held");
    }
}
