//! Guests among themselves: their frames cross the switch without the gateway.
#![allow(clippy::cast_possible_truncation)]

use std::time::Duration;

use vmlan_engine::{Drop, PortId};
use vmlan_testkit::packet::{self, ACK, PSH, Packet, Tcp};
use vmlan_testkit::{End, Faults, LinkOptions, Pattern, SimFrame, World, addr, check};
use vmlan_wire::frame::{Checksum, GsoKind};
use vmlan_wire::{Gso, Mac, Offload};

const MIB: u64 = 1 << 20;

/// One guest sends, another receives; every byte is intact and both ends close cleanly.
fn transfer(from: LinkOptions, to: LinkOptions, bytes: u64, limit: Duration) {
    let mut world = World::new(1);
    let (a, b) = (world.add_guest(from), world.add_guest(to));
    let pattern = Pattern(7);
    let server = world.guests[b].listen(80);
    world.guests[b].expect(server, pattern);
    let to = (world.guests[b].ipv4, 80).into();
    let client = world.guests[a].connect(to);
    world.guests[a].send(client, pattern, bytes);
    world.run_until(limit, |w| w.guests[b].app(server).end.is_some());
    let app = world.guests[b].app(server);
    assert_eq!((app.received, app.mismatch), (bytes, None));
    assert_eq!(app.end, Some(End::Fin));
}

#[test]
fn tcp_between_guests() {
    let plain = LinkOptions::plain(1500);
    transfer(plain, plain, 20 * MIB, Duration::from_secs(10));
}

#[test]
fn tcp_between_guests_over_a_bad_link() {
    let bad = LinkOptions::plain(1500)
        .faults(Faults::latency(5).loss(0.02).corrupt(0.01).duplicate(0.02));
    transfer(bad, LinkOptions::plain(1500), 2 * MIB, Duration::from_secs(300));
}

#[test]
fn tcp_between_guests_with_large_frames() {
    let plain = LinkOptions::plain(65_520);
    transfer(plain, plain, 20 * MIB, Duration::from_secs(10));
}

const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// Two ports whose MAC addresses are known.
fn pair(a: LinkOptions, b: LinkOptions) -> (World, PortId, PortId) {
    let mut world = World::new(1);
    let ports = (world.add_port(a), world.add_port(b));
    for (port, mac, ip) in [(ports.0, A, 101), (ports.1, B, 102)] {
        world.inject(port, packet::arp_request(mac, [192, 168, 5, ip].into(), [1; 4].into()));
    }
    world.run_for(Duration::ZERO);
    while world.take(ports.0).is_some() {}
    while world.take(ports.1).is_some() {}
    (world, ports.0, ports.1)
}

/// A train of TCP segments whose checksum is left to the card.
fn train(v6: bool, len: usize, size: u16) -> SimFrame {
    let (src, dst) = if v6 {
        (addr("[fe80::1]:1000"), addr("[fe80::2]:80"))
    } else {
        (addr("192.168.5.101:1000"), addr("192.168.5.102:80"))
    };
    let mut data = vec![0; len];
    Pattern(1).fill(0, &mut data);
    let mut frame = Tcp::new(src, dst, ACK | PSH).seq(7).data(&data).frame(A, B);
    let start = if v6 { 54 } else { 34 };
    // The pseudo-header's sum stands where the checksum will be.
    let sum = pseudo_header(&frame, start);
    frame[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
    let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
    let gso = Gso { kind, size, header_len: start as u16 + 20 };
    let checksum = Checksum::Partial { start: start as u16, offset: 16 };
    let gso = (len > usize::from(size)).then_some(gso);
    SimFrame { data: frame, offload: Offload { checksum, gso } }
}

fn pseudo_header(frame: &[u8], start: usize) -> u16 {
    let addresses = if start == 54 { 22..54 } else { 26..34 };
    let mut pseudo = frame[addresses].to_vec();
    pseudo.extend_from_slice(&((frame.len() - start) as u32).to_be_bytes());
    pseudo.extend_from_slice(&[0, 6]);
    vmlan_testkit::nic::add(&pseudo)
}

#[test]
fn a_train_is_cut_for_a_link_that_cannot() {
    for v6 in [false, true] {
        let (offload, plain) = (LinkOptions::offload(1500), LinkOptions::plain(1500));
        let (mut world, a, b) = pair(offload, plain);
        let size = if v6 { 1440 } else { 1460 };
        for len in [1, 1000, 1440, 20_000, 60_000] {
            world.inject(a, train(v6, len, size));
            let (mut got, mut frames) = (Vec::new(), 0);
            while let Some(frame) = world.take(b) {
                check::frame(&frame.data, frame.offload, plain.caps, 1500).unwrap();
                let Some(Packet::Tcp(segment)) = packet::parse(&frame.data) else { panic!() };
                assert_eq!(segment.seq as usize, 7 + got.len());
                got.extend_from_slice(&segment.payload);
                frames += 1;
                assert_eq!(segment.has(PSH), got.len() == len, "PSH belongs to the last");
            }
            assert_eq!(frames, len.div_ceil(usize::from(size)));
            assert_eq!((got.len(), Pattern(1).check(0, &got)), (len, Ok(())));
        }
    }
}

#[test]
fn a_train_passes_untouched_where_the_link_can() {
    let link = LinkOptions::offload(1500).unfinished();
    let (mut world, a, b) = pair(link, link);
    let sent = train(false, 60_000, 1460);
    world.inject(a, sent.clone());
    assert_eq!(world.take(b), Some(sent));
    assert_eq!(world.take(b), None);
}

#[test]
fn what_does_not_fit_is_dropped_and_counted() {
    let (mut world, a, b) = pair(LinkOptions::plain(9000), LinkOptions::plain(1500));
    let frame = packet::ethernet(A, B, 0x0800, &[0; 1501]);
    world.inject(a, frame);
    assert_eq!(world.take(b), None);
    assert_eq!(world.engine.stats().dropped(Drop::TooBig), 1);
    world.inject(a, packet::ethernet(A, B, 0x0800, &[0; 1500]));
    assert!(world.take(b).is_some());
}

#[test]
fn frames_go_where_they_belong_and_nowhere_else() {
    let (mut world, a, b) = pair(LinkOptions::plain(1500), LinkOptions::plain(1500));
    let c = world.add_port(LinkOptions::plain(1500));
    world.inject(a, packet::ethernet(A, B, 0x88b5, b"known"));
    assert!(world.take(b).is_some() && world.take(c).is_none() && world.take(a).is_none());
    let unknown = Mac([2, 9, 9, 9, 9, 9]);
    for to in [unknown, Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 9])] {
        world.inject(a, packet::ethernet(A, to, 0x88b5, b"everybody"));
        assert!(world.take(b).is_some() && world.take(c).is_some() && world.take(a).is_none());
    }
    // Nobody takes an address that is in use, least of all the gateway's.
    let gateway = world.engine.config().gateway_mac;
    for stolen in [A, gateway, Mac::BROADCAST] {
        world.inject(c, packet::ethernet(stolen, B, 0x88b5, b"thief"));
        assert_eq!(world.take(b), None, "{stolen}");
    }
    world.inject(b, packet::ethernet(B, A, 0x88b5, b"still there"));
    assert!(world.take(a).is_some() && world.take(c).is_none());
}
