//! What a network card with offloads would do, in software: cutting a train of TCP segments
//! ([`Train`]) and finishing a checksum of which only the pseudo-header is summed ([`complete`]).
//!
//! Headers are rewritten in copies that are appended to a buffer of the caller's; payload stays
//! where it lies. What a frame says about itself in its metadata is not trusted: headers are read
//! again from the packet. RFC 791, 8200, 9293; RFC 3168 section 6.1.2 for CWR.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{self, Sum};
use crate::frame::{Checksum, Gso, GsoKind, Offload, OutFrame};

/// Segments in one train; with fewer bytes in each, a guest could make a hundred thousand frames
/// out of one.
const MAX_SEGMENTS: usize = 2048;

/// A head that is longer holds payload.
const HEAD_MAX: usize = 256;

const ETHERNET: usize = 14;
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;
const TCP: u8 = 6;
const TCP_MIN: usize = 20;
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: usize = 6;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Why a frame cannot be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the headers are not those of a train of TCP segments")]
    NotTcp,
    #[error("the train has too many segments")]
    TooMany,
    #[error("the checksum's place is outside the frame's head")]
    ChecksumPlace,
}

/// A frame whose head is in the buffer that was given along.
#[derive(Clone, Copy, Debug)]
pub struct Rewritten<'a> {
    /// The last bytes of the buffer.
    pub head_len: usize,
    pub body: [&'a [u8]; 2],
    pub offload: Offload,
}

/// Finishes a checksum: sums `frame` from `start` on and stores the result at `start + offset`, in
/// a copy of the frame's head that is appended to `heads`.
pub fn complete<'a>(
    frame: &OutFrame<'a>,
    start: u16,
    offset: u16,
    heads: &mut Vec<u8>,
) -> Result<Rewritten<'a>, Refused> {
    let (start, offset) = (usize::from(start), usize::from(offset));
    let mut sum = Sum::new();
    sum.add(frame.head.get(start..).ok_or(Refused::ChecksumPlace)?);
    sum.add(frame.body[0]);
    sum.add(frame.body[1]);
    let field = start + offset;
    let (head, body) = match frame.body {
        // A long head is a whole frame: only what is rewritten has to be copied.
        [first, []] if frame.head.len() > HEAD_MAX => {
            let cut = frame.head.split_at_checked(field + 2).ok_or(Refused::ChecksumPlace)?;
            (cut.0, [cut.1, first])
        }
        body => (frame.head, body),
    };
    let at = heads.len();
    heads.extend_from_slice(head);
    let value = if offset == UDP_CHECKSUM { nonzero(sum.finish()) } else { sum.finish() };
    if !put(heads, at + field, value) {
        heads.truncate(at);
        return Err(Refused::ChecksumPlace);
    }
    Ok(Rewritten { head_len: head.len(), body, offload: Offload::NONE })
}

/// A train of TCP segments that is being cut.
#[derive(Debug)]
pub struct Train<'a> {
    layout: Layout,
    /// Ethernet, IP and TCP header of the whole train.
    headers: &'a [u8],
    /// Payload that is still to be sent, in pieces.
    payload: [&'a [u8]; 3],
    left: usize,
    size: usize,
    index: usize,
}

/// Where the headers are; all within the head of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    ip: usize,
    tcp: usize,
    payload: usize,
    src: IpAddr,
    dst: IpAddr,
    ident: u16,
    seq: u32,
    flags: u8,
}

impl<'a> Train<'a> {
    pub fn new(frame: &OutFrame<'a>, gso: Gso) -> Result<Self, Refused> {
        let (layout, end) = Layout::read(frame.head, gso.kind).ok_or(Refused::NotTcp)?;
        let left = end.checked_sub(layout.payload).filter(|_| end <= frame.len());
        let left = left.ok_or(Refused::NotTcp)?;
        let (headers, first) =
            frame.head.split_at_checked(layout.payload).ok_or(Refused::NotTcp)?;
        let size = usize::from(gso.size);
        if layout.flags & (SYN | RST) != 0 || size == 0 {
            return Err(Refused::NotTcp);
        }
        if left.div_ceil(size) > MAX_SEGMENTS {
            return Err(Refused::TooMany);
        }
        let payload = [first, frame.body[0], frame.body[1]];
        Ok(Self { layout, headers, payload, left, size, index: 0 })
    }

    /// Segments that are left; a train without payload is one segment.
    pub fn remaining(&self) -> usize {
        match (self.index, self.left) {
            (0, 0) => 1,
            (_, left) => left.div_ceil(self.size),
        }
    }

    /// Bytes of the largest frame that comes out.
    pub fn frame_len(&self) -> usize {
        self.headers.len() + self.left.min(self.size)
    }

    /// Cuts the next segment. Its head is appended to `heads`; its checksum is finished if `finish`
    /// says so, else left to the link.
    pub fn next(&mut self, heads: &mut Vec<u8>, finish: bool) -> Option<Rewritten<'a>> {
        if self.remaining() == 0 {
            return None;
        }
        let len = self.left.min(self.size);
        let (last, first) = (len == self.left, self.index == 0);
        let at = heads.len();
        heads.extend_from_slice(self.headers);
        let [a, b, c] = self.take(len);
        let body = match (a, b, c) {
            (a, [], c) => [a, c],
            (a, b, []) => [a, b],
            (a, b, c) => {
                heads.extend_from_slice(a);
                [b, c]
            }
        };
        let head = heads.get_mut(at..)?;
        let checksum = self.patch(head, len, first, last);
        let offload = if finish {
            let mut sum = Sum::new();
            sum.add(head.get(self.layout.tcp..)?);
            sum.add(body[0]);
            sum.add(body[1]);
            put(head, self.layout.tcp + usize::from(TCP_CHECKSUM), sum.finish());
            Offload::NONE
        } else {
            Offload { checksum, gso: None }
        };
        self.index += 1;
        Some(Rewritten { head_len: head.len(), body, offload })
    }

    /// Takes bytes from the front of the payload.
    fn take(&mut self, len: usize) -> [&'a [u8]; 3] {
        let mut left = len;
        self.left -= len;
        self.payload.each_mut().map(|piece| {
            let (taken, rest) = piece.split_at(left.min(piece.len()));
            left -= taken.len();
            *piece = rest;
            taken
        })
    }

    /// Writes what differs from the train's headers, with the pseudo-header's sum as checksum.
    fn patch(&self, head: &mut [u8], len: usize, first: bool, last: bool) -> Checksum {
        let Layout { ip, tcp, payload, src, dst, .. } = self.layout;
        #[expect(clippy::cast_possible_truncation, reason = "a train fits an IP packet")]
        let (len, index) = (len as u32, self.index as u32);
        #[expect(clippy::cast_possible_truncation, reason = "headers lie in a frame's head")]
        let (tcp_len, ip_len) = ((payload - tcp) as u32 + len, (payload - ip) as u32 + len);
        #[expect(clippy::cast_possible_truncation, reason = "a train fits an IP packet")]
        let (total, ident) = (ip_len as u16, self.layout.ident.wrapping_add(index as u16));
        if src.is_ipv4() {
            put(head, ip + 2, total.to_be_bytes());
            put(head, ip + 4, ident.to_be_bytes());
            put(head, ip + 10, [0, 0]);
            let sum = checksum::checksum(head.get(ip..tcp).unwrap_or_default());
            put(head, ip + 10, sum);
        } else {
            put(head, ip + 4, total.wrapping_sub(40).to_be_bytes());
        }
        let mut flags = self.layout.flags;
        if !last {
            flags &= !(FIN | PSH);
        }
        if !first {
            flags &= !CWR;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a train fits an IP packet")]
        let offset = index.wrapping_mul(self.size as u32);
        put(head, tcp + 4, self.layout.seq.wrapping_add(offset).to_be_bytes());
        put(head, tcp + 13, [flags]);
        let mut sum = Sum::new();
        sum.add_pseudo_header(src, dst, TCP, tcp_len);
        put(head, tcp + usize::from(TCP_CHECKSUM), sum.partial());
        #[expect(clippy::cast_possible_truncation, reason = "headers are some hundred bytes")]
        let start = tcp as u16;
        Checksum::Partial { start, offset: TCP_CHECKSUM }
    }
}

impl Layout {
    /// Reads the headers; also tells where the IP packet ends. `None` for all that is not one
    /// whole TCP segment.
    fn read(head: &[u8], kind: GsoKind) -> Option<(Self, usize)> {
        let mut ip = ETHERNET;
        let mut ethertype: [u8; 2] = *head.get(12..)?.first_chunk()?;
        // 802.1Q and 802.1ad tags.
        while matches!(ethertype, [0x81, 0x00] | [0x88, 0xa8]) && ip < ETHERNET + 8 {
            ethertype = *head.get(ip + 2..)?.first_chunk()?;
            ip += 4;
        }
        let packet = head.get(ip..)?;
        let (src, dst, ident, tcp, end) = match (ethertype, kind) {
            ([0x08, 0x00], GsoKind::TcpV4) => {
                let h: &[u8; 20] = packet.first_chunk()?;
                let header_len = usize::from(h[0] & 0xf) * 4;
                // Fragments have a place or more to come.
                if h[0] >> 4 != 4 || header_len < 20 || h[9] != TCP || [h[6] & 0x3f, h[7]] != [0, 0]
                {
                    return None;
                }
                let src = Ipv4Addr::new(h[12], h[13], h[14], h[15]);
                let dst = Ipv4Addr::new(h[16], h[17], h[18], h[19]);
                let end = ip + usize::from(u16::from_be_bytes([h[2], h[3]]));
                let ident = u16::from_be_bytes([h[4], h[5]]);
                (src.into(), dst.into(), ident, ip + header_len, end)
            }
            ([0x86, 0xdd], GsoKind::TcpV6) => {
                let (h, mut rest) = packet.split_first_chunk::<40>()?;
                let mut next = h[6];
                let mut tcp = ip + 40;
                while matches!(next, HOP_BY_HOP | DESTINATION_OPTIONS) {
                    let len = 8 + 8 * usize::from(*rest.get(1)?);
                    next = *rest.first()?;
                    rest = rest.get(len..)?;
                    tcp += len;
                }
                if h[0] >> 4 != 6 || next != TCP {
                    return None;
                }
                let (mut src, mut dst) = ([0; 16], [0; 16]);
                src.copy_from_slice(&h[8..24]);
                dst.copy_from_slice(&h[24..40]);
                let end = ip + 40 + usize::from(u16::from_be_bytes([h[4], h[5]]));
                (Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into(), 0, tcp, end)
            }
            _ => return None,
        };
        let h: &[u8; TCP_MIN] = head.get(tcp..)?.first_chunk()?;
        let payload = tcp + usize::from(h[12] >> 4) * 4;
        if payload < tcp + TCP_MIN || payload > end {
            return None;
        }
        let seq = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
        Some((Self { ip, tcp, payload, src, dst, ident, seq, flags: h[13] }, end))
    }
}

/// A UDP checksum that came out as zero is stored as its other representation: zero would mean that
/// there is none (RFC 768).
fn nonzero(sum: [u8; 2]) -> [u8; 2] {
    if sum == [0, 0] { [0xff, 0xff] } else { sum }
}

/// Overwrites bytes; false if they are not there.
fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> bool {
    match bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        Some(place) => {
            *place = value;
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests;
