//! A guest on a connected datagram or seqpacket socket, one frame in each message: what Apple's
//! Virtualization framework, libkrun and vfkit are given as a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::SocketType;
use vmlan_wire::{FrameBatch, OutFrame};

use crate::messages::{self, SendError};
use crate::ready::is_writable;
use crate::{CloseReason, Flushed, Link, LinkCaps, LinkKind, PeerId, Recv};

/// When a full queue is tried again of which no event tells: a datagram peer's own on Linux, the
/// system's on macOS (ENOBUFS).
pub(crate) const RETRY: Duration = Duration::from_millis(1);

/// A link over a connected socket that keeps messages apart.
#[derive(Debug)]
pub struct PacketLink {
    socket: OwnedFd,
    seqpacket: bool,
    slot: usize,
    room: Room,
    closed: Option<CloseReason>,
}

impl PacketLink {
    /// Takes over a connected socket for a network with this MTU.
    pub fn new(socket: OwnedFd, mtu: u16) -> io::Result<Self> {
        let seqpacket = rustix::net::sockopt::socket_type(&socket)? == SocketType::SEQPACKET;
        messages::prepare(socket.as_fd())?;
        let slot = messages::slot(mtu);
        Ok(Self { socket, seqpacket, slot, room: Room::default(), closed: None })
    }
}

impl Link for PacketLink {
    fn kind(&self) -> LinkKind {
        LinkKind::Packet
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
        let reason = match messages::receive(self.socket.as_fd(), batch, self.slot) {
            Ok((messages, more)) => {
                // Where a connection can end, that is what an empty message means.
                let eof = self.seqpacket && messages.iter().any(|m| m.len == 0);
                messages.iter().for_each(|m| m.push_to(batch));
                if !eof || !batch.is_empty() {
                    return Recv::Frames { peer: PeerId(0), more: more || eof };
                }
                CloseReason::Eof
            }
            Err(Errno::AGAIN | Errno::INTR) => return Recv::Empty,
            Err(error) => CloseReason::from(&io::Error::from(error)),
        };
        self.closed = Some(reason);
        Recv::Closed(reason)
    }

    fn send(&mut self, _peer: PeerId, frames: &[OutFrame<'_>]) -> usize {
        let mut taken = 0;
        while let Some(rest) = frames.get(taken..).filter(|f| !f.is_empty()) {
            if self.closed.is_some() {
                return frames.len();
            }
            match messages::send(self.socket.as_fd(), None, rest) {
                Ok(n) => taken += n,
                Err(Errno::INTR) => {}
                Err(error) => match error.into() {
                    SendError::Full => {
                        self.room.is_gone(self.socket.as_fd());
                        return taken;
                    }
                    SendError::Frame => taken += 1,
                    SendError::Gone => self.closed = Some(CloseReason::Eof),
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

    fn next_timeout(&self) -> Option<Instant> {
        self.room.retry
    }
}

/// Whether a socket has room for messages.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// It had none, and has not become writable since.
    blocked: bool,
    /// It had none although it is writable: the queue that is full is somebody else's.
    pub(crate) retry: Option<Instant>,
}

impl Room {
    /// Notes that a send found no room.
    pub(crate) fn is_gone(&mut self, socket: BorrowedFd<'_>) {
        if is_writable(socket) {
            self.retry.get_or_insert_with(|| Instant::now() + RETRY);
        } else {
            self.blocked = true;
        }
    }

    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> Flushed {
        if self.blocked && is_writable(socket) {
            self.blocked = false;
        }
        if self.retry.is_some_and(|at| at <= Instant::now()) {
            self.retry = None;
        }
        if self.blocked || self.retry.is_some() { Flushed::Blocked } else { Flushed::Done }
    }
}
