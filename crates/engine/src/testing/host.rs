//! Sockets that remember what was done with them, and to which happens what the test says.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};

use crate::io::{
    Accepted, Close, Datagram, DatagramKind, DatagramOptions, Drained, Failure, Host, IcmpError,
    ListenAddr, PortId, Received, Sent, SockId, StreamTarget, Token,
};

/// Sockets that remember.
#[derive(Default)]
pub(crate) struct SimHost {
    next: u32,
    pub(crate) open: HashMap<SockId, (Token, Option<DatagramKind>)>,
    pub(crate) closed: Vec<SockId>,
    /// One for each call.
    pub(crate) sent: Vec<(SockId, SocketAddr, DatagramOptions, Vec<Vec<u8>>)>,
    pub(crate) inbox: HashMap<SockId, VecDeque<(SocketAddr, Vec<u8>)>>,
    pub(crate) errors: HashMap<SockId, VecDeque<SimError>>,
    /// Datagrams a socket takes in one call.
    pub(crate) takes: Option<usize>,
    /// What becomes of every attempt to open anything.
    pub(crate) refuse: Option<Failure>,
    pub(crate) occupied: HashSet<ListenAddr>,
    /// Clients that wait in the backlog of each listener.
    pub(crate) backlog: HashMap<SockId, VecDeque<SocketAddr>>,
    pub(crate) accepts: usize,
    /// Messages for the host's nameservers.
    pub(crate) queries: Vec<(Token, Vec<u8>)>,
}

#[derive(Clone)]
pub(crate) struct SimError {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    pub(crate) mtu: u32,
    pub(crate) offender: Option<IpAddr>,
    pub(crate) to: SocketAddr,
    pub(crate) data: Vec<u8>,
}

impl SimHost {
    fn add(&mut self, token: Token, kind: Option<DatagramKind>) -> SockId {
        self.next += 1;
        self.open.insert(SockId(self.next), (token, kind));
        SockId(self.next)
    }

    pub(crate) fn token(&self, sock: SockId) -> Token {
        self.open[&sock].0
    }

    /// The open datagram sockets, oldest first.
    pub(crate) fn sockets(&self) -> Vec<SockId> {
        let mut all: Vec<SockId> = self.open.keys().copied().collect();
        all.sort_by_key(|s| s.0);
        all
    }

    pub(crate) fn deliver(&mut self, sock: SockId, from: &str, data: &[u8]) {
        let from = from.parse().unwrap();
        self.inbox.entry(sock).or_default().push_back((from, data.to_vec()));
    }
}

impl Host for SimHost {
    fn connect(
        &mut self,
        token: Token,
        _: &StreamTarget,
        _: Option<u8>,
    ) -> Result<SockId, Failure> {
        match self.refuse {
            Some(failure) => Err(failure),
            None => Ok(self.add(token, None)),
        }
    }

    fn take_error(&mut self, _: SockId) -> Option<Failure> {
        None
    }

    fn send(&mut self, _: SockId, _: &[IoSlice<'_>]) -> Sent {
        Sent::Blocked
    }

    fn recv(&mut self, _: SockId, _: &mut [IoSliceMut<'_>]) -> Received {
        Received::Blocked
    }

    fn shutdown_write(&mut self, _: SockId) {}

    fn close(&mut self, sock: SockId, _: Close) {
        assert!(self.open.remove(&sock).is_some(), "closed twice");
        self.closed.push(sock);
    }

    fn listen(&mut self, token: Token, at: &ListenAddr) -> Result<SockId, String> {
        if self.occupied.contains(at) {
            return Err(self.explain_bind(at));
        }
        Ok(self.add(token, None))
    }

    fn accept(&mut self, listener: SockId, token: Token) -> Accepted {
        self.accepts += 1;
        if let Some(failure) = self.refuse {
            return Accepted::Failed(failure);
        }
        match self.backlog.get_mut(&listener).and_then(VecDeque::pop_front) {
            Some(peer) => Accepted::Stream { sock: self.add(token, None), peer: Some(peer) },
            None => Accepted::Blocked,
        }
    }

    fn explain_bind(&mut self, at: &ListenAddr) -> String {
        format!("cannot listen on {at}: in use")
    }

    fn datagram_open(&mut self, token: Token, kind: DatagramKind) -> Result<SockId, Failure> {
        if let DatagramKind::UdpBound(at) = kind
            && self.occupied.contains(&ListenAddr::Udp(at))
        {
            return Err(Failure::Other);
        }
        match self.refuse {
            Some(failure) => Err(failure),
            None => Ok(self.add(token, Some(kind))),
        }
    }

    fn datagram_send(
        &mut self,
        sock: SockId,
        to: SocketAddr,
        options: DatagramOptions,
        payloads: &[&[u8]],
    ) -> usize {
        assert!(self.open.contains_key(&sock), "sent on a closed socket");
        let taken = payloads.len().min(self.takes.unwrap_or(usize::MAX));
        let payloads = payloads.iter().take(taken).map(|p| p.to_vec()).collect();
        self.sent.push((sock, to, options, payloads));
        taken
    }

    fn datagram_recv(
        &mut self,
        sock: SockId,
        budget: usize,
        each: &mut dyn FnMut(&[Datagram<'_>]),
    ) -> Drained {
        assert!(self.open.contains_key(&sock), "received on a closed socket");
        let inbox = self.inbox.entry(sock).or_default();
        let batch: Vec<_> = inbox.drain(..budget.min(inbox.len())).collect();
        let datagrams: Vec<Datagram<'_>> =
            batch.iter().map(|(from, data)| Datagram { from: *from, data }).collect();
        each(&datagrams);
        if datagrams.len() == budget { Drained::More } else { Drained::Empty }
    }

    fn datagram_errors(&mut self, sock: SockId, each: &mut dyn FnMut(IcmpError<'_>)) {
        for e in self.errors.remove(&sock).unwrap_or_default() {
            let SimError { kind, code, mtu, offender, to, ref data } = e;
            each(IcmpError { kind, code, mtu, offender, to, data });
        }
    }

    fn dns_query(&mut self, token: Token, _: PortId, message: &[u8]) {
        self.queries.push((token, message.to_vec()));
    }
}
