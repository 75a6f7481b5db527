//! Frames as messages of a datagram or seqpacket socket, in batches where the system has calls for
//! that, one by one elsewhere.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as imp;
#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(not(target_os = "linux"))]
use portable as imp;

use std::io;
use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use rustix::io::Errno;
use rustix::net::SocketAddrAny;
use vmlan_wire::{FrameBatch, Offload, OutFrame};

use crate::framing::MIN_FRAME;

/// Messages in one batch.
pub(crate) const MESSAGES: usize = 64;

/// Bytes of storage for what one pass reads.
const STORAGE: usize = 512 * 1024;

/// Asked of the system for each socket: where messages are limited by the buffer, as on macOS, one
/// with the largest frame has to fit, and more than one.
const SOCKET_BUFFER: usize = 1024 * 1024;

/// Apple's Virtualization framework wants four times the size that is sent from.
const RECEIVE_BUFFER: usize = SOCKET_BUFFER * if cfg!(target_vendor = "apple") { 4 } else { 1 };

/// A received message.
#[derive(Debug)]
pub(crate) struct Message {
    /// Where it is in the storage.
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// It was longer than its place.
    pub(crate) truncated: bool,
    /// Where it came from; `None` for a socket without a name.
    pub(crate) from: Option<SocketAddrAny>,
}

/// What one pass has read.
pub(crate) type Messages = ArrayVec<Message, MESSAGES>;

/// Reads messages of at most `slot` bytes to the storage of `batch`, which is cleared: it is the
/// caller's to say which of them are frames. Also tells whether there may be more to read.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    batch: &mut FrameBatch,
    slot: usize,
) -> rustix::io::Result<(Messages, bool)> {
    batch.clear();
    if batch.buf.len() < STORAGE {
        batch.buf.resize(STORAGE, 0);
    }
    imp::receive(socket, &mut batch.buf, slot)
}

/// Sends frames as messages, each in one piece, and returns how many were taken. An error is that
/// of the first frame.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    to: Option<&SocketAddrAny>,
    frames: &[OutFrame<'_>],
) -> rustix::io::Result<usize> {
    imp::send(socket, to, frames.get(..MESSAGES).unwrap_or(frames))
}

/// Bytes kept free for a message on a network with this MTU: more than a frame with a tag has.
pub(crate) fn slot(mtu: u16) -> usize {
    (usize::from(mtu) + 18 + 1).next_multiple_of(8)
}

/// Makes a socket ready for use by a link.
pub(crate) fn prepare(socket: BorrowedFd<'_>) -> io::Result<()> {
    rustix::io::ioctl_fionbio(socket, true)?;
    #[cfg(target_vendor = "apple")]
    rustix::net::sockopt::set_socket_nosigpipe(socket, true)?;
    // Wishes: less is only slower.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER);
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BUFFER);
    Ok(())
}

/// What a failed send means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendError {
    /// There is no room now.
    Full,
    /// This one frame cannot be sent.
    Frame,
    /// Nobody is there any more, or nobody who would take it.
    Gone,
}

impl Message {
    /// Records the message as a frame, if it can be one.
    pub(crate) fn push_to(&self, batch: &mut FrameBatch) {
        if self.len >= MIN_FRAME && !self.truncated {
            batch.push(self.start, self.len, Offload::NONE);
        }
    }
}

impl From<Errno> for SendError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::AGAIN | Errno::NOBUFS => Self::Full,
            Errno::CONNREFUSED
            | Errno::CONNRESET
            | Errno::NOENT
            | Errno::NOTCONN
            | Errno::PIPE
            | Errno::PERM
            | Errno::ACCESS
            | Errno::PROTOTYPE => Self::Gone,
            _ => Self::Frame,
        }
    }
}
