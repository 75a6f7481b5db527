//! The engine's two ways out: [`Host`], the sockets of the machine it runs on, and [`Links`], the
//! guests' network cards. The daemon implements them over real file descriptors, the testkit over
//! simulated ones; nothing in the engine can tell the difference.
//!
//! Readiness is edge-triggered: after `Blocked`, or after a stream call that moved fewer bytes than
//! it was given room for, the engine does not ask again until an event for that socket arrives
//! through [`Engine::handle_host`](crate::Engine::handle_host).

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;

use vmlan_wire::{FrameBatch, OutFrame};

use crate::time::Instant;

/// What every door of the engine is given: the two ways out and the time.
#[expect(missing_debug_implementations, reason = "borrows trait objects for one call")]
pub struct Io<'a> {
    pub host: &'a mut dyn Host,
    pub links: &'a mut dyn Links,
    pub now: Instant,
}

/// One guest's attachment to the switch. Numbers are reused after a port is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// Frames towards the guests.
pub trait Links {
    /// Sends frames to a port, in order, and returns how many it took. Fewer than all means the
    /// link is full: the rest is the caller's to keep or to drop, and
    /// [`Engine::handle_port_writable`](crate::Engine::handle_port_writable) follows when there is
    /// room. Frames only carry offloads that the port was registered with.
    fn send(&mut self, port: PortId, frames: &[OutFrame<'_>]) -> usize;

    /// As [`Links::send`], with received frames that need not be touched. A link that has them in
    /// their place in the batch as it would send them may do that in one piece.
    fn pass_on(&mut self, port: PortId, batch: &FrameBatch, frames: Range<usize>) -> usize {
        batch.send_by(frames, |frames| self.send(port, frames))
    }
}

/// A name that the engine gives to a socket or a query; the host returns it with each event.
/// Below 2^62; never used twice within the life of an engine for different things at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// A name that the host gives to a socket; valid until [`Host::close`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SockId(pub u32);

/// Where a stream leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamTarget {
    Tcp(SocketAddr),
    /// The host's name service, speaking DNS over TCP (RFC 7766) with the guest at this port.
    Dns(PortId),
}

/// Where the host listens for a forward.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddr {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    /// A UNIX stream socket.
    Unix(PathBuf),
}

impl std::fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Udp(addr) => write!(f, "{addr}/udp"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Why a connection could not be made or was lost: what the guest must be shown as what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// ECONNREFUSED
    Refused,
    /// ECONNRESET, EPIPE, ECONNABORTED
    Reset,
    /// ENETUNREACH, ENETDOWN, EADDRNOTAVAIL
    NetUnreachable,
    /// EHOSTUNREACH, EHOSTDOWN
    HostUnreachable,
    /// ETIMEDOUT
    TimedOut,
    /// EACCES, EPERM: a firewall of the host
    Prohibited,
    /// EMSGSIZE
    TooBig,
    /// No file descriptor, no memory, no port left.
    Exhausted,
    /// This host cannot do that kind of socket (IPv6 off, no right to ping sockets).
    Unsupported,
    Other,
}

/// Outcome of a stream read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Data(usize),
    /// The peer sent FIN.
    Eof,
    Blocked,
    Failed(Failure),
}

/// Outcome of a stream write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Data(usize),
    Blocked,
    Failed(Failure),
}

/// How a stream is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// FIN, if it was not sent yet; what is unsent is still delivered.
    Normal,
    /// RST: the guest's side was reset or is gone.
    Reset,
}

/// A datagram socket for one guest endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramKind {
    /// Unbound: the system picks address and port at the first send.
    Udp4,
    Udp6,
    /// A forward: bound to this address.
    UdpBound(SocketAddr),
    /// Unprivileged ICMP echo socket: the system owns the identifier and the checksum.
    Ping4,
    Ping6,
}

/// IP header fields that are carried over to the host's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramOptions {
    /// TTL or hop limit, already decremented.
    pub ttl: u8,
    /// Traffic class, ECN bits included.
    pub tos: u8,
    pub dont_fragment: bool,
}

/// A datagram that came in on a host socket. For ping sockets `data` is the ICMP message and the
/// port is 0.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub from: SocketAddr,
    pub data: &'a [u8],
}

/// An ICMP error that the host received about something sent on a datagram or stream socket
/// (`IP_RECVERR`).
#[derive(Clone, Copy, Debug)]
pub struct IcmpError<'a> {
    /// ICMP type and code in the family of `to`.
    pub kind: u8,
    pub code: u8,
    /// Next-hop MTU of "fragmentation needed" and "packet too big", else 0.
    pub mtu: u32,
    /// The router or host that complained; `None` when the error is the host's own.
    pub offender: Option<IpAddr>,
    /// Where the offending datagram was sent.
    pub to: SocketAddr,
    /// The start of the offending datagram's payload.
    pub data: &'a [u8],
}

/// Outcome of draining a socket: whether there may be more now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    Empty,
    /// The budget ended first; no event will follow for what is left.
    More,
}

/// An accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// `peer` is `None` for UNIX sockets.
    Stream {
        sock: SockId,
        peer: Option<SocketAddr>,
    },
    Blocked,
    /// No descriptor left, or the like: the connection stays in the backlog for now.
    Failed(Failure),
}

/// The machine's sockets. Every call returns at once.
pub trait Host {
    /// Starts to connect. Completion is an event with `writable` (or `error`) for `token`. `ttl` is
    /// set on the socket when given.
    fn connect(
        &mut self,
        token: Token,
        target: &StreamTarget,
        ttl: Option<u8>,
    ) -> Result<SockId, Failure>;

    /// Why the socket is in error: `SO_ERROR`, taken.
    fn take_error(&mut self, sock: SockId) -> Option<Failure>;

    /// Writes to a stream, as much as it takes at once.
    fn send(&mut self, sock: SockId, bufs: &[IoSlice<'_>]) -> Sent;

    /// Reads from a stream.
    fn recv(&mut self, sock: SockId, bufs: &mut [IoSliceMut<'_>]) -> Received;

    /// Sends FIN after what was written.
    fn shutdown_write(&mut self, sock: SockId);

    /// Ends any socket, listeners and datagram sockets too (`how` matters for streams only).
    fn close(&mut self, sock: SockId, how: Close);

    /// Opens a listener for a stream forward. The error text names the address and, where the
    /// system tells, the holder.
    fn listen(&mut self, token: Token, at: &ListenAddr) -> Result<SockId, String>;

    /// Takes one connection; its events come with `token`.
    fn accept(&mut self, listener: SockId, token: Token) -> Accepted;

    /// Why listening or binding at `at` failed just now, in words: the address and, where the
    /// system tells, the holder.
    fn explain_bind(&mut self, at: &ListenAddr) -> String;

    /// Opens a datagram socket. `UdpBound` errors are told in words by [`Host::explain_bind`].
    fn datagram_open(&mut self, token: Token, kind: DatagramKind) -> Result<SockId, Failure>;

    /// Sends datagrams to one place in as few system calls as possible and returns how many were
    /// taken; the rest is lost, as datagrams are. The engine then looks at
    /// [`Host::datagram_errors`] at once, where the system's own reason (no route, too big for the
    /// path, forbidden) stands as the ICMP error that says the same, without an offender.
    fn datagram_send(
        &mut self,
        sock: SockId,
        to: SocketAddr,
        options: DatagramOptions,
        payloads: &[&[u8]],
    ) -> usize;

    /// Reads up to `budget` datagrams and hands them over in the batches in which the system gave
    /// them, so that the guest gets them in batches too.
    fn datagram_recv(
        &mut self,
        sock: SockId,
        budget: usize,
        each: &mut dyn FnMut(&[Datagram<'_>]),
    ) -> Drained;

    /// Reads the socket's error queue, up to a small budget of the host's own.
    fn datagram_errors(&mut self, sock: SockId, each: &mut dyn FnMut(IcmpError<'_>));

    /// Asks the host's name service for the guest at a port. The answer comes through
    /// [`Engine::handle_dns_answers`](crate::Engine::handle_dns_answers) with the same token, at most
    /// once, maybe never.
    fn dns_query(&mut self, token: Token, guest: PortId, message: &[u8]);
}

/// What happened to a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// The peer's FIN or RST has arrived: a read that is cut short does not mean that the socket is
    /// drained, `Eof` or `Failed` is still to come and no further event will tell.
    pub closed: bool,
    /// An error is pending: on `take_error`, on the next call, or in the error queue.
    pub error: bool,
}
