//! Neighbour discovery (RFC 4861 section 7, RFC 4862 section 5.4): the gateway's addresses, its
//! link-local one included, are answered and defended; what guests say about themselves is learned.
//! Router discovery is next door in `ra`.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{Icmpv6Packet, IpProtocol, NdiscNeighborFlags, NdiscRepr};
use vmlan_wire::Mac;

use crate::io::Io;
use crate::net::{IpHeader, Net};
use crate::packet::{Packet, is_unicast};
use crate::stats::Drop;

pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Every ND message comes from the link itself (RFC 4861 section 3.1).
pub(super) const HOP_LIMIT: u8 = 255;

/// Neighbour solicitation or advertisement: type, code, checksum, flags, target and one option.
const NEIGHBOR_LEN: usize = 32;

/// What is left to do about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Done,
    /// The guest asks for a router advertisement.
    RouterSolicitation,
}

/// Handles a message of the types 133 to 137.
pub(super) fn handle(net: &mut Net, io: &mut Io<'_>, packet: &Packet<'_>) -> Result<Heard, Drop> {
    let message = Icmpv6Packet::new_checked(packet.payload).map_err(|_| Drop::Malformed)?;
    if packet.ttl != HOP_LIMIT || message.msg_code() != 0 {
        return Err(Drop::Malformed);
    }
    if !packet.checksum_ok() {
        return Err(Drop::Checksum);
    }
    match NdiscRepr::parse(&message).map_err(|_| Drop::Malformed)? {
        NdiscRepr::NeighborSolicit { target_addr, lladdr } => {
            let is_probe = packet.src.is_unspecified();
            if target_addr.is_multicast()
                || is_probe && (lladdr.is_some() || !is_solicited_node(packet.dst))
            {
                return Err(Drop::Malformed);
            }
            if net.config.is_own(target_addr.into()) {
                advertise(net, io, target_addr, packet);
            }
            Ok(Heard::Done)
        }
        NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } => {
            let solicited = flags.contains(NdiscNeighborFlags::SOLICITED);
            if target_addr.is_multicast() || solicited && is_multicast(packet.dst) {
                return Err(Drop::Malformed);
            }
            let proxied = lladdr.is_some_and(|a| a.as_bytes() != packet.src_mac.as_bytes());
            let target = IpAddr::V6(target_addr);
            if proxied || net.config.is_own(target) || !net.config.contains(target) {
                return Err(Drop::Source);
            }
            if !is_unicast(target) || !net.claim(target, packet.src_mac, packet.port, io.now) {
                return Err(Drop::Source);
            }
            Ok(Heard::Done)
        }
        NdiscRepr::RouterSolicit { lladdr } => {
            if packet.src.is_unspecified() && lladdr.is_some() {
                return Err(Drop::Malformed);
            }
            Ok(Heard::RouterSolicitation)
        }
        // The gateway is the only router; what others advertise or redirect is between guests.
        NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. } => Ok(Heard::Done),
    }
}

/// Asks the guests who has `target`.
pub(super) fn solicit(net: &mut Net, io: &mut Io<'_>, target: Ipv6Addr) {
    let (low, src) = (target.octets(), own_source(net, target));
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(low[13]),
        u16::from_be_bytes([low[14], low[15]]),
    );
    let lladdr = Some(net.config.gateway_mac.into());
    let repr = NdiscRepr::NeighborSolicit { target_addr: target, lladdr };
    let mac = Mac([0x33, 0x33, 0xff, low[13], low[14], low[15]]);
    send(net, io, mac, (src, group), &repr);
}

/// The gateway's address on the same link as `peer`: link-local answers link-local.
pub(super) fn own_source(net: &Net, peer: Ipv6Addr) -> Ipv6Addr {
    if peer.is_unicast_link_local() { net.config.link_local() } else { net.config.own_v6() }
}

/// Answers a solicitation; a probe of duplicate address detection is answered to everybody
/// (RFC 4861 section 7.2.4).
fn advertise(net: &mut Net, io: &mut Io<'_>, target: Ipv6Addr, packet: &Packet<'_>) {
    let mut flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
    let (mac, dst) = match packet.src {
        IpAddr::V6(src) if !src.is_unspecified() => {
            flags |= NdiscNeighborFlags::SOLICITED;
            (packet.src_mac, src)
        }
        _ => (Mac([0x33, 0x33, 0, 0, 0, 1]), ALL_NODES),
    };
    let lladdr = Some(net.config.gateway_mac.into());
    let repr = NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr };
    send(net, io, mac, (target, dst), &repr);
}

fn send(
    net: &mut Net,
    io: &mut Io<'_>,
    to: Mac,
    (src, dst): (Ipv6Addr, Ipv6Addr),
    repr: &NdiscRepr<'_>,
) {
    let mut message = [0; NEIGHBOR_LEN];
    repr.emit(&mut Icmpv6Packet::new_unchecked(&mut message[..]));
    let mut ip = IpHeader::new(src.into(), dst.into(), IpProtocol::Icmpv6);
    ip.ttl = HOP_LIMIT;
    net.send_ip(io, to, &ip, &message, &[]);
}

fn is_multicast(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(a) if a.is_multicast())
}

fn is_solicited_node(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(a) if a.segments()[..6] == [0xff02, 0, 0, 0, 0, 1]
        && a.octets()[12] == 0xff)
}
