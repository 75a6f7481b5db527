//! ICMP and ICMPv6 echo (RFC 792, RFC 4443 section 4) through unprivileged ping sockets: one for
//! each address and identifier of a guest. The system gives the socket an identifier of its own,
//! the guest sees the one it chose. Echo to the gateway's own addresses is answered there and
//! never comes here.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::wire::IpProtocol;
use vmlan_wire::Mac;
use vmlan_wire::checksum::Sum;

use super::error::{HostError, Quote};
use super::owners::Owners;
use super::peers::Peers;
use super::slots::Slots;
use crate::config::Config;
use crate::flow::Origin;
use crate::gateway::icmp::{self, Unreachable};
use crate::hash::SeededState;
use crate::io::{
    Close, DatagramKind, DatagramOptions, Drained, Failure, Io, Links, PortId, Readiness, SockId,
    Token,
};
use crate::net::{IpHeader, Net};
use crate::packet::Packet;
use crate::policy::{self, Route};
use crate::snapshot::FlowInfo;
use crate::stats::Drop;
use crate::time::Instant;
use crate::timer::TimerWheel;

/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;

const REQUEST_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;

const IDLE: Duration = Duration::from_secs(30);

/// Destinations that one identifier may wait for.
const PEERS: usize = 64;

/// Replies read from one socket before others have their turn.
const BUDGET: usize = 16;

/// How long a host without the right to ping sockets is not asked again.
const RETRY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Ping {
    flows: Slots<Flow>,
    keys: HashMap<Key, u32, SeededState>,
    owners: Owners,
    max: usize,
    timers: TimerWheel,
    expired: Vec<u32>,
    /// Flows whose sockets held more than one budget.
    ready: VecDeque<u32>,
    /// When the host refused ping sockets for want of a right.
    refused: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: IpAddr,
    ident: [u8; 2],
}

#[derive(Debug)]
struct Flow {
    key: Key,
    sock: SockId,
    mac: Mac,
    port: PortId,
    position: usize,
    peers: Peers,
    /// Of the last request.
    header: [u8; HEADER],
    last: Instant,
}

impl Ping {
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        Self {
            flows: Slots::new(Origin::Ping),
            keys: HashMap::with_hasher(SeededState::new(config.seed)),
            owners: Owners::new(config.seed),
            max: config.max_pings,
            timers: TimerWheel::new(now),
            expired: Vec::new(),
            ready: VecDeque::new(),
            refused: None,
        }
    }

    /// Whether the host ever refused a ping socket for want of a right.
    pub(crate) fn unsupported(&self) -> bool {
        self.refused.is_some()
    }

    /// An ICMP message from a guest. Everything but echo requests is about things of which the
    /// host keeps track itself.
    pub(crate) fn message(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), Drop> {
        let Some(header) = packet.payload.first_chunk::<HEADER>() else {
            return Err(Drop::Malformed);
        };
        let [kind, code, _, _, id0, id1, _, _] = *header;
        if !packet.checksum_trusted && !checksum_ok(packet) {
            return Err(Drop::Checksum);
        }
        let request = if packet.is_v6() { REQUEST_V6 } else { REQUEST_V4 };
        if (kind, code) != (request, 0) {
            return Ok(());
        }
        let host = match policy::route_ping(&net.config, packet.dst) {
            Route::To(host) => host,
            Route::Dns | Route::Forbidden => {
                icmp::unreachable(net, io, packet, Unreachable::Prohibited);
                return Err(Drop::Forbidden);
            }
            Route::NoGuest => {
                icmp::unreachable(net, io, packet, Unreachable::Host);
                return Err(Drop::NoFlow);
            }
        };
        let key = Key { guest: packet.src, ident: [id0, id1] };
        let index = match self.keys.get(&key) {
            Some(index) => *index,
            None => self.open(net, io, packet, key)?,
        };
        let Some(flow) = self.flows.get_mut(index) else { return Err(Drop::NoFlow) };
        (flow.mac, flow.header, flow.last) = (packet.src_mac, *header, io.now);
        flow.peers.touch(host, host, io.now, PEERS);
        let options = DatagramOptions {
            ttl: packet.ttl.saturating_sub(1).max(1),
            tos: packet.tos,
            dont_fragment: packet.dont_fragment,
        };
        if io.host.datagram_send(flow.sock, host, options, &[packet.payload]) == 0 {
            net.stats.drop(Drop::HostFull);
            self.errors(net, io, index);
        }
        Ok(())
    }

    /// Something happened to a flow's socket.
    pub(crate) fn host_ready(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        token: Token,
        ready: Readiness,
    ) {
        let Some(index) = self.flows.find(token) else { return };
        if ready.error {
            self.errors(net, io, index);
        }
        if ready.readable || ready.error {
            self.receive(net, io, index);
        }
    }

    pub(crate) fn handle_timeout(&mut self, net: &mut Net, io: &mut Io<'_>) {
        let mut expired = std::mem::take(&mut self.expired);
        self.timers.expired(io.now, &mut expired);
        for index in expired.drain(..) {
            match self.flows.get(index).map(|flow| flow.last + IDLE) {
                Some(at) if at > io.now => self.timers.set(index, at),
                Some(_) => self.close(io, index),
                None => {}
            }
        }
        self.expired = expired;
        for _ in 0..self.ready.len() {
            if let Some(index) = self.ready.pop_front() {
                self.receive(net, io, index);
            }
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if self.ready.is_empty() { self.timers.next() } else { Some(Instant::ZERO) }
    }

    pub(crate) fn shutdown(&mut self, _net: &mut Net, io: &mut Io<'_>) {
        let all: Vec<u32> = self.flows.iter().map(|(index, _)| index).collect();
        for index in all {
            self.close(io, index);
        }
    }

    pub(crate) fn snapshot(&self) -> Vec<FlowInfo> {
        let info = |flow: &Flow| FlowInfo {
            protocol: "ping",
            guest: SocketAddr::new(flow.key.guest, u16::from_be_bytes(flow.key.ident)),
            remote: flow.peers.only().map(|peer| peer.host),
            state: "open",
        };
        self.flows.iter().map(|(_, flow)| info(flow)).collect()
    }

    fn open(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
        key: Key,
    ) -> Result<u32, Drop> {
        let v6 = packet.is_v6();
        if !v6 && self.refused.is_some_and(|at| io.now.since(at) < RETRY) {
            return Err(Drop::HostUnsupported);
        }
        if self.owners.flows(packet.port) >= self.max {
            self.evict(io, packet.port);
        }
        let kind = if v6 { DatagramKind::Ping6 } else { DatagramKind::Ping4 };
        let opened = self.flows.insert_with(|token| {
            let sock = io.host.datagram_open(token, kind)?;
            let (mac, port) = (packet.src_mac, packet.port);
            let peers = Peers::default();
            let header = [0; HEADER];
            Ok(Flow { key, sock, mac, port, position: 0, peers, header, last: io.now })
        });
        let index = match opened {
            Ok(index) => index,
            Err(Failure::Exhausted) => return Err(Drop::HostExhausted),
            Err(_) if v6 => {
                icmp::unreachable(net, io, packet, Unreachable::Net);
                return Err(Drop::HostUnsupported);
            }
            // Silence: nothing is known about the destination.
            Err(_) => {
                self.refused = Some(io.now);
                return Err(Drop::HostUnsupported);
            }
        };
        net.stats.ping_opened += 1;
        let position = self.owners.add(packet.port, index);
        if let Some(flow) = self.flows.get_mut(index) {
            flow.position = position;
        }
        self.timers.set(index, io.now + IDLE);
        self.keys.insert(key, index);
        Ok(index)
    }

    /// Ends the idlest of a few of a guest's flows.
    fn evict(&mut self, io: &mut Io<'_>, port: PortId) {
        let flows = &self.flows;
        let idle = |index: &u32| flows.get(*index).map(|flow| flow.last);
        if let Some(chosen) = self.owners.sample(port).min_by_key(idle) {
            self.close(io, chosen);
        }
    }

    fn close(&mut self, io: &mut Io<'_>, index: u32) {
        let Some(flow) = self.flows.remove(index) else { return };
        io.host.close(flow.sock, Close::Normal);
        self.keys.remove(&flow.key);
        self.timers.cancel(index);
        let moved = self.owners.remove(flow.port, flow.position);
        if let Some(moved) = moved.and_then(|m| self.flows.get_mut(m)) {
            moved.position = flow.position;
        }
    }

    /// Reads replies and gives them to the guest, under the identifier it chose.
    fn receive(&mut self, net: &mut Net, io: &mut Io<'_>, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let (links, now) = (&mut *io.links, io.now);
        let drained = io.host.datagram_recv(flow.sock, BUDGET, &mut |batch| {
            for datagram in batch {
                if let Err(reason) = flow.reply(net, links, now, datagram.from, datagram.data) {
                    net.stats.drop(reason);
                }
            }
        });
        if drained == Drained::More && !self.ready.contains(&index) {
            self.ready.push_back(index);
        }
    }

    /// Relays what is in the error queue of a flow's socket.
    fn errors(&mut self, net: &mut Net, io: &mut Io<'_>, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        for mut error in HostError::take(io.host, flow.sock) {
            // Pings have no ports, but Linux puts one into what it says itself over IPv6.
            error.to.set_port(0);
            let Some(peer) = flow.peers.find(error.to) else { continue };
            // What the host itself says comes without a quotation.
            let quoted = error.data.split_first_chunk::<HEADER>();
            let (header, data) = quoted.unwrap_or((&flow.header, &[]));
            let header = with_ident(*header, flow.key.ident);
            error.data = data.to_vec();
            let (src, dst) = (flow.key.guest, peer.shown().ip());
            let quote = Quote { src, dst, protocol: protocol(src) };
            error.relay(net, io, flow.mac, &quote, &header);
        }
    }
}

impl Flow {
    fn reply(
        &mut self,
        net: &mut Net,
        links: &mut dyn Links,
        now: Instant,
        from: SocketAddr,
        message: &[u8],
    ) -> Result<(), Drop> {
        let peer = self.peers.find(from).ok_or(Drop::UnknownPeer)?;
        let (header, data) = message.split_first_chunk::<HEADER>().ok_or(Drop::Malformed)?;
        let kind = if self.key.guest.is_ipv6() { REPLY_V6 } else { REPLY_V4 };
        if header[0] != kind {
            return Err(Drop::UnknownProtocol);
        }
        self.last = now;
        let mut header = *header;
        header[2..4].fill(0);
        header[4..6].copy_from_slice(&self.key.ident);
        let ip = IpHeader::new(peer.shown().ip(), self.key.guest, protocol(self.key.guest));
        net.send_ip_on(links, self.mac, &ip, &header, data);
        Ok(())
    }
}

fn protocol(guest: IpAddr) -> IpProtocol {
    if guest.is_ipv6() { IpProtocol::Icmpv6 } else { IpProtocol::Icmp }
}

fn checksum_ok(packet: &Packet<'_>) -> bool {
    if packet.is_v6() {
        return packet.checksum_ok();
    }
    let mut sum = Sum::new();
    sum.add(packet.payload);
    sum.is_valid()
}

/// The header of an echo request as the guest sent it, with the checksum that belongs to its own
/// identifier (RFC 1624).
fn with_ident(mut header: [u8; HEADER], ident: [u8; 2]) -> [u8; HEADER] {
    let [_, _, c0, c1, i0, i1, ..] = header;
    let mut sum = Sum::new();
    sum.add(&[!c0, !c1, !i0, !i1]);
    sum.add(&ident);
    header[2..4].copy_from_slice(&sum.finish());
    header[4..6].copy_from_slice(&ident);
    header
}

#[cfg(test)]
mod tests {
    use vmlan_wire::checksum::checksum;

    use super::*;
    use crate::testing::{GUEST, MS, SimError, World, from_guest, ip_raw, parse_ip};

    const OUTSIDE: &str = "203.0.113.9";

    fn echo(kind: u8, ident: u16, data: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0];
        message.extend_from_slice(&ident.to_be_bytes());
        message.extend_from_slice(&[0, 1]);
        message.extend_from_slice(data);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum);
        message
    }

    fn request(world: &mut World, dst: &str, ident: u16) {
        let (src, dst) = ("192.168.5.15".parse().unwrap(), dst.parse().unwrap());
        let message = echo(REQUEST_V4, ident, b"data");
        world.frames(&[from_guest(GUEST, &ip_raw(src, dst, 1, 64, &message))]);
    }

    #[test]
    fn the_identifier_comes_back() {
        let mut world = World::with_guest();
        request(&mut world, OUTSIDE, 0x1234);
        let sock = world.host.sockets()[0];
        assert_eq!(world.host.open[&sock].1, Some(DatagramKind::Ping4));
        assert_eq!(world.host.sent[0].3, [echo(REQUEST_V4, 0x1234, b"data")]);
        assert_eq!(world.host.sent[0].2.ttl, 63);
        world.host.deliver(sock, "203.0.113.9:0", &echo(REPLY_V4, 0x9999, b"data"));
        world.host.deliver(sock, "203.0.113.8:0", &echo(REPLY_V4, 0x9999, b"data"));
        world.ready(sock);
        let (_, frame) = &world.links.sent[0];
        let (src, dst, _, message) = parse_ip(frame).unwrap();
        assert_eq!((src.to_string(), dst.to_string()), (OUTSIDE.into(), "192.168.5.15".into()));
        assert_eq!(message, echo(REPLY_V4, 0x1234, b"data"));
        assert_eq!(world.links.sent.len(), 1);
        assert_eq!(world.engine.stats().dropped(Drop::UnknownPeer), 1);
    }

    #[test]
    fn errors_quote_what_the_guest_sent() {
        let mut world = World::with_guest();
        request(&mut world, OUTSIDE, 0x1234);
        let sock = world.host.sockets()[0];
        let error = SimError {
            kind: 11,
            code: 0,
            mtu: 0,
            offender: Some("10.0.0.1".parse().unwrap()),
            to: "203.0.113.9:0".parse().unwrap(),
            data: echo(REQUEST_V4, 0x9999, b"data"),
        };
        world.host.errors.entry(sock).or_default().push_back(error);
        world.error(sock);
        let (src, _, _, icmp) = parse_ip(&world.links.sent[0].1).unwrap();
        assert_eq!((src.to_string(), icmp[0]), ("10.0.0.1".into(), 11));
        assert_eq!(icmp[8 + 20..], echo(REQUEST_V4, 0x1234, b"data"));
    }

    #[test]
    fn what_the_host_s_own_link_cannot_carry_is_told() {
        let mut world = World::with_guest();
        request(&mut world, OUTSIDE, 0x1234);
        let sock = world.host.sockets()[0];
        let to = "203.0.113.9:0".parse().unwrap();
        let error = SimError { kind: 3, code: 4, mtu: 1400, offender: None, to, data: vec![] };
        world.host.errors.entry(sock).or_default().push_back(error);
        world.error(sock);
        let (src, _, _, icmp) = parse_ip(&world.links.sent[0].1).unwrap();
        assert_eq!(src, "192.168.5.2".parse::<IpAddr>().unwrap());
        assert_eq!(icmp[..2], [3, 4]);
        assert_eq!(icmp[8 + 20..], echo(REQUEST_V4, 0x1234, b"data")[..HEADER]);
    }

    #[test]
    fn one_socket_for_each_identifier_and_within_the_limit() {
        let mut world = World::with_guest_and(|config| config.max_pings = 10);
        for ident in 0..50 {
            request(&mut world, OUTSIDE, ident);
            request(&mut world, "198.51.100.1", ident);
        }
        assert_eq!(world.host.open.len(), 10);
        assert_eq!(world.host.sent.len(), 100);
        world.pass(31_000 * MS);
        assert!(world.host.open.is_empty());
    }

    #[test]
    fn no_right_to_ping_is_remembered_and_not_asked_for_again_at_once() {
        let mut world = World::with_guest();
        world.host.refuse = Some(Failure::Unsupported);
        request(&mut world, OUTSIDE, 1);
        assert!(world.engine.ping_unsupported());
        world.host.refuse = None;
        request(&mut world, OUTSIDE, 1);
        assert_eq!(world.engine.stats().dropped(Drop::HostUnsupported), 2);
        world.pass(61_000 * MS);
        request(&mut world, OUTSIDE, 1);
        assert_eq!(world.host.sent.len(), 1);
    }

    #[test]
    fn what_is_no_request_or_broken_goes_nowhere() {
        let mut world = World::with_guest();
        let (src, dst) = ("192.168.5.15".parse().unwrap(), OUTSIDE.parse().unwrap());
        let mut broken = echo(REQUEST_V4, 1, b"data");
        broken[9] ^= 1;
        let frames = [echo(REPLY_V4, 1, b""), echo(3, 1, b"quote"), broken, vec![8, 0, 0]];
        let frame = |message: Vec<u8>| from_guest(GUEST, &ip_raw(src, dst, 1, 64, &message));
        world.frames(&frames.map(frame));
        assert!(world.host.open.is_empty());
        assert_eq!(world.engine.stats().dropped(Drop::Checksum), 1);
        assert_eq!(world.engine.stats().dropped(Drop::Malformed), 1);
        request(&mut world, "127.0.0.1", 1);
        assert_eq!(world.engine.stats().dropped(Drop::Forbidden), 1);
    }

    #[test]
    fn a_quoted_checksum_fits_the_guest_s_identifier() {
        let sent = echo(REQUEST_V4, 0x9999, b"data");
        let header = with_ident(*sent.first_chunk().unwrap(), [0x12, 0x34]);
        assert_eq!(header[..], echo(REQUEST_V4, 0x1234, b"data")[..HEADER]);
    }
}
