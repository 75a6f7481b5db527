//! A TCP segment from a guest, parsed; and the heads of segments to a guest, built.

use smoltcp::wire::{IpProtocol, TcpOption, TcpPacket};
use vmlan_wire::checksum::Sum;
use vmlan_wire::frame::{Checksum, Gso, GsoKind};
use vmlan_wire::{Mac, Offload};

use super::seq::Seq;
use crate::flow::Key;
use crate::net::{IpHeader, write_headers};
use crate::packet::{ETHERNET_HEADER, IPV6_HEADER};
use crate::stats::Drop;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;

/// TCP header without options.
pub(super) const TCP_HEADER: usize = 20;

/// SACK blocks that fit the options of one segment.
pub(super) const MAX_SACKS: usize = 4;

/// Ethernet, IPv6, TCP with the longest options we send (four SACK blocks).
pub(super) const MAX_HEAD: usize = ETHERNET_HEADER + IPV6_HEADER + TCP_HEADER + 36;

/// A parsed segment. Options other than these are of no use here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) flags: u8,
    /// As in the header, not scaled.
    pub(super) window: u16,
    pub(super) options: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Drop> {
        let tcp = TcpPacket::new_checked(bytes).map_err(|_| Drop::Malformed)?;
        let header = usize::from(tcp.header_len());
        let options = bytes.get(TCP_HEADER..header).ok_or(Drop::Malformed)?;
        let payload = bytes.get(header..).ok_or(Drop::Malformed)?;
        let flags = bytes.get(13).copied().unwrap_or(0);
        let word = |at: usize| -> u32 {
            let mut word = [0; 4];
            if let Some(b) = bytes.get(at..at + 4) {
                word.copy_from_slice(b);
            }
            u32::from_be_bytes(word)
        };
        let (seq, ack) = (Seq(word(4)), Seq(word(8)));
        Ok(Self { seq, ack, flags, window: tcp.window_len(), options, payload })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence space taken.
    pub(super) fn len(&self) -> u32 {
        let flags = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        u32::try_from(self.payload.len()).unwrap_or(0) + flags
    }

    fn each_option(&self, mut each: impl FnMut(TcpOption<'a>)) {
        let mut rest = self.options;
        while let Ok((next, option)) = TcpOption::parse(rest) {
            if option == TcpOption::EndOfList || next.len() == rest.len() {
                return;
            }
            each(option);
            rest = next;
        }
    }

    /// What a SYN offers.
    pub(super) fn offer(&self) -> Offer {
        let mut offer = Offer::default();
        self.each_option(|option| match option {
            TcpOption::MaxSegmentSize(mss) => offer.mss = Some(mss),
            // RFC 7323: a larger shift counts as 14.
            TcpOption::WindowScale(shift) => offer.window_scale = Some(shift.min(14)),
            TcpOption::SackPermitted => offer.sack = true,
            _ => {}
        });
        offer
    }

    /// The SACK blocks, in the order given.
    pub(super) fn sacks(&self, mut each: impl FnMut(Seq, Seq)) {
        if self.options.is_empty() {
            return;
        }
        self.each_option(|option| {
            if let TcpOption::SackRange(ranges) = option {
                for (start, end) in ranges.into_iter().flatten() {
                    each(Seq(start), Seq(end));
                }
            }
        });
    }
}

/// Options of a SYN.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offer {
    pub(super) mss: Option<u16>,
    pub(super) window_scale: Option<u8>,
    pub(super) sack: bool,
}

/// A segment to a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Out<'a> {
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) options: &'a [u8],
    pub(super) payload_len: usize,
    /// Payload bytes for each segment, if this is a train.
    pub(super) gso: Option<u16>,
}

/// The head of a segment to a guest, ready to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    bytes: [u8; MAX_HEAD],
    len: usize,
    pub(super) offload: Offload,
}

impl Head {
    pub(super) const EMPTY: Self = Self { bytes: [0; MAX_HEAD], len: 0, offload: Offload::NONE };

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// Builds the head of `out` from the remote end of `key` to its guest end.
    #[expect(clippy::cast_possible_truncation, reason = "headers and windows of at most 64 KiB")]
    pub(super) fn build(key: &Key, to: Mac, from: Mac, out: &Out<'_>) -> Self {
        let mut head = Self::EMPTY;
        let mut ip = IpHeader::new(key.remote.ip(), key.guest.ip(), IpProtocol::Tcp);
        ip.dont_fragment = true;
        let start = ETHERNET_HEADER + ip.len();
        let options = out.options.len().min(MAX_HEAD - start - TCP_HEADER);
        let tcp_len = TCP_HEADER + options;
        let segment_len = tcp_len + out.payload_len;
        write_headers(&mut head.bytes, to, from, &ip, 0, segment_len);
        head.len = start + tcp_len;
        let mut sum = Sum::new();
        sum.add_pseudo_header(ip.src, ip.dst, IpProtocol::Tcp.into(), segment_len as u32);
        if let Some(h) = head.bytes.get_mut(start..).and_then(|b| b.first_chunk_mut::<TCP_HEADER>())
        {
            h[0..2].copy_from_slice(&key.remote.port().to_be_bytes());
            h[2..4].copy_from_slice(&key.guest.port().to_be_bytes());
            h[4..8].copy_from_slice(&out.seq.0.to_be_bytes());
            h[8..12].copy_from_slice(&out.ack.0.to_be_bytes());
            h[12] = (tcp_len as u8 / 4) << 4;
            h[13] = out.flags;
            h[14..16].copy_from_slice(&out.window.to_be_bytes());
            h[16..18].copy_from_slice(&sum.partial());
            h[18..20].fill(0);
        }
        let at = start + TCP_HEADER;
        if let (Some(room), Some(options)) =
            (head.bytes.get_mut(at..at + options), out.options.get(..options))
        {
            room.copy_from_slice(options);
        }
        head.offload.checksum = Checksum::Partial { start: start as u16, offset: 16 };
        head.offload.gso = out.gso.map(|size| Gso {
            kind: if ip.src.is_ipv6() { GsoKind::TcpV6 } else { GsoKind::TcpV4 },
            size,
            header_len: head.len as u16,
        });
        head
    }
}

/// Options of our own SYN or SYN-ACK: MSS, and window scale and SACK where the guest may use them.
pub(super) fn syn_options(mss: u16, window_scale: Option<u8>, sack: bool) -> ([u8; 12], usize) {
    let [high, low] = mss.to_be_bytes();
    let scale = window_scale.map_or([1, 1, 1, 1], |shift| [1, 3, 3, shift]);
    let sack = if sack { [1, 1, 4, 2] } else { [1; 4] };
    let options = [
        2, 4, high, low, sack[0], sack[1], sack[2], sack[3], scale[0], scale[1], scale[2], scale[3],
    ];
    (options, 12)
}

/// SACK option for the given blocks (RFC 2018), padded; empty if there are none.
pub(super) fn sack_option(blocks: &[(Seq, Seq)]) -> ([u8; 36], usize) {
    let mut out = [1; 36];
    let blocks = blocks.get(..blocks.len().min(MAX_SACKS)).unwrap_or(&[]);
    if blocks.is_empty() {
        return (out, 0);
    }
    out[2] = 5;
    #[expect(clippy::cast_possible_truncation, reason = "at most four blocks")]
    let len = (2 + 8 * blocks.len()) as u8;
    out[3] = len;
    for ((start, end), room) in blocks.iter().zip(out[4..].chunks_exact_mut(8)) {
        room[..4].copy_from_slice(&start.0.to_be_bytes());
        room[4..].copy_from_slice(&end.0.to_be_bytes());
    }
    (out, 2 + usize::from(len))
}
