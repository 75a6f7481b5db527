//! Putting guests' fragments together, within bounds that a guest cannot leave: packets and bytes
//! for each port, bytes in total, pieces for each packet, and time. Fragments that overlap spoil
//! the whole packet (RFC 5722, and the same for IPv4); an exact repetition, which a network may
//! make, does not.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use slab::Slab;
use smoltcp::wire::{EthernetFrame, IpProtocol};
use vmlan_wire::checksum::checksum;
use vmlan_wire::{Frame, Mac, Offload};

use crate::hash::SeededState;
use crate::packet::{ETHERNET_HEADER, Fragment, IPV4_HEADER, IPV6_HEADER, Packet};
use crate::stats::{Drop, Stats};
use crate::time::Instant;
use crate::timer::TimerWheel;

const PACKETS_PER_PORT: usize = 64;
const BYTES_PER_PORT: usize = 1 << 20;
const BYTES: usize = 4 << 20;

/// Stretches of one packet that are there, with holes between them. In order there is one; every
/// second fragment of the largest packet missing, at the smallest MTU, makes 60.
const STRETCHES: usize = 128;

const TIMEOUT_V4: Duration = Duration::from_secs(30);
const TIMEOUT_V6: Duration = Duration::from_secs(60);

/// Room before the payload for Ethernet and the longest IPv4 header.
const HEADROOM: usize = ETHERNET_HEADER + 60;

/// Puts guests' fragments together.
#[derive(Debug)]
pub(crate) struct Reassembler {
    by_key: HashMap<Key, usize, SeededState>,
    partials: Slab<Partial>,
    ports: Vec<PortUse>,
    bytes: usize,
    timers: TimerWheel,
    expired: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    mac: Mac,
    id: u32,
    /// IPv4 only: RFC 8200 does not count it.
    protocol: u8,
}

#[derive(Debug)]
struct Partial {
    key: Key,
    port: usize,
    /// Headroom, then payload as far as it is known.
    buf: Vec<u8>,
    /// Sorted, apart from each other.
    stretches: Vec<Stretch>,
    /// Length of the payload, once the last fragment is there.
    total: Option<usize>,
    /// Length of the IP header before the payload, once the first fragment is there.
    header: Option<usize>,
    /// Fragments overlapped: nothing with this key will be whole.
    spoilt: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    start: usize,
    end: usize,
}

/// What the guests behind one port hold.
#[derive(Debug, Default)]
struct PortUse {
    /// Slots of its packets, the oldest first.
    order: VecDeque<usize>,
    bytes: usize,
}

/// A packet put together.
#[derive(Debug)]
pub(crate) struct Whole {
    /// An Ethernet frame from `start` on.
    buf: Vec<u8>,
    start: usize,
}

impl Whole {
    /// The whole packet, as if it had come in the frame of its last fragment.
    pub(crate) fn packet<'a>(&'a self, last: &Packet<'a>) -> Option<Packet<'a>> {
        let data = self.buf.get(self.start..)?;
        let eth = EthernetFrame::new_checked(data).ok()?;
        let frame = Frame { data, offload: Offload::NONE };
        // Fragments within fragments are nothing that anybody sends.
        Packet::parse(last.port, &eth, &frame).ok().filter(|p| p.fragment.is_none())
    }
}

impl Reassembler {
    pub(crate) fn new(seed: [u8; 16]) -> Self {
        Self {
            by_key: HashMap::with_hasher(SeededState::new(seed)),
            partials: Slab::new(),
            ports: Vec::new(),
            bytes: 0,
            timers: TimerWheel::new(Instant::ZERO),
            expired: Vec::new(),
        }
    }

    /// Adds a fragment; the packet if it was the last that was missing.
    pub(crate) fn add(
        &mut self,
        packet: &Packet<'_>,
        now: Instant,
        stats: &mut Stats,
    ) -> Option<Whole> {
        let fragment = packet.fragment?;
        let Some(stretch) = stretch(packet, fragment) else {
            stats.drop(Drop::Malformed);
            return None;
        };
        let slot = self.slot(packet, fragment, now, stats);
        let partial = self.partials.get_mut(slot)?;
        let before = partial.buf.capacity();
        match partial.add(packet, stretch, fragment.more) {
            Ok(()) => {}
            Err(reason) => {
                stats.drop(reason);
                partial.spoil();
            }
        }
        let complete = partial.is_complete();
        let grown = partial.buf.capacity();
        self.account(slot, before, grown);
        if complete {
            return self.remove(slot)?.finish(packet);
        }
        self.make_room(slot, stats);
        None
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, stats: &mut Stats) {
        let mut expired = std::mem::take(&mut self.expired);
        self.timers.expired(now, &mut expired);
        for slot in expired.drain(..) {
            if self.remove(slot as usize).is_some() {
                stats.drop(Drop::Fragment);
            }
        }
        self.expired = expired;
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Packets and bytes held.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.partials.len(), self.bytes)
    }

    /// The slot of the packet that a fragment belongs to.
    fn slot(
        &mut self,
        packet: &Packet<'_>,
        fragment: Fragment,
        now: Instant,
        stats: &mut Stats,
    ) -> usize {
        let v6 = packet.is_v6();
        let key = Key {
            src: packet.src,
            dst: packet.dst,
            mac: packet.src_mac,
            id: fragment.id,
            protocol: if v6 { 0 } else { packet.protocol.into() },
        };
        if let Some(slot) = self.by_key.get(&key) {
            return *slot;
        }
        let port = usize::from(packet.port.0);
        if self.ports.len() <= port {
            self.ports.resize_with(port + 1, PortUse::default);
        }
        while self.ports.get(port).is_some_and(|p| p.order.len() >= PACKETS_PER_PORT) {
            self.evict(port, stats);
        }
        if self.partials.is_empty() {
            // Nobody turned the wheel while nothing was on it.
            self.timers.expired(now, &mut self.expired);
        }
        let slot = self.partials.insert(Partial::new(key, port));
        self.by_key.insert(key, slot);
        if let Some(held) = self.ports.get_mut(port) {
            held.order.push_back(slot);
        }
        let timeout = if v6 { TIMEOUT_V6 } else { TIMEOUT_V4 };
        self.timers.set(u32::try_from(slot).unwrap_or(u32::MAX), now + timeout);
        slot
    }

    fn account(&mut self, slot: usize, before: usize, after: usize) {
        let Some(partial) = self.partials.get(slot) else { return };
        if let Some(held) = self.ports.get_mut(partial.port) {
            held.bytes = held.bytes - before + after;
            self.bytes = self.bytes - before + after;
        }
    }

    /// Gives up the oldest packets of the port that used `slot`, then of whoever holds most, until
    /// the limits hold again.
    fn make_room(&mut self, slot: usize, stats: &mut Stats) {
        let Some(port) = self.partials.get(slot).map(|p| p.port) else { return };
        while self.ports.get(port).is_some_and(|p| p.bytes > BYTES_PER_PORT) {
            self.evict(port, stats);
        }
        while self.bytes > BYTES {
            let Some(most) = (0..self.ports.len()).max_by_key(|p| self.held_by(*p)) else { return };
            self.evict(most, stats);
        }
    }

    fn held_by(&self, port: usize) -> usize {
        self.ports.get(port).map_or(0, |p| p.bytes)
    }

    fn evict(&mut self, port: usize, stats: &mut Stats) {
        if let Some(oldest) = self.ports.get(port).and_then(|p| p.order.front().copied()) {
            self.remove(oldest);
            stats.drop(Drop::Limit);
        }
    }

    fn remove(&mut self, slot: usize) -> Option<Partial> {
        let partial = self.partials.try_remove(slot)?;
        self.timers.cancel(u32::try_from(slot).unwrap_or(u32::MAX));
        self.by_key.remove(&partial.key);
        if let Some(held) = self.ports.get_mut(partial.port) {
            held.order.retain(|s| *s != slot);
            held.bytes -= partial.buf.capacity();
            self.bytes -= partial.buf.capacity();
        }
        Some(partial)
    }
}

impl Partial {
    fn new(key: Key, port: usize) -> Self {
        Self {
            key,
            port,
            buf: Vec::new(),
            stretches: Vec::new(),
            total: None,
            header: None,
            spoilt: false,
        }
    }

    fn add(&mut self, packet: &Packet<'_>, new: Stretch, more: bool) -> Result<(), Drop> {
        if self.spoilt {
            return Err(Drop::Fragment);
        }
        let end = self.stretches.last().map_or(0, |s| s.end);
        match self.total {
            Some(total) if new.end > total || (new.end == total) == more => {
                return Err(Drop::Fragment);
            }
            None if !more && end > new.end => return Err(Drop::Fragment),
            _ => {}
        }
        let at = self.stretches.partition_point(|s| s.end < new.start);
        match self.stretches.get(at).copied() {
            Some(old) if old.start <= new.start && new.end <= old.end => {
                let known = self.buf.get(HEADROOM + new.start..HEADROOM + new.end);
                return if known == Some(packet.payload) { Ok(()) } else { Err(Drop::Fragment) };
            }
            Some(old) if old.start < new.end && new.start < old.end => return Err(Drop::Fragment),
            _ => {}
        }
        self.insert(at, new)?;
        if !more {
            self.total = Some(new.end);
        }
        if self.buf.len() < HEADROOM + new.end {
            self.buf.resize(HEADROOM + new.end, 0);
        }
        if let Some(room) = self.buf.get_mut(HEADROOM + new.start..HEADROOM + new.end) {
            room.copy_from_slice(packet.payload);
        }
        if new.start == 0 {
            self.keep_header(packet);
        }
        Ok(())
    }

    /// Puts `new`, which overlaps nothing, before the stretch at `at` or joins it with its
    /// neighbours.
    fn insert(&mut self, at: usize, new: Stretch) -> Result<(), Drop> {
        // The one at `at` may end exactly where the new one starts; the next may follow at once.
        let joins = self.stretches.get(at).is_some_and(|s| s.end == new.start);
        let after = if joins { at + 1 } else { at };
        let follows = self.stretches.get(after).copied();
        if follows.is_some_and(|s| s.start < new.end) {
            return Err(Drop::Fragment);
        }
        let follows = follows.filter(|s| s.start == new.end);
        match (joins, follows) {
            (true, Some(next)) => {
                self.stretches.remove(after);
                self.set_end(at, next.end);
            }
            (true, None) => self.set_end(at, new.end),
            (false, Some(_)) => {
                if let Some(next) = self.stretches.get_mut(at) {
                    next.start = new.start;
                }
            }
            (false, None) if self.stretches.len() < STRETCHES => self.stretches.insert(at, new),
            (false, None) => return Err(Drop::Limit),
        }
        Ok(())
    }

    fn set_end(&mut self, at: usize, end: usize) {
        if let Some(stretch) = self.stretches.get_mut(at) {
            stretch.end = end;
        }
    }

    /// Keeps the header of the first fragment before the payload. Of IPv6 only the fixed part: what
    /// stood between it and the fragment header was for the routers on the way.
    fn keep_header(&mut self, packet: &Packet<'_>) {
        let len = if packet.is_v6() {
            IPV6_HEADER
        } else {
            packet.ip.len().saturating_sub(packet.payload.len())
        };
        let source = packet.ip.get(..len);
        let room = HEADROOM.checked_sub(len).and_then(|at| self.buf.get_mut(at..HEADROOM));
        let (Some(source), Some(room)) = (source, room) else { return };
        room.copy_from_slice(source);
        if packet.is_v6()
            && let Some(next_header) = room.get_mut(6)
        {
            *next_header = packet.protocol.into();
        }
        self.header = Some(len);
    }

    fn spoil(&mut self) {
        self.spoilt = true;
        self.buf = Vec::new();
        self.stretches = Vec::new();
    }

    fn is_complete(&self) -> bool {
        let whole = self.total.map(|end| Stretch { start: 0, end });
        self.header.is_some() && whole.is_some_and(|whole| self.stretches == [whole])
    }

    /// Makes the headers those of a packet that was never cut.
    fn finish(mut self, last: &Packet<'_>) -> Option<Whole> {
        let (header, total) = (self.header?, self.total?);
        let start = HEADROOM.checked_sub(header + ETHERNET_HEADER)?;
        let (ethernet, ip) =
            self.buf.get_mut(start..)?.split_first_chunk_mut::<ETHERNET_HEADER>()?;
        ethernet[..6].copy_from_slice(&last.dst_mac.0);
        ethernet[6..12].copy_from_slice(&last.src_mac.0);
        if last.is_v6() {
            ethernet[12..].copy_from_slice(&[0x86, 0xdd]);
            let ip = ip.first_chunk_mut::<IPV6_HEADER>()?;
            ip[4..6].copy_from_slice(&u16::try_from(total).ok()?.to_be_bytes());
        } else {
            ethernet[12..].copy_from_slice(&[0x08, 0x00]);
            let total = u16::try_from(header + total).ok()?;
            let ip = ip.get_mut(..header)?;
            {
                let fixed = ip.first_chunk_mut::<IPV4_HEADER>()?;
                fixed[2..4].copy_from_slice(&total.to_be_bytes());
                fixed[6..8].fill(0);
                fixed[10..12].fill(0);
            }
            let sum = checksum(ip);
            ip.get_mut(10..12)?.copy_from_slice(&sum);
        }
        Some(Whole { buf: self.buf, start })
    }
}

/// Where a fragment's payload belongs, if it can belong anywhere.
fn stretch(packet: &Packet<'_>, fragment: Fragment) -> Option<Stretch> {
    let (start, len) = (usize::from(fragment.offset), packet.payload.len());
    let end = start + len;
    let header = if packet.is_v6() { 0 } else { packet.ip.len().saturating_sub(len) };
    let aligned = !fragment.more || len.is_multiple_of(8);
    // An empty UDP datagram would still have a header.
    let sound = len > 0 && aligned && header + end <= usize::from(u16::MAX);
    (sound && packet.protocol != IpProtocol::Ipv6Frag).then_some(Stretch { start, end })
}
