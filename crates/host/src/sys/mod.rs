//! What differs between operating systems, one module each behind the same names.

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod imp;
#[cfg(not(target_os = "linux"))]
#[path = "bsd.rs"]
mod imp;

use std::ffi::c_int;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::net::AddressFamily;

pub(crate) use imp::*;

pub(crate) fn family(addr: SocketAddr) -> AddressFamily {
    if addr.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET }
}

/// Sets an option whose value is a C `int`.
pub(crate) fn set_int(fd: impl AsFd, level: c_int, name: c_int, value: c_int) -> Result<(), Errno> {
    let len = libc::socklen_t::try_from(size_of::<c_int>()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the option's value is a `c_int` that lives through the call.
    let done = unsafe {
        libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), len)
    };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The errno of the libc call before.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The TTL or hop limit of what a socket sends.
pub(crate) fn set_ttl(fd: impl AsFd, ipv6: bool, ttl: u8) {
    let (level, name) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS)
    } else {
        (libc::IPPROTO_IP, libc::IP_TTL)
    };
    // Refused only for a zero, which never leaves the engine.
    let _ = set_int(fd, level, name, c_int::from(ttl));
}

/// The traffic class, ECN bits included, of what a socket sends.
pub(crate) fn set_tos(fd: impl AsFd, ipv6: bool, tos: u8) {
    let (level, name) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
    } else {
        (libc::IPPROTO_IP, libc::IP_TOS)
    };
    // Some values may need a privilege; the datagram then goes without.
    let _ = set_int(fd, level, name, c_int::from(tos));
}
