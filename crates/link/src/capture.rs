//! Frames of any link written to a file that Wireshark and tcpdump read (pcapng,
//! draft-ietf-opsawg-pcapng). One file serves many links, each as an interface of its own.
//!
//! Frames are written as they pass: where a link has offloads, that is before their checksums are
//! finished and before trains are cut. A capture that cannot be written ends; links go on.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use vmlan_wire::{FrameBatch, OutFrame};

use crate::{Flushed, Link, LinkCaps, LinkKind, PeerId, Recv};

/// Kept for a pipe whose reader is slow; what comes above it is left out.
const PENDING_MAX: usize = 4 * 1024 * 1024;

/// Written before the end of a pass.
const PUSH_AT: usize = 256 * 1024;

/// A capture file. Clones write to the same one.
#[derive(Clone, Debug)]
pub struct Capture {
    writer: Arc<Mutex<Writer>>,
}

impl Capture {
    /// Starts a capture in a new file, or in a pipe that somebody reads.
    pub fn create(path: &Path) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        // So that a pipe never stops the network; files ignore it.
        let flags = flags | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
        let mut writer = Writer::new(file.into());
        writer.push();
        match writer.failure.take() {
            Some(error) => Err(error),
            None => Ok(Self { writer: Arc::new(Mutex::new(writer)) }),
        }
    }

    /// Captures what passes a link, under a name that the file's readers are shown.
    pub fn wrap<L: Link>(&self, link: L, name: &str) -> Captured<L> {
        let interface = self.writer().interface(name);
        Captured { link, interface, capture: self.clone() }
    }

    /// Why the capture has ended, once.
    pub fn take_failure(&self) -> Option<io::Error> {
        self.writer().failure.take()
    }

    /// Frames left out because the reader of a pipe was slow.
    pub fn left_out(&self) -> u64 {
        self.writer().left_out
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A link whose frames are captured.
#[derive(Debug)]
pub struct Captured<L> {
    link: L,
    interface: u32,
    capture: Capture,
}

impl<L: Link> Link for Captured<L> {
    fn kind(&self) -> LinkKind {
        self.link.kind()
    }

    fn caps(&self) -> LinkCaps {
        self.link.caps()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    fn is_level_triggered(&self) -> bool {
        self.link.is_level_triggered()
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Recv {
        let received = self.link.recv(batch);
        if let Recv::Frames { more, .. } = received {
            let mut writer = self.capture.writer();
            let time = now();
            for frame in batch.iter() {
                writer.frame(self.interface, time, Direction::In, [frame.data, &[], &[]]);
            }
            if !more {
                writer.push();
            }
        }
        received
    }

    fn send(&mut self, peer: PeerId, frames: &[OutFrame<'_>]) -> usize {
        let taken = self.link.send(peer, frames);
        let mut writer = self.capture.writer();
        let time = now();
        for frame in frames.iter().take(taken) {
            let pieces = [frame.head, frame.body[0], frame.body[1]];
            writer.frame(self.interface, time, Direction::Out, pieces);
        }
        taken
    }

    fn flush(&mut self) -> Flushed {
        self.capture.writer().push();
        self.link.flush()
    }

    fn take_gone(&mut self) -> Vec<PeerId> {
        self.link.take_gone()
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.link.next_timeout()
    }
}

/// As the guest's interface to the network sees it.
#[derive(Clone, Copy, Debug)]
enum Direction {
    In = 1,
    Out = 2,
}

#[derive(Debug)]
struct Writer {
    /// `None` once it has failed.
    file: Option<File>,
    pending: Vec<u8>,
    interfaces: u32,
    left_out: u64,
    failure: Option<io::Error>,
}

/// Block and option types.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;
const OPTION_END: u16 = 0;
const OPTION_NAME: u16 = 2;
const OPTION_RESOLUTION: u16 = 9;
const OPTION_FLAGS: u16 = 2;
const NANOSECONDS: u8 = 9;

impl Writer {
    fn new(file: File) -> Self {
        let mut writer = Self {
            file: Some(file),
            pending: Vec::new(),
            interfaces: 0,
            left_out: 0,
            failure: None,
        };
        writer.block(SECTION, |block| {
            block.word(BYTE_ORDER);
            // Version 1.0
            block.bytes(&1u16.to_ne_bytes());
            block.bytes(&0u16.to_ne_bytes());
            // The section's length: not known.
            block.bytes(&u64::MAX.to_ne_bytes());
        });
        writer
    }

    fn interface(&mut self, name: &str) -> u32 {
        self.block(INTERFACE, |block| {
            block.bytes(&ETHERNET.to_ne_bytes());
            block.bytes(&[0; 2]);
            // No limit to what is kept of a frame.
            block.word(0);
            block.option(OPTION_NAME, name.as_bytes().get(..255).unwrap_or(name.as_bytes()));
            block.option(OPTION_RESOLUTION, &[NANOSECONDS]);
            block.option(OPTION_END, &[]);
        });
        self.interfaces += 1;
        self.interfaces - 1
    }

    fn frame(&mut self, interface: u32, time: u64, direction: Direction, pieces: [&[u8]; 3]) {
        let len: usize = pieces.iter().map(|p| p.len()).sum();
        if self.pending.len() + len > PENDING_MAX {
            self.push();
            if self.pending.len() + len > PENDING_MAX {
                self.left_out += 1;
                return;
            }
        }
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.block(PACKET, |block| {
            #[expect(clippy::cast_possible_truncation, reason = "the two halves of 64 bits")]
            let (high, low) = ((time >> 32) as u32, time as u32);
            for word in [interface, high, low, len, len] {
                block.word(word);
            }
            for piece in pieces {
                block.bytes(piece);
            }
            block.pad();
            block.option(OPTION_FLAGS, &(direction as u32).to_ne_bytes());
            block.option(OPTION_END, &[]);
        });
        if self.pending.len() >= PUSH_AT {
            self.push();
        }
    }

    /// Appends a block: its type and length, the body, and the length again.
    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Block<'_>)) {
        if self.file.is_none() {
            return;
        }
        let start = self.pending.len();
        let mut block = Block { out: &mut self.pending, start };
        block.word(kind);
        block.word(0);
        body(&mut block);
        let len = u32::try_from(self.pending.len() - start + 4).unwrap_or(0).to_ne_bytes();
        self.pending.extend_from_slice(&len);
        if let Some(place) = self.pending.get_mut(start + 4..start + 8) {
            place.copy_from_slice(&len);
        }
    }

    /// Writes out what is pending, as far as it goes.
    fn push(&mut self) {
        let mut done = 0;
        while let Some(file) = &mut self.file
            && let Some(rest) = self.pending.get(done..).filter(|r| !r.is_empty())
        {
            match file.write(rest) {
                Ok(n) => done += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.failure = Some(error);
                    self.file = None;
                }
            }
        }
        if self.file.is_none() {
            self.pending = Vec::new();
        } else {
            self.pending.drain(..done);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.push();
    }
}

/// A block that is being written.
struct Block<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl Block<'_> {
    fn word(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_ne_bytes());
    }

    fn bytes(&mut self, value: &[u8]) {
        self.out.extend_from_slice(value);
    }

    /// Everything in a block begins at a multiple of 32 bits.
    fn pad(&mut self) {
        let len = (self.out.len() - self.start).next_multiple_of(4);
        self.out.resize(self.start + len, 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        self.bytes(&code.to_ne_bytes());
        self.bytes(&u16::try_from(value.len()).unwrap_or(0).to_ne_bytes());
        self.bytes(value);
        self.pad();
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
