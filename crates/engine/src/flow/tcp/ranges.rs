//! A few sorted, disjoint ranges of sequence space: what arrived ahead of a gap, and what the guest
//! says has arrived ahead of one.

use arrayvec::ArrayVec;

use super::seq::Seq;

/// Gaps that are kept track of. With more, the newest data is not remembered and is sent again.
const MAX: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// Allocated with the first gap only: most flows never have one.
    list: Option<Box<ArrayVec<(Seq, Seq), MAX>>>,
    /// Start of the range that changed last: RFC 2018 wants it reported first.
    newest: Seq,
}

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    pub(super) fn as_slice(&self) -> &[(Seq, Seq)] {
        self.list.as_ref().map_or(&[], |l| l.as_slice())
    }

    /// End of the last range.
    pub(super) fn end(&self) -> Option<Seq> {
        self.as_slice().last().map(|r| r.1)
    }

    /// Adds a range, merging what it touches; false if there is no place for it.
    pub(super) fn insert(&mut self, start: Seq, end: Seq) -> bool {
        if !start.before(end) {
            return true;
        }
        let list = self.list.get_or_insert_default();
        let first = list.iter().position(|r| !r.1.before(start)).unwrap_or(list.len());
        let (mut start, mut end) = (start, end);
        while let Some((s, e)) = list.get(first).copied().filter(|r| !end.before(r.0)) {
            (start, end) = (start.min(s), end.max(e));
            list.remove(first);
        }
        self.newest = start;
        list.try_insert(first, (start, end)).is_ok()
    }

    /// Forgets what lies before `seq`, and returns the end of the range that holds it, if any.
    pub(super) fn advance(&mut self, seq: Seq) -> Option<Seq> {
        let list = self.list.as_mut()?;
        let mut reached = None;
        while let Some((_, end)) = list.first().copied().filter(|r| !seq.before(r.0)) {
            reached = seq.before(end).then_some(end);
            list.remove(0);
            if reached.is_some() {
                break;
            }
        }
        if list.is_empty() {
            self.list = None;
        }
        reached
    }

    /// The first stretch at or after `from` and before `limit` that no range covers.
    pub(super) fn gap(&self, from: Seq, limit: Seq) -> Option<(Seq, Seq)> {
        let mut from = from;
        for (start, end) in self.as_slice() {
            if from.before(*start) {
                return from.before(limit).then(|| (from, start.min(limit)));
            }
            from = from.max(*end);
        }
        from.before(limit).then_some((from, limit))
    }

    /// Bytes covered.
    pub(super) fn bytes(&self) -> u32 {
        self.as_slice().iter().map(|(s, e)| s.until(*e)).fold(0, u32::saturating_add)
    }

    /// Up to `N` ranges, the one that changed last first.
    pub(super) fn newest_first<const N: usize>(&self) -> ArrayVec<(Seq, Seq), N> {
        let mut out = ArrayVec::new();
        let (new, old): (Vec<_>, Vec<_>) = self.as_slice().iter().partition(|r| r.0 == self.newest);
        for range in new.into_iter().chain(old) {
            if out.try_push(range).is_err() {
                break;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

    use super::*;

    fn ranges(list: &[(u32, u32)]) -> Ranges {
        let mut r = Ranges::default();
        for (s, e) in list {
            assert!(r.insert(Seq(*s), Seq(*e)));
        }
        r
    }

    fn plain(r: &Ranges) -> Vec<(u32, u32)> {
        r.as_slice().iter().map(|(s, e)| (s.0, e.0)).collect()
    }

    #[test]
    fn ranges_merge_where_they_touch() {
        assert_eq!(plain(&ranges(&[(10, 20), (30, 40), (20, 30)])), [(10, 40)]);
        assert_eq!(plain(&ranges(&[(30, 40), (10, 20), (15, 18)])), [(10, 20), (30, 40)]);
        assert_eq!(plain(&ranges(&[(10, 20), (30, 40), (50, 60), (5, 55)])), [(5, 60)]);
    }

    #[test]
    fn advancing_gives_the_end_of_what_is_reached() {
        let mut r = ranges(&[(10, 20), (30, 40)]);
        assert_eq!(r.advance(Seq(5)), None);
        assert_eq!(r.advance(Seq(10)), Some(Seq(20)));
        assert_eq!(plain(&r), [(30, 40)]);
        assert_eq!(r.advance(Seq(45)), None);
        assert!(r.is_empty());
    }

    #[test]
    fn gaps_lie_between() {
        let r = ranges(&[(10, 20), (30, 40)]);
        let gap = |from, limit| r.gap(Seq(from), Seq(limit)).map(|(s, e)| (s.0, e.0));
        assert_eq!(gap(0, 100), Some((0, 10)));
        assert_eq!(gap(12, 100), Some((20, 30)));
        assert_eq!(gap(35, 100), Some((40, 100)));
        assert_eq!(gap(12, 20), None);
        assert_eq!(gap(12, 25), Some((20, 25)));
    }

    #[test]
    fn one_range_too_many_is_refused() {
        let mut r = Ranges::default();
        for i in 0..MAX as u32 {
            assert!(r.insert(Seq(i * 10), Seq(i * 10 + 5)));
        }
        assert!(!r.insert(Seq(5000), Seq(5001)));
        assert!(r.insert(Seq(5), Seq(10)));
    }
}
