//! vmlan's guest side: frames in and out of file descriptors. Each kind of attachment is a
//! [`Link`]; the daemon's loop polls its descriptor and moves whole batches of frames between it
//! and the engine's port of that guest.
//!
//! - [`stream`]: UNIX stream sockets with QEMU's framing ([`framing`])
//! - [`datagram`]: many guests on one UNIX datagram socket; [`packet`]: connected datagram and
//!   seqpacket sockets
//! - [`fd`]: whatever a passed descriptor turns out to be
//! - [`tap`] (Linux): TAP devices with checksum and segmentation offload
//! - [`vhost_user`] (Linux): rings in the memory of a virtual machine, with the same offloads
//! - [`scm`]: descriptors passed between processes
//! - [`fault`]: a wrapper that is a link itself; [`capture`]: frames in a file
//!
//! Readiness is edge-triggered. A link never blocks, and what it buffers is bounded.

pub mod capture;
pub mod datagram;
mod error;
pub mod fault;
pub mod fd;
pub mod framing;
mod messages;
pub mod packet;
mod ready;
pub mod scm;
pub mod stream;
#[cfg(target_os = "linux")]
pub mod tap;
#[cfg(target_os = "linux")]
pub mod vhost_user;
#[cfg(target_os = "linux")]
mod vnet;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use vmlan_wire::{FrameBatch, OutFrame};

pub use error::CloseReason;

/// A guest behind a link. Point-to-point links have only `PeerId(0)`; numbers are reused after
/// [`Link::take_gone`] has told that a peer is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// What may be left undone to frames that are given to [`Link::send`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCaps {
    /// [`Checksum::Partial`](vmlan_wire::frame::Checksum::Partial)
    pub checksum: bool,
    /// Trains of TCP segments over IPv4.
    pub tso4: bool,
    /// Trains of TCP segments over IPv6.
    pub tso6: bool,
}

/// What a guest is attached by, for those who look at a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Tap,
    /// A UNIX stream socket, with a length before each frame.
    Stream,
    /// UNIX datagrams, each a frame.
    Datagram,
    /// A connected socket that keeps the bounds of frames.
    Packet,
    /// Rings in the guest's memory.
    VhostUser,
    /// An interface of macOS' vmnet.framework.
    Vmnet,
}

impl LinkKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tap => "tap",
            Self::Stream => "stream",
            Self::Datagram => "datagram",
            Self::Packet => "packet",
            Self::VhostUser => "vhost-user",
            Self::Vmnet => "vmnet",
        }
    }
}

/// Outcome of [`Link::recv`].
#[derive(Debug)]
pub enum Recv {
    /// The batch holds frames of this peer; it may be empty when a datagram was the link's own
    /// business. `more` tells that there may be more to read now, so that the caller has to come
    /// back without waiting for an event.
    Frames { peer: PeerId, more: bool },
    /// Nothing to read until the next event.
    Empty,
    /// The link has ended; every later call says so too.
    Closed(CloseReason),
}

/// Outcome of [`Link::flush`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// There is room, and nothing is left in the link.
    Done,
    /// The peer reads too slowly: a writability event will follow.
    Blocked,
    /// The link has ended; [`Link::recv`] tells why.
    Closed,
}

/// The way to one guest, or to several that share a descriptor.
pub trait Link: std::fmt::Debug + Send {
    fn kind(&self) -> LinkKind;

    /// May change with each [`Link::recv`]: a machine can start another system.
    fn caps(&self) -> LinkCaps;

    /// What to poll, edge-triggered, for reading and writing.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// Whether `recv` may leave frames behind without saying `more`: then the descriptor has to be
    /// polled level-triggered, which spares the read that finds nothing. Linux only.
    fn is_level_triggered(&self) -> bool {
        false
    }

    /// Clears `batch` and fills it with the next frames of one peer, as many as the budget of one
    /// pass allows. After an event that says the peer has hung up, call it until it is `Empty` or
    /// `Closed`, whatever `more` said: data and the hang-up may have come in one event.
    fn recv(&mut self, batch: &mut FrameBatch) -> Recv;

    /// Takes frames in order and returns how many. Fewer than all means that the link is full: a
    /// later [`Link::flush`] that returns [`Flushed::Done`] tells that there is room. Frames to a
    /// peer that is gone count as taken.
    fn send(&mut self, peer: PeerId, frames: &[OutFrame<'_>]) -> usize;

    /// As [`Link::send`], with frames as some link has received them: one that would send them just
    /// as they lie in the batch may do so.
    fn pass_on(&mut self, peer: PeerId, batch: &FrameBatch, frames: Range<usize>) -> usize {
        batch.send_by(frames, |frames| self.send(peer, frames))
    }

    /// Pushes out what `send` has buffered. To be called at the end of every pass in which
    /// something was sent, and on writability.
    fn flush(&mut self) -> Flushed;

    /// Peers of a many-guest link that are gone since the last call.
    fn take_gone(&mut self) -> Vec<PeerId> {
        Vec::new()
    }

    /// When the link wants `recv` and `flush` to be called even without an event.
    fn next_timeout(&self) -> Option<Instant> {
        None
    }
}

impl<L: Link + ?Sized> Link for Box<L> {
    fn kind(&self) -> LinkKind {
        (**self).kind()
    }

    fn caps(&self) -> LinkCaps {
        (**self).caps()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        (**self).as_fd()
    }

    fn is_level_triggered(&self) -> bool {
        (**self).is_level_triggered()
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Recv {
        (**self).recv(batch)
    }

    fn send(&mut self, peer: PeerId, frames: &[OutFrame<'_>]) -> usize {
        (**self).send(peer, frames)
    }

    fn pass_on(&mut self, peer: PeerId, batch: &FrameBatch, frames: Range<usize>) -> usize {
        (**self).pass_on(peer, batch, frames)
    }

    fn flush(&mut self) -> Flushed {
        (**self).flush()
    }

    fn take_gone(&mut self) -> Vec<PeerId> {
        (**self).take_gone()
    }

    fn next_timeout(&self) -> Option<Instant> {
        (**self).next_timeout()
    }
}
