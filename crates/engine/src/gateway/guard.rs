//! What guests may not tell each other: that an address of the gateway's is theirs, that they are a
//! router, that they are a DHCP server. Looked at for frames between guests, which the gateway's
//! services never see.
//!
//! ARP (RFC 826), neighbour discovery (RFC 4861), router advertisements (RFC 6105) and DHCP are
//! where such a lie is believed. It may not hide behind extension headers or in fragments
//! (RFC 7113), nor behind tags and headers of the link layer that receivers look through. What is
//! in a VLAN of the guests' own is theirs.

use std::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::wire::EthernetFrame;

use crate::config::Config;
use crate::stats::Drop;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
/// Below it the field is a length (IEEE 802.3).
const FIRST_ETHERTYPE: u16 = 0x0600;

/// Tags and link-layer headers before a packet; nobody honest has even two.
const MAX_TAGS: usize = 4;

/// Extension headers of a packet (RFC 8200 section 4.1 knows of seven).
const MAX_EXTENSIONS: usize = 16;

const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// A DHCP server's port and its clients'.
const DHCP: [u16; 2] = [67, 68];
const DHCP6: [u16; 2] = [547, 546];

/// Whether a guest may send this frame to other guests, and why not.
pub(crate) fn check(config: &Config, eth: &EthernetFrame<&[u8]>) -> Result<(), Drop> {
    match untagged(eth.ethertype().into(), eth.payload())? {
        // The sender's protocol address.
        (ARP, arp) if own_v4(config, arp, 14) => Err(Drop::Spoofed),
        (IPV4, ip) => ipv4(ip),
        (IPV6, ip) => ipv6(config, ip),
        _ => Ok(()),
    }
}

/// The protocol and packet behind priority tags (VLAN 0) and SNAP headers (RFC 1042).
fn untagged(mut kind: u16, mut payload: &[u8]) -> Result<(u16, &[u8]), Drop> {
    for _ in 0..MAX_TAGS {
        let (k, rest) = match (kind, payload) {
            (VLAN | SERVICE_VLAN, [a, 0, k0, k1, rest @ ..]) if a & 0x0f == 0 => ([*k0, *k1], rest),
            (0..FIRST_ETHERTYPE, [0xaa, 0xaa, 3, 0, 0, 0 | 0xf8, k0, k1, rest @ ..]) => {
                ([*k0, *k1], rest)
            }
            found => return Ok(found),
        };
        (kind, payload) = (u16::from_be_bytes(k), rest);
    }
    Err(Drop::Rogue)
}

fn ipv4(ip: &[u8]) -> Result<(), Drop> {
    let [version, _, _, _, _, _, f0, f1, _, UDP, ..] = *ip else { return Ok(()) };
    if u16::from_be_bytes([f0 & 0x1f, f1]) != 0 {
        return Ok(());
    }
    datagram(ip.get(usize::from(version & 0x0f) * 4..), DHCP)
}

fn ipv6(config: &Config, ip: &[u8]) -> Result<(), Drop> {
    let Some(mut next) = ip.get(6).copied() else { return Ok(()) };
    let (mut at, mut fragment) = (40, false);
    for _ in 0..MAX_EXTENSIONS {
        let here = ip.get(at..);
        match next {
            UDP => return datagram(here, DHCP6),
            ICMPV6 => return icmpv6(config, ip, here.unwrap_or(&[]), fragment),
            // Hop-by-hop, routing, destination, mobility, HIP, shim6.
            0 | 43 | 60 | 135 | 139 | 140 | FRAGMENT | AUTHENTICATION => {}
            _ => return Ok(()),
        }
        // What follows a header that is cut off might be anything.
        let Some([following, len, f0, f1, ..]) = here else { return Err(Drop::Rogue) };
        at += match next {
            FRAGMENT if u16::from_be_bytes([*f0, *f1]) & !7 != 0 => return Ok(()),
            FRAGMENT => 8,
            AUTHENTICATION => 4 * (usize::from(*len) + 2),
            _ => 8 * (usize::from(*len) + 1),
        };
        fragment |= next == FRAGMENT;
        next = *following;
    }
    Err(Drop::Rogue)
}

/// A datagram, or as much of it as a first fragment has: the ports have to be seen.
fn datagram(udp: Option<&[u8]>, ports: [u16; 2]) -> Result<(), Drop> {
    let Some([s0, s1, d0, d1, ..]) = udp else { return Err(Drop::Rogue) };
    let ends = [u16::from_be_bytes([*s0, *s1]), u16::from_be_bytes([*d0, *d1])];
    let [server, client] = ports;
    // Some clients look at their own port only.
    if ends == [client, server] || (ends[0] != server && ends[1] != client) {
        return Ok(());
    }
    Err(Drop::Rogue)
}

fn icmpv6(config: &Config, ip: &[u8], message: &[u8], fragment: bool) -> Result<(), Drop> {
    let kind = match message.first() {
        Some(kind @ 133..=137) => *kind,
        None if fragment => return Err(Drop::Rogue),
        _ => return Ok(()),
    };
    if own_v6(config, ip, 8) || kind == NEIGHBOR_ADVERTISEMENT && own_v6(config, message, 8) {
        return Err(Drop::Spoofed);
    }
    // Neighbour discovery is never cut (RFC 6980).
    if kind == ROUTER_ADVERTISEMENT || fragment { Err(Drop::Rogue) } else { Ok(()) }
}

fn own_v4(config: &Config, bytes: &[u8], at: usize) -> bool {
    let octets = bytes.get(at..).and_then(|b| b.first_chunk::<4>());
    octets.is_some_and(|octets| config.is_own(Ipv4Addr::from(*octets).into()))
}

fn own_v6(config: &Config, bytes: &[u8], at: usize) -> bool {
    let octets = bytes.get(at..).and_then(|b| b.first_chunk::<16>());
    octets.is_some_and(|octets| config.is_own(Ipv6Addr::from(*octets).into()))
}
