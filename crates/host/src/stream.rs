//! TCP connections, and the engine's ends of DNS streams.
//!
//! The cost of a connection is its system calls, so there are no others than socket, connect,
//! registration and close, and options only where they matter. Nagle's algorithm (RFC 896) never
//! holds back the first write, in the form that Linux and the BSDs have (a partial segment waits
//! only for an earlier partial segment); it is switched off before the second.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::Interest;
use mio::unix::SourceFd;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SocketType, ipproto, sockopt};
use vmlan_engine::io::{Failure, Received, Sent};
use vmlan_engine::{SockId, Token};

use crate::failure::failure;
use crate::sockets::{Kind, Sockets, engine_token, register};
use crate::sys;
use crate::token::{self, Internal};

/// Slices that one system call takes (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

/// A smaller TTL than hosts start with: somebody traces the route and wants the routers' answers.
const TRACING_TTL: u8 = 30;

/// A stream socket's state beyond the system's own.
#[derive(Debug)]
pub(crate) struct Stream {
    nagle: Nagle,
    /// An error that the socket itself no longer holds.
    failed: Option<Failure>,
    /// The connect to `[::1]` that is under way.
    fallback: Option<Box<Fallback>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nagle {
    /// Nothing was written yet.
    Fresh,
    /// One write was done with Nagle's algorithm on.
    Once,
    Off,
}

/// Where a connect to `[::1]` goes when nobody answers there.
#[derive(Debug)]
struct Fallback {
    port: u16,
    ttl: Option<u8>,
    generation: u32,
}

impl Stream {
    fn connecting() -> Self {
        Self { nagle: Nagle::Fresh, failed: None, fallback: None }
    }

    /// An accepted connection: it has the listener's options.
    pub(crate) fn accepted() -> Self {
        Self { nagle: Nagle::Off, ..Self::connecting() }
    }

    /// One end of a pair that never leaves this process.
    pub(crate) fn local() -> Self {
        Self::accepted()
    }

    pub(crate) fn take_error(&mut self, fd: &OwnedFd) -> Option<Failure> {
        self.failed.take().or_else(|| pending_error(fd))
    }

    pub(crate) fn send(&mut self, fd: &OwnedFd, bufs: &[IoSlice<'_>]) -> Sent {
        match self.nagle {
            Nagle::Off => {}
            Nagle::Fresh => self.nagle = Nagle::Once,
            Nagle::Once => {
                self.nagle = Nagle::Off;
                // A connection that is gone cannot have it, and says so at the write.
                let _ = sockopt::set_tcp_nodelay(fd, true);
            }
        }
        let sent = retry_on_intr(|| match bufs {
            [one] => rustix::net::send(fd, one, sys::SEND_FLAGS),
            many => sys::send_vectored(fd, many.get(..MAX_SLICES).unwrap_or(many)),
        });
        match sent {
            Ok(len) => Sent::Data(len),
            Err(Errno::AGAIN) => Sent::Blocked,
            Err(errno) => Sent::Failed(failure(errno)),
        }
    }

    pub(crate) fn recv(fd: &OwnedFd, bufs: &mut [IoSliceMut<'_>]) -> Received {
        let slices = bufs.len().min(MAX_SLICES);
        let read = retry_on_intr(|| match bufs {
            [one] => rustix::net::recv(fd, &mut **one, RecvFlags::empty()).map(|(len, _)| len),
            _ => rustix::io::readv(fd, bufs.get_mut(..slices).unwrap_or_default()),
        });
        match read {
            Ok(0) if bufs.iter().all(|buf| buf.is_empty()) => Received::Data(0),
            Ok(0) => Received::Eof,
            Ok(len) => Received::Data(len),
            Err(Errno::AGAIN) => Received::Blocked,
            Err(errno) => Received::Failed(failure(errno)),
        }
    }
}

impl Sockets {
    pub(crate) fn connect_tcp(
        &mut self,
        token: Token,
        to: SocketAddr,
        ttl: Option<u8>,
    ) -> Result<SockId, Failure> {
        match start(to, ttl) {
            Ok(fd) if to.ip() == Ipv6Addr::LOCALHOST => {
                self.insert_loopback(token, fd, to.port(), ttl).ok_or(Failure::Exhausted)
            }
            Ok(fd) => {
                let kind = Kind::Stream(Stream::connecting());
                self.insert(token, fd, kind).ok_or(Failure::Exhausted)
            }
            // No IPv6 on this host at all, perhaps.
            Err(failed) if to.ip() == Ipv6Addr::LOCALHOST && failed != Failure::Exhausted => {
                self.connect_tcp(token, (Ipv4Addr::LOCALHOST, to.port()).into(), ttl)
            }
            Err(failed) => Err(failed),
        }
    }

    /// Makes a stream one of the engine's, connected and registered already with this registry.
    /// `None` when the system has no room for it.
    pub fn adopt(&mut self, token: Token, fd: OwnedFd) -> Option<SockId> {
        let both = Interest::READABLE | Interest::WRITABLE;
        let source = fd.as_raw_fd();
        // Changing the registration reports the socket as it is now.
        let registered =
            self.registry.reregister(&mut SourceFd(&source), engine_token(token), both);
        registered.ok()?;
        // A UNIX socket has no such option, and no need of it.
        let _ = sockopt::set_tcp_nodelay(&fd, true);
        self.insert_registered(token, fd, Kind::Stream(Stream::accepted()))
    }

    /// The engine's token is kept back until it is settled which loopback answers.
    fn insert_loopback(
        &mut self,
        token: Token,
        fd: OwnedFd,
        port: u16,
        ttl: Option<u8>,
    ) -> Option<SockId> {
        let generation = self.next_generation();
        // As many bits of it as a token has.
        let generation = generation & token::GENERATION;
        let internal = Internal::Loopback { index: self.table.vacant_key(), generation };
        register(&self.registry, &fd, internal.token())?;
        let fallback = Fallback { port, ttl, generation };
        let stream = Stream { fallback: Some(Box::new(fallback)), ..Stream::connecting() };
        self.insert_registered(token, fd, Kind::Stream(stream))
    }

    /// A connect to `[::1]` has succeeded or failed.
    pub(crate) fn loopback_settled(&mut self, index: usize, generation: u32) {
        let Some(socket) = self.table.get_mut(index) else { return };
        let Kind::Stream(stream) = &mut socket.kind else { return };
        let Some(fallback) = &stream.fallback else { return };
        if fallback.generation != generation {
            return;
        }
        let (port, ttl) = (fallback.port, fallback.ttl);
        stream.fallback = None;
        let token = engine_token(socket.token);
        if pending_error(&socket.fd).is_some() {
            let second = start((Ipv4Addr::LOCALHOST, port).into(), ttl).and_then(|fd| {
                register(&self.registry, &fd, token).map(|()| fd).ok_or(Failure::Exhausted)
            });
            match second {
                Ok(fd) => {
                    socket.fd = fd;
                    return;
                }
                Err(failed) => stream.failed = Some(failed),
            }
        }
        // Changing the registration reports the socket as it is now, to the engine this time.
        let both = Interest::READABLE | Interest::WRITABLE;
        let source = socket.fd.as_raw_fd();
        let _ = self.registry.reregister(&mut SourceFd(&source), token, both);
    }
}

/// `SO_ERROR`, taken.
pub(crate) fn pending_error(fd: &OwnedFd) -> Option<Failure> {
    match sockopt::socket_error(fd) {
        Ok(Ok(())) => None,
        Ok(Err(errno)) | Err(errno) => Some(failure(errno)),
    }
}

/// Makes the next close of a connection an abort (RFC 9293 section 3.10.5).
pub(crate) fn reset_on_close(fd: &OwnedFd) {
    // Fails only when there is nothing left to reset.
    let _ = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
}

/// A socket whose connect is under way.
fn start(to: SocketAddr, ttl: Option<u8>) -> Result<OwnedFd, Failure> {
    let fd =
        sys::socket(sys::family(to), SocketType::STREAM, Some(ipproto::TCP)).map_err(failure)?;
    if let Some(ttl) = ttl {
        sys::set_ttl(&fd, to.is_ipv6(), ttl);
        if ttl < TRACING_TTL {
            sys::set_recverr(&fd, to.is_ipv6());
        }
    }
    match rustix::net::connect(&fd, &to) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(fd),
        // Over IPv4 there is always a source address: what is missing is a port.
        Err(Errno::ADDRNOTAVAIL) if to.is_ipv4() => Err(Failure::Exhausted),
        Err(errno) => Err(failure(errno)),
    }
}
