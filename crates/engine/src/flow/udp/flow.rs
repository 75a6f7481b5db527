//! One guest endpoint: who it is, its socket, and how alive it is.

use std::net::SocketAddr;
use std::time::Duration;

use vmlan_wire::Mac;

use crate::flow::peers::Peers;
use crate::io::{PortId, SockId};
use crate::time::Instant;

/// Idle time of an endpoint that asked once, or was never answered.
const IDLE: Duration = Duration::from_secs(30);

/// Idle time of one that talks in both directions (RFC 4787 section 4.3 wants two minutes).
const IDLE_STREAM: Duration = Duration::from_secs(180);

/// What finds a flow: the guest's endpoint, and the family of its socket. They differ where the
/// host alias over IPv6 leads to 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) guest: SocketAddr,
    pub(super) v4: bool,
}

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) key: Key,
    pub(super) sock: SockId,
    /// Where its guest was last.
    pub(super) mac: Mac,
    pub(super) port: PortId,
    /// Place in the list of its owner.
    pub(super) position: usize,
    pub(super) peers: Peers,
    pub(super) reading: Reading,
    /// Payload length of the last datagram sent.
    pub(super) last_len: usize,
    last: Instant,
    questions: u32,
    answers: u32,
}

/// What becomes of datagrams that the socket holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// None that we know of: an event will tell.
    Idle,
    /// There may be more; in the list of those who are next.
    Ready,
    /// There may be more, but the guest's link has no room.
    Waiting,
}

impl Flow {
    pub(super) fn new(key: Key, sock: SockId, mac: Mac, port: PortId, now: Instant) -> Self {
        Self {
            key,
            sock,
            mac,
            port,
            position: 0,
            peers: Peers::default(),
            reading: Reading::Idle,
            last_len: 0,
            last: now,
            questions: 0,
            answers: 0,
        }
    }

    pub(super) fn sent(&mut self, mac: Mac, len: usize, now: Instant) {
        (self.mac, self.last_len, self.last) = (mac, len, now);
        self.questions = self.questions.saturating_add(1);
    }

    /// The same from the same place.
    pub(super) fn sent_again(&mut self, len: usize, now: Instant) {
        self.sent(self.mac, len, now);
    }

    pub(super) fn received(&mut self, now: Instant) {
        self.last = now;
        self.answers = self.answers.saturating_add(1);
    }

    pub(super) fn last(&self) -> Instant {
        self.last
    }

    /// When it has been idle for long enough to go.
    pub(super) fn expiry(&self) -> Instant {
        self.last + if self.is_stream() { IDLE_STREAM } else { IDLE }
    }

    pub(super) fn state(&self) -> &'static str {
        match self.answers {
            0 => "unanswered",
            _ if self.is_stream() => "stream",
            _ => "answered",
        }
    }

    /// More than one question and one answer.
    fn is_stream(&self) -> bool {
        self.questions > 1 && self.answers > 1
    }
}
