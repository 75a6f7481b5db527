//! Guests that are not read for a moment, because the guest that they send to has no room: what
//! they were read last, and until when.

use vmlan_engine::{Instant, PATIENCE, PortId, Waiting};
use vmlan_wire::FrameBatch;

use crate::ports::LinkId;

/// Batches kept for the next who is paused; each is large, and few are at once.
const SPARE: usize = 2;

#[derive(Debug, Default)]
pub(crate) struct Paused {
    list: Vec<Pause>,
    spare: Vec<FrameBatch>,
}

/// A guest whose frames wait.
#[derive(Debug)]
pub(crate) struct Pause {
    pub(crate) link: LinkId,
    pub(crate) port: PortId,
    pub(crate) batch: FrameBatch,
    pub(crate) waiting: Waiting,
    until: Instant,
}

impl Paused {
    /// Pauses a guest, and gives storage for others in exchange for its frames.
    pub(crate) fn add(
        &mut self,
        (link, port): (LinkId, PortId),
        waiting: Waiting,
        batch: &mut FrameBatch,
        now: Instant,
    ) {
        let batch = std::mem::replace(
            batch,
            self.spare.pop().unwrap_or_else(|| FrameBatch::with_capacity(batch.buf.len())),
        );
        self.list.push(Pause { link, port, batch, waiting, until: now + PATIENCE });
    }

    /// The next guest that waits for this port.
    pub(crate) fn take_on(&mut self, port: PortId) -> Option<Pause> {
        let index = self.list.iter().position(|p| p.waiting.on == port)?;
        Some(self.list.swap_remove(index))
    }

    /// The next guest that has waited long enough.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Pause> {
        let index = self.list.iter().position(|p| p.until <= now)?;
        Some(self.list.swap_remove(index))
    }

    /// The guest of a link.
    pub(crate) fn take_of(&mut self, link: LinkId) -> Option<Pause> {
        let index = self.list.iter().position(|p| p.link == link)?;
        Some(self.list.swap_remove(index))
    }

    /// Takes back the storage of frames that have gone.
    pub(crate) fn give_back(&mut self, batch: FrameBatch) {
        if self.spare.len() < SPARE {
            self.spare.push(batch);
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.list.iter().map(|p| p.until).min()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}
