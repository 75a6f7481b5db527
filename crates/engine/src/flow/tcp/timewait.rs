//! Connections that ended lately: a guest whose last acknowledgement from us was lost repeats its
//! FIN, and gets it again instead of a reset (TIME-WAIT, RFC 9293 section 3.6.1).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::segment::Segment;
use super::seq::Seq;
use crate::flow::Key;
use crate::hash::SeededState;
use crate::time::Instant;

const LINGER: Duration = Duration::from_secs(60);

/// Entries kept; older ones make room. Losing one costs a reset that nobody minds.
const MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct TimeWait {
    table: HashMap<Key, Entry, SeededState>,
    order: VecDeque<(Key, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    seq: Seq,
    ack: Seq,
    until: Instant,
}

impl TimeWait {
    pub(super) fn new(seed: [u8; 16]) -> Self {
        Self { table: HashMap::with_hasher(SeededState::new(seed)), order: VecDeque::new() }
    }

    pub(super) fn remember(&mut self, key: Key, seq: Seq, ack: Seq, now: Instant) {
        if self.order.len() >= MAX
            && let Some((old, until)) = self.order.pop_front()
            && self.table.get(&old).is_some_and(|e| e.until == until)
        {
            self.table.remove(&old);
        }
        let until = now + LINGER;
        self.table.insert(key, Entry { seq, ack, until });
        self.order.push_back((key, until));
    }

    pub(super) fn forget(&mut self, key: &Key) {
        self.table.remove(key);
    }

    /// Sequence and acknowledgement numbers of the answer to a late segment of a known connection.
    pub(super) fn answer(
        &mut self,
        key: &Key,
        segment: &Segment<'_>,
        now: Instant,
    ) -> Option<(Seq, Seq)> {
        let entry = self.table.get(key).filter(|e| e.until > now)?;
        // Data that was never accepted must not look as if it had been.
        let end = segment.seq.plus(segment.len());
        (!entry.ack.before(end)).then_some((entry.seq, entry.ack))
    }
}
