//! The daemon's loop in small, for tests of [`Sockets`] on the real system.
#![allow(dead_code, clippy::cast_possible_truncation)]

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use mio::{Events, Poll};
use vmlan_dns::{Options, Source};
use vmlan_engine::io::{DatagramOptions, Failure, Received, Sent, StreamTarget};
use vmlan_engine::{Host, Instant, Readiness, SockId, Token};
use vmlan_host::Sockets;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Rig {
    poll: Poll,
    events: Events,
    pub(crate) sockets: Sockets,
    start: std::time::Instant,
    ready: HashMap<u64, Readiness>,
    pub(crate) answers: HashMap<u64, Vec<u8>>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(Options { source: Source::Servers(vec![]), ..Options::default() })
    }

    pub(crate) fn with(options: Options) -> Self {
        let poll = Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        Self {
            poll,
            events: Events::with_capacity(256),
            sockets: Sockets::new(registry, options).unwrap(),
            start: std::time::Instant::now(),
            ready: HashMap::new(),
            answers: HashMap::new(),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as u64)
    }

    /// One pass of a loop.
    pub(crate) fn turn(&mut self, patience: Duration) {
        self.sockets.flush_dns(self.now());
        let due = self.sockets.next_timeout().map(|due| due.since(self.now()));
        self.poll
            .poll(&mut self.events, Some(due.map_or(patience, |due| due.min(patience))))
            .unwrap();
        let now = self.now();
        for event in &self.events {
            if event.token().0 & Sockets::INTERNAL != 0 {
                self.sockets.handle_internal(event.token(), event, now);
                continue;
            }
            let new = Sockets::readiness(event);
            let ready = self.ready.entry(event.token().0 as u64).or_default();
            ready.readable |= new.readable;
            ready.writable |= new.writable;
            ready.closed |= new.closed;
            ready.error |= new.error;
        }
        if self.sockets.next_timeout().is_some_and(|due| due <= now) {
            self.sockets.handle_timeout(now);
        }
        self.sockets.flush_dns(now);
        let answers = std::mem::take(self.sockets.dns_answers());
        for answer in answers.iter() {
            let before = self.answers.insert(answer.to, answer.message.to_vec());
            assert!(before.is_none(), "answered twice");
        }
    }

    /// Turns until something is there.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}");
            self.turn(left);
        }
    }

    /// What has been reported for a token since the last call, once there is something.
    pub(crate) fn event(&mut self, token: u64) -> Readiness {
        self.until("an event", |rig| rig.ready.remove(&token))
    }

    /// Takes what has been reported for a token, if anything.
    pub(crate) fn event_if_any(&mut self, token: u64) -> Option<Readiness> {
        self.turn(Duration::ZERO);
        self.ready.remove(&token)
    }

    pub(crate) fn answer(&mut self, token: u64) -> Vec<u8> {
        self.until("an answer", |rig| rig.answers.remove(&token))
    }

    /// Connects, and returns how that ended.
    pub(crate) fn connect(&mut self, token: u64, to: SocketAddr) -> Result<SockId, Failure> {
        let sock = self.sockets.connect(Token(token), &StreamTarget::Tcp(to), None)?;
        let ready = self.event(token);
        assert!(ready.writable || ready.error);
        match self.sockets.take_error(sock) {
            Some(failure) => {
                self.sockets.close(sock, vmlan_engine::io::Close::Normal);
                Err(failure)
            }
            None => Ok(sock),
        }
    }

    pub(crate) fn send(&mut self, sock: SockId, data: &[u8]) -> Sent {
        self.sockets.send(sock, &[IoSlice::new(data)])
    }

    /// Reads once.
    pub(crate) fn recv(&mut self, sock: SockId) -> (Received, Vec<u8>) {
        let mut data = vec![0; 1 << 16];
        let (one, other) = data.split_at_mut(100);
        let received = self.sockets.recv(sock, &mut [IoSliceMut::new(one), IoSliceMut::new(other)]);
        let len = if let Received::Data(len) = received { len } else { 0 };
        data.truncate(len);
        (received, data)
    }

    /// Reads until the stream ends or fails.
    pub(crate) fn read_to_end(&mut self, token: u64, sock: SockId) -> (Received, Vec<u8>) {
        let mut all = Vec::new();
        loop {
            match self.recv(sock) {
                (Received::Data(_), data) => all.extend(data),
                (Received::Blocked, _) => {
                    self.event(token);
                }
                (end, _) => return (end, all),
            }
        }
    }
}

/// What most datagrams of a guest ask for.
pub(crate) const PLAIN: DatagramOptions = DatagramOptions { ttl: 63, tos: 0, dont_fragment: false };

/// Requests in two writes, each answered when both have come. With Nagle's algorithm and delayed
/// acknowledgements most of them would take 40 ms.
pub(crate) fn dialogue(rig: &mut Rig, token: u64, sock: SockId, peer: &mut TcpStream) {
    const ROUNDS: u32 = 50;
    let start = std::time::Instant::now();
    for _ in 0..ROUNDS {
        assert_eq!(rig.send(sock, b"a"), Sent::Data(1));
        assert_eq!(rig.send(sock, b"b"), Sent::Data(1));
        let mut request = [0; 2];
        peer.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"ab");
        peer.write_all(b"c").unwrap();
        let answer = rig.until("an answer", |rig| match rig.recv(sock) {
            (Received::Data(_), data) => Some(data),
            (Received::Blocked, _) => {
                rig.event(token);
                None
            }
            (end, _) => panic!("{end:?}"),
        });
        assert_eq!(answer, b"c");
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
