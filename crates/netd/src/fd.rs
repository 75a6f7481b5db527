//! Descriptors that this process was started with and is told about by number.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Why a number is not a descriptor that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FdError {
    #[error("descriptor {0} is standard input, output or error")]
    Standard(RawFd),
    #[error("descriptor {0} is not open")]
    Closed(RawFd),
}

/// Takes an inherited descriptor over, so that no child gets it too. To be called once for each
/// number, before the process opens anything of its own.
pub fn inherited(fd: RawFd) -> Result<OwnedFd, FdError> {
    if (0..=2).contains(&fd) {
        return Err(FdError::Standard(fd));
    }
    if fd < 0 {
        return Err(FdError::Closed(fd));
    }
    // SAFETY: only asks whether the number is open, by a call that fails if it is not.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfd(borrowed).map_err(|_| FdError::Closed(fd))?;
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC).map_err(|_| FdError::Closed(fd))?;
    // SAFETY: it is open, and was opened by whoever started this process in order to be given
    // away here; nothing else in the process knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Becomes another program, which gets `fd` as its descriptor `number`. Returns why it could not.
pub fn exec_with(fd: BorrowedFd<'_>, number: RawFd, command: &mut Command) -> io::Error {
    if fd.as_raw_fd() == number {
        if let Err(e) = fcntl_setfd(fd, FdFlags::empty()) {
            return e.into();
        }
    } else {
        // SAFETY: both are plain numbers to the call; what was open at the second was inherited for
        // the other program's use, and this one's is over.
        let done = unsafe { libc::dup2(fd.as_raw_fd(), number) };
        if done < 0 {
            return io::Error::last_os_error();
        }
    }
    command.exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be_used_are_refused() {
        assert_eq!(inherited(1).unwrap_err(), FdError::Standard(1));
        assert_eq!(inherited(-1).unwrap_err(), FdError::Closed(-1));
        assert_eq!(inherited(9999).unwrap_err(), FdError::Closed(9999));
    }
}
