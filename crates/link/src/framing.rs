//! Ethernet frames on a byte stream: a length, then the frame, as QEMU or as hyperkit has it.
//!
//! [`Deframer`] turns what a read gives into frames without copying those that came whole. Only a
//! frame that is cut by the end of a read is kept, in a buffer that exists as long as it does.

use std::io;
use std::ops::Range;

use arrayvec::ArrayVec;
use vmlan_wire::{FrameBatch, Offload};

use crate::CloseReason;

/// Most bytes of a length word.
pub const LENGTH: usize = 4;

/// An Ethernet header.
pub const MIN_FRAME: usize = 14;

/// The largest IP packet behind an Ethernet header with a VLAN tag.
pub const MAX_FRAME: usize = 18 + 65_535;

/// Bytes asked for in one read: the budget of one pass.
pub const READ_MAX: usize = 512 * 1024;

/// Room before the place that is read to, for what earlier reads had of a frame.
const HEADROOM: usize = LENGTH + MAX_FRAME;

/// How the length before a frame is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// In 32 bits, big-endian.
    #[default]
    Qemu,
    /// In 16 bits, little-endian, as clients of gvisor-tap-vsock do.
    Hyperkit,
}

impl Framing {
    /// Bytes of the length word.
    #[inline]
    pub fn word_len(self) -> usize {
        match self {
            Self::Qemu => LENGTH,
            Self::Hyperkit => 2,
        }
    }

    /// The largest frame that the word has room for.
    #[inline]
    pub fn max_frame(self) -> usize {
        match self {
            Self::Qemu => MAX_FRAME,
            Self::Hyperkit => MAX_FRAME.min(0xffff),
        }
    }

    /// The word before a frame of this length.
    #[inline]
    pub fn word(self, len: usize) -> ArrayVec<u8, LENGTH> {
        let mut word = ArrayVec::new();
        match self {
            Self::Qemu => word.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()),
            Self::Hyperkit => word.extend(u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes()),
        }
        word
    }

    /// The bytes of the first of these frames of a batch, as many as lie in its buffer one after the
    /// other, each with its length before it.
    pub fn run(self, batch: &FrameBatch, frames: Range<usize>) -> &[u8] {
        let word_len = self.word_len();
        let first = batch.place(frames.start).and_then(|place| place.start.checked_sub(word_len));
        let Some(start) = first else { return &[] };
        let mut end = start;
        for place in frames.map_while(|index| batch.place(index)) {
            let word = batch.buf.get(end..place.start).and_then(|word| self.split(word));
            if !(MIN_FRAME..=self.max_frame()).contains(&place.len())
                || word.is_none_or(|(len, after)| len as usize != place.len() || !after.is_empty())
            {
                break;
            }
            end = place.end;
        }
        batch.buf.get(start..end).unwrap_or_default()
    }

    /// Takes a word off a stream, if all of it is there.
    #[inline]
    fn split(self, stream: &[u8]) -> Option<(u32, &[u8])> {
        match self {
            Self::Qemu => {
                let (word, rest) = stream.split_first_chunk()?;
                Some((u32::from_be_bytes(*word), rest))
            }
            Self::Hyperkit => {
                let (word, rest) = stream.split_first_chunk()?;
                Some((u16::from_le_bytes(*word).into(), rest))
            }
        }
    }
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The batch has what was complete; `full` tells that the read filled its room.
    Read { full: bool },
    /// The stream has ended.
    Eof,
}

/// The reading half of a framed stream.
#[derive(Debug, Default)]
pub struct Deframer {
    framing: Framing,
    /// The start of a frame, length word and all, that was cut by the end of a read.
    rest: Vec<u8>,
    /// How much of it has to be there before it is worth a look: all, or its length word.
    want: usize,
}

impl Deframer {
    pub fn new(framing: Framing) -> Self {
        Self { framing, ..Self::default() }
    }

    /// Calls `read` once and puts the frames that are complete with it into `batch`, which is
    /// cleared first and given storage if it has too little.
    pub fn read_with(
        &mut self,
        batch: &mut FrameBatch,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<io::Result<Progress>, CloseReason> {
        batch.clear();
        if batch.buf.len() < HEADROOM + READ_MAX {
            batch.buf.resize(HEADROOM + READ_MAX, 0);
        }
        let (before, room) = batch.buf.split_at_mut(HEADROOM);
        let room = room.get_mut(..READ_MAX).unwrap_or_default();
        let n = match read(room) {
            Ok(0) => return Ok(Ok(Progress::Eof)),
            Ok(n) => n,
            Err(error) => return Ok(Err(error)),
        };
        let full = n == READ_MAX;
        if self.rest.len() + n < self.want {
            self.rest.extend_from_slice(room.get(..n).unwrap_or_default());
            return Ok(Ok(Progress::Read { full }));
        }
        let start = HEADROOM - self.rest.len();
        if let Some(before) = before.get_mut(start..) {
            before.copy_from_slice(&self.rest);
        }
        self.rest.clear();
        self.want = 0;
        self.split(batch, start, HEADROOM + n)?;
        if self.rest.is_empty() {
            self.rest = Vec::new();
        }
        Ok(Ok(Progress::Read { full }))
    }

    /// Records the frames in `buf[at..end]` and keeps what is left over.
    fn split(
        &mut self,
        batch: &mut FrameBatch,
        mut at: usize,
        end: usize,
    ) -> Result<(), CloseReason> {
        while let Some(left) = batch.buf.get(at..end).filter(|left| !left.is_empty()) {
            let word = self.framing.word_len();
            let Some((len, after)) = self.framing.split(left) else {
                self.keep(left, word);
                break;
            };
            let len = check(len)?;
            if after.len() < len {
                self.keep(left, word + len);
                break;
            }
            batch.push(at + word, len, Offload::NONE);
            at += word + len;
        }
        Ok(())
    }

    /// Keeps the start of something that is `len` bytes long.
    fn keep(&mut self, start: &[u8], len: usize) {
        self.want = len;
        self.rest.reserve_exact(len);
        self.rest.extend_from_slice(start);
    }
}

/// Whether a frame can have this length.
fn check(len: u32) -> Result<usize, CloseReason> {
    match usize::try_from(len) {
        Ok(n) if (MIN_FRAME..=MAX_FRAME).contains(&n) => Ok(n),
        _ => Err(CloseReason::Framing(len)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation)]
    use proptest::prelude::*;

    use super::*;

    /// Reads `stream` in pieces of the given sizes.
    fn deframe(
        framing: Framing,
        stream: &[u8],
        cuts: &[usize],
    ) -> Result<Vec<Vec<u8>>, CloseReason> {
        let mut deframer = Deframer::new(framing);
        let mut batch = FrameBatch::default();
        let mut frames = Vec::new();
        let mut at = 0;
        let mut cuts = cuts.iter().copied().cycle();
        while at < stream.len() {
            let cut = cuts.next().unwrap_or(1).max(1);
            let progress = deframer.read_with(&mut batch, |room| {
                let n = room.len().min(stream.len() - at).min(cut);
                room[..n].copy_from_slice(&stream[at..at + n]);
                at += n;
                Ok(n)
            })?;
            assert!(matches!(progress, Ok(Progress::Read { .. })));
            frames.extend(batch.iter().map(|f| f.data.to_vec()));
            assert!(deframer.rest.len() < deframer.want.max(1));
            assert!(deframer.rest.capacity() <= HEADROOM);
        }
        Ok(frames)
    }

    fn framed(framing: Framing, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in frames {
            match framing {
                Framing::Qemu => out.extend_from_slice(&(frame.len() as u32).to_be_bytes()),
                Framing::Hyperkit => out.extend_from_slice(&(frame.len() as u16).to_le_bytes()),
            }
            out.extend_from_slice(frame);
        }
        out
    }

    fn frames() -> impl Strategy<Value = (Framing, Vec<Vec<u8>>)> {
        let framings = prop_oneof![Just(Framing::Qemu), Just(Framing::Hyperkit)];
        framings.prop_flat_map(|framing| {
            let largest = Just(framing.max_frame());
            let size = prop_oneof![14usize..100, 1400usize..1600, largest, Just(14usize)];
            let frame = (size, any::<u8>()).prop_map(|(n, b)| vec![b; n]);
            (Just(framing), prop::collection::vec(frame, 1..12))
        })
    }

    proptest! {
        #[test]
        fn frames_survive_any_cuts(
            (framing, frames) in frames(),
            cuts in prop::collection::vec(prop_oneof![1usize..8, 1usize..9000, 1usize..300_000], 1..8),
        ) {
            prop_assert_eq!(deframe(framing, &framed(framing, &frames), &cuts), Ok(frames));
        }

        #[test]
        fn garbage_ends_the_stream_or_is_framed(
            stream in prop::collection::vec(any::<u8>(), 0..2000),
            cuts in prop::collection::vec(1usize..64, 1..4),
        ) {
            for framing in [Framing::Qemu, Framing::Hyperkit] {
                if let Ok(frames) = deframe(framing, &stream, &cuts) {
                    prop_assert!(stream.starts_with(&framed(framing, &frames)));
                }
            }
        }
    }

    #[test]
    fn impossible_lengths_end_the_stream() {
        for len in [0, 13, MAX_FRAME as u32 + 1, u32::MAX] {
            for cuts in [&[1usize][..], &[100]] {
                let stream = [&len.to_be_bytes()[..], &[0; 40]].concat();
                assert_eq!(deframe(Framing::Qemu, &stream, cuts), Err(CloseReason::Framing(len)));
            }
        }
    }

    #[test]
    fn nothing_is_kept_between_frames() {
        let mut deframer = Deframer::new(Framing::Qemu);
        let mut batch = FrameBatch::default();
        let stream = framed(Framing::Qemu, &[vec![7; 60]]);
        for part in [&stream[..30], &stream[30..]] {
            let read = deframer.read_with(&mut batch, |room| {
                room[..part.len()].copy_from_slice(part);
                Ok(part.len())
            });
            assert!(matches!(read, Ok(Ok(Progress::Read { full: false }))));
        }
        assert_eq!(batch.iter().next().map(|f| f.data), Some(&[7; 60][..]));
        assert_eq!(deframer.rest.capacity(), 0);
    }
}
