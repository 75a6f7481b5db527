//! Rate limits, one for each port, so that a guest that floods uses up its own share only.
//!
//! The generic cell rate algorithm (ITU-T I.371): one point in time for each port is all the state
//! there is.

use std::time::Duration;

use crate::io::PortId;
use crate::time::Instant;

#[derive(Debug)]
pub(crate) struct Limiter {
    interval: Duration,
    /// How far the schedule may run ahead: the burst, as a time.
    ahead: Duration,
    /// When the next one would be due at the even rate.
    due: Vec<Instant>,
}

impl Limiter {
    /// One in each `interval`, and up to `burst` at once.
    pub(crate) const fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, ahead: interval.saturating_mul(burst - 1), due: Vec::new() }
    }

    /// Takes one from the port's share; false if there is none left.
    pub(crate) fn allow(&mut self, port: PortId, now: Instant) -> bool {
        let index = usize::from(port.0);
        if self.due.len() <= index {
            self.due.resize(index + 1, Instant::ZERO);
        }
        let Some(due) = self.due.get_mut(index) else { return false };
        if due.since(now) > self.ahead {
            return false;
        }
        *due = (*due).max(now) + self.interval;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_and_each_port_for_itself() {
        let mut limiter = Limiter::new(Duration::from_millis(1), 100);
        let at = |ms: u64| Instant::from_micros(1_000_000 + ms * 1000);
        let taken = |limiter: &mut Limiter, port, ms| {
            (0..1000).filter(|_| limiter.allow(PortId(port), at(ms))).count()
        };
        assert_eq!(taken(&mut limiter, 3, 0), 100);
        assert_eq!(taken(&mut limiter, 3, 7), 7);
        assert_eq!(taken(&mut limiter, 4, 7), 100);
        assert_eq!(taken(&mut limiter, 3, 5000), 100);
    }
}
