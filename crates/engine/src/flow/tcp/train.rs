//! Segments of one batch that continue one flow: taken from the frames without a second parse,
//! gathered, and written to the host's socket by one call.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use arrayvec::ArrayVec;
use vmlan_wire::checksum::Sum;
use vmlan_wire::frame::Checksum;
use vmlan_wire::{Frame, FrameBatch, Mac};

use super::flow::{Cx, State};
use super::segment::{ACK, PSH, Segment};
use super::{Tcp, ports};
use crate::flow::Key;
use crate::io::{Io, PortId, Sent};
use crate::net::Net;
use crate::packet::{ETHERNET_HEADER, IPV4_HEADER, IPV6_HEADER};
use crate::stats::Drop;
use crate::switch::Learned;

/// Segments gathered for one call.
const SLICES: usize = 64;

/// Bytes gathered for one call: what the cache still holds.
const BYTES: usize = 256 << 10;

/// What is gathered for one flow.
#[derive(Debug, Default)]
pub(super) struct Train {
    pub(super) flow: Option<(Key, u32)>,
    /// Frame in the batch, and where in it the payload lies.
    slices: ArrayVec<(u32, u32, u32), SLICES>,
    bytes: usize,
}

/// A TCP segment in a frame that has nothing unusual about it.
struct Plain<'a> {
    key: Key,
    src: Mac,
    dst: Mac,
    /// Where the TCP header lies in the frame.
    at: usize,
    tcp: &'a [u8],
    checksum: Sum,
}

impl<'a> Plain<'a> {
    /// `None` for all that needs the long way: other protocols, options, fragments, broken
    /// headers.
    fn parse(frame: &Frame<'a>) -> Option<Self> {
        let (ethernet, ip) = frame.data.split_first_chunk::<ETHERNET_HEADER>()?;
        let mac = |at: usize| ethernet.get(at..at + 6).map(Mac::from_bytes);
        let (dst, src) = (mac(0)?, mac(6)?);
        let (src_ip, dst_ip, tcp): (IpAddr, IpAddr, _) = match ethernet[12..] {
            [0x08, 0x00] => {
                let (h, _) = ip.split_first_chunk::<IPV4_HEADER>()?;
                let total = usize::from(u16::from_be_bytes([h[2], h[3]]));
                let whole = u16::from_be_bytes([h[6], h[7]]) & 0x3fff == 0;
                let mut sum = Sum::new();
                sum.add(h);
                if h[0] != 0x45 || h[9] != 6 || !whole || !sum.is_valid() {
                    return None;
                }
                let v4 = |at: usize| Ipv4Addr::new(h[at], h[at + 1], h[at + 2], h[at + 3]);
                (v4(12).into(), v4(16).into(), ip.get(IPV4_HEADER..total)?)
            }
            [0x86, 0xdd] => {
                let (h, _) = ip.split_first_chunk::<IPV6_HEADER>()?;
                let len = usize::from(u16::from_be_bytes([h[4], h[5]]));
                if h[0] >> 4 != 6 || h[6] != 6 {
                    return None;
                }
                let v6 = |at: usize| {
                    let octets: [u8; 16] = h.get(at..at + 16)?.try_into().ok()?;
                    Some(Ipv6Addr::from(octets))
                };
                (v6(8)?.into(), v6(24)?.into(), ip.get(IPV6_HEADER..IPV6_HEADER + len)?)
            }
            _ => return None,
        };
        let (from, to) = ports(tcp);
        let key =
            Key { guest: SocketAddr::new(src_ip, from?), remote: SocketAddr::new(dst_ip, to?) };
        let mut checksum = Sum::new();
        if frame.offload.checksum == Checksum::Complete {
            checksum.add_pseudo_header(src_ip, dst_ip, 6, u32::try_from(tcp.len()).ok()?);
        }
        let at = ETHERNET_HEADER + if src_ip.is_ipv6() { IPV6_HEADER } else { IPV4_HEADER };
        Some(Self { key, src, dst, at, tcp, checksum })
    }
}

impl Tcp {
    /// A frame that may continue a flow: true if it was one and has been taken. Otherwise what was
    /// gathered is written first, so that the long way sees the flow as it is.
    pub(crate) fn take_next(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        port: PortId,
        batch: &FrameBatch,
        index: usize,
    ) -> bool {
        let taken = batch.get(index).is_some_and(|frame| {
            Plain::parse(&frame).is_some_and(|p| self.take(net, io, port, (batch, index), &p))
        });
        if !taken {
            self.flush(net, io, batch);
            self.train.flow = None;
        }
        taken
    }

    fn take(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        port: PortId,
        (batch, index): (&FrameBatch, usize),
        plain: &Plain<'_>,
    ) -> bool {
        let known = self.train.flow.filter(|(key, _)| *key == plain.key);
        let Some(flow_index) =
            known.map_or_else(|| self.by_key.get(&plain.key).copied(), |(_, i)| Some(i))
        else {
            return false;
        };
        let Some(flow) = self.flows.get(flow_index as usize) else { return false };
        let plain_flags = plain.tcp.get(13).is_some_and(|f| f & !PSH == ACK);
        if flow.state != State::Open
            || flow.mac != plain.src
            || plain.dst != net.config.gateway_mac
            || !plain_flags
        {
            return false;
        }
        if known.is_none() {
            self.flush(net, io, batch);
            if net.switch.learn(plain.src, port, io.now) != Learned::Ok {
                return false;
            }
            self.train.flow = Some((plain.key, flow_index));
        }
        let trusted = batch.get(index).is_some_and(|f| f.offload.checksum != Checksum::Complete);
        if !trusted {
            let mut sum = plain.checksum;
            sum.add(plain.tcp);
            if !sum.is_valid() {
                net.stats.drop(Drop::Checksum);
                return true;
            }
        }
        match Segment::parse(plain.tcp) {
            Ok(segment) => {
                let end = plain.at + plain.tcp.len();
                self.take_segment(net, io, batch, (index, end), flow_index, &segment);
            }
            Err(reason) => net.stats.drop(reason),
        }
        true
    }

    fn take_segment(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        batch: &FrameBatch,
        (index, end): (usize, usize),
        flow_index: u32,
        segment: &Segment<'_>,
    ) {
        let Some(flow) = self.flows.get_mut(flow_index as usize) else { return };
        let cx = &mut Cx { net, io, pool: &mut self.pool };
        flow.heard(cx);
        if !flow.acknowledge(cx, segment) {
            return self.touch(flow_index);
        }
        let len = segment.payload.len();
        let in_order = len > 0
            && segment.seq == flow.rcv.nxt
            && len <= flow.rcv.nxt.until(flow.rcv.edge) as usize
            && flow.rcv.fin.is_none();
        if in_order && flow.can_write && flow.rcv.held.is_empty() && flow.rcv.ahead.is_empty() {
            #[expect(clippy::cast_possible_truncation, reason = "places within one batch")]
            self.train.slices.push((index as u32, (end - len) as u32, len as u32));
            self.train.bytes += len;
            flow.rcv.pending += u32::try_from(len).unwrap_or(0);
            flow.advance(len);
            self.touch(flow_index);
            if self.train.slices.is_full() || self.train.bytes >= BYTES {
                self.flush(net, io, batch);
            }
            return;
        }
        if len > 0 && self.train.bytes > 0 {
            self.flush(net, io, batch);
        }
        let Some(flow) = self.flows.get_mut(flow_index as usize) else { return };
        flow.accept(&mut Cx { net, io, pool: &mut self.pool }, segment.seq, segment.payload);
        self.touch(flow_index);
    }

    /// Writes what is gathered. What the socket does not take is held.
    pub(super) fn flush(&mut self, net: &mut Net, io: &mut Io<'_>, batch: &FrameBatch) {
        if self.train.bytes == 0 {
            return;
        }
        let mut slices = ArrayVec::<IoSlice<'_>, SLICES>::new();
        for (frame, start, len) in &self.train.slices {
            let data = batch.get(*frame as usize).map_or(&[][..], |f| f.data);
            let (start, end) = (*start as usize, (*start + *len) as usize);
            slices.push(IoSlice::new(data.get(start..end).unwrap_or(&[])));
        }
        let total = self.train.bytes;
        self.train.slices.clear();
        self.train.bytes = 0;
        let index = self.train.flow.map_or(u32::MAX, |(_, i)| i);
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        let cx = &mut Cx { net, io, pool: &mut self.pool };
        flow.rcv.pending = 0;
        let Some(sock) = flow.sock else { return };
        let mut sent = match cx.io.host.send(sock, &slices) {
            Sent::Data(n) => n,
            Sent::Blocked => 0,
            Sent::Failed(_) => return flow.host_failed(),
        };
        if sent >= total {
            return;
        }
        flow.stop_writing();
        // `rcv.nxt` is already past all of it.
        let mut lost = 0;
        let end = flow.rcv.nxt;
        flow.rcv.nxt = end.plus(0u32.wrapping_sub(u32::try_from(total - sent).unwrap_or(0)));
        for slice in &slices {
            let skip = sent.min(slice.len());
            sent -= skip;
            let rest = slice.get(skip..).unwrap_or(&[]);
            let kept = if lost == 0 { flow.hold(cx, rest) } else { 0 };
            flow.rcv.nxt = flow.rcv.nxt.plus(u32::try_from(kept).unwrap_or(0));
            lost += rest.len() - kept;
        }
        if lost > 0 {
            // No memory to hold it: not acknowledged, so the guest sends it again.
            cx.net.stats.drop(Drop::Limit);
        }
    }
}
