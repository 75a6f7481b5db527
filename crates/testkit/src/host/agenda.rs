//! What will happen on the simulated host, and the readiness events that wait to be told.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use vmlan_engine::{Instant, Readiness, Token};

/// What is due at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A connection attempt gets its outcome.
    Outcome(u32),
    /// More arrives from the far end of a stream.
    Feed(u32),
    /// The far end of a stream reads.
    Drain(u32),
    /// A datagram comes in, or an ICMP error.
    Deliver(u32, Incoming),
    Dns(Token, Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Datagram {
        from: std::net::SocketAddr,
        data: Vec<u8>,
    },
    Error {
        kind: u8,
        code: u8,
        mtu: u32,
        offender: Option<std::net::IpAddr>,
        to: std::net::SocketAddr,
        data: Vec<u8>,
    },
}

#[derive(Debug, Default)]
pub(super) struct Agenda {
    pub(super) now: Instant,
    timed: BinaryHeap<Reverse<Timed>>,
    count: u64,
    /// Tokens in the order in which they became ready; what for is in `pending`.
    ready: VecDeque<Token>,
    pending: HashMap<Token, Readiness>,
}

#[derive(Debug, PartialEq, Eq)]
struct Timed {
    at: Instant,
    order: u64,
    what: What,
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Agenda {
    pub(super) fn schedule(&mut self, after: Duration, what: What) {
        self.count += 1;
        self.timed.push(Reverse(Timed { at: self.now + after, order: self.count, what }));
    }

    /// Takes the next thing that is due.
    pub(super) fn due(&mut self) -> Option<What> {
        if self.timed.peek().is_none_or(|Reverse(t)| t.at > self.now) {
            return None;
        }
        self.timed.pop().map(|Reverse(t)| t.what)
    }

    /// An event; it joins one for the same socket that has not been told yet.
    pub(super) fn raise(&mut self, token: Token, what: Readiness) {
        let slot = self.pending.entry(token).or_insert_with(|| {
            self.ready.push_back(token);
            Readiness::default()
        });
        slot.readable |= what.readable;
        slot.writable |= what.writable;
        slot.closed |= what.closed;
        slot.error |= what.error;
    }

    pub(super) fn take_ready(&mut self) -> Option<(Token, Readiness)> {
        let token = self.ready.pop_front()?;
        let what = self.pending.remove(&token).unwrap_or_default();
        Some((token, what))
    }

    pub(super) fn next(&self) -> Option<Instant> {
        if self.ready.is_empty() {
            return self.timed.peek().map(|Reverse(t)| t.at);
        }
        Some(self.now)
    }
}

const NOTHING: Readiness =
    Readiness { readable: false, writable: false, closed: false, error: false };
pub(super) const READABLE: Readiness = Readiness { readable: true, ..NOTHING };
pub(super) const WRITABLE: Readiness = Readiness { writable: true, ..NOTHING };
/// The peer's FIN has come.
pub(super) const ENDED: Readiness = Readiness { closed: true, ..READABLE };
/// Every bit: what epoll reports of a socket that has failed.
pub(super) const FAILED: Readiness = Readiness { writable: true, error: true, ..ENDED };
