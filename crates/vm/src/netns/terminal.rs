//! Whose the terminal is. The command and the supervisor share a process group, so mostly there is
//! nothing to do. But a shell in the guest moves itself to a group of its own and cannot name the
//! one it came from, which lies outside its PID namespace: what it would give back when it ends or
//! is suspended, the supervisor gives back for it.
//!
//! That holds for the supervisor too when it runs in another guest: its own group may be 0, and
//! then it leaves all this to those outside.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::sys;

/// The controlling terminal, if there is one.
#[derive(Debug)]
pub(super) struct Terminal(Option<OwnedFd>);

impl Terminal {
    pub(super) fn open() -> Self {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        Self(rustix::fs::open("/dev/tty", flags, Mode::empty()).ok())
    }

    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        self.0.as_ref()
    }

    /// Takes the foreground back from a group that is gone.
    pub(super) fn reclaim(&self) {
        if let Some((foreground, own)) = self.groups()
            && foreground != own
            && !sys::group_exists(foreground)
        {
            self.set_foreground(own);
        }
    }

    /// The foreground group, if it is one of the guest's whose init is `init`.
    pub(super) fn held_by_guest(&self, init: i32) -> Option<i32> {
        let (foreground, own) = self.groups()?;
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let of_guest =
            foreground != own && namespace(init).is_some_and(|n| namespace(foreground) == Some(n));
        of_guest.then_some(foreground)
    }

    /// Gives a group the foreground that the supervisor's own group has just been given.
    pub(super) fn hand_to(&self, group: i32) {
        if self.groups().is_some_and(|(foreground, own)| foreground == own) {
            self.set_foreground(group);
        }
    }

    /// The foreground group and the supervisor's own, where both can be named.
    fn groups(&self) -> Option<(i32, i32)> {
        let foreground = sys::foreground(self.0.as_ref()?.as_fd()).ok()?;
        let own = sys::process_group(0);
        (foreground > 0 && own > 0).then_some((foreground, own))
    }

    fn set_foreground(&self, group: i32) {
        if let Some(terminal) = &self.0 {
            let _ = sys::set_foreground(terminal.as_fd(), group);
        }
    }
}
