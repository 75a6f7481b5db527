//! Simulated datagram and ping sockets, and what is at the other end of them.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vmlan_engine::io::{Datagram, DatagramKind, DatagramOptions, Drained, IcmpError};
use vmlan_engine::{Readiness, Token};

use super::agenda::{Agenda, Incoming, READABLE, What};
use super::remote::Responder;
use crate::pattern::Pattern;

/// A socket's receive queue in datagrams.
const QUEUE: usize = 256;

/// Datagrams in one piece of a receive.
const BATCH: usize = 16;

/// A datagram that the engine sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentDatagram {
    pub kind: DatagramKind,
    pub to: SocketAddr,
    pub options: DatagramOptions,
    pub data: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct DatagramSocket {
    id: u32,
    token: Token,
    pub(super) kind: DatagramKind,
    queue: VecDeque<(SocketAddr, Vec<u8>)>,
    errors: VecDeque<Incoming>,
    /// Datagrams lost because the queue was full.
    pub(super) overrun: u64,
}

impl DatagramSocket {
    pub(super) fn new(id: u32, token: Token, kind: DatagramKind) -> Self {
        Self { id, token, kind, queue: VecDeque::new(), errors: VecDeque::new(), overrun: 0 }
    }

    /// What the far end does with one datagram.
    pub(super) fn respond(
        &self,
        responder: &Responder,
        to: SocketAddr,
        data: &[u8],
        agenda: &mut Agenda,
    ) {
        match responder {
            Responder::Sink => {}
            Responder::Echo { after } => {
                let data = if self.is_ping() { echo_reply(data) } else { data.to_vec() };
                self.incoming(*after, Incoming::Datagram { from: to, data }, agenda);
            }
            Responder::Burst { count, size } => {
                for i in 0..*count {
                    let mut data = vec![0; *size];
                    Pattern(i as u64).fill(0, &mut data);
                    self.incoming(Duration::ZERO, Incoming::Datagram { from: to, data }, agenda);
                }
            }
            Responder::Icmp { kind, code, mtu, offender } => {
                let error = Incoming::Error {
                    kind: *kind,
                    code: *code,
                    mtu: *mtu,
                    offender: *offender,
                    to,
                    data: data.to_vec(),
                };
                self.incoming(Duration::ZERO, error, agenda);
            }
        }
    }

    fn incoming(&self, after: Duration, what: Incoming, agenda: &mut Agenda) {
        agenda.schedule(after, What::Deliver(self.id, what));
    }

    pub(super) fn deliver(&mut self, what: Incoming, agenda: &mut Agenda) {
        match what {
            Incoming::Datagram { .. } if self.queue.len() >= QUEUE => self.overrun += 1,
            Incoming::Datagram { from, data } => {
                self.queue.push_back((from, data));
                agenda.raise(self.token, READABLE);
            }
            error @ Incoming::Error { .. } => {
                self.errors.push_back(error);
                let ready = Readiness { error: true, ..Readiness::default() };
                agenda.raise(self.token, ready);
            }
        }
    }

    pub(super) fn recv(&mut self, budget: usize, each: &mut dyn FnMut(&[Datagram<'_>])) -> Drained {
        let batch: Vec<_> = self.queue.drain(..budget.min(self.queue.len())).collect();
        let batch: Vec<_> =
            batch.iter().map(|(from, data)| Datagram { from: *from, data }).collect();
        // As recvmmsg hands them over: in several pieces.
        for piece in batch.chunks(BATCH) {
            each(piece);
        }
        if self.queue.is_empty() { Drained::Empty } else { Drained::More }
    }

    pub(super) fn errors(&mut self, each: &mut dyn FnMut(IcmpError<'_>)) {
        while let Some(Incoming::Error { kind, code, mtu, offender, to, data }) =
            self.errors.pop_front()
        {
            each(IcmpError { kind, code, mtu, offender, to, data: &data });
        }
    }

    fn is_ping(&self) -> bool {
        matches!(self.kind, DatagramKind::Ping4 | DatagramKind::Ping6)
    }

    pub(super) fn bytes(&self) -> usize {
        self.queue.iter().map(|(_, d)| d.len()).sum()
    }
}

/// The reply to an echo request. The identifier is the system's own, as with real ping sockets.
fn echo_reply(request: &[u8]) -> Vec<u8> {
    let mut reply = request.to_vec();
    if let Some(kind) = reply.first_mut() {
        *kind = match *kind {
            8 => 0,
            128 => 129,
            other => other,
        };
    }
    if let Some(id) = reply.get_mut(4..6) {
        id.copy_from_slice(&[0xbe, 0xef]);
    }
    reply
}

/// The destination of a datagram socket's address table, without the port for pings.
pub(super) fn key(kind: DatagramKind, to: SocketAddr) -> SocketAddr {
    match kind {
        DatagramKind::Ping4 | DatagramKind::Ping6 => ping_key(to.ip()),
        _ => to,
    }
}

pub(super) fn ping_key(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 0)
}
