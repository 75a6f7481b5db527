//! Segments that are not what they should be: of no connection, out of the window, broken.

use vmlan_testkit::packet::{ACK, FIN, PSH, RST, SYN};
use vmlan_testkit::{Remote, Seen, Trace};

use crate::{Opened, SEC, SOON, sends};

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
