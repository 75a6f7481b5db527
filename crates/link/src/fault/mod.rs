//! A bad wire around any link, for tests: frames are lost, doubled, delayed, overtaken and
//! corrupted, in both directions, by chance from a seed.
//!
//! Only whole frames with finished checksums are harmed, or the harm would be repaired on the way
//! by whoever finishes them: trains are cut first, as the wire would see them.

mod channel;
mod spec;

use std::os::fd::BorrowedFd;
use std::time::Instant;

use vmlan_wire::frame::Checksum;
use vmlan_wire::segment::{Train, complete};
use vmlan_wire::{Frame, FrameBatch, Offload, OutFrame};

use crate::{Flushed, Link, LinkCaps, LinkKind, PeerId, Recv};
use channel::Channel;
pub use spec::{FaultError, Faults};

/// Frames that one pass delivers.
const FRAMES: usize = 64;

/// Bytes that one pass delivers.
const BYTES: usize = 256 * 1024;

/// A link with faults.
#[derive(Debug)]
pub struct Faulty<L> {
    link: L,
    inward: Channel,
    outward: Channel,
    /// What the link is read to.
    scratch: FrameBatch,
    heads: Vec<u8>,
    /// The link may have more to read.
    more: bool,
    /// The link takes no more for now; an event will tell.
    blocked: bool,
}

impl<L: Link> Faulty<L> {
    pub fn new(link: L, faults: Faults) -> Self {
        Self {
            link,
            inward: Channel::new(faults, 1),
            outward: Channel::new(faults, 2),
            scratch: FrameBatch::default(),
            heads: Vec::new(),
            more: false,
            blocked: false,
        }
    }

    /// Takes what was read from the link apart.
    fn enter(&mut self, peer: PeerId, now: Instant) {
        for frame in self.scratch.iter() {
            let (inward, heads) = (&mut self.inward, &mut self.heads);
            heads.clear();
            finished(&frame, heads, &mut |data| inward.put(peer, data, now));
        }
    }

    /// Gives the link what is due.
    fn leave(&mut self, now: Instant) {
        while !self.blocked
            && let Some((peer, data)) = self.outward.due(now)
        {
            if self.link.send(peer, &[OutFrame::whole(data, Offload::NONE)]) == 0 {
                self.blocked = true;
            } else {
                self.outward.pop();
            }
        }
    }

    /// Fills the batch with what is due of one guest's.
    fn deliver(&mut self, batch: &mut FrameBatch, now: Instant) -> Option<PeerId> {
        let (turn, _) = self.inward.due(now)?;
        let mut bytes = 0;
        while batch.len() < FRAMES
            && bytes < BYTES
            && let Some((peer, data)) = self.inward.due(now)
            && peer == turn
        {
            bytes += data.len();
            batch.push_copy(data, Offload::NONE);
            self.inward.pop();
        }
        Some(turn)
    }
}

impl<L: Link> Link for Faulty<L> {
    fn kind(&self) -> LinkKind {
        self.link.kind()
    }

    fn caps(&self) -> LinkCaps {
        LinkCaps::default()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Recv {
        batch.clear();
        let now = Instant::now();
        // A wire that holds enough is not given more: the guest has to wait.
        self.more = true;
        let mut read = None;
        if !self.inward.is_full() {
            match self.link.recv(&mut self.scratch) {
                Recv::Frames { peer, more } => {
                    self.more = more;
                    self.enter(peer, now);
                    read = Some(peer);
                }
                Recv::Empty => self.more = false,
                closed @ Recv::Closed(_) => return closed,
            }
        }
        let more =
            |wire: &mut Self| wire.inward.due(now).is_some() || wire.more && !wire.inward.is_full();
        match self.deliver(batch, now).or(read) {
            Some(peer) => Recv::Frames { peer, more: more(self) },
            None => Recv::Empty,
        }
    }

    fn send(&mut self, peer: PeerId, frames: &[OutFrame<'_>]) -> usize {
        let now = Instant::now();
        let mut data = Vec::new();
        for (taken, frame) in frames.iter().enumerate() {
            if self.outward.is_full() {
                self.leave(now);
            }
            if self.outward.is_full() {
                return taken;
            }
            data.clear();
            frame.copy_to(&mut data);
            self.heads.clear();
            let whole = Frame { data: &data, offload: frame.offload };
            let outward = &mut self.outward;
            finished(&whole, &mut self.heads, &mut |data| outward.put(peer, data, now));
        }
        frames.len()
    }

    fn flush(&mut self) -> Flushed {
        self.blocked &= self.link.flush() == Flushed::Blocked;
        self.leave(Instant::now());
        match self.link.flush() {
            Flushed::Done if self.outward.is_full() => Flushed::Blocked,
            flushed => flushed,
        }
    }

    fn take_gone(&mut self) -> Vec<PeerId> {
        self.link.take_gone()
    }

    fn next_timeout(&self) -> Option<Instant> {
        let outward = self.outward.next().filter(|_| !self.blocked);
        // What is left in the link because the wire was full is read when there is room.
        [self.link.next_timeout(), self.inward.next(), outward].into_iter().flatten().min()
    }
}

/// The frame as it would be on a wire, or the frames. What cannot be finished is lost.
fn finished(frame: &Frame<'_>, heads: &mut Vec<u8>, each: &mut dyn FnMut(Vec<u8>)) {
    let whole = OutFrame::from(*frame);
    let mut join = |heads: &[u8], head_len: usize, body: [&[u8]; 2]| {
        let head = heads.get(heads.len() - head_len..).unwrap_or_default();
        each([head, body[0], body[1]].concat());
    };
    match (frame.offload.gso, frame.offload.checksum) {
        (Some(gso), _) => {
            let Ok(mut train) = Train::new(&whole, gso) else { return };
            while let Some(made) = train.next(heads, true) {
                join(heads, made.head_len, made.body);
            }
        }
        (None, Checksum::Partial { start, offset }) => {
            if let Ok(made) = complete(&whole, start, offset, heads) {
                join(heads, made.head_len, made.body);
            }
        }
        (None, Checksum::Complete | Checksum::Verified) => each(frame.data.to_vec()),
    }
}

#[cfg(test)]
mod tests;
