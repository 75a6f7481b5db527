use std::net::IpAddr;

use crate::io::PortId;
use crate::stats::Drop;
use crate::testing::*;

const RA: [u8; 16] = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
const ALL_NODES: &str = "ff02::1";
const LINK_LOCAL: &str = "fe80::1:2";

/// Two guests, the second of which listens.
struct Pair {
    world: World,
    ports: [PortId; 2],
}

impl Pair {
    fn new() -> Self {
        let mut world = World::new();
        let ports = [world.attach(), world.attach()];
        announce(&mut world, ports[1], 2, guest(16));
        world.links.sent.clear();
        Self { world, ports }
    }

    /// Whether the second guest gets a frame of the first, and what was counted if not.
    fn passes(&mut self, frame: &[u8]) -> bool {
        let before = self.world.dropped(Drop::Rogue);
        self.world.send(self.ports[0], frame);
        let got = self.world.sent(self.ports[1]).iter().any(|got| got == frame);
        assert_eq!(self.world.dropped(Drop::Rogue) - before, u64::from(!got));
        got
    }

    /// The same for a packet to everybody and to the other guest alone.
    #[track_caller]
    fn check(&mut self, packet: &[u8], expected: bool) {
        for dst in [BROADCAST, mac(2)] {
            assert_eq!(self.passes(&to_mac(dst, 1, packet)), expected, "{packet:02x?}");
        }
    }
}

fn v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ip(LINK_LOCAL.parse().unwrap(), ALL_NODES.parse().unwrap(), protocol, 255, payload)
}

/// Headers (kind, bytes behind "next header") before a message.
fn chain(headers: &[(u8, &[u8])], protocol: u8, message: &[u8]) -> Vec<u8> {
    let (src, dst): (IpAddr, IpAddr) = (LINK_LOCAL.parse().unwrap(), ALL_NODES.parse().unwrap());
    let mut message = message.to_vec();
    fill_checksum(src, dst, protocol, &mut message);
    let following = headers.iter().skip(1).map(|h| h.0).chain([protocol]);
    let mut bytes = Vec::new();
    for ((_, rest), next) in headers.iter().zip(following) {
        bytes.push(next);
        bytes.extend_from_slice(rest);
    }
    bytes.extend(message);
    ip_raw(src, dst, headers.first().map_or(protocol, |h| h.0), 255, &bytes)
}

const OPTIONS: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
const LONG_OPTIONS: &[u8] = &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn no_guest_advertises_itself_as_a_router() {
    let mut pair = Pair::new();
    pair.check(&v6(58, &RA), false);
    pair.check(&chain(&[(60, OPTIONS)], 58, &RA), false);
    pair.check(&chain(&[(0, LONG_OPTIONS), (60, OPTIONS), (43, OPTIONS)], 58, &RA), false);
    pair.check(&chain(&[(51, &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])], 58, &RA), false);
    pair.check(&chain(&[(60, OPTIONS); 15], 58, &RA), false);
    // More headers than anybody has, whatever they lead to.
    pair.check(&chain(&[(60, OPTIONS); 40], 58, &RA), false);
    // A solicitation, and echo behind options, are as they should be.
    pair.check(&v6(58, &[133, 0, 0, 0, 0, 0, 0, 0]), true);
    pair.check(&chain(&[(60, OPTIONS)], 58, &[128, 0, 0, 0, 0, 1, 0, 1]), true);
}

#[test]
fn fragments_hide_nothing() {
    let mut pair = Pair::new();
    let place = |offset: u16, more: bool| {
        let place = (offset << 3 | u16::from(more)).to_be_bytes();
        [&[0][..], &place, &[0, 0, 0, 9]].concat()
    };
    pair.check(&chain(&[(44, &place(0, false))], 58, &RA), false);
    pair.check(&chain(&[(44, &place(0, true)), (60, OPTIONS)], 58, &RA), false);
    // The first fragment ends before what it carries.
    let whole = chain(&[(44, &place(0, true)), (60, LONG_OPTIONS)], 58, &[]);
    pair.check(&ip_raw_v6_len(&whole[..56]), false);
    pair.check(&chain(&[(44, &place(0, true)), (60, LONG_OPTIONS)], 17, &[]), false);
    pair.check(&chain(&[(44, &place(0, true))], 58, &[]), false);
    // Later ones cannot say anything by themselves, and others are none of our business.
    pair.check(&chain(&[(44, &place(2, true))], 58, &RA), true);
    pair.check(&chain(&[(44, &place(0, true))], 58, &[128, 0, 0, 0, 0, 1, 0, 1]), true);

    let mut first = ip(guest(15).into(), guest(16).into(), 17, 64, &udp(67, 68, &[0; 300]));
    first[6] = 0x20;
    fix_ipv4(&mut first);
    pair.check(&first, false);
    first[7] = 5;
    fix_ipv4(&mut first);
    pair.check(&first, true);
}

/// Corrects the payload length of a packet that was cut.
fn ip_raw_v6_len(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet
}

#[test]
fn no_guest_serves_addresses() {
    let mut pair = Pair::new();
    let v4 = |from, to| {
        ip(guest(15).into(), "255.255.255.255".parse().unwrap(), 17, 64, &udp(from, to, &[0; 300]))
    };
    for (from, to, passes) in
        [(67, 68, false), (1067, 68, false), (67, 67, false), (68, 67, true), (53, 1068, true)]
    {
        pair.check(&v4(from, to), passes);
    }
    for (from, to, passes) in [(547, 546, false), (999, 546, false), (546, 547, true)] {
        pair.check(&v6(17, &udp(from, to, &[0; 60])), passes);
        pair.check(&chain(&[(60, OPTIONS)], 17, &udp(from, to, &[0; 60])), passes);
    }
    // With IP options before the ports.
    let mut options = v4(67, 68);
    options[0] = 0x46;
    options.splice(20..20, [1, 1, 1, 0]);
    pair.check(&options, false);
    // The gateway hears its clients as before.
    assert_eq!(pair.world.dropped(Drop::Malformed), 1);
}

#[test]
fn tags_and_link_headers_that_receivers_look_through_hide_nothing() {
    let mut pair = Pair::new();
    let ra = v6(58, &RA);
    let reply =
        ip(guest(15).into(), "255.255.255.255".parse().unwrap(), 17, 64, &udp(67, 68, &[0; 300]));
    for (packet, kind) in [(ra, [0x86, 0xdd]), (reply, [8, 0])] {
        let behind = |before: &[u8]| {
            let payload = [before, &kind, &packet].concat();
            let kind = u16::from_be_bytes([payload[0], payload[1]]);
            ethernet(BROADCAST, mac(1), kind, &payload[2..])
        };
        let len = (packet.len() as u16 + 8).to_be_bytes();
        let snap = [&len[..], &[0xaa, 0xaa, 3, 0, 0, 0]].concat();
        let tagged_snap = [&[0x81, 0, 0x20, 0][..], &snap].concat();
        assert!(!pair.passes(&behind(&[0x81, 0, 0xe0, 0])));
        assert!(!pair.passes(&behind(&[0x88, 0xa8, 0, 0, 0x81, 0, 0, 0])));
        assert!(!pair.passes(&behind(&[0x81, 0, 0, 0].repeat(6))));
        assert!(!pair.passes(&behind(&snap)));
        assert!(!pair.passes(&behind(&tagged_snap)));
        // A VLAN of the guests' own.
        assert!(pair.passes(&behind(&[0x81, 0, 0, 7])));
    }
    let own = [&[0x08, 0x06][..], &arp(2, BROADCAST, (mac(1), GATEWAY), (mac(2), guest(16)))[14..]];
    let tagged = ethernet(BROADCAST, mac(1), 0x8100, &[&[0, 0][..], &own.concat()].concat());
    let before = pair.world.dropped(Drop::Spoofed);
    pair.world.send(pair.ports[0], &tagged);
    assert!(pair.world.sent(pair.ports[1]).is_empty());
    assert_eq!(pair.world.dropped(Drop::Spoofed), before + 1);
}
