//! What every service and flow needs in order to answer a guest: the network's configuration, the
//! switch, who has which address, and the making of IP packets.

use std::net::IpAddr;

use smoltcp::wire::IpProtocol;
use vmlan_wire::checksum::{self, Sum};
use vmlan_wire::frame::Checksum;
use vmlan_wire::{Mac, Offload, OutFrame};

use crate::config::Config;
use crate::gateway::{icmp, limit::Limiter};
use crate::io::{Io, Links, PortId};
use crate::neighbor::Neighbors;
use crate::packet::{ETHERNET_HEADER, IPV4_HEADER, IPV6_HEADER};
use crate::stats::{Drop, Stats};
use crate::switch::{PortCaps, Switch};
use crate::time::Instant;

/// Room for Ethernet, IP with a fragment header, and the longest transport header.
const MAX_HEAD: usize = ETHERNET_HEADER + IPV6_HEADER + 8 + 60 + 6;

#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) config: Config,
    pub(crate) switch: Switch,
    pub(crate) neighbors: Neighbors,
    pub(crate) stats: Stats,
    /// ICMP errors that each port may still get.
    pub(crate) icmp_errors: Limiter,
    /// IPv4 and IPv6 fragment identification, counted up.
    next_id: u32,
}

/// The header of an IP packet to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IpHeader {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: IpProtocol,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) dont_fragment: bool,
}

impl IpHeader {
    pub(crate) fn new(src: IpAddr, dst: IpAddr, protocol: IpProtocol) -> Self {
        Self { src, dst, protocol, ttl: 64, tos: 0, dont_fragment: false }
    }

    pub(crate) fn len(&self) -> usize {
        if self.src.is_ipv6() { IPV6_HEADER } else { IPV4_HEADER }
    }
}

impl Net {
    pub(crate) fn new(config: Config) -> Self {
        let seed = config.seed;
        let addresses =
            1usize.checked_shl(32 - u32::from(config.ipv4.prefix)).unwrap_or(usize::MAX);
        let mut neighbors = Neighbors::new(seed, addresses);
        for (mac, ip) in &config.reservations {
            neighbors.keep((*ip).into(), *mac);
        }
        Self {
            config,
            switch: Switch::new(seed),
            neighbors,
            stats: Stats::default(),
            icmp_errors: icmp::error_limit(),
            next_id: u32::from_le_bytes([seed[0], seed[1], seed[2], seed[3]]),
        }
    }

    /// A number that changes when a packet like one before might have another fate.
    pub(crate) fn changes(&self) -> u32 {
        self.switch.changes().wrapping_add(self.neighbors.changes)
    }

    /// A guest uses an address, or says that it is its own: true if it may.
    pub(crate) fn claim(&mut self, ip: IpAddr, mac: Mac, port: PortId, now: Instant) -> bool {
        !self.is_of_card_elsewhere(ip, mac, port) && self.neighbors.claim(ip, mac, port, now)
    }

    /// A guest that was there in an earlier run is there again: it has what it used.
    pub(crate) fn come_back(&mut self, mac: Mac, port: PortId, now: Instant) {
        if let Some(ip) = self.neighbors.earlier(mac, now)
            && !self.is_of_card_elsewhere(ip, mac, port)
        {
            self.neighbors.come_back(ip, mac, port, now);
        }
    }

    /// Whether an address is made of that of a card behind another port: it is for whoever has that
    /// card (RFC 4291 appendix A).
    fn is_of_card_elsewhere(&self, ip: IpAddr, mac: Mac, port: PortId) -> bool {
        let made_of = card_of(ip).filter(|card| *card != mac);
        made_of.and_then(|card| self.switch.port_of(card)).is_some_and(|at| at != port)
    }

    /// An address was given to a guest: it is that guest's from now on, at this port.
    pub(crate) fn lease(&mut self, ip: IpAddr, mac: Mac, port: PortId, now: Instant) {
        self.neighbors.lease(ip, mac, port, now);
        self.switch.fix(mac, port);
    }

    /// Sends frames that are addressed to `to` and returns how many were taken. An unknown
    /// address is flooded.
    pub(crate) fn transmit(&mut self, io: &mut Io<'_>, to: Mac, frames: &[OutFrame<'_>]) -> usize {
        self.transmit_on(io.links, to, frames)
    }

    /// [`Net::transmit`] while the host is busy handing over what it received.
    pub(crate) fn transmit_on(
        &mut self,
        links: &mut dyn Links,
        to: Mac,
        frames: &[OutFrame<'_>],
    ) -> usize {
        if to.is_unicast()
            && let Some(port) = self.switch.port_of(to)
        {
            return self.switch.transmit(links, port, frames, &mut self.stats);
        }
        for frame in frames {
            self.switch.flood(links, None, *frame, &mut self.stats);
        }
        frames.len()
    }

    /// The port that a guest's frames go to, with its abilities.
    pub(crate) fn port_of(&self, mac: Mac) -> Option<PortId> {
        self.switch.port_of(mac)
    }

    /// The largest packet that the network and the link to `to` carry.
    pub(crate) fn mtu_towards(&self, to: Mac) -> usize {
        let mtu = self.caps_of(to).map_or(self.config.mtu, |caps| caps.mtu.min(self.config.mtu));
        usize::from(mtu)
    }

    /// Whether a guest makes its segments and their checksums itself: its link takes neither off it.
    pub(crate) fn has_no_offload(&self, guest: Mac) -> bool {
        self.caps_of(guest).is_some_and(|caps| !caps.checksum)
    }

    fn caps_of(&self, guest: Mac) -> Option<PortCaps> {
        self.port_of(guest).and_then(|port| self.switch.caps(port))
    }

    /// Makes an IP packet of a transport header (checksum field zero) and a body and sends it to
    /// `to`, in fragments if it does not fit the MTU and may be cut. False if it was not taken,
    /// which is counted.
    pub(crate) fn send_ip(
        &mut self,
        io: &mut Io<'_>,
        to: Mac,
        ip: &IpHeader,
        transport: &[u8],
        body: &[u8],
    ) -> bool {
        self.send_ip_on(io.links, to, ip, transport, body)
    }

    /// [`Net::send_ip`] while the host is busy handing over what it received.
    pub(crate) fn send_ip_on(
        &mut self,
        links: &mut dyn Links,
        to: Mac,
        ip: &IpHeader,
        transport: &[u8],
        body: &[u8],
    ) -> bool {
        let len = transport.len() + body.len();
        if ip.len() + len > self.mtu_towards(to) {
            return crate::fragment::send(self, links, to, ip, transport, body);
        }
        let mut head = [0; MAX_HEAD];
        let start = ETHERNET_HEADER + ip.len();
        let end = start + transport.len();
        let Some(room) = head.get_mut(start..end) else {
            self.stats.drop(Drop::TooBig);
            return false;
        };
        room.copy_from_slice(transport);
        let offload = set_checksum(&mut head, start, ip, len, body);
        let id = self.next_ip_id(ip);
        write_headers(&mut head, to, self.config.gateway_mac, ip, id, len);
        let frame = OutFrame { head: head.get(..end).unwrap_or(&[]), body: [body, &[]], offload };
        let taken = self.transmit_on(links, to, &[frame]) == 1;
        if !taken {
            self.stats.drop(Drop::LinkFull);
        }
        taken
    }

    /// IPv4 identification: 0 where the packet cannot be fragmented (RFC 6864).
    pub(crate) fn next_ip_id(&mut self, ip: &IpHeader) -> u32 {
        if ip.dont_fragment || ip.src.is_ipv6() {
            return 0;
        }
        self.next_fragment_id()
    }

    pub(crate) fn next_fragment_id(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }
}

/// Writes Ethernet and IP headers to the start of `head`. `payload_len` is what follows the IP
/// header.
pub(crate) fn write_headers(
    head: &mut [u8],
    to: Mac,
    from: Mac,
    ip: &IpHeader,
    id: u32,
    payload_len: usize,
) {
    #[expect(clippy::cast_possible_truncation, reason = "an IP packet is at most 65535 bytes")]
    let (payload_len, id) = (payload_len as u16, id as u16);
    let Some((ethernet, rest)) = head.split_first_chunk_mut::<ETHERNET_HEADER>() else { return };
    ethernet[..6].copy_from_slice(&to.0);
    ethernet[6..12].copy_from_slice(&from.0);
    match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ethernet[12..].copy_from_slice(&[0x08, 0x00]);
            let Some(h) = rest.first_chunk_mut::<IPV4_HEADER>() else { return };
            let flags: u16 = if ip.dont_fragment { 0x4000 } else { 0 };
            h[0] = 0x45;
            h[1] = ip.tos;
            h[2..4].copy_from_slice(&(payload_len + 20).to_be_bytes());
            h[4..6].copy_from_slice(&id.to_be_bytes());
            h[6..8].copy_from_slice(&flags.to_be_bytes());
            h[8] = ip.ttl;
            h[9] = ip.protocol.into();
            h[10..12].fill(0);
            h[12..16].copy_from_slice(&src.octets());
            h[16..20].copy_from_slice(&dst.octets());
            let sum = checksum::checksum(&h[..]);
            h[10..12].copy_from_slice(&sum);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ethernet[12..].copy_from_slice(&[0x86, 0xdd]);
            let Some(h) = rest.first_chunk_mut::<IPV6_HEADER>() else { return };
            h[0] = 0x60 | ip.tos >> 4;
            h[1] = ip.tos << 4;
            h[2..4].fill(0);
            h[4..6].copy_from_slice(&payload_len.to_be_bytes());
            h[6] = ip.protocol.into();
            h[7] = ip.ttl;
            h[8..24].copy_from_slice(&src.octets());
            h[24..40].copy_from_slice(&dst.octets());
        }
        _ => {}
    }
}

/// The card whose address is in this one.
fn card_of(ip: IpAddr) -> Option<Mac> {
    let IpAddr::V6(ip) = ip else { return None };
    match ip.octets() {
        [_, _, _, _, _, _, _, _, a, b, c, 0xff, 0xfe, d, e, f] => Some(Mac([a ^ 2, b, c, d, e, f])),
        _ => None,
    }
}

/// Where a transport protocol keeps its checksum, from the start of its header.
pub(crate) fn checksum_offset(protocol: IpProtocol) -> Option<usize> {
    match protocol {
        IpProtocol::Tcp => Some(16),
        IpProtocol::Udp => Some(6),
        IpProtocol::Icmp | IpProtocol::Icmpv6 => Some(2),
        _ => None,
    }
}

/// Prepares the checksum of the transport header at `head[start..]`: TCP and UDP get the
/// pseudo-header's sum and leave the rest to the link, ICMP is finished here.
fn set_checksum(head: &mut [u8], start: usize, ip: &IpHeader, len: usize, body: &[u8]) -> Offload {
    let Some(offset) = checksum_offset(ip.protocol) else { return Offload::NONE };
    let mut sum = Sum::new();
    if ip.protocol != IpProtocol::Icmp {
        let len = u32::try_from(len).unwrap_or(0);
        sum.add_pseudo_header(ip.src, ip.dst, ip.protocol.into(), len);
    }
    let partial = matches!(ip.protocol, IpProtocol::Tcp | IpProtocol::Udp);
    if !partial {
        sum.add(head.get(start..start + len - body.len()).unwrap_or(&[]));
        sum.add(body);
    }
    let value = if partial { sum.partial() } else { sum.finish() };
    if let Some(field) = head.get_mut(start + offset..start + offset + 2) {
        field.copy_from_slice(&value);
    }
    if !partial {
        return Offload::NONE;
    }
    #[expect(clippy::cast_possible_truncation, reason = "inside a head of some 130 bytes")]
    let checksum = Checksum::Partial { start: start as u16, offset: offset as u16 };
    Offload { checksum, gso: None }
}
