//! macOS and the BSDs: no error queues, no batches, no ports of other processes to look at.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use arrayvec::ArrayVec;
use rustix::io::{Errno, FdFlags, ioctl_fionbio};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sockopt,
};
use vmlan_engine::io::{Datagram, IcmpError, ListenAddr};

use super::set_int;

/// The signal is switched off by socket.
pub(crate) const SEND_FLAGS: SendFlags = SendFlags::empty();

const SLOT: usize = 1 << 16;

pub(crate) fn socket(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> Result<OwnedFd, Errno> {
    prepare(rustix::net::socket(family, kind, protocol)?)
}

pub(crate) fn socket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::empty();
    let (one, other) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok((prepare(one)?, prepare(other)?))
}

/// `None` for the peer of a UNIX socket.
pub(crate) fn accept(listener: &OwnedFd) -> Result<(OwnedFd, Option<SocketAddr>), Errno> {
    let (fd, peer) = rustix::net::acceptfrom(listener)?;
    Ok((prepare(fd)?, peer.and_then(|peer| SocketAddr::try_from(peer).ok())))
}

fn prepare(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    ioctl_fionbio(&fd, true)?;
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    // Refused when the peer of an accepted connection is gone already.
    let _ = sockopt::set_socket_nosigpipe(&fd, true);
    Ok(fd)
}

pub(crate) fn send_vectored(fd: &OwnedFd, bufs: &[IoSlice<'_>]) -> Result<usize, Errno> {
    rustix::net::sendmsg(fd, bufs, &mut SendAncillaryBuffer::default(), SEND_FLAGS)
}

/// There are no error queues.
pub(crate) fn set_recverr(_fd: impl AsFd, _ipv6: bool) {}

pub(crate) fn drain_errors(_fd: &OwnedFd, _each: &mut dyn FnMut(IcmpError<'_>)) -> usize {
    0
}

/// With it, nothing larger than the path's MTU is sent; without, the system fragments.
pub(crate) fn set_dont_fragment(fd: impl AsFd, ipv6: bool, on: bool) {
    let (level, name) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG)
    } else {
        (libc::IPPROTO_IP, libc::IP_DONTFRAG)
    };
    let _ = set_int(fd, level, name, i32::from(on));
}

/// Nothing is known of the address that a peer spoke to: answers come from the one that the system
/// chooses.
#[derive(Debug, Default)]
pub(crate) struct Locals;

impl Locals {
    pub(crate) fn of(&self, _peer: SocketAddr) -> Option<IpAddr> {
        None
    }
}

pub(crate) fn set_local_address(_fd: impl AsFd, _ipv6: bool) -> Result<(), Errno> {
    Ok(())
}

pub(crate) fn bind_unix_private(
    fd: &OwnedFd,
    addr: &SocketAddrUnix,
    path: &Path,
) -> Result<(), Errno> {
    rustix::net::bind(fd, addr)?;
    rustix::fs::chmod(path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
}

pub(crate) fn peer_process(_fd: &OwnedFd) -> Option<String> {
    None
}

pub(crate) fn holder(_at: &ListenAddr) -> Option<String> {
    None
}

pub(crate) fn privileged_port(_port: u16) -> String {
    "ports below 1024 of a single address are for root".into()
}

/// One datagram after the other, with the same calls as batches.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    data: Vec<u8>,
}

impl Batches {
    pub(crate) fn recv(
        &mut self,
        fd: &OwnedFd,
        max: usize,
        _locals: Option<&mut Locals>,
        each: &mut dyn FnMut(&[Datagram<'_>]),
    ) -> Result<(usize, usize), Errno> {
        const BATCH: usize = 16;
        self.data.resize(BATCH * SLOT, 0);
        let mut datagrams = ArrayVec::<_, BATCH>::new();
        let asked = max.min(BATCH);
        for slot in self.data.chunks_exact_mut(SLOT).take(asked) {
            match rustix::net::recvfrom(fd, &mut *slot, RecvFlags::DONTWAIT) {
                Ok((len, _, from)) => {
                    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                    let (Some(from), Some(data)) = (from, slot.get(..len)) else { continue };
                    datagrams.push(Datagram { from, data: without_ip_header(from, data) });
                }
                Err(errno) if datagrams.is_empty() => return Err(errno),
                Err(_) => break,
            }
        }
        each(&datagrams);
        Ok((asked, datagrams.len()))
    }

    pub(crate) fn send(
        &mut self,
        fd: &OwnedFd,
        to: Option<SocketAddr>,
        _from: Option<IpAddr>,
        payloads: &[&[u8]],
        _segment: &mut bool,
    ) -> (usize, Option<Errno>) {
        for (sent, payload) in payloads.iter().enumerate() {
            let done = match &to {
                Some(to) => rustix::net::sendto(fd, payload, SEND_FLAGS, to),
                None => rustix::net::send(fd, payload, SEND_FLAGS),
            };
            if let Err(errno) = done {
                return (sent, Some(errno));
            }
        }
        (payloads.len(), None)
    }
}

/// Echo sockets of IPv4, whose peers have no port, hand out the IP header too. No ICMP message
/// starts like one: those types were never assigned.
fn without_ip_header(from: SocketAddr, data: &[u8]) -> &[u8] {
    match data.first() {
        Some(first) if from.is_ipv4() && from.port() == 0 && first >> 4 == 4 => {
            data.get(usize::from(first & 0x0f) * 4..).unwrap_or_default()
        }
        _ => data,
    }
}
