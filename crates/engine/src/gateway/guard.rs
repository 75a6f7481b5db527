//! What guests may not tell each other: that an address of the gateway's or of another guest is
//! theirs, that they are a router, that they are a DHCP server. Looked at for frames between
//! guests, which the gateway's services never see.
//!
//! ARP (RFC 826), neighbour discovery (RFC 4861), router advertisements (RFC 6105) and DHCP are
//! where such a lie is believed, and the source of a packet is where it is answered to (RFC 2827,
//! RFC 6620). It may not hide behind extension headers or in fragments (RFC 7113), nor behind tags
//! and headers of the link layer that receivers look through. What is in a VLAN of the guests' own
//! is theirs.
//!
//! Here is what frames say; whose an address is knows [`Neighbors`](crate::neighbor::Neighbors).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::EthernetFrame;
use vmlan_wire::Mac;

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

const TCP: u8 = 6;
const ICMP: u8 = 1;

const ICMP_REDIRECT: u8 = 5;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Options of neighbour discovery: the address of the sender's card, and of the target's.
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

/// Options of one message that are looked at.
const MAX_OPTIONS: usize = 16;

/// A DHCP server's port and its clients'.
const DHCP: [u16; 2] = [67, 68];
const DHCP6: [u16; 2] = [547, 546];

/// The addresses that a frame says are its sender's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) source: Option<IpAddr>,
    /// What a neighbour advertisement is about.
    pub(crate) target: Option<IpAddr>,
    /// What the sender would like to have: it asks whether anybody has it.
    pub(crate) wish: Option<IpAddr>,
}

impl Claims {
    fn source(source: impl Into<IpAddr>) -> Self {
        let source = Some(source.into()).filter(|ip| !ip.is_unspecified());
        Self { source, ..Self::default() }
    }
}

/// What a frame from a guest to other guests claims, or why no guest may send it.
pub(crate) fn check(config: &Config, eth: &EthernetFrame<&[u8]>) -> Result<Claims, Drop> {
    if config.switch_only {
        return Ok(Claims::default());
    }
    let claims = match untagged(eth.ethertype().into(), eth.payload())? {
        (ARP, packet) => arp(config, eth.src_addr(), packet)?,
        (IPV4, ip) => ipv4(config, ip)?,
        (IPV6, ip) => ipv6(config, eth.src_addr(), ip)?,
        _ => Claims::default(),
    };
    // What the router brings from elsewhere.
    let routed = config.router.is_some_and(|router| router.mac == eth.src_addr());
    let source = claims.source.filter(|ip| !routed || config.contains(*ip));
    Ok(Claims { source, ..claims })
}

/// Whether a frame is TCP over IPv4 from a source that [`check`] has accepted: then it claims nothing
/// else.
pub(crate) fn is_tcp_from(frame: &[u8], source: Option<IpAddr>) -> bool {
    let (Some(head), Some(IpAddr::V4(source))) = (frame.first_chunk::<34>(), source) else {
        return false;
    };
    head[12..14] == IPV4.to_be_bytes() && head[23] == TCP && head[26..30] == source.octets()
}

/// Whatever the hardware type says: receivers take several for Ethernet.
fn arp(config: &Config, mac: Mac, packet: &[u8]) -> Result<Claims, Drop> {
    let (Some(kind), Some(sender)) = (packet.get(2..6), address_v4(packet, 14)) else {
        return Err(Drop::Malformed);
    };
    if *kind != [8, 0, 6, 4] {
        return Err(Drop::UnknownProtocol);
    }
    if packet.get(8..14) != Some(&mac.0) || config.is_own(sender.into()) {
        return Err(Drop::Spoofed);
    }
    Ok(Claims::source(sender))
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

fn ipv4(config: &Config, ip: &[u8]) -> Result<Claims, Drop> {
    let (Some([version, _, _, _, _, _, f0, f1, _, protocol, ..]), Some(source)) =
        (ip.first_chunk::<20>(), address_v4(ip, 12))
    else {
        return Err(Drop::Malformed);
    };
    if config.is_own(source.into()) {
        return Err(Drop::Spoofed);
    }
    let first = u16::from_be_bytes([f0 & 0x1f, *f1]) == 0;
    let inner = ip.get(usize::from(version & 0x0f) * 4..);
    match *protocol {
        UDP if first => datagram(inner, DHCP)?,
        // The gateway is the only router.
        ICMP if first && inner.is_none_or(|m| matches!(m, [] | [ICMP_REDIRECT, ..])) => {
            return Err(Drop::Rogue);
        }
        _ => {}
    }
    Ok(Claims::source(source))
}

fn ipv6(config: &Config, mac: Mac, ip: &[u8]) -> Result<Claims, Drop> {
    let (Some(mut next), Some(source)) = (ip.get(6).copied(), address_v6(ip, 8)) else {
        return Err(Drop::Malformed);
    };
    if config.is_own(source.into()) {
        return Err(Drop::Spoofed);
    }
    let claims = Claims::source(source);
    // Without what follows the packet in the frame. A jumbogram has no length here (RFC 2675).
    let ip = match ip.get(4..6) {
        Some([a, b]) if [*a, *b] != [0, 0] => {
            let len = 40 + usize::from(u16::from_be_bytes([*a, *b]));
            ip.get(..len).ok_or(Drop::Malformed)?
        }
        _ => ip,
    };
    let (mut at, mut fragment) = (40, false);
    for _ in 0..MAX_EXTENSIONS {
        let here = ip.get(at..);
        match next {
            TCP => return Ok(claims),
            UDP => return datagram(here, DHCP6).map(|()| claims),
            ICMPV6 => return icmpv6(config, mac, claims, here.unwrap_or(&[]), fragment),
            // Hop-by-hop, routing, destination, mobility, HIP, shim6.
            0 | 43 | 60 | 135 | 139 | 140 | FRAGMENT | AUTHENTICATION => {}
            _ => return Ok(claims),
        }
        // What follows a header that is cut off might be anything.
        let Some([following, len, f0, f1, ..]) = here else { return Err(Drop::Rogue) };
        at += match next {
            FRAGMENT if u16::from_be_bytes([*f0, *f1]) & !7 != 0 => return Ok(claims),
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

fn icmpv6(
    config: &Config,
    mac: Mac,
    claims: Claims,
    message: &[u8],
    fragment: bool,
) -> Result<Claims, Drop> {
    let kind = match message.first() {
        Some(kind @ ROUTER_SOLICITATION..=REDIRECT) => *kind,
        None if fragment => return Err(Drop::Rogue),
        _ => return Ok(claims),
    };
    // Neighbour discovery is never cut (RFC 6980).
    if fragment || matches!(kind, ROUTER_ADVERTISEMENT | REDIRECT) {
        return Err(Drop::Rogue);
    }
    let target = address_v6(message, 8).map(IpAddr::V6);
    let (option, options) = match kind {
        NEIGHBOR_ADVERTISEMENT => (TARGET_LINK_ADDRESS, 24),
        NEIGHBOR_SOLICITATION => (SOURCE_LINK_ADDRESS, 24),
        _ => (SOURCE_LINK_ADDRESS, 8),
    };
    if !is_own_card(message.get(options..).unwrap_or(&[]), option, mac)? {
        return Err(Drop::Spoofed);
    }
    match kind {
        NEIGHBOR_ADVERTISEMENT if target.is_some_and(|t| config.is_own(t)) => Err(Drop::Spoofed),
        NEIGHBOR_ADVERTISEMENT => Ok(Claims { target, ..claims }),
        NEIGHBOR_SOLICITATION if claims.source.is_none() => Ok(Claims { wish: target, ..claims }),
        _ => Ok(claims),
    }
}

/// Whether every option of this kind names the sender's card.
fn is_own_card(mut options: &[u8], kind: u8, mac: Mac) -> Result<bool, Drop> {
    for _ in 0..MAX_OPTIONS {
        let (k, len) = match options {
            [] => return Ok(true),
            [_] | [_, 0, ..] => return Err(Drop::Malformed),
            [k, len, ..] => (*k, usize::from(*len) * 8),
        };
        if k == kind && options.get(2..8) != Some(&mac.0) {
            return Ok(false);
        }
        options = options.get(len..).ok_or(Drop::Malformed)?;
    }
    Err(Drop::Malformed)
}

fn address_v4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

fn address_v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    bytes.get(at..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets))
}
