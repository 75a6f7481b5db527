//! How connections begin: who waits for whom, and which options count.

use std::time::Duration;

use vmlan_testkit::packet::{ACK, RST, SYN, TcpOption};
use vmlan_testkit::trace::ISS;
use vmlan_testkit::{LinkOptions, Pattern, Remote, Trace, World};

use crate::{MS, SEC, SOON, sends};

#[test]
fn the_handshake_waits_for_the_host_and_carries_every_option() {
    let mut t = Trace::new(Remote::accept().after(500 * MS));
    t.syn();
    t.silent_for(499 * MS);
    t.world.run_for(MS);
    let syn_ack = t.expect();
    assert_eq!((syn_ack.flags, syn_ack.ack), (SYN | ACK, ISS + 1));
    assert_eq!(t.world.engine.config().mtu, 65_520);
    assert_eq!(syn_ack.mss(), Some(15 * 4096), "whole pages of what fits");
    assert!(syn_ack.window_scale().is_some());
    assert!(syn_ack.options.contains(&TcpOption::SackPermitted));
}

#[test]
fn a_guest_whose_link_makes_the_segments_is_offered_all_that_fits() {
    let link = LinkOptions::offload(65_520).unfinished();
    let mut t = Trace::with(World::new(1), link, Remote::accept());
    t.syn();
    assert_eq!(t.expect().mss(), Some(65_480));
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
fn a_tiny_mss_makes_no_tiny_segments() {
    let mut t = Trace::new(sends(5000));
    t.send(&t.segment(SYN).option(TcpOption::Mss(1)));
    t.seq = ISS + 1;
    t.ack = t.expect().next_seq();
    t.acknowledge();
    assert!(t.expect().payload.len() >= 48);
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
