//! A simulated machine to run the engine on: [`SimHost`] implements [`Host`] with sockets whose far
//! ends follow scripts, in virtual time. A socket used after it was closed is a panic, a socket
//! that was not closed shows in [`SimHost::open_sockets`].

mod agenda;
mod datagram;
mod remote;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vmlan_engine::io::{
    Accepted, Close, Datagram, DatagramKind, DatagramOptions, Drained, Failure, Host, IcmpError,
    ListenAddr, Received, Sent, StreamTarget,
};
use vmlan_engine::{Instant, PortId, Readiness, SockId, Token};

use agenda::{Agenda, READABLE, What};
use datagram::DatagramSocket;
use stream::Stream;

pub use datagram::SentDatagram;
pub use remote::{Answer, Ending, Remote, Responder};

/// What the far end saw as the end of what the guest sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Fin,
    Reset,
}

/// The record of one connection; it stays when the connection is over.
#[derive(Clone, Debug)]
pub struct Conn {
    /// Where the engine connected to; `None` for accepted connections.
    pub target: Option<StreamTarget>,
    pub ttl: Option<u8>,
    pub up: bool,
    /// Bytes that the engine wrote.
    pub received: u64,
    /// The first of them.
    pub head: Vec<u8>,
    /// Of those, what the far end has read.
    pub read: u64,
    /// Where what was received first differs from what was expected.
    pub mismatch: Option<u64>,
    /// Bytes that the engine read.
    pub sent: u64,
    pub seen: Option<Seen>,
    /// The engine has closed its socket.
    pub closed: bool,
    /// Bytes that the engine had not read when it closed.
    pub unread: usize,
    sock: u32,
}

/// An event for the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    Ready(Token, Readiness),
    DnsAnswer(Token, Vec<u8>),
}

type DnsServer = Box<dyn FnMut(&[u8]) -> Option<Vec<u8>>>;

/// The simulated machine.
pub struct SimHost {
    agenda: Agenda,
    socks: HashMap<u32, Sock>,
    last_sock: u32,
    /// Sockets that may be open at once.
    pub socket_limit: usize,
    /// The most that were ever open.
    pub peak_sockets: usize,
    remotes: HashMap<SocketAddr, Remote>,
    /// What is wherever nothing else was put.
    pub elsewhere: Remote,
    /// The host's DNS over TCP.
    pub dns_stream: Remote,
    dns: DnsServer,
    pub dns_delay: Duration,
    responders: HashMap<SocketAddr, Responder>,
    pub respond_elsewhere: Responder,
    /// Whether ping sockets are allowed.
    pub ping_allowed: bool,
    /// Datagrams that one `datagram_send` takes.
    pub datagram_budget: usize,
    pub datagrams: Vec<SentDatagram>,
    /// Every stream there ever was, in the order of their creation.
    pub conns: Vec<Conn>,
}

#[derive(Debug)]
enum Sock {
    Stream(Box<Stream>),
    Datagram(DatagramSocket),
    Listener { token: Token, at: ListenAddr, backlog: VecDeque<(Remote, Option<SocketAddr>)> },
}

impl Default for SimHost {
    fn default() -> Self {
        Self {
            agenda: Agenda::default(),
            socks: HashMap::new(),
            last_sock: 0,
            socket_limit: usize::MAX,
            peak_sockets: 0,
            remotes: HashMap::new(),
            elsewhere: Remote::black_hole(),
            dns_stream: Remote::refuse(),
            dns: Box::new(|_| None),
            dns_delay: Duration::ZERO,
            responders: HashMap::new(),
            respond_elsewhere: Responder::Sink,
            ping_allowed: true,
            datagram_budget: usize::MAX,
            datagrams: Vec::new(),
            conns: Vec::new(),
        }
    }
}

impl fmt::Debug for SimHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conns = &self.conns[self.conns.len().saturating_sub(8)..];
        f.debug_struct("SimHost").field("sockets", &self.socks).field("conns", &conns).finish()
    }
}

/// Setting the scene.
impl SimHost {
    /// Puts something behind a TCP address.
    pub fn put(&mut self, at: SocketAddr, remote: Remote) {
        self.remotes.insert(at, remote);
    }

    /// Puts something behind a UDP address.
    pub fn put_udp(&mut self, at: SocketAddr, responder: Responder) {
        self.responders.insert(at, responder);
    }

    /// What answers pings to an address.
    pub fn put_ping(&mut self, at: IpAddr, responder: Responder) {
        self.responders.insert(datagram::ping_key(at), responder);
    }

    /// What answers DNS messages; `None` is silence.
    pub fn set_dns(&mut self, server: impl FnMut(&[u8]) -> Option<Vec<u8>> + 'static) {
        self.dns = Box::new(server);
    }

    /// A client connects to a listener of the host. Panics if nobody listens there.
    pub fn dial(&mut self, at: &ListenAddr, client: Option<SocketAddr>, behaviour: Remote) {
        let listener = self.socks.values_mut().find_map(|s| match s {
            Sock::Listener { token, at: own, backlog } if own == at => Some((*token, backlog)),
            _ => None,
        });
        let (token, backlog) = listener.expect("somebody listens there");
        backlog.push_back((behaviour, client));
        self.agenda.raise(token, READABLE);
    }

    /// A datagram from outside arrives at a bound socket. Panics if there is none.
    pub fn datagram_in(&mut self, at: SocketAddr, from: SocketAddr, data: &[u8]) {
        let what = agenda::Incoming::Datagram { from, data: data.to_vec() };
        let bound = self.socks.values_mut().find_map(|s| match s {
            Sock::Datagram(d) if d.kind == DatagramKind::UdpBound(at) => Some(d),
            _ => None,
        });
        bound.expect("somebody is bound there").deliver(what, &mut self.agenda);
    }

    /// A stranger sends a datagram to every unbound UDP socket of the host.
    pub fn datagram_to_all(&mut self, from: SocketAddr, data: &[u8]) {
        let what = agenda::Incoming::Datagram { from, data: data.to_vec() };
        for sock in self.socks.values_mut() {
            if let Sock::Datagram(d) = sock
                && matches!(d.kind, DatagramKind::Udp4 | DatagramKind::Udp6)
            {
                d.deliver(what.clone(), &mut self.agenda);
            }
        }
    }
}

/// Streams that the engine is handed.
impl SimHost {
    /// A stream of the engine's owner, connected already, that goes on under `token`. `None` when
    /// no more sockets may be open.
    pub fn adopt(&mut self, token: Token, remote: Remote) -> Option<SockId> {
        let id = self.new_sock().ok()?;
        Some(self.established(id, token, remote))
    }

    fn established(&mut self, id: u32, token: Token, remote: Remote) -> SockId {
        let conn = self.new_conn(None, None, id);
        let log = &mut self.conns[conn];
        let stream = Stream::accepted(id, token, conn, remote, log, &mut self.agenda);
        self.socks.insert(id, Sock::Stream(Box::new(stream)));
        SockId(id)
    }
}

/// The far ends, moved by the test.
impl SimHost {
    /// The far end of a connection sends bytes.
    pub fn far_send(&mut self, conn: usize, data: &[u8]) {
        if let Some((stream, _, agenda)) = self.far(conn) {
            stream.push(data, agenda);
        }
    }

    /// The far end of a connection sends FIN.
    pub fn far_fin(&mut self, conn: usize) {
        if let Some((stream, _, agenda)) = self.far(conn) {
            stream.fin(agenda);
        }
    }

    /// The connection breaks on the far side.
    pub fn far_reset(&mut self, conn: usize, why: Failure) {
        if let Some((stream, _, agenda)) = self.far(conn) {
            stream.reset(why, agenda);
        }
    }

    /// From now on the far end reads `chunk` bytes at a time; 0 means nothing.
    pub fn far_reads(&mut self, conn: usize, chunk: usize) {
        if let Some((stream, _, agenda)) = self.far(conn) {
            stream.set_reading(chunk, agenda);
        }
    }

    fn far(&mut self, conn: usize) -> Option<(&mut Stream, &mut Conn, &mut Agenda)> {
        let log = self.conns.get_mut(conn)?;
        match self.socks.get_mut(&log.sock)? {
            Sock::Stream(s) => Some((s, log, &mut self.agenda)),
            _ => None,
        }
    }
}

/// Looking at it, and driving it.
impl SimHost {
    pub fn open_sockets(&self) -> usize {
        self.socks.len()
    }

    /// Bytes that the kernel would hold in socket buffers.
    pub fn bytes_held(&self) -> usize {
        let bytes = |sock: &Sock| match sock {
            Sock::Stream(s) => s.bytes(),
            Sock::Datagram(d) => d.bytes(),
            Sock::Listener { .. } => 0,
        };
        self.socks.values().map(bytes).sum()
    }

    /// Forgets the records of connections that are over, so that long runs stay small.
    pub fn forget_closed(&mut self) {
        if self.socks.is_empty() {
            self.conns.clear();
        }
    }

    /// Tells the time; every call of the engine happens at the time told last.
    pub fn set_time(&mut self, now: Instant) {
        self.agenda.now = now;
    }

    /// When there is something to do next.
    pub fn next_event(&self) -> Option<Instant> {
        self.agenda.next()
    }

    /// Lets happen what is due and returns the next event for the engine.
    pub fn poll(&mut self) -> Option<HostEvent> {
        while let Some(what) = self.agenda.due() {
            if let Some(event) = self.happen(what) {
                return Some(event);
            }
        }
        self.agenda.take_ready().map(|(token, ready)| HostEvent::Ready(token, ready))
    }

    fn happen(&mut self, what: What) -> Option<HostEvent> {
        let (What::Outcome(id) | What::Feed(id) | What::Drain(id) | What::Deliver(id, _)) = what
        else {
            let What::Dns(token, message) = what else { return None };
            return Some(HostEvent::DnsAnswer(token, message));
        };
        let agenda = &mut self.agenda;
        match self.socks.get_mut(&id)? {
            Sock::Stream(stream) => {
                let log = &mut self.conns[stream.conn];
                match what {
                    What::Outcome(_) => stream.outcome(log, agenda),
                    What::Feed(_) => stream.feed(log, agenda),
                    _ => stream.drain(log, agenda),
                }
            }
            Sock::Datagram(socket) => {
                if let What::Deliver(_, incoming) = what {
                    socket.deliver(incoming, agenda);
                }
            }
            Sock::Listener { .. } => {}
        }
        None
    }

    fn new_sock(&mut self) -> Result<u32, Failure> {
        if self.socks.len() >= self.socket_limit {
            return Err(Failure::Exhausted);
        }
        self.last_sock += 1;
        self.peak_sockets = self.peak_sockets.max(self.socks.len() + 1);
        Ok(self.last_sock)
    }

    fn new_conn(&mut self, target: Option<StreamTarget>, ttl: Option<u8>, sock: u32) -> usize {
        self.conns.push(Conn {
            target,
            ttl,
            up: false,
            received: 0,
            head: Vec::new(),
            read: 0,
            mismatch: None,
            sent: 0,
            seen: None,
            closed: false,
            unread: 0,
            sock,
        });
        self.conns.len() - 1
    }

    fn stream(&mut self, sock: SockId) -> (&mut Stream, &mut Conn, &mut Agenda) {
        match self.socks.get_mut(&sock.0) {
            Some(Sock::Stream(s)) => {
                let log = &mut self.conns[s.conn];
                (s, log, &mut self.agenda)
            }
            other => panic!("the engine used {sock:?} as a stream, which is {other:?}"),
        }
    }

    fn datagram_sock(&mut self, sock: SockId) -> &mut DatagramSocket {
        match self.socks.get_mut(&sock.0) {
            Some(Sock::Datagram(d)) => d,
            other => panic!("the engine used {sock:?} for datagrams, which is {other:?}"),
        }
    }
}

impl Host for SimHost {
    fn connect(
        &mut self,
        token: Token,
        target: &StreamTarget,
        ttl: Option<u8>,
    ) -> Result<SockId, Failure> {
        let remote = match target {
            StreamTarget::Tcp(at) => self.remotes.get(at).unwrap_or(&self.elsewhere).clone(),
            StreamTarget::Dns(_) => self.dns_stream.clone(),
        };
        let id = self.new_sock()?;
        let conn = self.new_conn(Some(target.clone()), ttl, id);
        let stream = Stream::connecting(id, token, conn, remote, &mut self.agenda);
        self.socks.insert(id, Sock::Stream(Box::new(stream)));
        Ok(SockId(id))
    }

    fn take_error(&mut self, sock: SockId) -> Option<Failure> {
        match self.socks.get_mut(&sock.0) {
            Some(Sock::Stream(s)) => s.take_error(),
            Some(_) => None,
            None => panic!("the engine asked for the error of {sock:?}, which is closed"),
        }
    }

    fn send(&mut self, sock: SockId, bufs: &[IoSlice<'_>]) -> Sent {
        let (stream, log, agenda) = self.stream(sock);
        stream.send(bufs, log, agenda)
    }

    fn recv(&mut self, sock: SockId, bufs: &mut [IoSliceMut<'_>]) -> Received {
        let (stream, log, agenda) = self.stream(sock);
        stream.recv(bufs, log, agenda)
    }

    fn shutdown_write(&mut self, sock: SockId) {
        let (stream, log, agenda) = self.stream(sock);
        stream.shutdown_write(log, agenda);
    }

    fn close(&mut self, sock: SockId, how: Close) {
        match self.socks.remove(&sock.0) {
            Some(Sock::Stream(mut s)) => s.close(how, &mut self.conns[s.conn]),
            Some(_) => {}
            None => panic!("the engine closed {sock:?} twice"),
        }
    }

    fn listen(&mut self, token: Token, at: &ListenAddr) -> Result<SockId, String> {
        let taken = |s: &Sock| matches!(s, Sock::Listener { at: other, .. } if other == at);
        if self.socks.values().any(taken) {
            return Err(format!("{at:?} is in use"));
        }
        let id = self.new_sock().map_err(|why| format!("{at:?}: {why:?}"))?;
        let listener = Sock::Listener { token, at: at.clone(), backlog: VecDeque::new() };
        self.socks.insert(id, listener);
        Ok(SockId(id))
    }

    fn accept(&mut self, listener: SockId, token: Token) -> Accepted {
        let waiting = match self.socks.get(&listener.0) {
            Some(Sock::Listener { backlog, .. }) => !backlog.is_empty(),
            other => panic!("the engine accepts on {listener:?}, which is {other:?}"),
        };
        if !waiting {
            return Accepted::Blocked;
        }
        let id = match self.new_sock() {
            Ok(id) => id,
            Err(why) => return Accepted::Failed(why),
        };
        let Some(Sock::Listener { backlog, .. }) = self.socks.get_mut(&listener.0) else {
            return Accepted::Blocked;
        };
        let Some((remote, peer)) = backlog.pop_front() else { return Accepted::Blocked };
        Accepted::Stream { sock: self.established(id, token, remote), peer }
    }

    fn explain_bind(&mut self, at: &ListenAddr) -> String {
        format!("{at:?} is in use")
    }

    fn datagram_open(&mut self, token: Token, kind: DatagramKind) -> Result<SockId, Failure> {
        if !self.ping_allowed && matches!(kind, DatagramKind::Ping4 | DatagramKind::Ping6) {
            return Err(Failure::Unsupported);
        }
        let taken = |s: &Sock| matches!(s, Sock::Datagram(d) if d.kind == kind);
        if matches!(kind, DatagramKind::UdpBound(_)) && self.socks.values().any(taken) {
            return Err(Failure::Other);
        }
        let id = self.new_sock()?;
        self.socks.insert(id, Sock::Datagram(DatagramSocket::new(id, token, kind)));
        Ok(SockId(id))
    }

    fn datagram_send(
        &mut self,
        sock: SockId,
        to: SocketAddr,
        options: DatagramOptions,
        payloads: &[&[u8]],
    ) -> usize {
        let Some(Sock::Datagram(socket)) = self.socks.get(&sock.0) else {
            panic!("the engine sent datagrams on {sock:?}, which is no such socket");
        };
        let kind = socket.kind;
        let at = datagram::key(kind, to);
        let responder = self.responders.get(&at).unwrap_or(&self.respond_elsewhere);
        let taken = payloads.len().min(self.datagram_budget);
        for data in &payloads[..taken] {
            socket.respond(responder, to, data, &mut self.agenda);
            self.datagrams.push(SentDatagram { kind, to, options, data: data.to_vec() });
        }
        taken
    }

    fn datagram_recv(
        &mut self,
        sock: SockId,
        budget: usize,
        each: &mut dyn FnMut(&[Datagram<'_>]),
    ) -> Drained {
        self.datagram_sock(sock).recv(budget, each)
    }

    fn datagram_errors(&mut self, sock: SockId, each: &mut dyn FnMut(IcmpError<'_>)) {
        self.datagram_sock(sock).errors(each);
    }

    fn dns_query(&mut self, token: Token, _guest: PortId, message: &[u8]) {
        if let Some(answer) = (self.dns)(message) {
            self.agenda.schedule(self.dns_delay, What::Dns(token, answer));
        }
    }
}
