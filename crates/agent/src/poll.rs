//! Descriptors and what is asked about them. A descriptor that nothing is asked about is not
//! watched at all, or a peer that has hung up would be reported for ever.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Tokens of one object, which may have several descriptors: they follow its first one.
pub(crate) const LOCAL_TOKENS: u64 = 1 << 24;

/// Events taken at once.
const EVENTS: usize = 128;

#[derive(Debug)]
pub(crate) struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// What has happened: tokens and how their descriptors are ready.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<Vec<(u64, EventFlags)>> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let buffer = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, buffer, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        // The structure is packed: its fields are copied before they are looked at.
        Ok(events.iter().map(|event| ({ event.data }.u64(), { event.flags })).collect())
    }
}

/// A watched descriptor.
#[derive(Debug)]
pub(crate) struct Source {
    fd: OwnedFd,
    token: u64,
    asked: EventFlags,
}

impl Source {
    pub(crate) fn new(fd: OwnedFd, token: u64) -> Self {
        Self { fd, token, asked: EventFlags::empty() }
    }

    /// Asks about these and nothing else.
    pub(crate) fn ask(&mut self, poll: &Poll, flags: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(self.token);
        match (self.asked.is_empty(), flags.is_empty()) {
            _ if self.asked == flags => {}
            (true, _) => epoll::add(&poll.epoll, &self.fd, data, flags)?,
            (false, true) => epoll::delete(&poll.epoll, &self.fd)?,
            (false, false) => epoll::modify(&poll.epoll, &self.fd, data, flags)?,
        }
        self.asked = flags;
        Ok(())
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
