//! The gateway's own datagrams.

use smoltcp::wire::UdpPacket;
use vmlan_wire::checksum::Sum;
use vmlan_wire::{Mac, Offload, OutFrame};

use crate::io::Io;
use crate::net::{IpHeader, Net, write_headers};
use crate::packet::{ETHERNET_HEADER, Packet};
use crate::stats::Drop;

pub(super) const UDP_HEADER: usize = 8;

/// The datagram in a packet, checked.
pub(super) fn parse<'a>(packet: &Packet<'a>) -> Result<UdpPacket<&'a [u8]>, Drop> {
    let udp = UdpPacket::new_checked(packet.payload).map_err(|_| Drop::Malformed)?;
    if udp.src_port() == 0 || usize::from(udp.len()) != packet.payload.len() {
        return Err(Drop::Malformed);
    }
    if packet.checksum_ok() { Ok(udp) } else { Err(Drop::Checksum) }
}

/// The header of a datagram, its checksum left for [`Net::send_ip`]. `None` if it is too long.
pub(super) fn header(from: u16, to: u16, body: &[u8]) -> Option<[u8; UDP_HEADER]> {
    let len = u16::try_from(UDP_HEADER + body.len()).ok()?;
    let ([s0, s1], [d0, d1], [l0, l1]) = (from.to_be_bytes(), to.to_be_bytes(), len.to_be_bytes());
    Some([s0, s1, d0, d1, l0, l1, 0, 0])
}

/// Sends a datagram with its whole checksum in it: DHCP clients read from packet sockets, where
/// one that the kernel has yet to finish looks wrong.
pub(super) fn send_complete(
    net: &mut Net,
    io: &mut Io<'_>,
    to: Mac,
    ip: &IpHeader,
    (from_port, to_port): (u16, u16),
    body: &[u8],
) {
    let Some(mut header) = header(from_port, to_port, body) else {
        net.stats.drop(Drop::TooBig);
        return;
    };
    let len = UDP_HEADER + body.len();
    if ip.len() + len > net.mtu_towards(to) {
        net.send_ip(io, to, ip, &header, body);
        return;
    }
    let mut sum = Sum::new();
    let pseudo = u32::try_from(len).unwrap_or(0);
    sum.add_pseudo_header(ip.src, ip.dst, ip.protocol.into(), pseudo);
    sum.add(&header);
    sum.add(body);
    // A sum of zero means that there is none (RFC 768).
    let sum = if sum.finish() == [0, 0] { [0xff, 0xff] } else { sum.finish() };
    header[6..].copy_from_slice(&sum);
    let mut frame = vec![0; ETHERNET_HEADER + ip.len()];
    let id = net.next_ip_id(ip);
    write_headers(&mut frame, to, net.config.gateway_mac, ip, id, len);
    frame.extend_from_slice(&header);
    frame.extend_from_slice(body);
    if net.transmit(io, to, &[OutFrame::whole(&frame, Offload::NONE)]) == 0 {
        net.stats.drop(Drop::LinkFull);
    }
}
