//! Over a whole engine: the gateway's echo is a mirror for what is put together and cut again.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use smoltcp::wire::IpProtocol;

use crate::io::PortId;
use crate::net::IpHeader;
use crate::stats::Drop;
use crate::testing::*;

/// One fragment of a guest's packet: payload bytes `range` of `message`.
fn fragment(v6: bool, id: u32, message: &[u8], range: std::ops::Range<usize>) -> Vec<u8> {
    let more = range.end < message.len();
    piece(1, v6, id, range.start, more, &message[range])
}

fn ends(n: u8, v6: bool) -> (IpAddr, IpAddr) {
    if v6 {
        (config().ipv6.nth(u64::from(n) + 20).into(), config().ipv6.host().into())
    } else {
        (guest(n + 20).into(), GATEWAY.into())
    }
}

fn piece(n: u8, v6: bool, id: u32, offset: usize, more: bool, data: &[u8]) -> Vec<u8> {
    let (src, dst) = ends(n, v6);
    let packet = if v6 {
        let place = offset as u16 | u16::from(more);
        let header = [&[58, 0][..], &place.to_be_bytes(), &id.to_be_bytes()].concat();
        ip_raw(src, dst, 44, 64, &[&header, data].concat())
    } else {
        let mut packet = ip_raw(src, dst, 1, 64, data);
        packet[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        let place = (offset / 8) as u16 | u16::from(more) << 13;
        packet[6..8].copy_from_slice(&place.to_be_bytes());
        fix_ipv4(&mut packet);
        packet
    };
    from_guest(n, &packet)
}

/// An echo request with its checksum.
fn request(n: u8, v6: bool, len: usize) -> Vec<u8> {
    let (src, dst) = ends(n, v6);
    let data: Vec<u8> = (0..len).map(|i| ((i * 31) >> 3) as u8).collect();
    let mut message = [&[if v6 { 128 } else { 8 }, 0, 0, 0, 1, 2, 3, 4][..], &data].concat();
    fill_checksum(src, dst, if v6 { 58 } else { 1 }, &mut message);
    message
}

/// A message in fragments of `size`.
fn cut(v6: bool, id: u32, message: &[u8], size: usize) -> Vec<Vec<u8>> {
    let starts = (0..message.len()).step_by(size);
    starts.map(|at| fragment(v6, id, message, at..message.len().min(at + size))).collect()
}

/// Puts the gateway's own fragments together, the simple way, and returns the payload.
fn join(frames: &[Vec<u8>], v6: bool) -> Vec<u8> {
    let mut whole = Vec::new();
    let mut id = None;
    for (i, frame) in frames.iter().enumerate() {
        assert!(frame.len() <= 14 + 1500, "fits the MTU");
        let packet = Parsed::new(frame);
        let (this, offset, more, data) = if v6 {
            assert_eq!((packet.protocol, packet.payload[0]), (44, 58));
            let place = be16(&packet.payload, 2);
            let id = packet.payload[4..8].to_vec();
            (id, usize::from(place & !7), place & 1 == 1, &packet.payload[8..])
        } else {
            let place = be16(frame, 20);
            let id = frame[18..20].to_vec();
            (id, usize::from(place & 0x1fff) * 8, place & 0x2000 != 0, &packet.payload[..])
        };
        assert_eq!(offset, whole.len());
        assert_eq!(more, i + 1 < frames.len());
        assert_eq!(*id.get_or_insert_with(|| this.clone()), this);
        whole.extend_from_slice(data);
    }
    whole
}

/// The reply that a request must get.
fn reply(v6: bool, request: &[u8]) -> Vec<u8> {
    let (src, dst) = ends(1, v6);
    let mut message = request.to_vec();
    message[0] = if v6 { 129 } else { 0 };
    fill_checksum(dst, src, if v6 { 58 } else { 1 }, &mut message);
    message
}

fn shuffle<T>(list: &mut [T], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for i in (1..list.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        list.swap(i, (state % (i as u64 + 1)) as usize);
    }
}

#[test]
fn a_large_packet_goes_in_and_comes_back_in_fragments() {
    for v6 in [false, true] {
        let mut world = World::new();
        let port = world.attach();
        for len in [1473, 4000, 65_000] {
            let message = request(1, v6, len);
            world.send_all(port, &cut(v6, 7, &message, 1480));
            assert_eq!(join(&world.sent(port), v6), reply(v6, &message));
        }
        assert_eq!(world.engine.stats().drops().count(), 0);
        assert_eq!(world.engine.fragments.held(), (0, 0));
    }
}

#[test]
fn order_and_repetition_do_not_matter() {
    for v6 in [false, true] {
        let mut world = World::new();
        let port = world.attach();
        for seed in 0..200 {
            let message = request(1, v6, 2000 + seed as usize * 17);
            let size = 8 * (5 + seed as usize % 90);
            let mut fragments = cut(v6, seed, &message, size);
            // Repetitions before the packet is whole; afterwards one would start another.
            let again: Vec<_> = fragments.iter().step_by(3).cloned().collect();
            shuffle(&mut fragments, u64::from(seed));
            let last = fragments.pop().unwrap();
            fragments.extend(again.into_iter().filter(|f| *f != last));
            fragments.push(last);
            world.send_all(port, &fragments);
            assert_eq!(join(&world.sent(port), v6), reply(v6, &message), "seed {seed}");
        }
        assert_eq!(world.engine.stats().drops().count(), 0);
    }
}

#[test]
fn a_hole_is_waited_for_and_given_up() {
    for (v6, timeout) in [(false, 30), (true, 60)] {
        let mut world = World::new();
        let port = world.attach();
        let message = request(1, v6, 4000);
        let mut fragments = cut(v6, 9, &message, 1480);
        let missing = fragments.remove(1);
        world.send_all(port, &fragments);
        world.pass(Duration::from_secs(timeout - 1));
        assert_eq!(world.dropped(Drop::Fragment), 0);
        world.send(port, &missing);
        assert_eq!(join(&world.sent(port), v6), reply(v6, &message));

        world.send_all(port, &fragments);
        world.pass(Duration::from_secs(timeout + 1));
        assert_eq!(world.dropped(Drop::Fragment), 1);
        assert_eq!(world.engine.fragments.held(), (0, 0));
        assert!(world.ask(port, &missing).is_empty());
    }
}

#[test]
fn overlap_spoils_the_packet_for_good() {
    for v6 in [false, true] {
        let message = request(1, v6, 3000);
        let overlaps: [(usize, usize); 5] =
            [(8, 24), (0, 1488), (1472, 1496), (2952, 3008), (1480, 1488)];
        for (start, end) in overlaps {
            let mut world = World::new();
            let port = world.attach();
            let mut bad = message.clone();
            bad[1480] ^= 1;
            bad[8] ^= 1;
            world.send(port, &fragment(v6, 5, &message, 0..1480));
            world.send(port, &fragment(v6, 5, &message, 1480..2960));
            world.send(port, &fragment(v6, 5, &bad, start..end));
            assert_eq!(world.dropped(Drop::Fragment), 1, "{start}..{end}");
            world.send_all(port, &cut(v6, 5, &message, 1480));
            assert!(world.sent(port).is_empty(), "{start}..{end}");
            // Another identification is another packet.
            world.send_all(port, &cut(v6, 6, &message, 1480));
            assert_eq!(join(&world.sent(port), v6), reply(v6, &message));
        }
    }
}

#[test]
fn ends_that_contradict_each_other_spoil_the_packet() {
    for v6 in [false, true] {
        let first = (0, true, 16);
        for pieces in [
            // Two last fragments; more after the last; the last too early; "more" up to the end.
            [first, (32, false, 8), (48, false, 8)],
            [first, (32, false, 8), (40, true, 8)],
            [first, (48, true, 8), (32, false, 8)],
            [first, (32, false, 8), (32, true, 8)],
        ] {
            let mut world = World::new();
            let port = world.attach();
            for (offset, more, len) in pieces {
                world.send(port, &piece(1, v6, 3, offset, more, &vec![0; len]));
            }
            assert_eq!(world.dropped(Drop::Fragment), 1, "{pieces:?}");
        }
    }
}

#[test]
fn fragments_that_belong_nowhere_are_dropped_at_once() {
    for v6 in [false, true] {
        let mut world = World::new();
        let port = world.attach();
        for (offset, more, len) in
            [(0, true, 0), (8, false, 0), (0, true, 12), (1480, true, 1), (65_528, false, 9)]
        {
            world.send(port, &piece(1, v6, 3, offset, more, &vec![0; len]));
        }
        assert_eq!(world.dropped(Drop::Malformed), 5);
        assert_eq!(world.engine.fragments.held(), (0, 0));
        // With its header the packet would be longer than IPv4 can say.
        world.send(port, &piece(1, v6, 3, 65_520, false, &[0; 8]));
        assert_eq!(world.dropped(Drop::Malformed), if v6 { 5 } else { 6 });
    }
}

#[test]
fn the_whole_is_verified() {
    for v6 in [false, true] {
        let mut world = World::new();
        let port = world.attach();
        let mut message = request(1, v6, 3000);
        message[2000] ^= 0x40;
        world.send_all(port, &cut(v6, 7, &message, 1480));
        assert!(world.sent(port).is_empty());
        assert_eq!(world.dropped(Drop::Checksum), 1);
    }
}

#[test]
fn packets_of_different_guests_and_protocols_do_not_mix() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    let message = request(1, false, 2000);
    let fragments = cut(false, 7, &message, 1480);
    world.send(port, &fragments[0]);
    // The same identification from elsewhere, and for another protocol.
    world.send(other, &piece(2, false, 7, 1480, false, &message[1480..]));
    let mut tcp = fragments[1].clone();
    tcp[23] = 6;
    fix_ipv4(&mut tcp[14..]);
    world.send(port, &tcp);
    assert!(world.sent(port).is_empty());
    world.send(port, &fragments[1]);
    assert_eq!(join(&world.sent(port), false), reply(false, &message));
}

#[test]
fn options_before_the_payload_are_kept() {
    // IPv4 with four bytes of options in each fragment.
    let mut world = World::new();
    let port = world.attach();
    let message = request(1, false, 2000);
    let frames: Vec<_> = cut(false, 7, &message, 1480)
        .into_iter()
        .map(|mut frame| {
            frame.splice(34..34, [1, 1, 1, 0]);
            frame[14] = 0x46;
            let len = frame.len() - 14;
            frame[16..18].copy_from_slice(&(len as u16).to_be_bytes());
            frame[24..26].fill(0);
            let sum = vmlan_wire::checksum::checksum(&frame[14..38]);
            frame[24..26].copy_from_slice(&sum);
            frame
        })
        .collect();
    world.send_all(port, &frames);
    assert_eq!(join(&world.sent(port), false), reply(false, &message));

    // IPv6 with a hop-by-hop header before the fragment header, destination options after it.
    let message = request(1, true, 2000);
    let inner = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &message].concat();
    let frames: Vec<_> = cut(true, 7, &inner, 1480)
        .into_iter()
        .map(|mut frame| {
            frame[54] = 60;
            frame.splice(54..54, [44, 0, 1, 4, 0, 0, 0, 0]);
            frame[20] = 0;
            let len = frame.len() - 54;
            frame[18..20].copy_from_slice(&(len as u16).to_be_bytes());
            frame
        })
        .collect();
    world.send_all(port, &frames);
    assert_eq!(join(&world.sent(port), true), reply(true, &message));
}

#[test]
fn a_fragment_inside_a_fragmented_packet_is_dropped() {
    let mut world = World::new();
    let port = world.attach();
    let inner = [&[58, 0, 0, 1, 0, 0, 0, 9][..], &[0; 2000]].concat();
    for mut frame in cut(true, 7, &inner, 1480) {
        frame[54] = 44;
        world.send(port, &frame);
    }
    assert!(world.sent(port).is_empty());
    assert_eq!(world.dropped(Drop::Malformed), 2);
}

#[test]
fn a_flood_costs_bounded_memory_and_leaves_others_alone() {
    for v6 in [false, true] {
        let mut world = World::new();
        let ports: Vec<PortId> = (0..8).map(|_| world.attach()).collect();
        let message = request(1, v6, 4000);
        let mut fragments = cut(v6, 7, &message, 1480);
        let last = fragments.pop().unwrap();
        world.send_all(ports[0], &fragments);
        for round in 0..2000 {
            for (n, port) in ports.iter().enumerate().skip(1) {
                let far = piece(n as u8 + 1, v6, round, 65_000, false, &[0; 400]);
                world.send(*port, &far);
            }
        }
        let (packets, bytes) = world.engine.fragments.held();
        assert!(packets <= 1 + 7 * 64, "{packets} packets");
        assert!(bytes <= 4 << 20, "{bytes} bytes");
        world.send(ports[0], &last);
        assert_eq!(join(&world.sent(ports[0]), v6), reply(v6, &message));
        world.pass(Duration::from_secs(61));
        assert_eq!(world.engine.fragments.held(), (0, 0));
    }
}

#[test]
fn more_holes_than_any_honest_packet_has_spoil_it() {
    let mut world = World::new();
    let port = world.attach();
    for i in 0..200 {
        world.send(port, &piece(1, false, 7, i * 16, true, &[0; 8]));
    }
    assert_eq!(world.dropped(Drop::Limit), 1);
    assert_eq!(world.engine.fragments.held(), (1, 0));
}

#[test]
fn what_may_not_be_cut_is_not_sent() {
    let mut world = World::new();
    let port = world.attach();
    announce(&mut world, port, 1, guest(15));
    world.sent(port);
    let mut header = IpHeader::new(GATEWAY.into(), guest(15).into(), IpProtocol::Udp);
    header.dont_fragment = true;
    let transport = udp(1, 2, &[0; 1480]);
    let send = |world: &mut World, header: &IpHeader, body: &[u8]| {
        let transport = &transport[..8];
        world.io(|engine, io| engine.net.send_ip(io, mac(1), header, transport, body))
    };
    assert!(send(&mut world, &header, &[0; 1472]));
    assert!(!send(&mut world, &header, &[0; 1473]));
    assert_eq!(world.dropped(Drop::TooBig), 1);
    assert_eq!(world.sent(port).len(), 1);
    header.dont_fragment = false;
    assert!(send(&mut world, &header, &[0; 1473]));
    assert_eq!(world.sent(port).len(), 2);
    // More than IPv4 can say.
    assert!(!send(&mut world, &header, &[0; 65_508]));
    assert_eq!(world.dropped(Drop::TooBig), 2);
    // A link that is full in the middle.
    world.links.room = 1;
    assert!(!send(&mut world, &header, &[0; 4000]));
    assert_eq!(world.dropped(Drop::LinkFull), 1);
}

#[test]
fn the_link_s_own_mtu_counts_too() {
    let mut config = config();
    config.mtu = 65_520;
    let mut world = World::with(config);
    let caps = crate::PortCaps { mtu: 1500, ..crate::PortCaps::default() };
    let port = world.engine.add_port(caps).unwrap();
    world.send_all(port, &cut(false, 7, &request(1, false, 65_500), 1480));
    let sent = world.sent(port);
    assert_eq!(join(&sent, false).len(), 65_508);
    // What would fit the network is cut too.
    announce(&mut world, port, 1, guest(15));
    world.sent(port);
    let header = IpHeader::new(GATEWAY.into(), guest(15).into(), IpProtocol::Udp);
    let sent = |world: &mut World, body: &[u8]| {
        world.io(|engine, io| engine.net.send_ip(io, mac(1), &header, &udp(1, 2, &[]), body));
        world.sent(port).iter().map(|frame| frame.len() - 34).collect::<Vec<_>>()
    };
    assert_eq!(sent(&mut world, &[5; 1472]), [1480]);
    assert_eq!(sent(&mut world, &[5; 3000]), [1480, 1480, 48]);
}

#[test]
fn an_ipv6_source_sees_its_own_packets_cut_as_it_would() {
    let mut world = World::new();
    let port = world.attach();
    let to: Ipv6Addr = config().ipv6.nth(21);
    announce(&mut world, port, 1, guest(21));
    world.sent(port);
    let header = IpHeader {
        dont_fragment: true,
        ..IpHeader::new("2001:db8::1".parse().unwrap(), to.into(), IpProtocol::Udp)
    };
    let sent =
        world.io(|engine, io| engine.net.send_ip(io, mac(1), &header, &udp(1, 2, &[]), &[5; 3000]));
    assert!(sent);
    let frames = world.sent(port);
    let lengths: Vec<usize> = frames.iter().map(|f| f.len() - 62).collect();
    assert_eq!(lengths, [1448, 1448, 112]);
}
