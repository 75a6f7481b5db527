//! Which signals went to the whole process group. The supervisor, init and the command share the
//! caller's group, and all signals to init are blocked and read. So a signal that the supervisor
//! tells of and that init was sent too went to the group, and the command has had it; one that init
//! knows nothing of went to the supervisor alone.

use std::time::{Duration, Instant};

/// How long a signal that init was sent may be the one that the supervisor tells of.
const LATELY: Duration = Duration::from_secs(1);

/// Two signals may reach init as one and the supervisor as two, but not farther apart than this.
const MERGED: Duration = Duration::from_millis(50);

/// What init was sent, by signal number.
#[derive(Debug)]
pub(super) struct Witness([Option<Seen>; 65]);

#[derive(Clone, Copy, Debug)]
struct Seen {
    last: Instant,
    /// How many the supervisor has not told of.
    untold: u32,
}

impl Witness {
    pub(super) fn new() -> Self {
        Self([None; 65])
    }

    /// Init was sent `signal`.
    pub(super) fn see(&mut self, signal: i32, now: Instant) {
        if let Some(entry) = self.entry(signal) {
            let before = entry.filter(|seen| now - seen.last < LATELY);
            *entry = Some(Seen { last: now, untold: before.map_or(0, |seen| seen.untold) + 1 });
        }
    }

    /// Whether the `signal` that the supervisor tells of was the group's.
    pub(super) fn was_for_all(&mut self, signal: i32, now: Instant) -> bool {
        let Some(Some(seen)) = self.entry(signal) else { return false };
        let since = now - seen.last;
        let told = seen.untold > 0 && since < LATELY;
        seen.untold = seen.untold.saturating_sub(1);
        told || since < MERGED
    }

    fn entry(&mut self, signal: i32) -> Option<&mut Option<Seen>> {
        self.0.get_mut(usize::try_from(signal).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn each_of_the_groups_is_the_groups() {
        let (mut witness, now) = (Witness::new(), Instant::now());
        witness.see(2, now);
        witness.see(2, now + 300 * MS);
        assert!(witness.was_for_all(2, now + 400 * MS));
        assert!(witness.was_for_all(2, now + 500 * MS));
        assert!(!witness.was_for_all(2, now + 600 * MS));
    }

    #[test]
    fn the_supervisors_own_are_not() {
        let (mut witness, now) = (Witness::new(), Instant::now());
        assert!(!witness.was_for_all(15, now));
        witness.see(2, now);
        assert!(!witness.was_for_all(15, now));
        assert!(!witness.was_for_all(-1, now) && !witness.was_for_all(65, now));
    }

    #[test]
    fn two_may_be_seen_as_one() {
        let (mut witness, now) = (Witness::new(), Instant::now());
        witness.see(2, now);
        assert!(witness.was_for_all(2, now));
        assert!(witness.was_for_all(2, now + MS));
        assert!(!witness.was_for_all(2, now + 60 * MS));
    }

    #[test]
    fn what_was_seen_long_ago_is_another() {
        let (mut witness, now) = (Witness::new(), Instant::now());
        witness.see(15, now);
        assert!(!witness.was_for_all(15, now + 1500 * MS));
        witness.see(15, now + 3000 * MS);
        assert!(witness.was_for_all(15, now + 3100 * MS));
        assert!(!witness.was_for_all(15, now + 3200 * MS));
    }
}
