//! TCP segment by segment: what the engine answers to what, and when.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

use std::time::Duration;

use vmlan_engine::Instant;
use vmlan_testkit::packet::{ACK, FIN, PSH, RST, SYN, TcpOption};
use vmlan_testkit::trace::ISS;
use vmlan_testkit::{Ending, LinkOptions, Pattern, Remote, Seen, Trace, World};

const MS: Duration = Duration::from_millis(1);
const SEC: Duration = Duration::from_secs(1);
/// Longer than any acknowledgement is delayed.
const SOON: Duration = Duration::from_millis(50);

fn sends(bytes: u64) -> Remote {
    Remote::accept().sends(Pattern(1), bytes).then(Ending::Hold)
}

#[test]
fn the_handshake_waits_for_the_host_and_carries_every_option() {
    let mut t = Trace::new(Remote::accept().after(500 * MS));
    t.syn();
    t.silent_for(499 * MS);
    t.world.run_for(MS);
    let syn_ack = t.expect();
    assert_eq!((syn_ack.flags, syn_ack.ack), (SYN | ACK, ISS + 1));
    let mss = t.world.engine.config().mtu - 40;
    assert_eq!(syn_ack.mss(), Some(mss));
    assert!(syn_ack.window_scale().is_some());
    assert!(syn_ack.options.contains(&TcpOption::SackPermitted));
}

#[test]
fn options_that_were_not_offered_are_not_used() {
    let mut t = Trace::new(Remote::accept());
    let syn = t.segment(SYN);
    t.send(&syn);
    let syn_ack = t.expect();
    assert_eq!(syn_ack.window_scale(), None);
    assert!(!syn_ack.options.contains(&TcpOption::SackPermitted));
    assert!(syn_ack.mss().is_some());
}

#[test]
fn without_an_mss_segments_are_of_536_bytes() {
    let mut t = Trace::new(sends(5000));
    let syn = t.segment(SYN);
    t.send(&syn);
    t.seq = ISS + 1;
    t.ack = t.expect().next_seq();
    t.acknowledge();
    assert_eq!(t.expect().payload.len(), 536);
}

#[test]
fn a_repeated_syn_while_the_host_connects_dials_once() {
    let mut t = Trace::new(Remote::accept().after(3 * SEC));
    for _ in 0..3 {
        t.syn();
        t.silent_for(SEC / 2);
    }
    t.world.run_for(3 * SEC / 2);
    assert!(t.expect().has(SYN | ACK));
    t.silent();
    assert_eq!(t.world.host.conns.len(), 1);
}

#[test]
fn a_lost_syn_ack_is_sent_again_ever_more_slowly_and_then_given_up() {
    let mut t = Trace::new(Remote::accept());
    t.syn();
    let first = t.expect();
    let mut last = Duration::ZERO;
    let mut count = 0;
    while t.world.host.open_sockets() > 0 {
        let (again, took) = t.expect_within(60 * SEC);
        if again.has(RST) {
            break;
        }
        assert_eq!((again.seq, again.ack, again.flags), (first.seq, first.ack, SYN | ACK));
        assert!(took >= last * 3 / 2, "{took:?} after {last:?}");
        (last, count) = (took, count + 1);
    }
    assert!((3..10).contains(&count), "{count} repetitions");
    assert_eq!(t.world.host.open_sockets(), 0);
    assert!(t.world.engine.flows().is_empty());
}

#[test]
fn data_may_come_with_the_ack_of_the_handshake() {
    let mut t = Trace::new(Remote::accept());
    t.syn();
    t.seq = ISS + 1;
    t.ack = t.expect().next_seq();
    t.data(b"early");
    assert_eq!(t.expect_within(SOON).0.ack, ISS + 6);
    assert_eq!(t.world.host.conns[0].head, b"early");
}

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
            // Scaling may take off a little (RFC 7323 section 2.4).
            let least = edge.wrapping_sub((1 << shift) - 1);
            assert!(right.wrapping_sub(least) < 1 << 31, "the window shrank");
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
fn lost_data_is_sent_again_after_three_duplicate_acks() {
    let mut t = Trace::new(sends(20_000));
    t.open_data();
    let first = t.expect();
    let mut rest = Vec::new();
    while let Some(packet) = t.packet() {
        rest.push(packet.tcp().unwrap().clone());
    }
    assert!(rest.len() > 5);
    assert_eq!(first.seq, t.ack);
    for segment in &rest[..3] {
        let sack = vec![(first.next_seq(), segment.next_seq())];
        t.send(&t.segment(ACK).option(TcpOption::Sack(sack)));
    }
    let again = t.expect();
    assert_eq!((again.seq, &again.payload), (first.seq, &first.payload));
    t.silent();
    t.ack = rest.last().unwrap().next_seq();
    t.acknowledge();
    t.silent_for(10 * SEC);
}

#[test]
fn only_what_is_missing_is_sent_again() {
    let mut t = Trace::new(sends(30_000));
    t.open_data();
    let mut all = Vec::new();
    while let Some(packet) = t.packet() {
        all.push(packet.tcp().unwrap().clone());
    }
    // Segments 0, 3 and 7 are lost.
    let blocks = [(1, 2), (4, 6), (8, 11)];
    let sack = |n: usize| {
        let edges = blocks[..n].iter().map(|(a, b)| (all[*a].seq, all[*b].next_seq()));
        TcpOption::Sack(edges.rev().collect())
    };
    for n in 1..=3 {
        t.send(&t.segment(ACK).option(sack(n)));
    }
    t.send(&t.segment(ACK).option(sack(3)));
    let mut again = Vec::new();
    while let Some(packet) = t.packet() {
        again.push(packet.tcp().unwrap().seq);
    }
    again.sort_unstable();
    again.dedup();
    assert_eq!(again, [all[0].seq, all[3].seq, all[7].seq]);
}

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

/// The guest was given up after what it did at `start`.
fn assert_given_up(t: &Trace, start: Instant) {
    let took = t.world.now.since(start);
    assert!((900 * SEC..1100 * SEC).contains(&took), "given up after {took:?}");
    assert_eq!(t.world.host.open_sockets(), 0);
    assert_eq!(t.world.host.conns[0].seen, Some(Seen::Reset));
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

#[test]
fn a_flow_goes_on_whose_timer_fired_while_the_port_was_full() {
    let mut t = Trace::with(World::new(1), LinkOptions::plain(1500).queue(1), sends(1000));
    t.open_data();
    // The first segment is not taken from the link, so that the second finds no room.
    t.world.run_for(2 * SEC);
    let first = t.expect();
    t.world.run_for(Duration::from_millis(1));
    let (again, _) = t.expect_within(10 * SEC);
    assert_eq!((again.seq, &again.payload), (first.seq, &first.payload));
}

#[test]
fn a_lost_fin_is_sent_again() {
    let mut t = Trace::new(Remote::accept().then(Ending::Fin));
    t.open_data();
    let fin = t.expect();
    assert!(fin.has(FIN));
    let (again, took) = t.expect_within(SEC);
    assert!(again.has(FIN) && again.seq == fin.seq, "{again:?}");
    assert!(took >= 100 * MS);
    t.ack = fin.next_seq();
    t.acknowledge();
    t.silent_for(10 * SEC);
    // The guest's own direction is still open.
    t.data(b"late");
    t.expect_within(SOON);
    assert_eq!(t.world.host.conns[0].head, b"late");
}

#[test]
fn a_repeated_fin_is_acknowledged_after_the_connection_is_gone() {
    let mut t = Trace::new(Remote::accept());
    t.open();
    t.fin();
    let mut last = t.expect();
    while let Some(packet) = t.packet() {
        last = packet.tcp().unwrap().clone();
    }
    assert!(last.has(FIN) && last.ack == t.seq, "{last:?}");
    t.ack = last.next_seq();
    t.acknowledge();
    t.silent();
    assert!(t.world.engine.flows().is_empty());
    // Our last acknowledgement was lost.
    let again = t.segment(FIN).seq(t.seq - 1);
    t.send(&again);
    let answer = t.expect();
    assert_eq!((answer.flags, answer.seq, answer.ack), (ACK, t.ack, t.seq));
    // A minute later nobody remembers.
    t.world.run_for(61 * SEC);
    t.send(&again);
    assert!(t.expect().has(RST));
}

#[test]
fn a_new_connection_may_follow_at_once_on_the_same_ports() {
    let mut t = Trace::new(Remote::accept());
    for round in 0..3 {
        (t.seq, t.ack) = (ISS, 0);
        t.open();
        t.fin();
        let mut last = t.expect();
        while let Some(packet) = t.packet() {
            last = packet.tcp().unwrap().clone();
        }
        t.ack = last.next_seq();
        t.acknowledge();
        assert_eq!(t.world.host.conns.len(), round + 1);
        assert_eq!(t.world.host.open_sockets(), 0);
    }
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut t = Trace::new(Remote::accept());
    (t.seq, t.ack) = (5000, 7000);
    t.data(b"who?");
    let rst = t.expect();
    assert!(rst.has(RST) && rst.seq == 7000, "{rst:?}");
    t.send(&t.segment(RST));
    t.silent();
    let mut syn_ack = t.segment(SYN);
    syn_ack = syn_ack.ack(9000);
    t.send(&syn_ack);
    let rst = t.expect();
    assert!(rst.has(RST) && rst.seq == 9000, "{rst:?}");
}

#[test]
fn only_the_exact_sequence_number_resets() {
    let mut t = Trace::new(Remote::accept());
    t.open();
    // In the window: questioned (RFC 5961 section 3.2).
    t.send(&t.segment(RST).seq(t.seq + 100));
    assert_eq!(t.expect().flags, ACK);
    // Outside: ignored.
    t.send(&t.segment(RST).seq(t.seq.wrapping_sub(100)));
    t.silent();
    // A SYN in the window: questioned as well.
    let syn = t.segment(SYN).seq(t.seq + 100);
    t.send(&syn);
    assert_eq!(t.expect().flags, ACK);
    assert_eq!(t.world.host.open_sockets(), 1);
    t.send(&t.segment(RST));
    t.silent();
    assert_eq!(t.world.host.open_sockets(), 0);
    assert_eq!(t.world.host.conns[0].seen, Some(Seen::Reset));
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_not_believed() {
    let mut t = Trace::new(sends(5000));
    t.open_data();
    let first = t.expect();
    while t.packet().is_some() {}
    t.send(&t.segment(ACK).ack(first.seq + 1_000_000));
    let answer = t.expect();
    assert_eq!(answer.ack, t.seq);
    // Nothing was taken off: the data still comes again.
    let (again, _) = t.expect_within(SEC);
    assert_eq!(again.seq, first.seq);
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

#[test]
fn broken_segments_change_nothing() {
    let mut t = Trace::new(Remote::accept());
    t.open();
    let gateway = t.world.engine.config().gateway_mac;
    let good = t.segment(PSH).data(b"data").frame(t.mac, gateway);
    // One bit, anywhere behind the Ethernet header.
    for bit in 14 * 8..good.len() * 8 {
        let mut frame = good.clone();
        frame[bit / 8] ^= 1 << (bit % 8);
        t.world.inject(t.port, frame);
    }
    for len in 0..good.len() {
        t.world.inject(t.port, good[..len].to_vec());
    }
    t.world.run_for(SEC);
    while let Some(packet) = t.packet() {
        assert!(packet.tcp().is_none(), "{packet:?}");
    }
    assert_eq!(t.world.host.conns[0].received, 0);
    t.data(b"data");
    assert_eq!(t.expect_within(SOON).0.ack, t.seq);
}

#[test]
fn odd_options_are_harmless() {
    for options in [
        vec![0],
        vec![1, 1, 1, 0],
        vec![2, 0],
        vec![3, 1],
        vec![8, 10, 0, 0, 0, 1, 0, 0, 0, 0],
        vec![5, 34],
        vec![255; 40],
        vec![2, 4, 0, 0],
        vec![3, 3, 255],
    ] {
        let mut t = Trace::new(sends(100));
        t.send(&t.segment(SYN).option(TcpOption::Raw(options.clone())));
        t.seq = ISS + 1;
        let Some(packet) = t.packet() else { continue };
        t.ack = packet.tcp().unwrap().next_seq();
        t.acknowledge();
        t.world.run_for(SEC);
        let data = t.drain();
        assert!(Pattern(1).check(0, &data).is_ok(), "{options:?}");
    }
}

#[test]
fn a_tiny_mss_makes_no_tiny_segments() {
    let mut t = Trace::new(sends(5000));
    t.send(&t.segment(SYN).option(TcpOption::Mss(1)));
    t.seq = ISS + 1;
    t.ack = t.expect().next_seq();
    t.acknowledge();
    assert!(t.expect().payload.len() >= 48);
}

#[test]
fn a_guest_whose_link_has_large_frames_gets_trains_that_respect_its_mss() {
    let link = LinkOptions::offload(1500).unfinished();
    let mut t = Trace::with(World::new(1), link, sends(100_000));
    t.open_data();
    let frame = t.world.take(t.port).unwrap();
    let gso = frame.offload.gso.expect("a train");
    assert_eq!(gso.size, 1460);
    assert!(frame.data.len() > 20_000, "{} bytes", frame.data.len());
}

/// What only these tests need of a trace.
trait Opened {
    /// The handshake with a far end that has something to say at once.
    fn open_data(&mut self);
}

impl Opened for Trace {
    fn open_data(&mut self) {
        self.syn();
        self.seq = ISS + 1;
        self.ack = self.expect().next_seq();
        self.acknowledge();
    }
}
