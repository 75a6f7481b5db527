//! Frames, built and taken apart byte by byte, so that no test trusts the code it tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use vmlan_wire::Mac;
use vmlan_wire::checksum::Sum;

pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 2);
pub(crate) const DNS: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 3);
pub(crate) const GATEWAY_MAC: Mac = Mac([0x52, 0x55, 192, 168, 5, 2]);
pub(crate) const BROADCAST: Mac = Mac::BROADCAST;

pub(crate) fn mac(n: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, n])
}

pub(crate) fn guest(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 5, n)
}

/// The number of the guest of a world that has one.
pub(crate) const GUEST: u8 = 15;

/// An Ethernet frame.
pub(crate) fn ethernet(dst: Mac, src: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&dst.0[..], &src.0, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 or IPv6 packet, the checksum of the transport header (TCP, UDP, ICMP) filled in.
pub(crate) fn ip(src: IpAddr, dst: IpAddr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    fill_checksum(src, dst, protocol, &mut payload);
    ip_raw(src, dst, protocol, ttl, &payload)
}

/// The same with the payload as it is.
pub(crate) fn ip_raw(src: IpAddr, dst: IpAddr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = (20 + payload.len()) as u16;
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, ttl, protocol, 0, 0];
            header[2..4].copy_from_slice(&len.to_be_bytes());
            header.extend(src.octets());
            header.extend(dst.octets());
            fix_ipv4(&mut header);
            [&header, payload].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, ttl];
            header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            header.extend(src.octets());
            header.extend(dst.octets());
            [&header, payload].concat()
        }
        _ => panic!("addresses of two families"),
    }
}

/// Computes an IPv4 header's checksum again.
pub(crate) fn fix_ipv4(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = vmlan_wire::checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
}

fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        1 | 58 => Some(2),
        6 => Some(16),
        17 => Some(6),
        _ => None,
    }
}

fn transport_sum(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Sum {
    let mut sum = Sum::new();
    if protocol != 1 {
        sum.add_pseudo_header(src, dst, protocol, payload.len() as u32);
    }
    sum.add(payload);
    sum
}

pub(crate) fn fill_checksum(src: IpAddr, dst: IpAddr, protocol: u8, payload: &mut [u8]) {
    let Some(at) = checksum_at(protocol).filter(|at| at + 2 <= payload.len()) else { return };
    payload[at..at + 2].fill(0);
    let sum = transport_sum(src, dst, protocol, payload).finish();
    payload[at..at + 2].copy_from_slice(&sum);
}

pub(crate) fn udp(src: u16, dst: u16, data: &[u8]) -> Vec<u8> {
    let len = (8 + data.len()) as u16;
    [&src.to_be_bytes()[..], &dst.to_be_bytes(), &len.to_be_bytes(), &[0, 0], data].concat()
}

/// A frame from the guest with a UDP datagram.
pub(crate) fn udp_frame(src: &str, dst: &str, data: &[u8]) -> Vec<u8> {
    let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let datagram = udp(src.port(), dst.port(), data);
    from_guest(GUEST, &ip(src.ip(), dst.ip(), 17, 64, &datagram))
}

/// A frame from a guest to the gateway with an IP packet of this family.
pub(crate) fn from_guest(n: u8, packet: &[u8]) -> Vec<u8> {
    to_mac(GATEWAY_MAC, n, packet)
}

pub(crate) fn to_mac(dst: Mac, n: u8, packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    ethernet(dst, mac(n), kind, packet)
}

/// An ARP packet in a frame from `src`.
pub(crate) fn arp(op: u16, dst: Mac, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let body = [
        &[0, 1, 8, 0, 6, 4][..],
        &op.to_be_bytes(),
        &sender.0.0,
        &sender.1.octets(),
        &target.0.0,
        &target.1.octets(),
    ]
    .concat();
    ethernet(dst, sender.0, 0x0806, &body)
}

/// A frame taken apart. Checksums are verified on the way.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) dst_mac: Mac,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) payload: Vec<u8>,
}

impl Parsed {
    /// A frame from the gateway.
    pub(crate) fn new(frame: &[u8]) -> Self {
        assert_eq!(frame[6..12], GATEWAY_MAC.0, "source MAC");
        let kind: &[u8] = if frame[14] >> 4 == 6 { &[0x86, 0xdd] } else { &[0x08, 0x00] };
        assert_eq!(frame[12..14], *kind, "ethertype");
        let packet =
            Self { dst_mac: Mac(frame[..6].try_into().unwrap()), ..Self::of(&frame[14..]) };
        let Self { src, dst, protocol, ref payload, .. } = packet;
        let fragment = src.is_ipv4() && be16(&frame[14..], 6) & 0x3fff != 0;
        if !fragment && checksum_at(protocol).is_some() {
            assert!(transport_sum(src, dst, protocol, payload).is_valid(), "transport checksum");
        }
        packet
    }

    /// A packet, as errors quote it: what it carries may be anything.
    pub(crate) fn of(packet: &[u8]) -> Self {
        let (src, dst, protocol, ttl, payload): (IpAddr, IpAddr, u8, u8, &[u8]) =
            match packet[0] >> 4 {
                4 => {
                    assert_eq!(vmlan_wire::checksum::checksum(&packet[..20]), [0, 0]);
                    assert_eq!(usize::from(be16(packet, 2)), packet.len());
                    let addr = |at: usize| -> [u8; 4] { packet[at..at + 4].try_into().unwrap() };
                    let (src, dst) = (Ipv4Addr::from(addr(12)), Ipv4Addr::from(addr(16)));
                    (src.into(), dst.into(), packet[9], packet[8], &packet[20..])
                }
                6 => {
                    assert_eq!(usize::from(be16(packet, 4)) + 40, packet.len());
                    let addr = |at: usize| -> [u8; 16] { packet[at..at + 16].try_into().unwrap() };
                    let (src, dst) = (Ipv6Addr::from(addr(8)), Ipv6Addr::from(addr(24)));
                    (src.into(), dst.into(), packet[6], packet[7], &packet[40..])
                }
                other => panic!("IP version {other}"),
            };
        Self { dst_mac: Mac([0; 6]), src, dst, protocol, ttl, payload: payload.to_vec() }
    }
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Addresses, protocol and payload of a frame from the gateway, if it is an IP packet's.
pub(crate) fn parse_ip(frame: &[u8]) -> Option<(IpAddr, IpAddr, u8, Vec<u8>)> {
    matches!(frame[12..14], [0x08, 0x00] | [0x86, 0xdd]).then(|| {
        let Parsed { src, dst, protocol, payload, .. } = Parsed::new(frame);
        (src, dst, protocol, payload)
    })
}

/// Addresses and payload of a frame from the gateway, if it is a UDP datagram's.
pub(crate) fn parse_udp(frame: &[u8]) -> Option<(String, String, Vec<u8>)> {
    let (src, dst, _, datagram) = parse_ip(frame).filter(|ip| ip.2 == 17)?;
    assert_eq!(usize::from(be16(&datagram, 4)), datagram.len());
    let end = |ip, at| SocketAddr::new(ip, be16(&datagram, at)).to_string();
    Some((end(src, 0), end(dst, 2), datagram[8..].to_vec()))
}
