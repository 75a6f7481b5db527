//! Many guests on one UNIX datagram socket, one frame in each datagram: each source address is a
//! guest (vfkit, QEMU's `-netdev dgram`).
//!
//! A guest need not say hello; vfkit does, by a datagram of the four bytes `VFKT`, which is no
//! frame. Nothing tells when a guest leaves, until a frame to it finds nobody. Guests share the
//! socket's buffer: guests that must not slow each other down want a socket each.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::SocketAddrAny;
use slab::Slab;
use vmlan_wire::{FrameBatch, Offload, OutFrame};

use crate::framing::MIN_FRAME;
use crate::messages::{self, Message, SendError};
use crate::packet::Room;
use crate::{CloseReason, Flushed, Link, LinkCaps, LinkKind, PeerId, Recv};

/// Guests on one socket. Beyond that, the one that has been silent for longest has to go.
pub const MAX_PEERS: usize = 1024;

/// Reads without a frame of anybody's before others have their turn.
const TRIES: usize = 4;

/// A bound datagram socket with the guests that have sent to it.
#[derive(Debug)]
pub struct DatagramLink {
    socket: OwnedFd,
    slot: usize,
    peers: Slab<Peer>,
    by_address: HashMap<SocketAddrAny, PeerId>,
    /// Gone, but not told yet; their places in `peers` are kept until then.
    gone: Vec<PeerId>,
    /// Frames of other guests than the one whose turn it was.
    held: Held,
    /// Reads so far: tells who has been silent for how long.
    reads: u64,
    /// There may be more in the socket.
    more: bool,
    /// The budget of the last read went to datagrams that are nobody's.
    wasted: bool,
    room: Room,
    closed: Option<CloseReason>,
}

#[derive(Debug)]
struct Peer {
    address: SocketAddrAny,
    last_read: u64,
    gone: bool,
}

/// Frames that wait for their guest's turn.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    /// Whose, where and how long.
    frames: VecDeque<(PeerId, usize, usize)>,
}

impl DatagramLink {
    /// Takes over a bound socket, for a network with this MTU.
    pub fn new(socket: OwnedFd, mtu: u16) -> io::Result<Self> {
        messages::prepare(socket.as_fd())?;
        Ok(Self {
            socket,
            slot: messages::slot(mtu),
            peers: Slab::new(),
            by_address: HashMap::new(),
            gone: Vec::new(),
            held: Held::default(),
            reads: 0,
            more: false,
            wasted: false,
            room: Room::default(),
            closed: None,
        })
    }

    /// The guest at an address, new or known.
    fn peer(&mut self, address: &SocketAddrAny) -> PeerId {
        if let Some(id) = self.by_address.get(address) {
            if let Some(peer) = self.peers.get_mut(id.0 as usize) {
                peer.last_read = self.reads;
            }
            return *id;
        }
        if self.by_address.len() >= MAX_PEERS {
            let present = self.peers.iter().filter(|(_, p)| !p.gone);
            if let Some((silent, _)) = present.min_by_key(|(_, p)| p.last_read) {
                self.lose(silent);
            }
        }
        let peer = Peer { address: address.clone(), last_read: self.reads, gone: false };
        let id = PeerId(u32::try_from(self.peers.insert(peer)).unwrap_or(u32::MAX));
        self.by_address.insert(address.clone(), id);
        id
    }

    fn lose(&mut self, index: usize) {
        if let Some(peer) = self.peers.get_mut(index)
            && !peer.gone
        {
            peer.gone = true;
            self.by_address.remove(&peer.address);
            let id = PeerId(u32::try_from(index).unwrap_or(u32::MAX));
            self.held.frames.retain(|(of, ..)| *of != id);
            self.gone.push(id);
        }
    }

    /// Sorts what has been read: the frames of one guest for now, the others' for later.
    fn sort(&mut self, messages: &[Message], batch: &mut FrameBatch) -> Option<PeerId> {
        let mut turn = None;
        for message in messages {
            // An answer to a socket without a name could not be sent.
            let Some(address) = &message.from else { continue };
            let peer = self.peer(address);
            if *turn.get_or_insert(peer) == peer {
                message.push_to(batch);
            } else if let Some(data) = batch.buf.get(message.start..message.start + message.len)
                && message.len >= MIN_FRAME
                && !message.truncated
            {
                self.held.frames.push_back((peer, self.held.bytes.len(), data.len()));
                self.held.bytes.extend_from_slice(data);
            }
        }
        // The first may have had to make place for a later one.
        turn.filter(|id| self.peers.get(id.0 as usize).is_some_and(|p| !p.gone))
    }

    /// Gives the turn to the next guest whose frames wait.
    fn next_held(&mut self, batch: &mut FrameBatch) -> Option<PeerId> {
        let (peer, ..) = *self.held.frames.front()?;
        batch.clear();
        let bytes = &self.held.bytes;
        self.held.frames.retain(|(of, start, len)| {
            if *of == peer
                && let Some(data) = bytes.get(*start..start + len)
            {
                batch.push_copy(data, Offload::NONE);
            }
            *of != peer
        });
        if self.held.frames.is_empty() {
            self.held = Held::default();
        }
        Some(peer)
    }
}

impl Link for DatagramLink {
    fn kind(&self) -> LinkKind {
        LinkKind::Datagram
    }

    fn caps(&self) -> LinkCaps {
        LinkCaps::default()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Recv {
        batch.clear();
        if let Some(reason) = self.closed {
            return Recv::Closed(reason);
        }
        if let Some(peer) = self.next_held(batch) {
            return Recv::Frames { peer, more: self.more || !self.held.frames.is_empty() };
        }
        self.wasted = false;
        for _ in 0..TRIES {
            self.reads += 1;
            match messages::receive(self.socket.as_fd(), batch, self.slot) {
                Ok((messages, more)) => {
                    self.more = more;
                    if let Some(peer) = self.sort(&messages, batch) {
                        return Recv::Frames { peer, more: more || !self.held.frames.is_empty() };
                    }
                    batch.clear();
                    if !more {
                        return Recv::Empty;
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return Recv::Empty,
                // An earlier frame found nobody: that send has its own error.
                Err(Errno::CONNREFUSED | Errno::CONNRESET) => {}
                Err(error) => {
                    let reason = CloseReason::from(&io::Error::from(error));
                    self.closed = Some(reason);
                    return Recv::Closed(reason);
                }
            }
        }
        batch.clear();
        self.wasted = true;
        Recv::Empty
    }

    fn send(&mut self, peer: PeerId, frames: &[OutFrame<'_>]) -> usize {
        let index = peer.0 as usize;
        let mut taken = 0;
        while let Some(rest) = frames.get(taken..).filter(|f| !f.is_empty()) {
            let Some(Peer { address, gone: false, .. }) = self.peers.get(index) else {
                return frames.len();
            };
            match messages::send(self.socket.as_fd(), Some(address), rest) {
                Ok(n) => taken += n,
                Err(Errno::INTR) => {}
                Err(error) => match error.into() {
                    SendError::Full => {
                        self.room.is_gone(self.socket.as_fd());
                        return taken;
                    }
                    SendError::Frame => taken += 1,
                    SendError::Gone => self.lose(index),
                },
            }
        }
        taken
    }

    fn flush(&mut self) -> Flushed {
        match self.closed {
            Some(_) => Flushed::Closed,
            None => self.room.flush(self.socket.as_fd()),
        }
    }

    fn take_gone(&mut self) -> Vec<PeerId> {
        for id in &self.gone {
            self.peers.try_remove(id.0 as usize);
        }
        std::mem::take(&mut self.gone)
    }

    fn next_timeout(&self) -> Option<Instant> {
        if self.wasted { Some(Instant::now()) } else { self.room.retry }
    }
}

#[cfg(test)]
mod tests;
