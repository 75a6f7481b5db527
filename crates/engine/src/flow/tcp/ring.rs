//! Byte rings for what is in transit, and the pool their storage comes from.
//!
//! A flow at rest holds no storage: an empty ring gives it back. Rings grow on demand through a few
//! sizes, and the pool bounds what all of them hold together.

use std::io::IoSliceMut;

/// Sizes a ring can have.
const SIZES: [usize; 5] = [16 << 10, 64 << 10, 256 << 10, 1 << 20, MAX_RING];

/// The largest ring: what is in flight on one flow in one direction.
pub(crate) const MAX_RING: usize = 4 << 20;

/// Above this much in use, rings that are sent from stay as they are: eight streams at once then
/// keep within what a processor's cache holds, and are no slower for it.
const CACHE: usize = 3 << 20;

/// Above this much in use, memory is scarce.
const SOFT_LIMIT: usize = HARD_LIMIT / 8;

/// Never in use together. The smallest size is exempt, or flows could not live at all; their number
/// is bounded elsewhere.
const HARD_LIMIT: usize = 64 << 20;

/// Unused storage that is kept for the next ring.
const KEEP: usize = 4 << 20;

/// Storage for rings.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: [Vec<Box<[u8]>>; SIZES.len()],
    free_bytes: usize,
    used: usize,
}

impl Pool {
    /// Whether all that is in use may be in the processor's cache.
    pub(crate) fn fits_cache(&self) -> bool {
        self.used < CACHE
    }

    /// Whether flows have to make do with little.
    pub(crate) fn is_scarce(&self) -> bool {
        self.used >= SOFT_LIMIT
    }

    fn take(&mut self, class: usize) -> Option<Box<[u8]>> {
        let size = *SIZES.get(class)?;
        if class > 0 && self.used + size > HARD_LIMIT {
            return None;
        }
        self.used += size;
        if let Some(storage) = self.free.get_mut(class).and_then(Vec::pop) {
            self.free_bytes -= size;
            return Some(storage);
        }
        Some(vec![0; size].into_boxed_slice())
    }

    fn give_back(&mut self, storage: Box<[u8]>) {
        let size = storage.len();
        self.used = self.used.saturating_sub(size);
        let class = SIZES.iter().position(|s| *s == size);
        if self.free_bytes + size <= KEEP
            && let Some(list) = class.and_then(|c| self.free.get_mut(c))
        {
            list.push(storage);
            self.free_bytes += size;
        }
    }
}

/// Bytes in order, with room to write ahead of a gap.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    storage: Box<[u8]>,
    head: usize,
    len: usize,
}

impl Ring {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn capacity(&self) -> usize {
        self.storage.len()
    }

    pub(crate) fn room(&self) -> usize {
        self.storage.len() - self.len
    }

    /// Makes the capacity at least `want`, or as much as the pool gives. True if it became larger.
    pub(crate) fn grow(&mut self, want: usize, pool: &mut Pool) -> bool {
        self.grow_keeping(want, self.len, pool)
    }

    /// As [`Ring::grow`], keeping `keep` bytes from the head: more than `len` when data lies beyond
    /// a gap.
    pub(crate) fn grow_keeping(&mut self, want: usize, keep: usize, pool: &mut Pool) -> bool {
        let current = self.storage.len();
        let wanted = SIZES.iter().position(|s| *s >= want).unwrap_or(SIZES.len() - 1);
        for class in (0..=wanted).rev() {
            if SIZES.get(class).is_none_or(|s| *s <= current) {
                return false;
            }
            if let Some(mut storage) = pool.take(class) {
                let mut at = 0;
                for part in self.slices(0, keep.min(current)) {
                    if let Some(to) = storage.get_mut(at..at + part.len()) {
                        to.copy_from_slice(part);
                    }
                    at += part.len();
                }
                let old = std::mem::replace(&mut self.storage, storage);
                self.head = 0;
                if !old.is_empty() {
                    pool.give_back(old);
                }
                return true;
            }
        }
        false
    }

    /// `len` bytes from `offset` after the head. What lies beyond the length may be read too (data
    /// written ahead); beyond the capacity there is nothing.
    pub(crate) fn slices(&self, offset: usize, len: usize) -> [&[u8]; 2] {
        let capacity = self.storage.len();
        let len = len.min(capacity.saturating_sub(offset));
        if len == 0 {
            return [&[], &[]];
        }
        let start = wrap(self.head + offset, capacity);
        let first = len.min(capacity - start);
        let one = self.storage.get(start..start + first).unwrap_or(&[]);
        [one, self.storage.get(..len - first).unwrap_or(&[])]
    }

    /// Room behind the data, at most `limit` bytes, to be filled from its start and then
    /// [committed](Ring::commit).
    pub(crate) fn spare(&mut self, limit: usize) -> [IoSliceMut<'_>; 2] {
        let capacity = self.storage.len();
        let len = limit.min(self.room());
        if len == 0 {
            return [IoSliceMut::new(&mut []), IoSliceMut::new(&mut [])];
        }
        let start = wrap(self.head + self.len, capacity);
        let first = len.min(capacity - start);
        let (low, high) = self.storage.split_at_mut(start);
        let one = high.get_mut(..first).unwrap_or(&mut []);
        let two = low.get_mut(..len - first).unwrap_or(&mut []);
        [IoSliceMut::new(one), IoSliceMut::new(two)]
    }

    /// Counts `n` bytes, written by [`Ring::spare`] or [`Ring::write_at`], as data.
    pub(crate) fn commit(&mut self, n: usize) {
        self.len = (self.len + n).min(self.storage.len());
    }

    /// Writes at `offset` after the head without counting it as data; false if it does not fit.
    pub(crate) fn write_at(&mut self, offset: usize, data: &[u8]) -> bool {
        let capacity = self.storage.len();
        if offset + data.len() > capacity {
            return false;
        }
        if data.is_empty() {
            return true;
        }
        let start = wrap(self.head + offset, capacity);
        let (one, two) = data.split_at(data.len().min(capacity - start));
        if let Some(to) = self.storage.get_mut(start..start + one.len()) {
            to.copy_from_slice(one);
        }
        if let Some(to) = self.storage.get_mut(..two.len()) {
            to.copy_from_slice(two);
        }
        true
    }

    /// Drops `n` bytes from the head.
    pub(crate) fn consume(&mut self, n: usize) {
        let n = n.min(self.len);
        self.len -= n;
        self.head = wrap(self.head + n, self.storage.len());
    }

    /// Gives the storage back, data and all.
    pub(crate) fn release(&mut self, pool: &mut Pool) {
        (self.head, self.len) = (0, 0);
        if !self.storage.is_empty() {
            pool.give_back(std::mem::take(&mut self.storage));
        }
    }
}

/// `position` in a ring of `capacity`, for positions below twice the capacity.
fn wrap(position: usize, capacity: usize) -> usize {
    if position >= capacity { position.saturating_sub(capacity) } else { position }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

    use super::*;

    fn contents(ring: &Ring) -> Vec<u8> {
        ring.slices(0, ring.len()).concat()
    }

    fn append(ring: &mut Ring, data: &[u8]) {
        assert!(ring.write_at(ring.len(), data));
        ring.commit(data.len());
    }

    #[test]
    fn bytes_come_out_as_they_went_in_around_the_end_and_through_growth() {
        let (mut pool, mut ring) = (Pool::default(), Ring::default());
        assert!(ring.grow(1, &mut pool));
        let mut model = std::collections::VecDeque::new();
        let mut n = 0u32;
        for round in 0..2000 {
            let want = (round * 37 % 900) as usize;
            if ring.room() < want && round % 7 == 0 {
                ring.grow(ring.capacity() * 4, &mut pool);
            }
            let chunk: Vec<u8> =
                (0..want.min(ring.room())).map(|i| (n as usize + i) as u8).collect();
            n += chunk.len() as u32;
            append(&mut ring, &chunk);
            model.extend(chunk);
            let eat = (round * 53 % 800) as usize;
            ring.consume(eat);
            model.drain(..eat.min(model.len()));
            assert_eq!(ring.len(), model.len());
        }
        assert_eq!(contents(&ring), model.into_iter().collect::<Vec<_>>());
        ring.release(&mut pool);
        assert_eq!(pool.used, 0);
    }

    #[test]
    fn data_ahead_of_a_gap_survives_growth() {
        let (mut pool, mut ring) = (Pool::default(), Ring::default());
        ring.grow(1, &mut pool);
        let capacity = ring.capacity();
        append(&mut ring, &vec![0; capacity - 4]);
        ring.consume(capacity - 4);
        append(&mut ring, b"ab");
        assert!(ring.write_at(4, b"ef"));
        assert!(ring.grow_keeping(capacity * 2, 6, &mut pool));
        assert!(ring.write_at(2, b"cd"));
        ring.commit(4);
        assert_eq!(contents(&ring), b"abcdef");
    }

    #[test]
    fn the_pool_never_hands_out_more_than_its_limit() {
        let mut pool = Pool::default();
        let mut rings: Vec<Ring> = (0..200).map(|_| Ring::default()).collect();
        for ring in &mut rings {
            ring.grow(MAX_RING, &mut pool);
            assert!(ring.capacity() > 0);
        }
        assert!(pool.used <= HARD_LIMIT + rings.len() * SIZES[0]);
        for ring in &mut rings {
            ring.release(&mut pool);
        }
        assert_eq!(pool.used, 0);
        assert!(pool.free_bytes <= KEEP);
    }
}
