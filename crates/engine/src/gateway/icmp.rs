//! ICMP and ICMPv6 of the gateway's own: echo to its addresses, and errors about guests' packets
//! (RFC 792, 1122 section 3.2.2, 4443). Errors are never sent about errors, fragments other than the
//! first, broadcasts or multicasts, and at a bounded rate for each port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use smoltcp::wire::IpProtocol;
use vmlan_wire::Mac;

use super::limit::Limiter;
use super::nd;
use crate::config::Config;
use crate::io::{Failure, Io};
use crate::net::{IpHeader, Net};
use crate::packet::{IPV4_HEADER, IPV6_HEADER, Packet, is_unicast};
use crate::stats::Drop;

/// ICMP header, the four bytes that depend on the type included.
const HEADER: usize = 8;

/// What an error quotes, so that it stays within what every host takes (RFC 1812 section 4.3.2.3,
/// RFC 4443 section 3.1).
const MAX_QUOTE_V4: usize = 576 - IPV4_HEADER - HEADER;
const MAX_QUOTE_V6: usize = 1280 - IPV6_HEADER - HEADER;

/// An error about a guest's packet, from the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Net,
    Host,
    Protocol,
    Port,
    Prohibited,
}

impl From<Failure> for Unreachable {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NetUnreachable | Failure::Unsupported => Self::Net,
            Failure::Prohibited => Self::Prohibited,
            Failure::Refused => Self::Port,
            _ => Self::Host,
        }
    }
}

impl Unreachable {
    /// ICMP type and code: RFC 792 and 1812 section 5.2.7.1; RFC 4443 section 3.1, where an
    /// unknown protocol is a parameter problem.
    pub(crate) fn code(self, v6: bool) -> (u8, u8) {
        match (self, v6) {
            (Self::Net, false) => (3, 0),
            (Self::Host, false) => (3, 1),
            (Self::Protocol, false) => (3, 2),
            (Self::Port, false) => (3, 3),
            (Self::Prohibited, false) => (3, 13),
            (Self::Net, true) => (1, 0),
            (Self::Prohibited, true) => (1, 1),
            (Self::Host, true) => (1, 3),
            (Self::Port, true) => (1, 4),
            (Self::Protocol, true) => (4, 1),
        }
    }
}

/// The address from which the engine itself complains about a packet to `dst`: that one if it is
/// its own, else the gateway's.
pub(crate) fn own_address(config: &Config, dst: IpAddr) -> IpAddr {
    match dst {
        dst if config.is_own(dst) => dst,
        IpAddr::V4(_) => config.gateway.into(),
        IpAddr::V6(_) => config.own_v6().into(),
    }
}

/// How many errors a guest gets.
pub(crate) const fn error_limit() -> Limiter {
    Limiter::new(Duration::from_millis(1), 100)
}

/// Whether an echo request is for the gateway.
pub(super) fn is_own_echo(net: &Net, packet: &Packet<'_>) -> bool {
    match packet.protocol {
        IpProtocol::Icmp => packet.payload.first() == Some(&8) && net.config.is_own(packet.dst),
        IpProtocol::Icmpv6 if packet.payload.first() == Some(&128) => {
            net.config.is_own(packet.dst) || packet.dst == IpAddr::V6(nd::ALL_NODES)
        }
        _ => false,
    }
}

/// Answers an echo request.
pub(super) fn echo(net: &mut Net, io: &mut Io<'_>, packet: &Packet<'_>) -> Result<(), Drop> {
    let Some((&[_, _, _, _, a, b, c, d], data)) = packet.payload.split_first_chunk::<HEADER>()
    else {
        return Err(Drop::Malformed);
    };
    if !packet.checksum_ok() {
        return Err(Drop::Checksum);
    }
    if !is_unicast(packet.src) {
        return Err(Drop::Source);
    }
    let src = match (packet.dst, packet.src) {
        (IpAddr::V6(dst), IpAddr::V6(src)) if dst.is_multicast() => nd::own_source(net, src).into(),
        (dst, _) => dst,
    };
    let reply = if packet.is_v6() { 129 } else { 0 };
    let mut ip = IpHeader::new(src, packet.src, packet.protocol);
    ip.tos = packet.tos;
    net.send_ip(io, packet.src_mac, &ip, &[reply, 0, 0, 0, a, b, c, d], data);
    Ok(())
}

/// "Destination unreachable" about `packet`, from the gateway.
pub(crate) fn unreachable(net: &mut Net, io: &mut Io<'_>, packet: &Packet<'_>, why: Unreachable) {
    let (kind, code) = why.code(packet.is_v6());
    let pointer = match (kind, packet.is_v6()) {
        (4, true) => next_header_at(packet.ip, packet.payload.len()),
        _ => 0,
    };
    // It is the host itself that has no such port.
    let from_destination = why == Unreachable::Port;
    error(net, io, packet, from_destination, (kind, code, pointer));
}

/// "Time exceeded in transit" about `packet`.
pub(crate) fn time_exceeded(net: &mut Net, io: &mut Io<'_>, packet: &Packet<'_>) {
    let kind = if packet.is_v6() { 3 } else { 11 };
    error(net, io, packet, false, (kind, 0, 0));
}

pub(crate) fn protocol_unreachable(net: &mut Net, io: &mut Io<'_>, packet: &Packet<'_>) {
    unreachable(net, io, packet, Unreachable::Protocol);
}

/// An ICMP error as a router or host outside sent it: `offender` complains about the packet whose
/// IP header (as the guest sent it) and first payload bytes are in `quoted`. Type, code and MTU are
/// those of the offender's family; an error that crossed families is translated (RFC 7915), and
/// one from an address that means nothing to the guest comes from where the guest had sent.
pub(crate) fn relayed(
    net: &mut Net,
    io: &mut Io<'_>,
    guest_mac: Mac,
    guest: IpAddr,
    offender: IpAddr,
    kind: (u8, u8, u32),
    quoted: &[u8],
) {
    let crossed = offender.is_ipv6() != guest.is_ipv6();
    let (kind, code, mtu) = match (crossed, guest.is_ipv6()) {
        (false, _) => kind,
        (true, true) => to_v6(kind),
        (true, false) => to_v4(kind),
    };
    let src = if !crossed && is_unicast(offender) {
        offender
    } else {
        quoted_destination(quoted, guest).unwrap_or_else(|| match guest {
            IpAddr::V4(_) => net.config.gateway.into(),
            IpAddr::V6(guest) => nd::own_source(net, guest).into(),
        })
    };
    send(net, io, guest_mac, (src, guest), (kind, code, mtu), quoted);
}

/// Sends an error about a packet that one may be sent about.
fn error(
    net: &mut Net,
    io: &mut Io<'_>,
    packet: &Packet<'_>,
    from_destination: bool,
    what: (u8, u8, u32),
) {
    if !may_complain(net, packet) {
        return;
    }
    if !net.icmp_errors.allow(packet.port, io.now) {
        net.stats.drop(Drop::Limit);
        return;
    }
    let src = if from_destination { packet.dst } else { own_address(&net.config, packet.dst) };
    send(net, io, packet.src_mac, (src, packet.src), what, packet.ip);
}

fn may_complain(net: &Net, packet: &Packet<'_>) -> bool {
    let broadcast = packet.dst == IpAddr::V4(net.config.ipv4.broadcast());
    let kind = packet.payload.first().copied();
    let about_error = match packet.protocol {
        IpProtocol::Icmp => matches!(kind, None | Some(3 | 4 | 5 | 11 | 12)),
        IpProtocol::Icmpv6 => matches!(kind, None | Some(..=127 | 137)),
        _ => false,
    };
    let later_fragment = packet.fragment.is_some_and(|f| f.offset != 0);
    is_unicast(packet.src)
        && is_unicast(packet.dst)
        && packet.dst_mac.is_unicast()
        && !broadcast
        && !about_error
        && !later_fragment
}

/// Sends an error message of one family. `rest` is the next-hop MTU or a pointer.
fn send(
    net: &mut Net,
    io: &mut Io<'_>,
    to: Mac,
    (src, dst): (IpAddr, IpAddr),
    (kind, code, rest): (u8, u8, u32),
    quote: &[u8],
) {
    let [a, b, c, d] = match (dst, kind) {
        // The MTU of "fragmentation needed" has 16 bits (RFC 1191 section 4).
        (IpAddr::V4(_), 3) => rest.min(0xffff).to_be_bytes(),
        _ => rest.to_be_bytes(),
    };
    let (protocol, max) = match dst {
        IpAddr::V4(_) => (IpProtocol::Icmp, MAX_QUOTE_V4),
        IpAddr::V6(_) => (IpProtocol::Icmpv6, MAX_QUOTE_V6),
    };
    let ip = IpHeader::new(src, dst, protocol);
    let quote = quote.get(..max).unwrap_or(quote);
    net.send_ip(io, to, &ip, &[kind, code, 0, 0, a, b, c, d], quote);
}

/// Where the packet that is quoted was sent, if that is an address of the guest's family.
fn quoted_destination(quoted: &[u8], guest: IpAddr) -> Option<IpAddr> {
    let dst: IpAddr = match guest {
        IpAddr::V4(_) => Ipv4Addr::from(*quoted.get(16..)?.first_chunk::<4>()?).into(),
        IpAddr::V6(_) => Ipv6Addr::from(*quoted.get(24..)?.first_chunk::<16>()?).into(),
    };
    is_unicast(dst).then_some(dst)
}

/// Offset of the byte that names the protocol of the last `payload` bytes of an IPv6 packet.
fn next_header_at(ip: &[u8], payload: usize) -> u32 {
    let end = ip.len().saturating_sub(payload);
    let (mut at, mut header, mut next) = (6, IPV6_HEADER, ip.get(6).copied());
    while header < end {
        let len = match next {
            Some(44) => 8,
            _ => 8 + 8 * ip.get(header + 1).copied().map_or(0, usize::from),
        };
        (at, next) = (header, ip.get(header).copied());
        header += len;
    }
    u32::try_from(at).unwrap_or(0)
}

/// RFC 7915 section 4.2.
fn to_v6((kind, code, mtu): (u8, u8, u32)) -> (u8, u8, u32) {
    match (kind, code) {
        (3, 2) => (4, 1, 6),
        (3, 3) => (1, 4, 0),
        (3, 4) => (2, 0, mtu.saturating_add(20).max(1280)),
        (3, 9 | 10 | 13 | 15) => (1, 1, 0),
        (11, code) => (3, code, 0),
        _ => (1, 0, 0),
    }
}

/// RFC 7915 section 5.2.
fn to_v4((kind, code, mtu): (u8, u8, u32)) -> (u8, u8, u32) {
    match (kind, code) {
        (1, 1) => (3, 10, 0),
        (1, 4) => (3, 3, 0),
        (2, _) => (3, 4, mtu.saturating_sub(20)),
        (3, code) => (11, code, 0),
        (4, 1) => (3, 2, 0),
        _ => (3, 1, 0),
    }
}
