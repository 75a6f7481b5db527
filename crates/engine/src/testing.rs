//! A host and links that only remember, for the unit tests of flows and forwards: everything that
//! the engine did can be looked at, and everything that happens to it is said by the test.
#![allow(clippy::cast_possible_truncation)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::IpProtocol;
use vmlan_wire::checksum::Sum;
use vmlan_wire::frame::Checksum;
use vmlan_wire::{FrameBatch, Mac, Offload, OutFrame};

use crate::io::{
    Accepted, Close, Datagram, DatagramKind, DatagramOptions, Drained, Failure, IcmpError,
    ListenAddr, Received, Sent, StreamTarget,
};
use crate::net::{IpHeader, write_headers};
use crate::packet::{ETHERNET_HEADER, IPV4_HEADER, IPV6_HEADER};
use crate::{Config, Engine, Host, Instant, Io, Links, PortCaps, PortId, Readiness, SockId, Token};

pub(crate) const GUEST_MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 0x15]);

/// An engine with one guest, and the world around it.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) host: SimHost,
    pub(crate) links: SimLinks,
    pub(crate) now: Instant,
    pub(crate) port: PortId,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let subnet = "192.168.5.0/24".parse().unwrap();
        let mut config = Config::new(subnet, None, [7; 16]).unwrap();
        config.mtu = 1500;
        change(&mut config);
        let now = Instant::from_micros(1_000_000);
        let mut engine = Engine::new(config, now);
        let caps = PortCaps { checksum: true, tso4: true, tso6: true, mtu: engine.config().mtu };
        let port = engine.add_port(caps).unwrap();
        Self { engine, host: SimHost::default(), links: SimLinks::default(), now, port }
    }

    /// Calls a door of the engine.
    pub(crate) fn door<T>(&mut self, call: impl FnOnce(&mut Engine, &mut Io<'_>) -> T) -> T {
        let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
        call(&mut self.engine, &mut io)
    }

    /// Frames from the guest, in one batch.
    pub(crate) fn frames(&mut self, frames: &[Vec<u8>]) {
        let mut batch = FrameBatch::default();
        for frame in frames {
            batch.push_copy(frame, Offload::NONE);
        }
        let port = self.port;
        self.door(|engine, io| engine.handle_frames(port, &batch, io));
    }

    /// A datagram from the guest.
    pub(crate) fn udp(&mut self, src: &str, dst: &str, data: &[u8]) {
        self.frames(&[udp_frame(src, dst, data)]);
    }

    pub(crate) fn ready(&mut self, sock: SockId) {
        let token = self.host.token(sock);
        let ready = Readiness { readable: true, ..Readiness::default() };
        self.door(|engine, io| engine.handle_host(token, ready, io));
    }

    pub(crate) fn error(&mut self, sock: SockId) {
        let token = self.host.token(sock);
        let ready = Readiness { error: true, ..Readiness::default() };
        self.door(|engine, io| engine.handle_host(token, ready, io));
    }

    /// Lets time pass, with every timeout on its way.
    pub(crate) fn pass(&mut self, millis: u64) {
        let end = Instant::from_micros(self.now.micros() + millis * 1000);
        for _ in 0..100_000 {
            match self.engine.next_timeout() {
                Some(at) if at <= end => {
                    self.now = self.now.max(at);
                    self.door(|engine, io| engine.handle_timeout(io));
                }
                _ => break,
            }
        }
        self.now = end;
    }

    /// UDP datagrams that the guest got: from, to, payload.
    pub(crate) fn got_udp(&mut self) -> Vec<(String, String, Vec<u8>)> {
        let frames = std::mem::take(&mut self.links.sent);
        frames.iter().filter_map(|(_, frame)| parse_udp(frame)).collect()
    }
}

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
    pub(crate) refuse: Option<Failure>,
    pub(crate) occupied: HashSet<ListenAddr>,
    /// Clients that wait in the backlog of each listener.
    pub(crate) backlog: HashMap<SockId, VecDeque<SocketAddr>>,
    pub(crate) accepts: usize,
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
        Ok(self.add(token, None))
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

    fn dns_query(&mut self, _: Token, _: &[u8]) {}
}

/// Links that remember, with room for a number of frames.
pub(crate) struct SimLinks {
    pub(crate) sent: Vec<(PortId, Vec<u8>)>,
    pub(crate) calls: usize,
    pub(crate) room: usize,
}

impl Default for SimLinks {
    fn default() -> Self {
        Self { sent: Vec::new(), calls: 0, room: usize::MAX }
    }
}

impl Links for SimLinks {
    fn send(&mut self, port: PortId, frames: &[OutFrame<'_>]) -> usize {
        self.calls += 1;
        let taken = frames.len().min(self.room);
        self.room -= taken;
        for frame in frames.iter().take(taken) {
            let mut bytes = Vec::new();
            frame.copy_to(&mut bytes);
            if let Checksum::Partial { start, offset } = frame.offload.checksum {
                let (start, at) = (usize::from(start), usize::from(start + offset));
                let mut sum = Sum::new();
                sum.add(&bytes[start..]);
                bytes[at..at + 2].copy_from_slice(&sum.finish());
            }
            self.sent.push((port, bytes));
        }
        taken
    }
}

/// A frame from the guest with an IP packet in it; transport checksum zero.
pub(crate) fn ip_frame(ip: &IpHeader, transport: &[u8]) -> Vec<u8> {
    let gateway = Mac([0x52, 0x55, 192, 168, 5, 2]);
    let mut frame = vec![0; ETHERNET_HEADER + ip.len()];
    write_headers(&mut frame, gateway, GUEST_MAC, ip, 1, transport.len());
    frame.extend_from_slice(transport);
    frame
}

pub(crate) fn udp_header(src: SocketAddr, dst: SocketAddr, data: &[u8]) -> Vec<u8> {
    let len = 8 + data.len();
    let mut udp = Vec::new();
    udp.extend_from_slice(&src.port().to_be_bytes());
    udp.extend_from_slice(&dst.port().to_be_bytes());
    udp.extend_from_slice(&(len as u16).to_be_bytes());
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(data);
    let mut sum = Sum::new();
    sum.add_pseudo_header(src.ip(), dst.ip(), 17, len as u32);
    sum.add(&udp);
    udp[6..8].copy_from_slice(&sum.finish());
    udp
}

pub(crate) fn udp_frame(src: &str, dst: &str, data: &[u8]) -> Vec<u8> {
    let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let ip = IpHeader::new(src.ip(), dst.ip(), IpProtocol::Udp);
    ip_frame(&ip, &udp_header(src, dst, data))
}

/// Addresses and payload of a UDP frame, whose checksums are verified.
pub(crate) fn parse_udp(frame: &[u8]) -> Option<(String, String, Vec<u8>)> {
    let (src, dst, protocol, transport) = parse_ip(frame)?;
    if protocol != 17 {
        return None;
    }
    let mut sum = Sum::new();
    sum.add_pseudo_header(src, dst, 17, transport.len() as u32);
    sum.add(&transport);
    assert!(sum.is_valid(), "UDP checksum");
    assert_eq!(usize::from(u16::from_be_bytes([transport[4], transport[5]])), transport.len());
    let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
    let (from, to) = (SocketAddr::new(src, port(0)), SocketAddr::new(dst, port(2)));
    Some((from.to_string(), to.to_string(), transport[8..].to_vec()))
}

/// Addresses, protocol and payload of an IP frame, whose header is verified.
pub(crate) fn parse_ip(frame: &[u8]) -> Option<(IpAddr, IpAddr, u8, Vec<u8>)> {
    let ip = &frame[ETHERNET_HEADER..];
    match frame[12..14] {
        [0x08, 0x00] => {
            let mut sum = Sum::new();
            sum.add(&ip[..IPV4_HEADER]);
            assert!(sum.is_valid(), "IP checksum");
            let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
            assert_eq!(total, ip.len());
            let addr = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap());
            Some((addr(12), addr(16), ip[9], ip[IPV4_HEADER..].to_vec()))
        }
        [0x86, 0xdd] => {
            let len = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
            assert_eq!(len, ip.len() - IPV6_HEADER);
            let addr = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap());
            Some((addr(8), addr(24), ip[6], ip[IPV6_HEADER..].to_vec()))
        }
        _ => None,
    }
}
