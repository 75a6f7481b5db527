//! A hierarchical timing wheel: one timer for each slot of a table, set and moved in constant
//! time, with memory bounded by the table. (Varghese and Lauck, "Hashed and Hierarchical Timing
//! Wheels", scheme 7.)
//!
//! Resolution is one millisecond. A timer never fires early and at most one tick late after the
//! caller's poll. Owners who move deadlines often let a timer fire and set it again, which is
//! cheaper than moving it with every packet.

use crate::time::Instant;

const LEVELS: usize = 4;
const SLOTS: usize = 64;
const SLOT_BITS: usize = 6;
const TICK_MICROS: u64 = 1000;
const NONE: u32 = u32::MAX;
const NEVER: u64 = u64::MAX;

/// Timers for the entries `0..` of some table.
#[derive(Debug)]
pub(crate) struct TimerWheel {
    /// Ticks up to here are done.
    now: u64,
    /// No slot has to be turned before this tick.
    next: u64,
    heads: [[u32; SLOTS]; LEVELS],
    /// Bit `s` of `occupied[l]`: slot `s` of level `l` has entries.
    occupied: [u64; LEVELS],
    nodes: Vec<Node>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    prev: u32,
    next: u32,
    /// Tick at which to fire.
    due: u64,
    /// `level << 6 | slot`, or `NONE` when not set.
    place: u32,
}

const UNSET: Node = Node { prev: NONE, next: NONE, due: 0, place: NONE };

impl TimerWheel {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            now: now.micros() / TICK_MICROS,
            next: NEVER,
            heads: [[NONE; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            nodes: Vec::new(),
        }
    }

    /// Sets or moves the timer of `index` to fire at `at`.
    pub(crate) fn set(&mut self, index: u32, at: Instant) {
        let i = index as usize;
        if self.nodes.len() <= i {
            self.nodes.resize(i + 1, UNSET);
        }
        self.unlink(index);
        let due = at.micros().div_ceil(TICK_MICROS).max(self.now + 1);
        self.link(index, due);
    }

    /// Sets the timer unless it already fires at or before `at`.
    pub(crate) fn set_earlier(&mut self, index: u32, at: Instant) {
        let due = at.micros().div_ceil(TICK_MICROS);
        let node = self.nodes.get(index as usize).copied().unwrap_or(UNSET);
        if node.place == NONE || node.due > due {
            self.set(index, at);
        }
    }

    pub(crate) fn cancel(&mut self, index: u32) {
        if (index as usize) < self.nodes.len() {
            self.unlink(index);
        }
    }

    /// When to call [`TimerWheel::expired`] next: never later than the first timer, but it may be
    /// earlier (an inner wheel has to turn, the timer has been moved).
    pub(crate) fn next(&self) -> Option<Instant> {
        (self.next != NEVER).then(|| Instant::from_micros(self.next.saturating_mul(TICK_MICROS)))
    }

    /// The first tick at which a slot has to be turned.
    fn first_tick(&self) -> u64 {
        let mut first = NEVER;
        for (level, bits) in self.occupied.iter().enumerate().filter(|(_, bits)| **bits != 0) {
            let position = self.now >> (level * SLOT_BITS);
            // Slots after the current one come first, the current one last (a full turn away).
            let ahead = bits.rotate_right(slot_of(position + 1)).trailing_zeros();
            first = first.min((position + 1 + u64::from(ahead)) << (level * SLOT_BITS));
        }
        first
    }

    /// Turns the wheel to `now` and moves the entries whose time has come into `out`.
    pub(crate) fn expired(&mut self, now: Instant, out: &mut Vec<u32>) {
        let target = now.micros() / TICK_MICROS;
        while self.now < target {
            // Skip to the next tick at which anything has to move.
            self.now = self.first_tick().min(target);
            for level in (0..LEVELS).rev() {
                let shift = level * SLOT_BITS;
                if self.now.trailing_zeros() as usize >= shift {
                    self.turn(level, slot_of(self.now >> shift) as usize, out);
                }
            }
        }
        self.next = self.first_tick();
    }

    /// Empties one slot: what is due fires, the rest moves to a finer level.
    fn turn(&mut self, level: usize, slot: usize, out: &mut Vec<u32>) {
        let Some(head) = self.heads.get_mut(level).and_then(|l| l.get_mut(slot)) else { return };
        let mut at = std::mem::replace(head, NONE);
        if let Some(bits) = self.occupied.get_mut(level) {
            *bits &= !(1 << slot);
        }
        while let Some(node) = self.nodes.get_mut(at as usize) {
            let (index, due, next) = (at, node.due, node.next);
            *node = UNSET;
            if due <= self.now {
                out.push(index);
            } else {
                self.link(index, due);
            }
            at = next;
        }
    }

    fn link(&mut self, index: u32, due: u64) {
        let away = due.saturating_sub(self.now);
        let mut level = 0;
        while level + 1 < LEVELS && away >> ((level + 1) * SLOT_BITS) != 0 {
            level += 1;
        }
        // What is farther than the outermost wheel waits in its last slot and moves on from there.
        let reach = (SLOTS as u64 - 1) << (level * SLOT_BITS);
        let position = (self.now + away.min(reach)) >> (level * SLOT_BITS);
        self.next = self.next.min(position << (level * SLOT_BITS));
        let slot = slot_of(position) as usize;
        let Some(head) = self.heads.get_mut(level).and_then(|l| l.get_mut(slot)) else { return };
        let next = std::mem::replace(head, index);
        if let Some(bits) = self.occupied.get_mut(level) {
            *bits |= 1 << slot;
        }
        if let Some(after) = self.nodes.get_mut(next as usize) {
            after.prev = index;
        }
        if let Some(node) = self.nodes.get_mut(index as usize) {
            #[expect(clippy::cast_possible_truncation, reason = "below 256")]
            let place = (level << SLOT_BITS | slot) as u32;
            *node = Node { prev: NONE, next, due, place };
        }
    }

    fn unlink(&mut self, index: u32) {
        let Some(node) = self.nodes.get_mut(index as usize) else { return };
        let Node { prev, next, place, .. } = std::mem::replace(node, UNSET);
        if place == NONE {
            return;
        }
        if let Some(after) = self.nodes.get_mut(next as usize) {
            after.prev = prev;
        }
        if let Some(before) = self.nodes.get_mut(prev as usize) {
            before.next = next;
            return;
        }
        let (level, slot) = ((place >> SLOT_BITS) as usize, place as usize % SLOTS);
        if let Some(head) = self.heads.get_mut(level).and_then(|l| l.get_mut(slot)) {
            *head = next;
            if next == NONE
                && let Some(bits) = self.occupied.get_mut(level)
            {
                *bits &= !(1 << slot);
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "below 64")]
fn slot_of(position: u64) -> u32 {
    (position % SLOTS as u64) as u32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_micros(ms * 1000)
    }

    /// Drives a wheel by its own `next` and returns (index, tick of firing).
    fn run(wheel: &mut TimerWheel, until: u64) -> Vec<(u32, u64)> {
        let (mut fired, mut out) = (Vec::new(), Vec::new());
        while let Some(next) = wheel.next().filter(|n| *n <= at(until)) {
            wheel.expired(next, &mut out);
            fired.extend(out.drain(..).map(|i| (i, next.micros() / 1000)));
        }
        fired
    }

    #[test]
    fn each_timer_fires_at_its_tick() {
        let mut wheel = TimerWheel::new(at(0));
        let due = [1, 2, 63, 64, 65, 127, 128, 4095, 4096, 4097, 262_143, 262_144, 300_000];
        for (i, ms) in due.into_iter().enumerate() {
            wheel.set(i as u32, at(ms));
        }
        let fired = run(&mut wheel, 1_000_000);
        assert_eq!(
            fired,
            due.into_iter().enumerate().map(|(i, t)| (i as u32, t)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn far_timers_wait_their_turn() {
        let mut wheel = TimerWheel::new(at(777));
        let far = 24 * 3600 * 1000;
        wheel.set(0, at(far));
        assert_eq!(run(&mut wheel, far + 1), [(0, far)]);
    }

    #[test]
    fn moving_and_cancelling() {
        let mut wheel = TimerWheel::new(at(10));
        wheel.set(0, at(20));
        wheel.set(1, at(20));
        wheel.set(2, at(20));
        wheel.set(1, at(5000));
        wheel.cancel(0);
        wheel.set_earlier(1, at(6000));
        wheel.set_earlier(1, at(40));
        assert_eq!(run(&mut wheel, 10_000), [(2, 20), (1, 40)]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_late_poll_fires_all_that_is_due() {
        let mut wheel = TimerWheel::new(at(0));
        for i in 0..1000 {
            wheel.set(i, at(u64::from(i) * 7 + 1));
        }
        let mut out = Vec::new();
        wheel.expired(at(3500), &mut out);
        assert_eq!(out.len(), 500);
        wheel.expired(at(100_000), &mut out);
        out.sort_unstable();
        assert_eq!(out, (0..1000).collect::<Vec<_>>());
    }
}
