//! Frames by hand, so that a test reads like a packet trace: [`Tcp`] and the functions beside it
//! make them, [`parse`] takes apart what came back.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use smoltcp::wire::{
    ArpPacket, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket, UdpPacket,
};
use vmlan_wire::Mac;

use crate::nic;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// A TCP segment to be made, or one that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// As in the header: not scaled.
    pub window: u16,
    pub options: Vec<TcpOption>,
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcpOption {
    Mss(u16),
    WindowScale(u8),
    SackPermitted,
    Sack(Vec<(u32, u32)>),
    Raw(Vec<u8>),
}

impl Tcp {
    pub fn new(src: SocketAddr, dst: SocketAddr, flags: u8) -> Self {
        let (options, payload) = (Vec::new(), Vec::new());
        Self { src, dst, seq: 0, ack: 0, flags, window: 65_535, options, payload }
    }

    #[must_use]
    pub fn seq(mut self, seq: u32) -> Self {
        self.seq = seq;
        self
    }

    /// Sets the acknowledgement and its flag.
    #[must_use]
    pub fn ack(mut self, ack: u32) -> Self {
        self.ack = ack;
        self.flags |= ACK;
        self
    }

    #[must_use]
    pub fn window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }

    #[must_use]
    pub fn option(mut self, option: TcpOption) -> Self {
        self.options.push(option);
        self
    }

    #[must_use]
    pub fn data(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The sequence number after this segment.
    pub fn next_seq(&self) -> u32 {
        let flags = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        self.seq.wrapping_add(self.payload.len() as u32 + flags)
    }

    pub fn mss(&self) -> Option<u16> {
        self.options.iter().find_map(|o| if let TcpOption::Mss(v) = o { Some(*v) } else { None })
    }

    pub fn window_scale(&self) -> Option<u8> {
        let scale = |o: &TcpOption| if let TcpOption::WindowScale(v) = o { Some(*v) } else { None };
        self.options.iter().find_map(scale)
    }

    pub fn sack(&self) -> Vec<(u32, u32)> {
        let blocks =
            |o: &TcpOption| if let TcpOption::Sack(v) = o { Some(v.clone()) } else { None };
        self.options.iter().find_map(blocks).unwrap_or_default()
    }

    /// The whole frame.
    pub fn frame(&self, from: Mac, to: Mac) -> Vec<u8> {
        ip_frame(from, to, self.src.ip(), self.dst.ip(), 6, &self.segment())
    }

    fn segment(&self) -> Vec<u8> {
        let mut options = Vec::new();
        for option in &self.options {
            match option {
                TcpOption::Mss(v) => {
                    options.extend_from_slice(&[2, 4]);
                    options.extend_from_slice(&v.to_be_bytes());
                }
                TcpOption::WindowScale(v) => options.extend_from_slice(&[3, 3, *v]),
                TcpOption::SackPermitted => options.extend_from_slice(&[4, 2]),
                TcpOption::Sack(blocks) => {
                    options.extend_from_slice(&[5, 2 + 8 * blocks.len() as u8]);
                    for (from, to) in blocks {
                        options.extend_from_slice(&from.to_be_bytes());
                        options.extend_from_slice(&to.to_be_bytes());
                    }
                }
                TcpOption::Raw(bytes) => options.extend_from_slice(bytes),
            }
        }
        while options.len() % 4 != 0 {
            options.push(1);
        }
        let mut out = Vec::with_capacity(20 + options.len() + self.payload.len());
        out.extend_from_slice(&self.src.port().to_be_bytes());
        out.extend_from_slice(&self.dst.port().to_be_bytes());
        out.extend_from_slice(&self.seq.to_be_bytes());
        out.extend_from_slice(&self.ack.to_be_bytes());
        out.extend_from_slice(&[((20 + options.len()) / 4 * 16) as u8, self.flags]);
        out.extend_from_slice(&self.window.to_be_bytes());
        out.extend_from_slice(&[0, 0, 0, 0]);
        out.extend_from_slice(&options);
        out.extend_from_slice(&self.payload);
        out
    }
}

pub fn ethernet(from: Mac, to: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(14 + body.len());
    out.extend_from_slice(&to.0);
    out.extend_from_slice(&from.0);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// A UDP datagram.
pub fn udp(from: Mac, to: Mac, src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + payload.len());
    out.extend_from_slice(&src.port().to_be_bytes());
    out.extend_from_slice(&dst.port().to_be_bytes());
    out.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(payload);
    ip_frame(from, to, src.ip(), dst.ip(), 17, &out)
}

/// An ICMP or ICMPv6 echo request.
pub fn echo_request(
    from: Mac,
    to: Mac,
    src: IpAddr,
    dst: IpAddr,
    (id, seq): (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let (kind, protocol) = if src.is_ipv4() { (8, 1) } else { (128, 58) };
    let mut out = vec![kind, 0, 0, 0];
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&seq.to_be_bytes());
    out.extend_from_slice(payload);
    ip_frame(from, to, src, dst, protocol, &out)
}

pub fn arp_request(from: Mac, src: Ipv4Addr, wanted: Ipv4Addr) -> Vec<u8> {
    let mut out = vec![0, 1, 8, 0, 6, 4, 0, 1];
    out.extend_from_slice(&from.0);
    out.extend_from_slice(&src.octets());
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(&wanted.octets());
    ethernet(from, Mac::BROADCAST, 0x0806, &out)
}

/// An IP packet around a transport header and payload, whose checksum is filled in.
pub fn ip_frame(
    from: Mac,
    to: Mac,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    transport: &[u8],
) -> Vec<u8> {
    let mut transport = transport.to_vec();
    set_checksum(&mut transport, src, dst, protocol);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let packet = ipv4(src, dst, protocol, 0x4000, 0, &transport);
            ethernet(from, to, 0x0800, &packet)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend_from_slice(&(transport.len() as u16).to_be_bytes());
            packet.extend_from_slice(&[protocol, 64]);
            packet.extend_from_slice(&src.octets());
            packet.extend_from_slice(&dst.octets());
            packet.extend_from_slice(&transport);
            ethernet(from, to, 0x86dd, &packet)
        }
        _ => panic!("both addresses have to be of one family"),
    }
}

/// An IPv4 packet. `flags_offset` is that field of the header: DF, MF and the fragment's place.
pub fn ipv4(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    protocol: u8,
    flags_offset: u16,
    id: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(&flags_offset.to_be_bytes());
    packet.extend_from_slice(&[64, protocol, 0, 0]);
    packet.extend_from_slice(&src.octets());
    packet.extend_from_slice(&dst.octets());
    let sum = !nic::add(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// Fills in the checksum of a TCP, UDP, ICMP or ICMPv6 packet.
pub fn set_checksum(transport: &mut [u8], src: IpAddr, dst: IpAddr, protocol: u8) {
    let at = match protocol {
        6 => 16,
        17 => 6,
        1 | 58 => 2,
        _ => return,
    };
    if transport.len() < at + 2 {
        return;
    }
    transport[at..at + 2].fill(0);
    let mut all = Vec::with_capacity(40 + transport.len());
    if protocol != 1 {
        match (src, dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => all.extend([s.octets(), d.octets()].concat()),
            (IpAddr::V6(s), IpAddr::V6(d)) => all.extend([s.octets(), d.octets()].concat()),
            _ => {}
        }
        all.extend_from_slice(&(transport.len() as u32).to_be_bytes());
        all.extend_from_slice(&[0, 0, 0, protocol]);
    }
    all.extend_from_slice(transport);
    let sum = !nic::add(&all);
    transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A frame taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Arp { operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr) },
    Tcp(Tcp),
    Udp { src: SocketAddr, dst: SocketAddr, payload: Vec<u8> },
    Icmp { src: IpAddr, dst: IpAddr, ttl: u8, kind: u8, code: u8, body: Vec<u8> },
    Other { src: IpAddr, dst: IpAddr, protocol: u8, payload: Vec<u8> },
}

impl Packet {
    pub fn tcp(&self) -> Option<&Tcp> {
        if let Self::Tcp(tcp) = self { Some(tcp) } else { None }
    }

    /// Type and code of an ICMP message.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        if let Self::Icmp { kind, code, .. } = self { Some((*kind, *code)) } else { None }
    }
}

/// Takes a frame apart; `None` if it is nothing that is known here.
pub fn parse(frame: &[u8]) -> Option<Packet> {
    let eth = EthernetFrame::new_checked(frame).ok()?;
    let body = eth.payload();
    match eth.ethertype() {
        EthernetProtocol::Arp => {
            let arp = ArpPacket::new_checked(body).ok()?;
            let mac = |b: &[u8]| Some(Mac(b.try_into().ok()?));
            let ip = |b: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(b).ok()?));
            Some(Packet::Arp {
                operation: arp.operation().into(),
                sender: (mac(arp.source_hardware_addr())?, ip(arp.source_protocol_addr())?),
                target: (mac(arp.target_hardware_addr())?, ip(arp.target_protocol_addr())?),
            })
        }
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(body).ok()?;
            let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
            if ip.frag_offset() != 0 || ip.more_frags() {
                let (protocol, payload) = (ip.next_header().into(), ip.payload().to_vec());
                return Some(Packet::Other { src, dst, protocol, payload });
            }
            parse_transport(src, dst, ip.hop_limit(), ip.next_header(), ip.payload())
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(body).ok()?;
            let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
            parse_transport(src, dst, ip.hop_limit(), ip.next_header(), ip.payload())
        }
        _ => None,
    }
}

fn parse_transport(
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    protocol: IpProtocol,
    body: &[u8],
) -> Option<Packet> {
    match protocol {
        IpProtocol::Tcp => parse_tcp(src, dst, body).map(Packet::Tcp),
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(body).ok()?;
            let valid = udp.verify_checksum(&IpAddress::from(src), &IpAddress::from(dst));
            valid.then(|| Packet::Udp {
                src: SocketAddr::new(src, udp.src_port()),
                dst: SocketAddr::new(dst, udp.dst_port()),
                payload: udp.payload().to_vec(),
            })
        }
        IpProtocol::Icmp | IpProtocol::Icmpv6 => {
            let [kind, code, _, _, rest @ ..] = body else { return None };
            let (kind, code, body) = (*kind, *code, rest.to_vec());
            Some(Packet::Icmp { src, dst, ttl, kind, code, body })
        }
        other => Some(Packet::Other { src, dst, protocol: other.into(), payload: body.to_vec() }),
    }
}

fn parse_tcp(src: IpAddr, dst: IpAddr, body: &[u8]) -> Option<Tcp> {
    let tcp = TcpPacket::new_checked(body).ok()?;
    if !tcp.verify_checksum(&src.into(), &dst.into()) {
        return None;
    }
    let mut options = Vec::new();
    let mut left = tcp.options();
    while let [kind, len, ..] = *left {
        if kind == 0 {
            break;
        }
        if kind == 1 {
            left = &left[1..];
            continue;
        }
        let option = left.get(..usize::from(len))?;
        options.push(match *option {
            [2, 4, a, b] => TcpOption::Mss(u16::from_be_bytes([a, b])),
            [3, 3, scale] => TcpOption::WindowScale(scale),
            [4, 2] => TcpOption::SackPermitted,
            [5, _, ref blocks @ ..] => {
                let edge = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
                let block = |b: &[u8]| (edge(b), edge(&b[4..]));
                TcpOption::Sack(blocks.chunks_exact(8).map(block).collect())
            }
            _ => TcpOption::Raw(option.to_vec()),
        });
        left = &left[usize::from(len).max(2).min(left.len())..];
    }
    Some(Tcp {
        src: SocketAddr::new(src, tcp.src_port()),
        dst: SocketAddr::new(dst, tcp.dst_port()),
        seq: tcp.seq_number().0 as u32,
        ack: tcp.ack_number().0 as u32,
        flags: body[13] & 0x3f,
        window: tcp.window_len(),
        options,
        payload: tcp.payload().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_parses_to_the_same() {
        let (a, b) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        for (src, dst) in
            [("192.168.5.15:1000", "10.0.0.1:80"), ("[fd00::15]:1000", "[2001:db8::1]:80")]
        {
            let segment = Tcp::new(src.parse().unwrap(), dst.parse().unwrap(), PSH)
                .seq(u32::MAX)
                .ack(7)
                .option(TcpOption::Mss(1460))
                .option(TcpOption::Sack(vec![(1, 2), (3, 4)]))
                .data(b"hello");
            assert_eq!(parse(&segment.frame(a, b)), Some(Packet::Tcp(segment)));
        }
    }
}
