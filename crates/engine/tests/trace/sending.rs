//! What the guest is sent: segments, and again what was lost.

use std::time::Duration;

use vmlan_testkit::packet::{ACK, FIN, TcpOption};
use vmlan_testkit::{Ending, LinkOptions, Remote, Trace, World};

use crate::{MS, Opened, SEC, SOON, sends};

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
fn a_guest_whose_link_has_large_frames_gets_trains_that_respect_its_mss() {
    let link = LinkOptions::offload(1500).unfinished();
    let mut t = Trace::with(World::new(1), link, sends(100_000));
    t.open_data();
    let frame = t.world.take(t.port).unwrap();
    let gso = frame.offload.gso.expect("a train");
    assert_eq!(gso.size, 1460);
    assert!(frame.data.len() > 20_000, "{} bytes", frame.data.len());
}
