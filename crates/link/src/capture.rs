//! Frames of many guests in one pcapng file (draft-ietf-opsawg-pcapng), or for somebody who reads
//! along: each guest is an interface of the file.
//!
//! Frames are written as they pass: where a link has offloads, that is before their checksums are
//! finished and before trains are cut. Nobody waits for a reader: what does not fit is left out, and
//! the statistics at the end say how much. A capture that cannot be written ends, and that is all.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use vmlan_wire::{FrameBatch, OutFrame};

/// Kept for a reader that is slow; what comes above it is left out.
const PENDING_MAX: usize = 4 * 1024 * 1024;

/// Written before the end of a pass.
const PUSH_AT: usize = 256 * 1024;

/// A capture. Dropping it completes the file.
#[derive(Debug)]
pub struct Capture {
    /// `None` once it has failed.
    file: Option<File>,
    pending: Vec<u8>,
    /// Bytes of `pending` that are written.
    written: usize,
    interfaces: Vec<Counts>,
    finished: bool,
    failure: Option<io::Error>,
}

/// Frames of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub captured: u64,
    /// There was no room for them.
    pub left_out: u64,
}

/// A guest in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface(u32);

/// As the guest's interface to the network sees it.
#[derive(Clone, Copy, Debug)]
enum Direction {
    In = 1,
    Out = 2,
}

/// Block and option types.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;
const OPTION_END: u16 = 0;
const OPTION_NAME: u16 = 2;
const OPTION_RESOLUTION: u16 = 9;
const OPTION_FLAGS: u16 = 2;
const OPTION_RECEIVED: u16 = 4;
const OPTION_DROPPED: u16 = 5;
const NANOSECONDS: u8 = 9;

impl Capture {
    /// Starts a capture in a new file, or in a pipe that somebody reads.
    pub fn create(path: &Path) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        // So that a pipe never stops the network; files ignore it.
        let flags = flags | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
        let mut capture = Self::new(file.into(), &[]);
        capture.push();
        match capture.failure.take() {
            Some(error) => Err(error),
            None => Ok(capture),
        }
    }

    /// Starts a capture in whatever does not block, behind what is written `before` it.
    pub fn new(file: File, before: &[u8]) -> Self {
        let mut capture = Self {
            file: Some(file),
            pending: before.to_vec(),
            written: 0,
            interfaces: Vec::new(),
            finished: false,
            failure: None,
        };
        capture.block(SECTION, |block| {
            block.word(BYTE_ORDER);
            // Version 1.0
            block.bytes(&1u16.to_ne_bytes());
            block.bytes(&0u16.to_ne_bytes());
            // The section's length: not known.
            block.bytes(&u64::MAX.to_ne_bytes());
        });
        capture
    }

    /// Another guest, under a name that the file's readers are shown. `None` while there is no room.
    pub fn interface(&mut self, name: &str) -> Option<Interface> {
        if !self.has_room(0) {
            return None;
        }
        let interface = u32::try_from(self.interfaces.len()).ok()?;
        self.block(INTERFACE, |block| {
            block.bytes(&ETHERNET.to_ne_bytes());
            block.bytes(&[0; 2]);
            // No limit to what is kept of a frame.
            block.word(0);
            block.option(OPTION_NAME, name.as_bytes().get(..255).unwrap_or(name.as_bytes()));
            block.option(OPTION_RESOLUTION, &[NANOSECONDS]);
            block.option(OPTION_END, &[]);
        });
        self.interfaces.push(Counts::default());
        Some(Interface(interface))
    }

    /// Frames that came from a guest.
    pub fn received(&mut self, interface: Interface, batch: &FrameBatch) {
        let time = now();
        for frame in batch.iter() {
            self.frame(interface, time, Direction::In, [frame.data, &[], &[]]);
        }
    }

    /// Frames that went to a guest.
    pub fn sent<'a>(
        &mut self,
        interface: Interface,
        frames: impl Iterator<Item = &'a OutFrame<'a>>,
    ) {
        let time = now();
        for frame in frames {
            let pieces = [frame.head, frame.body[0], frame.body[1]];
            self.frame(interface, time, Direction::Out, pieces);
        }
    }

    /// Writes out what is pending, as far as it goes; false if something is left.
    pub fn push(&mut self) -> bool {
        while let Some(file) = &mut self.file
            && let Some(rest) = self.pending.get(self.written..).filter(|r| !r.is_empty())
        {
            match file.write(rest) {
                Ok(n) => self.written += n,
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
            self.written = 0;
        } else if self.written > self.pending.len() / 2 {
            self.pending.drain(..self.written);
            self.written = 0;
        }
        self.pending.is_empty()
    }

    /// Writes how much there was, after which nothing more is captured.
    pub fn finish(&mut self) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let time = now();
        for (interface, counts) in (0..).zip(std::mem::take(&mut self.interfaces)) {
            self.block(STATISTICS, |block| {
                block.word(interface);
                block.time(time);
                let all = counts.captured + counts.left_out;
                block.option(OPTION_RECEIVED, &all.to_ne_bytes());
                block.option(OPTION_DROPPED, &counts.left_out.to_ne_bytes());
                block.option(OPTION_END, &[]);
            });
        }
    }

    /// Nothing more can be written.
    pub fn has_failed(&self) -> bool {
        self.file.is_none()
    }

    /// Why the capture has ended, once.
    pub fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// What to poll for room.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(File::as_fd)
    }

    pub fn counts(&self, interface: Interface) -> Counts {
        self.interfaces.get(interface.0 as usize).copied().unwrap_or_default()
    }

    fn frame(&mut self, interface: Interface, time: u64, direction: Direction, pieces: [&[u8]; 3]) {
        let len: usize = pieces.iter().map(|p| p.len()).sum();
        let has_room = !self.finished && self.has_room(len);
        if let Some(counts) = self.interfaces.get_mut(interface.0 as usize) {
            counts.captured += u64::from(has_room);
            counts.left_out += u64::from(!has_room);
        }
        if !has_room {
            return;
        }
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.block(PACKET, |block| {
            block.word(interface.0);
            block.time(time);
            block.word(len);
            block.word(len);
            for piece in pieces {
                block.bytes(piece);
            }
            block.pad();
            block.option(OPTION_FLAGS, &(direction as u32).to_ne_bytes());
            block.option(OPTION_END, &[]);
        });
        if self.pending.len() - self.written >= PUSH_AT {
            self.push();
        }
    }

    fn has_room(&mut self, len: usize) -> bool {
        let fits = |capture: &Self| capture.pending.len() + len <= PENDING_MAX;
        fits(self) || {
            self.push();
            fits(self)
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
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.finish();
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

    /// The high half comes first, whatever the byte order.
    fn time(&mut self, time: u64) {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of 64 bits")]
        let (high, low) = ((time >> 32) as u32, time as u32);
        self.word(high);
        self.word(low);
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
