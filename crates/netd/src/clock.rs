//! The daemon's time: microseconds since it started, by the monotonic clock. One `Clock` serves
//! the engine, which counts from zero, and the links, which count in the system's instants.

use std::time::{Duration, Instant as SystemInstant};

use vmlan_engine::Instant;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: SystemInstant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: SystemInstant::now() }
    }

    pub(crate) fn now(&self) -> Instant {
        self.at(SystemInstant::now())
    }

    /// A system instant in the engine's counting; zero if it is before the start.
    pub(crate) fn at(&self, instant: SystemInstant) -> Instant {
        let since = instant.saturating_duration_since(self.start);
        Instant::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// How long to wait for `deadline`, rounded up to the poll's millisecond so that it does not
    /// wake too early and spin.
    pub(crate) fn wait(now: Instant, deadline: Instant) -> Duration {
        let micros = deadline.micros().saturating_sub(now.micros());
        Duration::from_millis(micros.div_ceil(1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_rounded_up() {
        let at = Instant::from_micros;
        assert_eq!(Clock::wait(at(10), at(10)), Duration::ZERO);
        assert_eq!(Clock::wait(at(10), at(5)), Duration::ZERO);
        assert_eq!(Clock::wait(at(10), at(11)), Duration::from_millis(1));
        assert_eq!(Clock::wait(at(0), at(2000)), Duration::from_millis(2));
    }
}
