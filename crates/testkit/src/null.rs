//! A host and links that take and give everything at once and look at nothing: what a benchmark
//! measures around them is the engine.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;

use vmlan_engine::io::{
    Accepted, Close, Datagram, DatagramKind, DatagramOptions, Drained, Failure, Host, IcmpError,
    ListenAddr, Received, Sent, StreamTarget,
};
use vmlan_engine::{Links, PortId, SockId, Token};
use vmlan_wire::OutFrame;

/// Connects at once, takes every byte, and has as much to give as the fields say.
#[derive(Debug, Default)]
pub struct NullHost {
    /// Connections whose success has to be told to the engine.
    pub connected: VecDeque<(Token, SockId)>,
    /// The last datagram socket that was opened.
    pub opened: Option<Token>,
    /// Bytes that streams have to give, all together.
    pub supply: usize,
    /// Streams end when `supply` is empty.
    pub ended: bool,
    /// Datagrams that have come, and from where.
    pub datagrams: (usize, Option<SocketAddr>),
    pub datagram: Vec<u8>,
    pub taken: u64,
    pub closed: u64,
    next: u32,
}

impl NullHost {
    fn open(&mut self) -> SockId {
        self.next = self.next.wrapping_add(1);
        SockId(self.next)
    }
}

impl Host for NullHost {
    fn connect(
        &mut self,
        token: Token,
        _target: &StreamTarget,
        _ttl: Option<u8>,
    ) -> Result<SockId, Failure> {
        let sock = self.open();
        self.connected.push_back((token, sock));
        Ok(sock)
    }

    fn take_error(&mut self, _sock: SockId) -> Option<Failure> {
        None
    }

    fn send(&mut self, _sock: SockId, bufs: &[IoSlice<'_>]) -> Sent {
        let n: usize = bufs.iter().map(|b| b.len()).sum();
        self.taken += n as u64;
        Sent::Data(n)
    }

    fn recv(&mut self, _sock: SockId, bufs: &mut [IoSliceMut<'_>]) -> Received {
        let room: usize = bufs.iter().map(|b| b.len()).sum();
        let n = room.min(self.supply);
        self.supply -= n;
        match (n, self.ended) {
            (0, false) => Received::Blocked,
            (0, true) => Received::Eof,
            (n, _) => Received::Data(n),
        }
    }

    fn shutdown_write(&mut self, _sock: SockId) {}

    fn close(&mut self, _sock: SockId, _how: Close) {
        self.closed += 1;
    }

    fn listen(&mut self, _token: Token, _at: &ListenAddr) -> Result<SockId, String> {
        Ok(self.open())
    }

    fn accept(&mut self, _listener: SockId, _token: Token) -> Accepted {
        Accepted::Blocked
    }

    fn explain_bind(&mut self, _at: &ListenAddr) -> String {
        String::new()
    }

    fn datagram_open(&mut self, token: Token, _kind: DatagramKind) -> Result<SockId, Failure> {
        self.opened = Some(token);
        Ok(self.open())
    }

    fn datagram_send(
        &mut self,
        _sock: SockId,
        _to: SocketAddr,
        _options: DatagramOptions,
        payloads: &[&[u8]],
    ) -> usize {
        self.taken += payloads.len() as u64;
        payloads.len()
    }

    fn datagram_recv(
        &mut self,
        _sock: SockId,
        budget: usize,
        each: &mut dyn FnMut(&[Datagram<'_>]),
    ) -> Drained {
        let (waiting, Some(from)) = self.datagrams else { return Drained::Empty };
        let n = waiting.min(budget);
        let batch = vec![Datagram { from, data: &self.datagram }; n];
        batch.chunks(32).for_each(each);
        self.datagrams.0 -= n;
        if n < waiting { Drained::More } else { Drained::Empty }
    }

    fn datagram_errors(&mut self, _sock: SockId, _each: &mut dyn FnMut(IcmpError<'_>)) {}

    fn dns_query(&mut self, _token: Token, _guest: PortId, _message: &[u8]) {}
}

/// Enough of a frame for its headers.
const HEAD: usize = 128;

/// Takes every frame and keeps the head of the last one.
#[derive(Debug, Default)]
pub struct NullLinks {
    pub frames: u64,
    pub bytes: u64,
    pub last: Vec<u8>,
}

impl Links for NullLinks {
    fn send(&mut self, _port: PortId, frames: &[OutFrame<'_>]) -> usize {
        for frame in frames {
            self.frames += 1;
            self.bytes += frame.len() as u64;
        }
        if let Some(frame) = frames.last() {
            self.last.clear();
            self.last.extend_from_slice(&frame.head[..frame.head.len().min(HEAD)]);
        }
        frames.len()
    }
}
