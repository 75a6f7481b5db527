//! Datagrams on their way to the host: consecutive ones of a batch that go from one socket to one
//! place are handed to the host in one call, straight out of the received frames.

use std::net::SocketAddr;

use arrayvec::ArrayVec;
use vmlan_wire::FrameBatch;

use crate::io::{DatagramOptions, Host, SockId};
use crate::packet::Packet;
use crate::stats::{Drop, Stats};

/// Datagrams in one call; a `sendmsg` with segmentation takes no more (`UDP_MAX_SEGMENTS`).
const MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Gather {
    to: Option<Destination>,
    pieces: ArrayVec<Piece, MAX>,
}

/// Where a run of datagrams goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) owner: Owner,
    pub(super) sock: SockId,
    pub(super) addr: SocketAddr,
    pub(super) options: DatagramOptions,
}

/// Whose socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Flow(u32),
    Forward(u32),
}

/// A payload: a frame of the batch, and a part of it.
#[derive(Clone, Copy, Debug)]
struct Piece {
    index: usize,
    start: usize,
    end: usize,
}

impl Gather {
    /// Whether a datagram to `to` may join those that wait.
    pub(super) fn fits(&self, to: &Destination) -> bool {
        self.to.is_none() || self.to.as_ref() == Some(to) && !self.pieces.is_full()
    }

    /// Adds the datagram whose payload starts at `start` of a frame; after [`Gather::fits`] said
    /// so.
    pub(super) fn push(&mut self, to: Destination, index: usize, start: usize, len: usize) {
        if self.pieces.try_push(Piece { index, start, end: start + len }).is_ok() {
            self.to = Some(to);
        }
    }

    /// Sends what waits. The destination comes back if the host did not take all of it.
    pub(super) fn flush(
        &mut self,
        host: &mut dyn Host,
        batch: &FrameBatch,
        stats: &mut Stats,
    ) -> Option<Destination> {
        let to = self.to.take()?;
        let mut payloads: ArrayVec<&[u8], MAX> = ArrayVec::new();
        for piece in &self.pieces {
            let frame = batch.get(piece.index).map_or(&[][..], |frame| frame.data);
            payloads.push(frame.get(piece.start..piece.end).unwrap_or(&[]));
        }
        self.pieces.clear();
        send(host, &to, &payloads, stats)
    }
}

/// Sends a datagram that lies in no batch.
pub(super) fn send(
    host: &mut dyn Host,
    to: &Destination,
    payloads: &[&[u8]],
    stats: &mut Stats,
) -> Option<Destination> {
    let taken = host.datagram_send(to.sock, to.addr, to.options, payloads);
    for _ in taken..payloads.len() {
        stats.drop(Drop::HostFull);
    }
    (taken < payloads.len()).then_some(*to)
}

/// Options of the datagram that carries `packet` on.
pub(super) fn options(packet: &Packet<'_>, own: bool) -> DatagramOptions {
    // Our own addresses are not a hop away.
    let ttl = if own { packet.ttl } else { packet.ttl.saturating_sub(1) };
    DatagramOptions { ttl: ttl.max(1), tos: packet.tos, dont_fragment: packet.dont_fragment }
}
