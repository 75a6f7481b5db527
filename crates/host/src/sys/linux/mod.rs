//! Linux.

mod batch;
mod control;
mod errqueue;
mod holder;
mod locals;

use std::ffi::c_int;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, sockopt,
};

use super::set_int;

pub(crate) use batch::Batches;
pub(crate) use errqueue::drain_errors;
pub(crate) use holder::{holder, process};
pub(crate) use locals::Locals;

/// A broken connection is told by the call, not by a signal.
pub(crate) const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;

pub(crate) fn socket(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(family, kind, flags, protocol)
}

pub(crate) fn socket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// `None` for the peer of a UNIX socket.
pub(crate) fn accept(listener: &OwnedFd) -> Result<(OwnedFd, Option<SocketAddr>), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (fd, peer) = rustix::net::acceptfrom_with(listener, flags)?;
    Ok((fd, peer.and_then(|peer| SocketAddr::try_from(peer).ok())))
}

pub(crate) fn send_vectored(fd: &OwnedFd, bufs: &[IoSlice<'_>]) -> Result<usize, Errno> {
    rustix::net::sendmsg(fd, bufs, &mut SendAncillaryBuffer::default(), SEND_FLAGS)
}

/// Asks for ICMP errors on the socket's error queue.
pub(crate) fn set_recverr(fd: impl AsFd, ipv6: bool) {
    let (level, name) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    } else {
        (libc::IPPROTO_IP, libc::IP_RECVERR)
    };
    let _ = set_int(fd, level, name, 1);
}

/// With it, nothing larger than the path's MTU is sent and the error queue tells; without, the
/// system fragments.
pub(crate) fn set_dont_fragment(fd: impl AsFd, ipv6: bool, on: bool) {
    let (level, name, value): (_, _, c_int) = match (ipv6, on) {
        (false, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        (false, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (true, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
        (true, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT),
    };
    let _ = set_int(fd, level, name, value);
}

/// Asks for the local address with each datagram.
pub(crate) fn set_local_address(fd: impl AsFd, ipv6: bool) -> Result<(), Errno> {
    if ipv6 {
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
    } else {
        set_int(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    }
}

/// Binds a UNIX socket whose file only its owner may use from the first moment: the file takes the
/// mode of the socket.
pub(crate) fn bind_unix_private(
    fd: &OwnedFd,
    addr: &SocketAddrUnix,
    _path: &Path,
) -> Result<(), Errno> {
    rustix::fs::fchmod(fd, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::bind(fd, addr)
}

/// The process behind the other end of a UNIX socket.
pub(crate) fn peer_process(fd: &OwnedFd) -> Option<String> {
    let peer = sockopt::socket_peercred(fd).ok()?;
    Some(process(peer.pid.as_raw_nonzero().get()))
}

/// Why a port below 1024 was refused, and who allows it.
pub(crate) fn privileged_port(port: u16) -> String {
    format!(
        "ports below {} are for root; `sysctl net.ipv4.ip_unprivileged_port_start={port}` allows it",
        unprivileged_port_start().unwrap_or(1024)
    )
}

fn unprivileged_port_start() -> Option<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok()?;
    text.trim().parse().ok()
}
