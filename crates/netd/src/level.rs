//! Level-triggered registration with the poll, which mio does not offer: for links whose reads may
//! leave something behind. Only the kernel's epoll is asked for it; where there is none, no such
//! link exists.

#[cfg(target_os = "linux")]
mod imp {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};

    use mio::{Registry, Token};
    use rustix::event::epoll::{self, EventData, EventFlags};

    pub(crate) fn register(
        registry: &Registry,
        fd: BorrowedFd<'_>,
        token: Token,
    ) -> io::Result<()> {
        Ok(epoll::add(epoll_fd(registry), fd, data(token), EventFlags::IN)?)
    }

    /// Whether to be told of room for writing, too.
    pub(crate) fn poll_write(
        registry: &Registry,
        fd: BorrowedFd<'_>,
        token: Token,
        on: bool,
    ) -> io::Result<()> {
        let write = if on { EventFlags::OUT } else { EventFlags::empty() };
        Ok(epoll::modify(epoll_fd(registry), fd, data(token), EventFlags::IN | write)?)
    }

    fn epoll_fd(registry: &Registry) -> BorrowedFd<'_> {
        // SAFETY: the registry keeps its descriptor open as long as it is borrowed.
        unsafe { BorrowedFd::borrow_raw(registry.as_raw_fd()) }
    }

    fn data(token: Token) -> EventData {
        EventData::new_u64(token.0 as u64)
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::io;
    use std::os::fd::BorrowedFd;

    use mio::{Registry, Token};

    pub(crate) fn register(_: &Registry, _: BorrowedFd<'_>, _: Token) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn poll_write(_: &Registry, _: BorrowedFd<'_>, _: Token, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(crate) use imp::{poll_write, register};
