//! The table of the engine's sockets, and [`Host`] over it. What each kind of socket does is told
//! in its own module.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::io::Errno;
use slab::Slab;
use vmlan_dns::{Answers, Resolver};
use vmlan_engine::io::{
    Accepted, Close, Datagram, DatagramKind, DatagramOptions, Drained, Failure, IcmpError,
    ListenAddr, Received, Sent, StreamTarget,
};
use vmlan_engine::{Host, Instant, PortId, Readiness, SockId, Token};

use crate::datagram::{self, Datagrams};
use crate::dns::Dns;
use crate::explain;
use crate::listener::Listener;
use crate::stream::Stream;
use crate::token::{self, Internal};

/// The machine's sockets.
#[derive(Debug)]
pub struct Sockets {
    pub(crate) registry: Registry,
    pub(crate) table: Slab<Socket>,
    pub(crate) datagrams: Datagrams,
    /// Why the last bind of a datagram socket failed.
    refused_bind: Option<(SocketAddr, Errno)>,
    dns: Dns,
    generation: u32,
}

/// One of the engine's sockets.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) fd: OwnedFd,
    pub(crate) token: Token,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Stream(Stream),
    Datagram(datagram::Socket),
    Listener(Listener),
}

impl Sockets {
    /// Set in the tokens of sockets that are the host's own.
    pub const INTERNAL: usize = token::INTERNAL;

    pub fn new(registry: Registry, dns: vmlan_dns::Options) -> io::Result<Self> {
        let dns = Dns::new(registry.try_clone()?, dns);
        Ok(Self {
            registry,
            table: Slab::new(),
            datagrams: Datagrams::default(),
            refused_bind: None,
            dns,
            generation: 0,
        })
    }

    /// An event of a token with [`Self::INTERNAL`] set.
    pub fn handle_internal(&mut self, token: mio::Token, event: &mio::event::Event, now: Instant) {
        let Some(internal) = Internal::of(token) else { return };
        match internal {
            Internal::Loopback { index, generation } => self.loopback_settled(index, generation),
            Internal::Dns => self.dns.handle(&mut self.datagrams.batches, event, now),
        }
    }

    /// The resolver that answers the guests.
    pub fn resolver(&mut self) -> &mut Resolver {
        self.dns.resolver()
    }

    /// Asks what queries since the last call have left to ask. To be called once in every pass.
    pub fn flush_dns(&mut self, now: Instant) {
        self.dns.flush(&mut self.datagrams.batches, now);
    }

    /// Answers to the engine's queries, by token; to be cleared when they are taken. To be looked
    /// at after every call that may have brought some: a query, an internal event, a timeout.
    pub fn dns_answers(&mut self) -> &mut Answers<u64> {
        self.dns.answers()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.dns.handle_timeout(&mut self.datagrams.batches, now);
    }

    /// When [`Self::handle_timeout`] has to be called next; a time in the past means at once.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.dns.next_timeout()
    }

    /// What an event of one of the engine's tokens says.
    pub fn readiness(event: &mio::event::Event) -> Readiness {
        Readiness {
            readable: event.is_readable() || event.is_read_closed(),
            writable: event.is_writable() || event.is_write_closed(),
            closed: event.is_read_closed() || event.is_error(),
            error: event.is_error(),
        }
    }

    /// Sockets that the engine has open.
    pub fn open_sockets(&self) -> usize {
        self.table.len()
    }

    /// Registers a socket for all its life and gives it a number.
    pub(crate) fn insert(&mut self, token: Token, fd: OwnedFd, kind: Kind) -> Option<SockId> {
        // Nobody waits until a datagram may be sent, and each one sent would wake the loop.
        let interest = match kind {
            Kind::Datagram(_) => Interest::READABLE,
            _ => BOTH,
        };
        let source = fd.as_raw_fd();
        self.registry.register(&mut SourceFd(&source), engine_token(token), interest).ok()?;
        self.insert_registered(token, fd, kind)
    }

    pub(crate) fn insert_registered(
        &mut self,
        token: Token,
        fd: OwnedFd,
        kind: Kind,
    ) -> Option<SockId> {
        let id = u32::try_from(self.table.vacant_key()).ok()?;
        self.table.insert(Socket { fd, token, kind });
        Some(SockId(id))
    }

    pub(crate) fn get(&mut self, sock: SockId) -> Option<&mut Socket> {
        self.table.get_mut(sock.0 as usize)
    }

    /// Tells successive users of a place in the table apart.
    pub(crate) fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    fn stream(&mut self, sock: SockId) -> Option<(&OwnedFd, &mut Stream)> {
        match self.table.get_mut(sock.0 as usize) {
            Some(Socket { fd, kind: Kind::Stream(stream), .. }) => Some((fd, stream)),
            _ => None,
        }
    }
}

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Both directions, edge-triggered. `None` when the system has no room for it.
pub(crate) fn register(registry: &Registry, fd: &OwnedFd, token: mio::Token) -> Option<()> {
    registry.register(&mut SourceFd(&fd.as_raw_fd()), token, BOTH).ok()
}

/// The engine's tokens are below 2^62 and used as they are.
#[expect(clippy::cast_possible_truncation, reason = "only 64-bit systems are served")]
pub(crate) fn engine_token(token: Token) -> mio::Token {
    mio::Token(token.0 as usize & (token::INTERNAL - 1))
}

impl Host for Sockets {
    fn connect(
        &mut self,
        token: Token,
        target: &StreamTarget,
        ttl: Option<u8>,
    ) -> Result<SockId, Failure> {
        match target {
            StreamTarget::Tcp(addr) => self.connect_tcp(token, *addr, ttl),
            StreamTarget::Dns(guest) => {
                let fd = self.dns.open_stream(u32::from(guest.0))?;
                let kind = Kind::Stream(Stream::local());
                self.insert(token, fd, kind).ok_or(Failure::Exhausted)
            }
        }
    }

    fn take_error(&mut self, sock: SockId) -> Option<Failure> {
        let socket = self.get(sock)?;
        match &mut socket.kind {
            Kind::Stream(stream) => stream.take_error(&socket.fd),
            _ => crate::stream::pending_error(&socket.fd),
        }
    }

    fn send(&mut self, sock: SockId, bufs: &[IoSlice<'_>]) -> Sent {
        match self.stream(sock) {
            Some((fd, stream)) => stream.send(fd, bufs),
            None => Sent::Failed(Failure::Other),
        }
    }

    fn recv(&mut self, sock: SockId, bufs: &mut [IoSliceMut<'_>]) -> Received {
        match self.stream(sock) {
            Some((fd, _)) => Stream::recv(fd, bufs),
            None => Received::Failed(Failure::Other),
        }
    }

    fn shutdown_write(&mut self, sock: SockId) {
        if let Some((fd, _)) = self.stream(sock) {
            // Fails only when the connection is gone, which the next read tells.
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Write);
        }
    }

    fn close(&mut self, sock: SockId, how: Close) {
        let Some(socket) = self.table.try_remove(sock.0 as usize) else { return };
        if how == Close::Reset && matches!(socket.kind, Kind::Stream(_)) {
            crate::stream::reset_on_close(&socket.fd);
        }
        // Closing the only descriptor of a socket also ends its registration.
        drop(socket);
    }

    fn listen(&mut self, token: Token, at: &ListenAddr) -> Result<SockId, String> {
        self.open_listener(token, at)
    }

    fn accept(&mut self, listener: SockId, token: Token) -> Accepted {
        self.accept_one(listener, token)
    }

    fn datagram_open(&mut self, token: Token, kind: DatagramKind) -> Result<SockId, Failure> {
        let opened = datagram::Socket::open(kind);
        let (fd, socket) = opened.map_err(|errno| {
            if let DatagramKind::UdpBound(at) = kind {
                self.refused_bind = Some((at, errno));
            }
            datagram::open_failure(kind, errno)
        })?;
        self.insert(token, fd, Kind::Datagram(socket)).ok_or(Failure::Exhausted)
    }

    fn explain_bind(&mut self, at: &ListenAddr) -> String {
        match (at, self.refused_bind) {
            (ListenAddr::Udp(addr), Some((last, errno))) if *addr == last => {
                explain::bind_failure(at, errno)
            }
            _ => format!("cannot listen on {}", explain::name(at)),
        }
    }

    fn datagram_send(
        &mut self,
        sock: SockId,
        to: SocketAddr,
        options: DatagramOptions,
        payloads: &[&[u8]],
    ) -> usize {
        match self.table.get_mut(sock.0 as usize) {
            Some(Socket { fd, kind: Kind::Datagram(socket), .. }) => {
                self.datagrams.send(sock, fd, socket, to, options, payloads)
            }
            _ => 0,
        }
    }

    fn datagram_recv(
        &mut self,
        sock: SockId,
        budget: usize,
        each: &mut dyn FnMut(&[Datagram<'_>]),
    ) -> Drained {
        match self.table.get_mut(sock.0 as usize) {
            Some(Socket { fd, kind: Kind::Datagram(socket), .. }) => {
                self.datagrams.recv(fd, socket, budget, each)
            }
            _ => Drained::Empty,
        }
    }

    fn datagram_errors(&mut self, sock: SockId, each: &mut dyn FnMut(IcmpError<'_>)) {
        if let Some(socket) = self.table.get(sock.0 as usize) {
            self.datagrams.errors(sock, &socket.fd, each);
        }
    }

    fn dns_query(&mut self, token: Token, guest: PortId, message: &[u8]) {
        self.dns.query(token.0, u32::from(guest.0), message);
    }
}
