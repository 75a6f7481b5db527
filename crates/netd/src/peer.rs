//! Who is at the other end of a UNIX socket.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::process::geteuid;

/// Whether the peer is this user or root, and on Linux outside of user namespaces made below: a
/// guest that runs in one is this user too, but is not to command its own network.
pub(crate) fn is_trusted(stream: &UnixStream) -> io::Result<bool> {
    let own = geteuid().as_raw();
    let peer = imp::Peer::of(stream)?;
    if peer.uid != own && peer.uid != 0 {
        return Ok(false);
    }
    // Nobody but root may look at root's processes.
    Ok(peer.is_in_own_namespace().unwrap_or(peer.uid == 0 && own != 0))
}

/// The process that has connected, if the system tells.
pub(crate) fn process(stream: &UnixStream) -> Option<i32> {
    imp::process(stream)
}

#[cfg(target_os = "linux")]
mod imp {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use rustix::process::Pid;

    use super::{UnixStream, io};

    pub(super) struct Peer {
        pub(super) uid: u32,
        pid: Pid,
    }

    pub(super) fn process(stream: &UnixStream) -> Option<i32> {
        let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).ok()?;
        // SAFETY: the descriptor is open while `stream` is borrowed; the result and its length
        // point to live variables, and the length is that of the result.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut cred).cast(),
                &raw mut len,
            )
        };
        // Those of another PID namespace have no number here.
        (result == 0 && cred.pid > 0).then_some(cred.pid)
    }

    impl Peer {
        pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
            let cred = rustix::net::sockopt::socket_peercred(stream)?;
            Ok(Self { uid: cred.uid.as_raw(), pid: cred.pid })
        }

        pub(super) fn is_in_own_namespace(&self) -> io::Result<bool> {
            let namespace = |process: &str| {
                let meta = std::fs::metadata(format!("/proc/{process}/ns/user"))?;
                io::Result::Ok((meta.dev(), meta.ino()))
            };
            Ok(namespace("self")? == namespace(&self.pid.as_raw_nonzero().to_string())?)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::os::fd::AsRawFd;

    use super::{UnixStream, io};

    pub(super) struct Peer {
        pub(super) uid: u32,
    }

    pub(super) fn process(stream: &UnixStream) -> Option<i32> {
        /// `SOL_LOCAL` of unix(4).
        const LEVEL: libc::c_int = 0;
        let mut pid: libc::pid_t = 0;
        let mut len = libc::socklen_t::try_from(size_of::<libc::pid_t>()).ok()?;
        // SAFETY: the descriptor is open while `stream` is borrowed; the result and its length
        // point to live variables, and the length is that of the result.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                LEVEL,
                libc::LOCAL_PEERPID,
                (&raw mut pid).cast(),
                &raw mut len,
            )
        };
        (result == 0 && pid > 0).then_some(pid)
    }

    impl Peer {
        pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
            let (mut uid, mut gid) = (0, 0);
            // SAFETY: the descriptor is open while `stream` is borrowed, and both results point to
            // live variables.
            let result =
                unsafe { libc::getpeereid(stream.as_raw_fd(), &raw mut uid, &raw mut gid) };
            if result == 0 { Ok(Self { uid }) } else { Err(io::Error::last_os_error()) }
        }

        pub(super) fn is_in_own_namespace(&self) -> io::Result<bool> {
            Ok(true)
        }
    }
}
