//! Sockets, non-blocking and closed on exec, on every system.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketType, ipproto};

#[cfg(target_os = "linux")]
mod imp {
    use super::*;
    use rustix::net::{SendFlags, SocketFlags};

    /// A broken connection is told by the call, not by a signal.
    pub(crate) const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;

    pub(super) fn socket(
        family: AddressFamily,
        kind: SocketType,
        protocol: Protocol,
    ) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        rustix::net::socket_with(family, kind, flags, Some(protocol))
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::*;
    use rustix::io::{FdFlags, ioctl_fionbio};
    use rustix::net::{SendFlags, sockopt};

    /// The signal is switched off by socket.
    pub(crate) const SEND_FLAGS: SendFlags = SendFlags::empty();

    pub(super) fn socket(
        family: AddressFamily,
        kind: SocketType,
        protocol: Protocol,
    ) -> Result<OwnedFd, Errno> {
        let fd = rustix::net::socket(family, kind, Some(protocol))?;
        ioctl_fionbio(&fd, true)?;
        rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
        sockopt::set_socket_nosigpipe(&fd, true)?;
        Ok(fd)
    }
}

pub(crate) use imp::SEND_FLAGS;

const RECV_BUFFER: usize = 1 << 20;

pub(crate) fn udp_socket(peer: SocketAddr) -> Result<OwnedFd, Errno> {
    let fd = imp::socket(family(peer), SocketType::DGRAM, ipproto::UDP)?;
    // A burst must fit between two passes of the loop; a smaller buffer only loses more.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&fd, RECV_BUFFER);
    Ok(fd)
}

pub(crate) fn tcp_socket(peer: SocketAddr) -> Result<OwnedFd, Errno> {
    let fd = imp::socket(family(peer), SocketType::STREAM, ipproto::TCP)?;
    // A question goes out whole, and its answer is waited for.
    rustix::net::sockopt::set_tcp_nodelay(&fd, true)?;
    Ok(fd)
}

/// Both directions, edge-triggered. `None` when the system has no room for it.
pub(crate) fn register(registry: &Registry, fd: &OwnedFd, token: mio::Token) -> Option<()> {
    let both = Interest::READABLE.add(Interest::WRITABLE);
    registry.register(&mut SourceFd(&fd.as_raw_fd()), token, both).ok()
}

fn family(addr: SocketAddr) -> AddressFamily {
    if addr.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET }
}
