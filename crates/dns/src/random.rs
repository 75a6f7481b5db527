//! Numbers that nobody outside can foresee (RFC 5452): a keyed hash (SipHash) of a counter, the key
//! drawn by the system.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

#[derive(Debug, Default)]
pub(crate) struct Random {
    key: RandomState,
    counter: u64,
}

impl Random {
    fn next(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        self.key.hash_one(self.counter)
    }

    /// A number below `bound`, which is small.
    #[expect(clippy::cast_possible_truncation, reason = "below a bound that fits")]
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % (bound.max(1) as u64)) as usize
    }

    #[expect(clippy::cast_possible_truncation, reason = "16 bits are meant")]
    pub(crate) fn id(&mut self) -> u16 {
        self.next() as u16
    }
}
