//! IP fragments: cutting what does not fit a link, and putting together what guests cut.
//!
//! RFC 791 section 3.2, RFC 8200 section 4.5.

mod reassembly;
#[cfg(test)]
mod tests;

use smoltcp::wire::IpProtocol;
use vmlan_wire::checksum::{Sum, checksum};
use vmlan_wire::{Mac, Offload, OutFrame};

use crate::io::Links;
use crate::net::{IpHeader, Net, checksum_offset, write_headers};
use crate::packet::{ETHERNET_HEADER, IPV4_HEADER, IPV6_HEADER};
use crate::stats::Drop;

pub(crate) use reassembly::Reassembler;

/// IPv6 fragment header.
const FRAGMENT_HEADER: usize = 8;

/// The longest transport header, TCP's with all its options.
const MAX_TRANSPORT: usize = 60;

const MORE_FRAGMENTS_V4: u16 = 0x2000;
const MORE_FRAGMENTS_V6: u16 = 1;

/// Sends a packet that does not fit the MTU in fragments, unless it may not be cut. False if it was
/// not taken as a whole, which is counted.
pub(crate) fn send(
    net: &mut Net,
    links: &mut dyn Links,
    to: Mac,
    ip: &IpHeader,
    transport: &[u8],
    body: &[u8],
) -> bool {
    let result = send_parts(net, links, to, ip, transport, body);
    result.inspect_err(|reason| net.stats.drop(*reason)).is_ok()
}

fn send_parts(
    net: &mut Net,
    links: &mut dyn Links,
    to: Mac,
    ip: &IpHeader,
    transport: &[u8],
    body: &[u8],
) -> Result<(), Drop> {
    let v6 = ip.src.is_ipv6();
    let overhead = ip.len() + if v6 { FRAGMENT_HEADER } else { 0 };
    let total = transport.len() + body.len();
    let limit = usize::from(u16::MAX) - if v6 { 0 } else { IPV4_HEADER };
    let chunk = net.mtu_towards(to).saturating_sub(overhead) & !7;
    // An IPv6 packet is cut at its source, which the engine stands for.
    if total > limit || chunk == 0 || ip.dont_fragment && !v6 {
        return Err(Drop::TooBig);
    }
    // The checksum is over the whole, so no link can be asked to finish it.
    let mut first = [0; MAX_TRANSPORT];
    let first = first.get_mut(..transport.len()).ok_or(Drop::TooBig)?;
    first.copy_from_slice(transport);
    finish_checksum(first, ip, body);
    let id = net.next_fragment_id();
    for offset in (0..total).step_by(chunk) {
        let len = chunk.min(total - offset);
        let more = offset + len < total;
        let mut head = [0; ETHERNET_HEADER + IPV6_HEADER + FRAGMENT_HEADER];
        write_fragment_headers(
            &mut head,
            (to, net.config.gateway_mac),
            ip,
            id,
            (offset, len, more),
        );
        let head = head.get(..ETHERNET_HEADER + overhead).unwrap_or(&[]);
        let frame = OutFrame { head, body: cut(first, body, offset, len), offload: Offload::NONE };
        if net.transmit_on(links, to, &[frame]) == 0 {
            return Err(Drop::LinkFull);
        }
    }
    Ok(())
}

fn finish_checksum(transport: &mut [u8], ip: &IpHeader, body: &[u8]) {
    let Some(at) = checksum_offset(ip.protocol) else { return };
    let mut sum = Sum::new();
    if ip.protocol != IpProtocol::Icmp {
        let len = u32::try_from(transport.len() + body.len()).unwrap_or(0);
        sum.add_pseudo_header(ip.src, ip.dst, ip.protocol.into(), len);
    }
    sum.add(transport);
    sum.add(body);
    // To UDP a sum of zero means that there is none.
    let value = match (ip.protocol, sum.finish()) {
        (IpProtocol::Udp, [0, 0]) => [0xff, 0xff],
        (_, value) => value,
    };
    if let Some(field) = transport.get_mut(at..at + 2) {
        field.copy_from_slice(&value);
    }
}

fn write_fragment_headers(
    head: &mut [u8; ETHERNET_HEADER + IPV6_HEADER + FRAGMENT_HEADER],
    (to, from): (Mac, Mac),
    ip: &IpHeader,
    id: u32,
    (offset, len, more): (usize, usize, bool),
) {
    // Offsets count in eights and are multiples of it: IPv6 keeps them in place.
    let offset = u16::try_from(offset).unwrap_or(0);
    if ip.src.is_ipv6() {
        let outer = IpHeader { protocol: IpProtocol::Ipv6Frag, ..*ip };
        write_headers(head, to, from, &outer, 0, len + FRAGMENT_HEADER);
        let place = offset | if more { MORE_FRAGMENTS_V6 } else { 0 };
        head[54] = ip.protocol.into();
        head[56..58].copy_from_slice(&place.to_be_bytes());
        head[58..62].copy_from_slice(&id.to_be_bytes());
    } else {
        write_headers(head, to, from, ip, id, len);
        let place = offset >> 3 | if more { MORE_FRAGMENTS_V4 } else { 0 };
        head[20..22].copy_from_slice(&place.to_be_bytes());
        head[24..26].fill(0);
        let sum = checksum(&head[14..34]);
        head[24..26].copy_from_slice(&sum);
    }
}

/// Bytes `at..at + len` of `a` followed by `b`.
fn cut<'a>(a: &'a [u8], b: &'a [u8], at: usize, len: usize) -> [&'a [u8]; 2] {
    let part = |piece: &'a [u8], from: usize, to: usize| {
        piece.get(from.min(piece.len())..to.min(piece.len())).unwrap_or(&[])
    };
    let end = at + len;
    [part(a, at, end), part(b, at.saturating_sub(a.len()), end.saturating_sub(a.len()))]
}
