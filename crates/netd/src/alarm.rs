//! When the loop wakes without an event. A timeout given to each wait would have the kernel start
//! and stop a timer for every packet; deadlines change less often than that. So a timer of its own
//! is set when a deadline comes before all that were known, and left alone otherwise: then it goes
//! off too early once, finds nothing due, and is set for what is next.

use std::time::Duration;

use mio::Registry;
use vmlan_engine::Instant;

use crate::clock::Clock;

#[derive(Debug)]
pub(crate) struct Alarm {
    timer: Option<imp::Timer>,
    /// The deadline that the timer was set for: it goes off then or a little later.
    set_to: Option<Instant>,
}

impl Alarm {
    /// Without a timer to be had, waits are given their timeouts.
    pub(crate) fn new(registry: &Registry) -> Self {
        Self { timer: imp::Timer::new(registry).ok(), set_to: None }
    }

    /// How long to let the poll wait: forever, if the alarm wakes it in time for `deadline`.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>, now: Instant) -> Option<Duration> {
        let deadline = deadline?;
        let left = Clock::wait(now, deadline);
        if left.is_zero() {
            return Some(left);
        }
        if self.set_to.is_some_and(|at| now < at && at <= deadline) {
            return None;
        }
        let Some(timer) = &self.timer else { return Some(left) };
        if timer.set(left).is_err() {
            self.set_to = None;
            return Some(left);
        }
        self.set_to = Some(deadline);
        None
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::time::Duration;

    use mio::unix::SourceFd;
    use mio::{Interest, Registry};
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };

    use crate::token::Owner;

    #[derive(Debug)]
    pub(super) struct Timer(OwnedFd);

    impl Timer {
        /// Each time that it goes off is an event; nobody has to read it for the next.
        pub(super) fn new(registry: &Registry) -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            let token = Owner::Alarm.token();
            registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
            Ok(Self(fd))
        }

        pub(super) fn set(&self, left: Duration) -> io::Result<()> {
            let once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let value = Timespec::try_from(left).map_err(io::Error::other)?;
            let spec = Itimerspec { it_interval: once, it_value: value };
            timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &spec)?;
            Ok(())
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::io;
    use std::time::Duration;

    use mio::Registry;

    #[derive(Debug)]
    pub(super) struct Timer;

    impl Timer {
        pub(super) fn new(_: &Registry) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn set(&self, _: Duration) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Instant as SystemInstant;

    use mio::{Events, Poll};

    use super::*;
    use crate::token::Owner;

    const fn ms(n: u64) -> Instant {
        Instant::from_micros(n * 1000)
    }

    #[test]
    fn a_later_deadline_leaves_it_as_it_is() {
        let poll = Poll::new().unwrap();
        let mut alarm = Alarm::new(poll.registry());
        assert_eq!(alarm.wait(None, ms(0)), None);
        assert_eq!(alarm.wait(Some(ms(5)), ms(5)), Some(Duration::ZERO));
        assert_eq!(alarm.set_to, None);
        assert_eq!(alarm.wait(Some(ms(50_000)), ms(0)), None);
        assert_eq!(alarm.wait(Some(ms(60_000)), ms(1)), None);
        // Nor does the time that has passed since, of which waits are rounded up.
        assert_eq!(alarm.wait(Some(ms(50_000)), Instant::from_micros(1500)), None);
        assert_eq!(alarm.set_to, Some(ms(50_000)));
        assert_eq!(alarm.wait(Some(ms(40_000)), ms(2)), None);
        assert_eq!(alarm.set_to, Some(ms(40_000)));
        // Once it has gone off it has to be set again.
        assert_eq!(alarm.wait(Some(ms(60_000)), ms(40_000)), None);
        assert_eq!(alarm.set_to, Some(ms(60_000)));
    }

    #[test]
    fn it_wakes_the_poll_each_time() {
        let mut poll = Poll::new().unwrap();
        let mut alarm = Alarm::new(poll.registry());
        let clock = Clock::start();
        for _ in 0..3 {
            let deadline = clock.now() + Duration::from_millis(5);
            assert_eq!(alarm.wait(Some(deadline), clock.now()), None);
            let mut events = Events::with_capacity(4);
            let began = SystemInstant::now();
            poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert!(began.elapsed() < Duration::from_secs(20));
            assert!(clock.now() >= deadline);
            let tokens: Vec<_> = events.iter().map(|event| event.token()).collect();
            assert_eq!(tokens, [Owner::Alarm.token()]);
        }
    }

    #[test]
    fn without_a_timer_the_wait_ends_by_itself() {
        let mut alarm = Alarm { timer: None, set_to: None };
        assert_eq!(alarm.wait(Some(ms(30)), ms(10)), Some(Duration::from_millis(20)));
    }
}
