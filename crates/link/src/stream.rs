//! A guest on a UNIX stream socket, with a length before each frame.
//!
//! Small frames are copied together and leave by one system call for many; large ones, and received
//! ones that lie in their batch as they came off a stream, go straight from where they lie. What the
//! socket does not take is kept, up to `PENDING_MAX` and one frame; then [`Link::send`] takes no more.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::mem::take;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv};
use vmlan_wire::{FrameBatch, OutFrame};

use crate::framing::{Deframer, Framing, LENGTH, MIN_FRAME, Progress};
use crate::ready::is_writable;
use crate::{CloseReason, Flushed, Link, LinkCaps, LinkKind, PeerId, Recv};

/// A frame of this size is worth more than the copy that would save its place in the vector.
const GATHER_MIN: usize = 8 * 1024;

/// Slices of one gathering write.
const GATHER_SLICES: usize = 64;

/// Copied frames that are pushed out without waiting for the end of the pass.
const PUSH_AT: usize = 128 * 1024;

/// Most that is kept for a peer that does not read.
const PENDING_MAX: usize = 256 * 1024;

/// Asked of the system, which may give less.
const SOCKET_BUFFER: usize = 1024 * 1024;

/// A stream link.
#[derive(Debug)]
pub struct StreamLink {
    socket: OwnedFd,
    framing: Framing,
    /// What was read from the socket before it became a link.
    early: Vec<u8>,
    deframer: Deframer,
    out: Pending,
    /// The socket took less than it was given, and has not become writable since.
    blocked: bool,
    /// Nothing more can be sent; what the peer sent before may still be read.
    broken: Option<CloseReason>,
    /// Nothing more can be read either.
    closed: Option<CloseReason>,
}

impl StreamLink {
    /// Takes over a connected socket whose guest has QEMU's framing.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Self::after(socket, Framing::Qemu, Vec::new())
    }

    /// Takes over a connected socket from which `early` has been read.
    pub fn after(socket: OwnedFd, framing: Framing, early: Vec<u8>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        #[cfg(target_vendor = "apple")]
        rustix::net::sockopt::set_socket_nosigpipe(&socket, true)?;
        // A wish: with less, frames of 64 KiB only leave in smaller groups.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
        Ok(Self {
            socket,
            framing,
            early,
            deframer: Deframer::new(framing),
            out: Pending::default(),
            blocked: false,
            broken: None,
            closed: None,
        })
    }

    /// Writes out what was copied. False when something is left.
    fn push(&mut self) -> bool {
        while !self.blocked && !self.out.is_empty() {
            self.write(&[]);
        }
        self.out.is_empty()
    }

    /// One write of what is pending and then `slices`; returns how much of `slices` was taken.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let pending = self.out.len();
        let asked = pending + slices.iter().map(|s| s.len()).sum::<usize>();
        match send(self.socket.as_fd(), self.out.bytes(), slices) {
            Ok(n) => {
                // The next write would tell too, but only for the price of a system call.
                self.blocked = n < asked;
                self.out.consume(n.min(pending));
                n.saturating_sub(pending)
            }
            Err(Errno::INTR) => 0,
            Err(Errno::AGAIN | Errno::NOBUFS) => {
                self.blocked = true;
                0
            }
            Err(error) => {
                self.fail(CloseReason::from(&io::Error::from(error)));
                0
            }
        }
    }

    /// Sends large frames from where they lie, and returns how many were taken: all but the last
    /// of them whole, the last one's tail copied if it had to be cut.
    fn gather(&mut self, frames: &[OutFrame<'_>]) -> usize {
        let mut words = ArrayVec::<ArrayVec<u8, LENGTH>, { GATHER_SLICES / 2 }>::new();
        let mut slices_left = GATHER_SLICES;
        for frame in frames {
            let slices = 1 + pieces(frame).filter(|p| !p.is_empty()).count();
            if !(GATHER_MIN..=self.framing.max_frame()).contains(&frame.len())
                || slices > slices_left
                || words.try_push(self.framing.word(frame.len())).is_err()
            {
                break;
            }
            slices_left -= slices;
        }
        let frames = frames.get(..words.len()).unwrap_or_default();
        let mut slices = ArrayVec::<IoSlice<'_>, GATHER_SLICES>::new();
        for (word, frame) in words.iter().zip(frames) {
            slices.push(IoSlice::new(word));
            slices.extend(pieces(frame).filter(|p| !p.is_empty()).map(IoSlice::new));
        }
        let mut sent = self.write(&slices);
        for (taken, (word, frame)) in words.iter().zip(frames).enumerate() {
            let len = word.len() + frame.len();
            if sent == 0 {
                return taken;
            }
            if sent < len {
                self.out.append_after(sent, word, frame);
                return taken + 1;
            }
            sent -= len;
        }
        frames.len()
    }

    /// Writes the bytes of a batch's frames, length words and all, and returns how many were taken:
    /// the rest of one that had to be cut is kept.
    fn write_run(&mut self, run: &[u8], batch: &FrameBatch, frames: Range<usize>) -> usize {
        let sent = self.write(&[IoSlice::new(run)]);
        let (mut taken, mut end) = (0, 0);
        for place in frames.map_while(|index| batch.place(index)) {
            if end >= sent {
                break;
            }
            end += self.framing.word_len() + place.len();
            taken += 1;
        }
        if let Some(cut) = run.get(sent..end).filter(|cut| !cut.is_empty()) {
            self.out.append(cut);
        }
        taken
    }

    fn fail(&mut self, reason: CloseReason) {
        self.broken.get_or_insert(reason);
        self.blocked = false;
        self.out.clear();
    }
}

impl Link for StreamLink {
    fn kind(&self) -> LinkKind {
        LinkKind::Stream
    }

    fn caps(&self) -> LinkCaps {
        LinkCaps::default()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Recv {
        if let Some(reason) = self.closed {
            return Recv::Closed(reason);
        }
        let socket = &self.socket;
        let early = &mut self.early;
        let has_early = !early.is_empty();
        let read = self.deframer.read_with(batch, |room| {
            if has_early {
                return io::Read::read(&mut take(early).as_slice(), room);
            }
            loop {
                match recv(socket, &mut *room, RecvFlags::empty()) {
                    Err(Errno::INTR) => {}
                    result => return Ok(result?.0),
                }
            }
        });
        let reason = match read {
            Ok(Ok(Progress::Read { full })) => {
                return Recv::Frames { peer: PeerId(0), more: full || has_early };
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => match self.broken {
                None => return Recv::Empty,
                Some(reason) => reason,
            },
            Ok(Ok(Progress::Eof)) => CloseReason::Eof,
            Ok(Err(error)) => CloseReason::from(&error),
            Err(reason) => reason,
        };
        batch.clear();
        self.fail(reason);
        self.closed = Some(reason);
        Recv::Closed(reason)
    }

    fn send(&mut self, _peer: PeerId, frames: &[OutFrame<'_>]) -> usize {
        let mut taken = 0;
        while let Some(frame) = frames.get(taken) {
            if self.broken.is_some() {
                return frames.len();
            }
            let len = frame.len();
            if !(MIN_FRAME..=self.framing.max_frame()).contains(&len) {
                taken += 1;
            } else if len < GATHER_MIN {
                if self.out.len() >= PUSH_AT && !self.push() && self.out.len() >= PENDING_MAX {
                    return taken;
                }
                self.out.append_after(0, &self.framing.word(len), frame);
                taken += 1;
            } else if self.blocked {
                return taken;
            } else {
                taken += self.gather(frames.get(taken..).unwrap_or_default());
            }
        }
        taken
    }

    fn pass_on(&mut self, peer: PeerId, batch: &FrameBatch, frames: Range<usize>) -> usize {
        let run = self.framing.run(batch, frames.clone());
        let now = !self.blocked && self.broken.is_none() && run.len() >= GATHER_MIN;
        let taken = if now { self.write_run(run, batch, frames.clone()) } else { 0 };
        let rest = frames.start + taken..frames.end;
        taken + batch.send_by(rest, |frames| self.send(peer, frames))
    }

    fn flush(&mut self) -> Flushed {
        if self.blocked && is_writable(self.socket.as_fd()) {
            self.blocked = false;
        }
        let done = self.push();
        match (self.broken, done && !self.blocked) {
            (Some(_), _) => Flushed::Closed,
            (None, true) => Flushed::Done,
            (None, false) => Flushed::Blocked,
        }
    }
}

thread_local! {
    /// The buffer of whichever link sends: most use it within one pass only, so one is enough for
    /// all, and idle links have none.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes that wait for the end of the pass, or for room in the socket.
#[derive(Debug, Default)]
struct Pending {
    buf: Vec<u8>,
    start: usize,
}

impl Pending {
    /// Enough for all that is copied while the socket takes everything.
    const CAPACITY: usize = PUSH_AT + GATHER_MIN;

    fn bytes(&self) -> &[u8] {
        self.buf.get(self.start..).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.buf.len() - self.start
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a frame without its first `skip` bytes, the length word included.
    fn append_after(&mut self, skip: usize, word: &[u8], frame: &OutFrame<'_>) {
        let mut skip = skip;
        for piece in std::iter::once(word).chain(pieces(frame)) {
            let here = skip.min(piece.len());
            self.append(piece.get(here..).unwrap_or_default());
            skip -= here;
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.buf.capacity() == 0 {
            self.buf = SPARE.take();
            self.buf.reserve_exact(Self::CAPACITY);
        } else if self.start > PENDING_MAX / 2 {
            self.buf.drain(..self.start);
            self.start = 0;
        }
        self.buf.extend_from_slice(bytes);
    }

    fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.buf.len());
        if self.start == self.buf.len() {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.start = 0;
        let mut buf = take(&mut self.buf);
        buf.clear();
        if (1..=2 * Self::CAPACITY).contains(&buf.capacity()) {
            SPARE.set(buf);
        }
    }
}

fn pieces<'a>(frame: &OutFrame<'a>) -> impl Iterator<Item = &'a [u8]> {
    [frame.head, frame.body[0], frame.body[1]].into_iter()
}

fn send(socket: BorrowedFd<'_>, first: &[u8], slices: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
    #[cfg(target_vendor = "apple")]
    let flags = SendFlags::empty();
    #[cfg(not(target_vendor = "apple"))]
    let flags = SendFlags::NOSIGNAL;
    if slices.is_empty() {
        return rustix::net::send(socket, first, flags);
    }
    let mut all = ArrayVec::<IoSlice<'_>, { GATHER_SLICES + 1 }>::new();
    all.push(IoSlice::new(first));
    all.extend(slices.iter().copied().take(GATHER_SLICES));
    rustix::net::sendmsg(socket, &all, &mut SendAncillaryBuffer::default(), flags)
}

#[cfg(test)]
mod tests;
