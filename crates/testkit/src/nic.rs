//! What a network card does with frames that were left unfinished: it cuts trains of TCP segments
//! and completes checksums. Written apart from the engine's own egress, so that each checks the
//! other.

use smoltcp::wire::{EthernetProtocol, IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket};
use vmlan_wire::Offload;
use vmlan_wire::frame::Checksum;

use crate::wire::SimFrame;

/// The complete frames that `frame` stands for. What makes no sense is passed on as it is.
pub fn finish(frame: SimFrame) -> Vec<SimFrame> {
    if let Some(gso) = frame.offload.gso {
        return cut(&frame.data, usize::from(gso.size)).unwrap_or_else(|| vec![frame]);
    }
    let mut data = frame.data;
    if let Checksum::Partial { start, offset } = frame.offload.checksum {
        let (start, offset) = (usize::from(start), usize::from(offset));
        if let Some(covered) = data.get(start..) {
            // The field holds the pseudo-header's sum and is summed with the rest.
            let sum = !add(covered);
            if let Some(field) = data.get_mut(start + offset..start + offset + 2) {
                field.copy_from_slice(&sum.to_be_bytes());
            }
        }
    }
    vec![SimFrame { data, offload: Offload::NONE }]
}

/// The one's-complement sum, word by word.
pub fn add(data: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in data.chunks(2) {
        sum += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u64::from(*b));
    }
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

fn cut(data: &[u8], size: usize) -> Option<Vec<SimFrame>> {
    let kind = EthernetProtocol::from(u16::from_be_bytes([*data.get(12)?, *data.get(13)?]));
    let ip_len = match kind {
        EthernetProtocol::Ipv4 => {
            usize::from(Ipv4Packet::new_checked(data.get(14..)?).ok()?.header_len())
        }
        EthernetProtocol::Ipv6 => 40,
        _ => return None,
    };
    let tcp_at = 14 + ip_len;
    let tcp = TcpPacket::new_checked(data.get(tcp_at..)?).ok()?;
    let head_len = tcp_at + usize::from(tcp.header_len());
    let (head, payload) = data.split_at_checked(head_len)?;
    let seq = u32::from_be_bytes(head.get(tcp_at + 4..tcp_at + 8)?.try_into().ok()?);
    let count = payload.len().div_ceil(size.max(1));
    let mut frames = Vec::with_capacity(count);
    for (i, part) in payload.chunks(size.max(1)).enumerate() {
        let mut out = head.to_vec();
        out.extend_from_slice(part);
        let seq = seq.wrapping_add((i * size) as u32);
        out[tcp_at + 4..tcp_at + 8].copy_from_slice(&seq.to_be_bytes());
        if i + 1 < count {
            // FIN and PSH belong to the last segment, CWR to the first.
            out[tcp_at + 13] &= !0x09;
        }
        if i > 0 {
            out[tcp_at + 13] &= !0x80;
        }
        seal(&mut out, kind, ip_len, i as u16);
        frames.push(SimFrame { data: out, offload: Offload::NONE });
    }
    Some(frames)
}

/// Mends lengths, identification and checksums of one segment.
fn seal(frame: &mut [u8], kind: EthernetProtocol, ip_len: usize, index: u16) {
    let total = frame.len() - 14;
    let (head, transport) = frame[14..].split_at_mut(ip_len);
    let (src, dst): (IpAddress, IpAddress) = if kind == EthernetProtocol::Ipv4 {
        let mut ip = Ipv4Packet::new_unchecked(head);
        ip.set_total_len(total as u16);
        let id = ip.ident().wrapping_add(index);
        ip.set_ident(id);
        ip.fill_checksum();
        (ip.src_addr().into(), ip.dst_addr().into())
    } else {
        let mut ip = Ipv6Packet::new_unchecked(head);
        ip.set_payload_len((total - ip_len) as u16);
        (ip.src_addr().into(), ip.dst_addr().into())
    };
    TcpPacket::new_unchecked(transport).fill_checksum(&src, &dst);
}
