//! How the loop does: how often it goes round, how much of the time it works, and how long it has
//! kept everybody waiting.

use std::time::Duration;

use vmlan_engine::Instant;

/// The longest pass is that of the last one to two of these.
const SPAN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Pulse {
    pub(crate) passes: u64,
    pub(crate) busy_micros: u64,
    /// The longest pass of the span now, and of the one before it.
    longest: [u64; 2],
    /// When the span ends.
    until: Instant,
}

impl Pulse {
    pub(crate) fn new(now: Instant) -> Self {
        Self { passes: 0, busy_micros: 0, longest: [0; 2], until: now + SPAN }
    }

    /// Notes a pass.
    pub(crate) fn beat(&mut self, start: Instant, end: Instant) {
        let micros = end.micros().saturating_sub(start.micros());
        self.passes += 1;
        self.busy_micros += micros;
        if end >= self.until {
            self.turn(end);
        }
        self.longest[0] = self.longest[0].max(micros);
    }

    /// Microseconds of the longest pass lately.
    pub(crate) fn longest_micros(&mut self, now: Instant) -> u64 {
        if now >= self.until {
            self.turn(now);
        }
        self.longest[0].max(self.longest[1])
    }

    /// Begins another span.
    fn turn(&mut self, now: Instant) {
        let just_ended = now < self.until + SPAN;
        self.longest = [0, if just_ended { self.longest[0] } else { 0 }];
        self.until = now + SPAN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_pass_is_told_for_a_while() {
        let at = |millis: u64| Instant::from_micros(millis * 1000);
        let mut pulse = Pulse::new(at(0));
        pulse.beat(at(0), at(300));
        pulse.beat(at(1000), at(1001));
        assert_eq!((pulse.passes, pulse.busy_micros), (2, 301_000));
        assert_eq!(pulse.longest_micros(at(2000)), 300_000);
        assert_eq!(pulse.longest_micros(at(11_000)), 300_000);
        pulse.beat(at(12_000), at(12_002));
        assert_eq!(pulse.longest_micros(at(20_000)), 300_000);
        assert_eq!(pulse.longest_micros(at(21_500)), 2000);
        assert_eq!(pulse.longest_micros(at(99_000)), 0);
    }
}
