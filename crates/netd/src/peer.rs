//! Who is at the other end of a UNIX socket.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::process::geteuid;

/// Whether the peer is this user or root.
pub(crate) fn is_trusted(stream: &UnixStream) -> io::Result<bool> {
    let uid = imp::uid(stream)?;
    Ok(uid == geteuid().as_raw() || uid == 0)
}

#[cfg(target_os = "linux")]
mod imp {
    use super::{UnixStream, io};

    pub(super) fn uid(stream: &UnixStream) -> io::Result<u32> {
        Ok(rustix::net::sockopt::socket_peercred(stream)?.uid.as_raw())
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::os::fd::AsRawFd;

    use super::{UnixStream, io};

    pub(super) fn uid(stream: &UnixStream) -> io::Result<u32> {
        let (mut uid, mut gid) = (0, 0);
        // SAFETY: the descriptor is open while `stream` is borrowed, and both results point to
        // live variables.
        let result = unsafe { libc::getpeereid(stream.as_raw_fd(), &mut uid, &mut gid) };
        if result == 0 { Ok(uid) } else { Err(io::Error::last_os_error()) }
    }
}
