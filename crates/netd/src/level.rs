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

    /// Whether to be told of something to read, and of room for writing.
    pub(crate) fn change(
        registry: &Registry,
        fd: BorrowedFd<'_>,
        token: Token,
        read: bool,
        write: bool,
    ) -> io::Result<()> {
        let flag = |on, flag| if on { flag } else { EventFlags::empty() };
        let flags = flag(read, EventFlags::IN) | flag(write, EventFlags::OUT);
        Ok(epoll::modify(epoll_fd(registry), fd, data(token), flags)?)
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

    pub(crate) fn change(
        _: &Registry,
        _: BorrowedFd<'_>,
        _: Token,
        _: bool,
        _: bool,
    ) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(crate) use imp::{change, register};
