//! The resolver on ports of the host: what the engine is for guests, here two sockets are.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::io::Errno;
use rustix::net::{SocketType, ipproto, sockopt};
use vmlan_dns::{Answers, Options, Resolver};
use vmlan_engine::io::ListenAddr;

use super::Lanes;
use crate::sys::{self, Batches};
use crate::{explain, token};

const UDP: mio::Token = mio::Token(1);
const TCP: mio::Token = mio::Token(2);

const BACKLOG: i32 = 256;

/// A burst must fit between two passes of the loop.
const BUFFER: usize = 1 << 20;

/// Batches and connections that are taken before answers are given.
const MAX_BATCHES: usize = 16;
const BATCH: usize = 30;
const MAX_ACCEPTS: usize = 64;

/// How long to wait for a descriptor when there is none left.
const REST: Duration = Duration::from_millis(500);

/// A port that could not be had, in words: the address and, where the system tells, the holder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PortError(String);

/// The resolver on a UDP and a TCP port of 127.0.0.1, each with clients of its own.
#[derive(Debug)]
pub struct DnsPorts {
    resolver: Resolver,
    batches: Batches,
    udp: (OwnedFd, SocketAddr),
    tcp: (OwnedFd, SocketAddr),
    taken: Answers<u64>,
    /// There was more than fitted into a turn.
    more_udp: bool,
    more_tcp: bool,
    /// When to try again to accept.
    rest: Option<Instant>,
}

impl DnsPorts {
    /// Opens both ports; a zero is a random free one.
    pub fn open(
        registry: &Registry,
        udp: u16,
        tcp: u16,
        options: Options,
    ) -> Result<Self, PortError> {
        let failed = |text: String| PortError(text);
        let io = |e: std::io::Error| failed(format!("cannot poll: {e}"));
        let udp_at = SocketAddr::from((Ipv4Addr::LOCALHOST, udp));
        let tcp_at = SocketAddr::from((Ipv4Addr::LOCALHOST, tcp));
        let udp = bind(SocketType::DGRAM, udp_at)
            .map_err(|errno| failed(explain::bind_failure(&ListenAddr::Udp(udp_at), errno)))?;
        let tcp = bind(SocketType::STREAM, tcp_at)
            .map_err(|errno| failed(explain::bind_failure(&ListenAddr::Tcp(tcp_at), errno)))?;
        let register = |fd: &OwnedFd, token| {
            registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)
        };
        register(&udp.0, UDP).map_err(io)?;
        register(&tcp.0, TCP).map_err(io)?;
        Ok(Self {
            resolver: Resolver::new(
                registry.try_clone().map_err(io)?,
                token::DNS,
                options,
                Instant::now(),
            ),
            batches: Batches::default(),
            udp,
            tcp,
            taken: Answers::default(),
            more_udp: false,
            more_tcp: false,
            rest: None,
        })
    }

    pub fn udp_addr(&self) -> SocketAddr {
        self.udp.1
    }

    pub fn tcp_addr(&self) -> SocketAddr {
        self.tcp.1
    }

    /// Whether a token is one of these sockets'.
    pub fn owns(token: mio::Token) -> bool {
        token == UDP || token == TCP || token.0 & token::DNS == token::DNS
    }

    pub fn handle(&mut self, event: &Event, now: Instant) {
        match event.token() {
            UDP => self.more_udp = true,
            TCP => self.more_tcp = true,
            _ => self.resolver.handle(&mut Lanes(&mut self.batches), event, now),
        }
    }

    /// What follows the events of a pass.
    pub fn work(&mut self, now: Instant) {
        if self.more_udp {
            self.more_udp = self.read(now);
        }
        if self.more_tcp || self.rest.is_some_and(|due| due <= now) {
            self.accept(now);
        }
        self.resolver.flush(&mut Lanes(&mut self.batches), now);
        if self.resolver.next_timeout().is_some_and(|due| due <= now) {
            self.resolver.handle_timeout(&mut Lanes(&mut self.batches), now);
        }
        self.give();
    }

    /// When [`DnsPorts::work`] has to be called next; a time in the past means at once.
    pub fn next_timeout(&self, now: Instant) -> Option<Instant> {
        if self.more_udp || self.more_tcp || self.resolver.is_unfinished() {
            return Some(now);
        }
        [self.resolver.next_timeout(), self.rest].into_iter().flatten().min()
    }

    /// True if there may be more.
    fn read(&mut self, now: Instant) -> bool {
        let Self { resolver, batches, udp, .. } = self;
        for _ in 0..MAX_BATCHES {
            let read = batches.recv(&udp.0, BATCH, None, &mut |batch| {
                for datagram in batch {
                    let guest = u32::from(datagram.from.port());
                    resolver.query(number(datagram.from), guest, datagram.data, now);
                }
            });
            match read {
                Ok((asked, got)) if got < asked => return false,
                Ok(_) => {}
                Err(Errno::AGAIN) => return false,
                // A client that did not wait for its answer.
                Err(_) => {}
            }
        }
        true
    }

    fn accept(&mut self, now: Instant) {
        self.rest = None;
        self.more_tcp = false;
        for _ in 0..MAX_ACCEPTS {
            match sys::accept(&self.tcp.0) {
                Ok((fd, peer)) => {
                    // Answers go out as they come.
                    let _ = sockopt::set_tcp_nodelay(&fd, true);
                    let guest = peer.map_or(0, |peer| u32::from(peer.port()));
                    // One too many sees its connection close.
                    let _ = self.resolver.open_stream(fd, guest, now);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.rest = Some(now + REST);
                    return;
                }
                Err(_) => {}
            }
        }
        self.more_tcp = true;
    }

    fn give(&mut self) {
        std::mem::swap(&mut self.taken, self.resolver.answers());
        let mut payloads: Vec<&[u8]> = Vec::new();
        let mut to = None;
        for answer in self.taken.iter() {
            if to != Some(answer.to) {
                send(&mut self.batches, &self.udp.0, to, &payloads);
                payloads.clear();
                to = Some(answer.to);
            }
            payloads.push(answer.message);
        }
        send(&mut self.batches, &self.udp.0, to, &payloads);
        drop(payloads);
        self.taken.clear();
    }
}

/// What the socket has no room for is lost, as datagrams are.
fn send(batches: &mut Batches, fd: &OwnedFd, to: Option<u64>, payloads: &[&[u8]]) {
    if let Some(to) = to.filter(|_| !payloads.is_empty()) {
        batches.send(fd, Some(address(to)), None, payloads, &mut false);
    }
}

fn bind(kind: SocketType, at: SocketAddr) -> Result<(OwnedFd, SocketAddr), Errno> {
    let stream = kind == SocketType::STREAM;
    let protocol = if stream { ipproto::TCP } else { ipproto::UDP };
    let fd = sys::socket(sys::family(at), kind, Some(protocol))?;
    if stream {
        sockopt::set_socket_reuseaddr(&fd, true)?;
    } else {
        // A smaller buffer only loses more.
        let _ = sockopt::set_socket_recv_buffer_size(&fd, BUFFER);
    }
    rustix::net::bind(&fd, &at)?;
    if stream {
        rustix::net::listen(&fd, BACKLOG)?;
    }
    let at = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
    Ok((fd, at))
}

/// Clients by number. They are on the loopback, and all of IPv4.
fn number(client: SocketAddr) -> u64 {
    match client {
        SocketAddr::V4(client) => u64::from(client.ip().to_bits()) << 16 | u64::from(client.port()),
        SocketAddr::V6(_) => 0,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "each part has its place")]
fn address(number: u64) -> SocketAddr {
    SocketAddrV4::new(Ipv4Addr::from_bits((number >> 16) as u32), number as u16).into()
}
