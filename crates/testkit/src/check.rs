//! What every frame made by the engine must fulfil, whatever the guest did: it parses, its lengths
//! agree, its checksums are right or left to a card that can make them, and it fits the MTU.

use std::net::IpAddr;

use smoltcp::wire::{
    ArpPacket, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket, UdpPacket,
};
use vmlan_engine::PortCaps;
use vmlan_wire::Offload;
use vmlan_wire::frame::{Checksum, GsoKind};

use crate::nic;

/// Says what is wrong with a frame.
pub fn frame(data: &[u8], offload: Offload, caps: PortCaps, mtu: u16) -> Result<(), String> {
    let eth = EthernetFrame::new_checked(data).map_err(|_| "shorter than an Ethernet header")?;
    let body = eth.payload();
    match eth.ethertype() {
        EthernetProtocol::Arp => {
            let arp = ArpPacket::new_checked(body).map_err(|_| "malformed ARP")?;
            if arp.protocol_len() != 4 || arp.hardware_len() != 6 {
                return Err("ARP for something else than IPv4 over Ethernet".into());
            }
            plain(offload)
        }
        EthernetProtocol::Ipv4 => ipv4(body, offload, caps, mtu),
        EthernetProtocol::Ipv6 => ipv6(body, offload, caps, mtu),
        other => Err(format!("ethertype {other}")),
    }
}

fn plain(offload: Offload) -> Result<(), String> {
    if offload == Offload::NONE { Ok(()) } else { Err(format!("unneeded offload {offload:?}")) }
}

fn ipv4(body: &[u8], offload: Offload, caps: PortCaps, mtu: u16) -> Result<(), String> {
    let ip = Ipv4Packet::new_checked(body).map_err(|_| "malformed IPv4 header")?;
    if ip.version() != 4 || !ip.verify_checksum() {
        return Err("wrong IPv4 version or header checksum".into());
    }
    if usize::from(ip.total_len()) != body.len() {
        return Err(format!("IPv4 length {} in a frame with {}", ip.total_len(), body.len()));
    }
    fits(body.len(), offload, caps, mtu)?;
    if ip.hop_limit() == 0 {
        return Err("TTL 0".into());
    }
    if ip.more_frags() || ip.frag_offset() != 0 {
        if ip.dont_frag() {
            return Err("a fragment that may not be fragmented".into());
        }
        return plain(offload);
    }
    let ends = (ip.src_addr().into(), ip.dst_addr().into());
    let start = 14 + usize::from(ip.header_len());
    transport(ip.next_header(), ends, ip.payload(), start, offload, caps)
}

fn ipv6(body: &[u8], offload: Offload, caps: PortCaps, mtu: u16) -> Result<(), String> {
    let ip = Ipv6Packet::new_checked(body).map_err(|_| "malformed IPv6 header")?;
    if ip.version() != 6 {
        return Err("wrong IPv6 version".into());
    }
    if 40 + usize::from(ip.payload_len()) != body.len() {
        return Err(format!("IPv6 length {} in a frame with {}", ip.payload_len(), body.len()));
    }
    fits(body.len(), offload, caps, mtu)?;
    if ip.hop_limit() == 0 {
        return Err("hop limit 0".into());
    }
    if ip.next_header() == IpProtocol::Ipv6Frag {
        let [_, _, o0, o1, ..] = *ip.payload() else { return Err("short fragment header".into()) };
        let more = o1 & 1 == 1;
        if more && (ip.payload().len() - 8) % 8 != 0 {
            return Err("a fragment's length is not a multiple of 8".into());
        }
        if o0 == 0 && o1 == 0 {
            return Err("an atomic fragment".into());
        }
        return plain(offload);
    }
    let ends = (ip.src_addr().into(), ip.dst_addr().into());
    transport(ip.next_header(), ends, ip.payload(), 54, offload, caps)
}

fn fits(len: usize, offload: Offload, caps: PortCaps, mtu: u16) -> Result<(), String> {
    if let Some(gso) = offload.gso {
        let able = match gso.kind {
            GsoKind::TcpV4 => caps.tso4,
            GsoKind::TcpV6 => caps.tso6,
        };
        if !able || gso.size == 0 {
            return Err(format!("{gso:?} for a port with {caps:?}"));
        }
        let one = usize::from(gso.header_len) - 14 + usize::from(gso.size);
        if one > usize::from(mtu) {
            return Err(format!("segments of {one} bytes for MTU {mtu}"));
        }
    } else if len > usize::from(mtu) {
        return Err(format!("{len} bytes for MTU {mtu}"));
    }
    Ok(())
}

fn transport(
    protocol: IpProtocol,
    (src, dst): (IpAddr, IpAddr),
    body: &[u8],
    start: usize,
    offload: Offload,
    caps: PortCaps,
) -> Result<(), String> {
    let field = match protocol {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(body).map_err(|_| "malformed TCP header")?;
            let head = start + usize::from(tcp.header_len());
            if offload.gso.is_some_and(|g| usize::from(g.header_len) != head) {
                return Err(format!("header of {head} bytes with {offload:?}"));
            }
            tcp_options(tcp.options())?;
            16
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(body).map_err(|_| "malformed UDP header")?;
            if usize::from(udp.len()) != body.len() {
                return Err(format!("UDP length {} of {}", udp.len(), body.len()));
            }
            if body.get(6..8) == Some(&[0, 0]) && offload.checksum == Checksum::Complete {
                return Err("a UDP datagram without checksum".into());
            }
            6
        }
        IpProtocol::Icmp | IpProtocol::Icmpv6 => {
            if body.len() < 8 {
                return Err("short ICMP message".into());
            }
            2
        }
        other => return Err(format!("transport protocol {other}")),
    };
    if offload.gso.is_some() && protocol != IpProtocol::Tcp {
        return Err("segmentation of something that is not TCP".into());
    }
    checksum(protocol, (src.into(), dst.into()), body, (start, field), offload, caps)
}

fn checksum(
    protocol: IpProtocol,
    (src, dst): (IpAddress, IpAddress),
    body: &[u8],
    (start, field): (usize, usize),
    offload: Offload,
    caps: PortCaps,
) -> Result<(), String> {
    let mut pseudo = Vec::with_capacity(40);
    if protocol != IpProtocol::Icmp {
        for address in [src, dst] {
            match address {
                IpAddress::Ipv4(a) => pseudo.extend_from_slice(&a.octets()),
                IpAddress::Ipv6(a) => pseudo.extend_from_slice(&a.octets()),
            }
        }
        pseudo.extend_from_slice(&(body.len() as u32).to_be_bytes());
        pseudo.extend_from_slice(&u16::from(u8::from(protocol)).to_be_bytes());
    }
    match offload.checksum {
        Checksum::Complete if offload.gso.is_none() => {
            pseudo.extend_from_slice(body);
            if nic::add(&pseudo) != 0xffff {
                return Err(format!("wrong {protocol} checksum"));
            }
            Ok(())
        }
        Checksum::Partial { start: s, offset } if caps.checksum => {
            if (usize::from(s), usize::from(offset)) != (start, field) {
                return Err(format!("checksum at {s}+{offset}, not {start}+{field}"));
            }
            let there = u16::from_be_bytes([body[field], body[field + 1]]);
            let want = nic::add(&pseudo);
            let is_zero = |sum: u16| sum == 0 || sum == 0xffff;
            if there != want && !(is_zero(there) && is_zero(want)) {
                return Err(format!("pseudo-header sum {there:#x}, not {want:#x}"));
            }
            Ok(())
        }
        other => Err(format!("{other:?} for a port with {caps:?}")),
    }
}

fn tcp_options(mut options: &[u8]) -> Result<(), String> {
    loop {
        options = match *options {
            [] | [0, ..] => return Ok(()),
            [1, ref rest @ ..] => rest,
            [kind, len, ..] if len >= 2 && usize::from(len) <= options.len() => {
                let right = match kind {
                    2 => len == 4,
                    3 => len == 3,
                    4 => len == 2,
                    5 => len % 8 == 2 && len > 2,
                    8 => len == 10,
                    _ => false,
                };
                if !right {
                    return Err(format!("TCP option {kind} with {len} bytes"));
                }
                &options[usize::from(len)..]
            }
            _ => return Err("TCP options do not add up".into()),
        };
    }
}
