//! A whole engine with links that record and a host that refuses everything: what the tests of the
//! gateway's services run on. Frames are built and taken apart byte by byte here, so that no test
//! trusts the code it tests.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use vmlan_wire::checksum::Sum;
use vmlan_wire::frame::Checksum;
use vmlan_wire::{FrameBatch, Mac, Offload, OutFrame};

use crate::Engine;
use crate::config::{Config, Ipv4Net};
use crate::io::{
    Accepted, Close, Datagram, DatagramKind, DatagramOptions, Drained, Failure, Host, IcmpError,
    Io, Links, ListenAddr, PortId, Received, Sent, SockId, StreamTarget, Token,
};
use crate::stats::Drop;
use crate::switch::PortCaps;
use crate::time::Instant;

pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 2);
pub(crate) const DNS: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 3);
pub(crate) const GATEWAY_MAC: Mac = Mac([0x52, 0x55, 192, 168, 5, 2]);
pub(crate) const BROADCAST: Mac = Mac::BROADCAST;

pub(crate) fn mac(n: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, n])
}

pub(crate) fn guest(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 5, n)
}

/// The default network, 192.168.5.0/24.
pub(crate) fn config() -> Config {
    let net = Ipv4Net::new(Ipv4Addr::new(192, 168, 5, 0), 24).unwrap();
    let mut config = Config::new(net, None, [7; 16]).unwrap();
    config.mtu = 1500;
    config
}

pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) host: TestHost,
    pub(crate) links: Recorder,
    pub(crate) now: Instant,
}

#[derive(Default)]
pub(crate) struct Recorder {
    sent: HashMap<u16, Vec<Vec<u8>>>,
    /// Frames that each port takes from now on; no limit if `None`.
    pub(crate) room: Option<usize>,
}

#[derive(Default)]
pub(crate) struct TestHost {
    pub(crate) queries: Vec<(Token, Vec<u8>)>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: Config) -> Self {
        let now = Instant::from_micros(1_000_000);
        Self {
            engine: Engine::new(config, now),
            host: TestHost::default(),
            links: Recorder::default(),
            now,
        }
    }

    pub(crate) fn port(&mut self) -> PortId {
        let caps = PortCaps { mtu: 65_520, ..PortCaps::default() };
        self.engine.add_port(caps).unwrap()
    }

    pub(crate) fn io<R>(&mut self, f: impl FnOnce(&mut Engine, &mut Io<'_>) -> R) -> R {
        let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
        f(&mut self.engine, &mut io)
    }

    pub(crate) fn send(&mut self, port: PortId, frame: &[u8]) {
        self.send_all(port, &[frame.to_vec()]);
    }

    pub(crate) fn send_all(&mut self, port: PortId, frames: &[Vec<u8>]) {
        let mut batch = FrameBatch::default();
        for frame in frames {
            batch.push_copy(frame, Offload::NONE);
        }
        self.io(|engine, io| engine.handle_frames(port, &batch, io));
    }

    /// What was sent to a port since the last look.
    pub(crate) fn sent(&mut self, port: PortId) -> Vec<Vec<u8>> {
        self.links.sent.remove(&port.0).unwrap_or_default()
    }

    /// The one frame that was sent to a port since the last look.
    pub(crate) fn one(&mut self, port: PortId) -> Vec<u8> {
        let mut sent = self.sent(port);
        assert_eq!(sent.len(), 1, "frames to {port:?}: {sent:02x?}");
        sent.remove(0)
    }

    /// Sends a frame and returns what the gateway sent back to that port.
    pub(crate) fn ask(&mut self, port: PortId, frame: &[u8]) -> Vec<Vec<u8>> {
        self.sent(port);
        self.send(port, frame);
        self.sent(port)
    }

    /// Lets time pass, with every timeout served when it is due.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.engine.next_timeout().filter(|t| *t <= end) {
            self.now = self.now.max(next);
            self.io(Engine::handle_timeout);
        }
        self.now = end;
    }

    pub(crate) fn dropped(&self, reason: Drop) -> u64 {
        self.engine.stats().dropped(reason)
    }
}

/// An Ethernet frame.
pub(crate) fn ethernet(dst: Mac, src: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&dst.0[..], &src.0, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 or IPv6 packet, the checksum of the transport header (TCP, UDP, ICMP) filled in.
pub(crate) fn ip(src: IpAddr, dst: IpAddr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    fill_checksum(src, dst, protocol, &mut payload);
    ip_raw(src, dst, protocol, ttl, &payload)
}

/// The same with the payload as it is.
pub(crate) fn ip_raw(src: IpAddr, dst: IpAddr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = (20 + payload.len()) as u16;
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, ttl, protocol, 0, 0];
            header[2..4].copy_from_slice(&len.to_be_bytes());
            header.extend(src.octets());
            header.extend(dst.octets());
            fix_ipv4(&mut header);
            [&header, payload].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, ttl];
            header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            header.extend(src.octets());
            header.extend(dst.octets());
            [&header, payload].concat()
        }
        _ => panic!("addresses of two families"),
    }
}

/// Computes an IPv4 header's checksum again.
pub(crate) fn fix_ipv4(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = vmlan_wire::checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
}

fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        1 | 58 => Some(2),
        6 => Some(16),
        17 => Some(6),
        _ => None,
    }
}

fn transport_sum(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Sum {
    let mut sum = Sum::new();
    if protocol != 1 {
        sum.add_pseudo_header(src, dst, protocol, payload.len() as u32);
    }
    sum.add(payload);
    sum
}

pub(crate) fn fill_checksum(src: IpAddr, dst: IpAddr, protocol: u8, payload: &mut [u8]) {
    let Some(at) = checksum_at(protocol).filter(|at| at + 2 <= payload.len()) else { return };
    payload[at..at + 2].fill(0);
    let sum = transport_sum(src, dst, protocol, payload).finish();
    payload[at..at + 2].copy_from_slice(&sum);
}

pub(crate) fn udp(src: u16, dst: u16, data: &[u8]) -> Vec<u8> {
    let len = (8 + data.len()) as u16;
    [&src.to_be_bytes()[..], &dst.to_be_bytes(), &len.to_be_bytes(), &[0, 0], data].concat()
}

/// A frame from a guest to the gateway with an IP packet of this family.
pub(crate) fn from_guest(n: u8, packet: &[u8]) -> Vec<u8> {
    to_mac(GATEWAY_MAC, n, packet)
}

pub(crate) fn to_mac(dst: Mac, n: u8, packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    ethernet(dst, mac(n), kind, packet)
}

/// An ARP packet in a frame from `src`.
pub(crate) fn arp(op: u16, dst: Mac, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let body = [
        &[0, 1, 8, 0, 6, 4][..],
        &op.to_be_bytes(),
        &sender.0.0,
        &sender.1.octets(),
        &target.0.0,
        &target.1.octets(),
    ]
    .concat();
    ethernet(dst, sender.0, 0x0806, &body)
}

/// Makes the gateway know a guest by its IPv4 address.
pub(crate) fn announce(world: &mut World, port: PortId, n: u8, ip: Ipv4Addr) {
    world.send(port, &arp(1, BROADCAST, (mac(n), ip), (Mac([0; 6]), ip)));
}

/// A frame taken apart. Checksums are verified on the way.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) dst_mac: Mac,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) payload: Vec<u8>,
}

impl Parsed {
    pub(crate) fn new(frame: &[u8]) -> Self {
        assert_eq!(frame[6..12], GATEWAY_MAC.0, "source MAC");
        let packet = &frame[14..];
        let (src, dst, protocol, ttl, payload): (IpAddr, IpAddr, u8, u8, &[u8]) =
            match u16::from_be_bytes([frame[12], frame[13]]) {
                0x0800 => {
                    assert_eq!(vmlan_wire::checksum::checksum(&packet[..20]), [0, 0]);
                    assert_eq!(usize::from(be16(packet, 2)), packet.len());
                    let addr = |at: usize| -> [u8; 4] { packet[at..at + 4].try_into().unwrap() };
                    let (src, dst) = (Ipv4Addr::from(addr(12)), Ipv4Addr::from(addr(16)));
                    (src.into(), dst.into(), packet[9], packet[8], &packet[20..])
                }
                0x86dd => {
                    assert_eq!(usize::from(be16(packet, 4)) + 40, packet.len());
                    let addr = |at: usize| -> [u8; 16] { packet[at..at + 16].try_into().unwrap() };
                    let (src, dst) = (Ipv6Addr::from(addr(8)), Ipv6Addr::from(addr(24)));
                    (src.into(), dst.into(), packet[6], packet[7], &packet[40..])
                }
                other => panic!("ethertype {other:#06x}"),
            };
        let fragment = src.is_ipv4() && be16(packet, 6) & 0x3fff != 0;
        if !fragment && checksum_at(protocol).is_some() {
            assert!(transport_sum(src, dst, protocol, payload).is_valid(), "transport checksum");
        }
        let dst_mac = Mac(frame[..6].try_into().unwrap());
        Self { dst_mac, src, dst, protocol, ttl, payload: payload.to_vec() }
    }
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

impl Links for Recorder {
    fn send(&mut self, port: PortId, frames: &[OutFrame<'_>]) -> usize {
        let take = self.room.map_or(frames.len(), |room| room.min(frames.len()));
        if let Some(room) = &mut self.room {
            *room -= take;
        }
        for frame in &frames[..take] {
            let mut bytes = Vec::new();
            frame.copy_to(&mut bytes);
            if let Checksum::Partial { start, offset } = frame.offload.checksum {
                let (start, at) = (usize::from(start), usize::from(start + offset));
                let mut sum = Sum::new();
                sum.add(&bytes[start..]);
                let value = sum.finish();
                bytes[at..at + 2].copy_from_slice(&value);
            }
            self.sent.entry(port.0).or_default().push(bytes);
        }
        take
    }
}

impl Host for TestHost {
    fn connect(&mut self, _: Token, _: &StreamTarget, _: Option<u8>) -> Result<SockId, Failure> {
        Err(Failure::Refused)
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

    fn close(&mut self, _: SockId, _: Close) {}

    fn listen(&mut self, _: Token, _: &ListenAddr) -> Result<SockId, String> {
        Err("no listeners here".to_owned())
    }

    fn accept(&mut self, _: SockId, _: Token) -> Accepted {
        Accepted::Blocked
    }

    fn datagram_open(&mut self, _: Token, _: DatagramKind) -> Result<SockId, Failure> {
        Err(Failure::Unsupported)
    }

    fn explain_bind(&mut self, _: &ListenAddr) -> String {
        "no listeners here".to_owned()
    }

    fn datagram_send(
        &mut self,
        _: SockId,
        _: SocketAddr,
        _: DatagramOptions,
        _: &[&[u8]],
    ) -> usize {
        0
    }

    fn datagram_recv(
        &mut self,
        _: SockId,
        _: usize,
        _: &mut dyn FnMut(&[Datagram<'_>]),
    ) -> Drained {
        Drained::Empty
    }

    fn datagram_errors(&mut self, _: SockId, _: &mut dyn FnMut(IcmpError<'_>)) {}

    fn dns_query(&mut self, token: Token, message: &[u8]) {
        self.queries.push((token, message.to_vec()));
    }
}
