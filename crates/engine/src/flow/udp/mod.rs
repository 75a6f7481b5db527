//! UDP (RFC 768): one host socket for each guest endpoint, whatever that endpoint talks to
//! (endpoint-independent mapping, RFC 4787), with replies taken only from those it has sent to
//! (address and port-dependent filtering).
//!
//! What a batch of frames has for one destination goes to the host in one call (`gather`), what
//! the host received in one call goes to the guest in one (`reply`), and what the network says
//! about a datagram reaches the guest as the ICMP error it is (`errors`).

mod clients;
mod errors;
mod flow;
mod gather;
mod held;
mod inbound;
mod recent;
mod relay;
mod reply;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use vmlan_wire::checksum::Sum;
use vmlan_wire::{FrameBatch, Mac};

use crate::config::Config;
use crate::flow::Origin;
use crate::flow::owners::Owners;
use crate::flow::slots::Slots;
use crate::gateway::icmp::{self, Unreachable};
use crate::hash::SeededState;
use crate::io::{Close, DatagramKind, Drained, Failure, Io, PortId, Readiness, SockId, Token};
use crate::net::Net;
use crate::packet::{ETHERNET_HEADER, Packet, Place};
use crate::policy::{self, Route};
use crate::snapshot::FlowInfo;
use crate::stats::Drop;
use crate::time::{Instant, earlier};
use crate::timer::TimerWheel;
use clients::{Client, Clients};
use errors::V4Only;
use flow::{Flow, Key, Reading};
use gather::{Destination, Gather, Owner};
use held::Held;
use inbound::Inbound;
use recent::Recent;
pub use relay::{RelayId, Relayed};
pub(crate) use reply::{Path, Replies};

/// Length of a UDP header.
const HEADER: usize = 8;

/// Datagrams read from one socket before others have their turn.
const BUDGET: usize = 64;

/// Peers that one endpoint may hear from at once.
const PEERS: usize = 256;

/// Beyond this number of peers, all endpoints of a guest together, each has to do with a few.
const PEERS_OF_GUEST: usize = 65_536;
const PEERS_WHEN_CROWDED: usize = 4;

#[derive(Debug)]
pub(crate) struct Udp {
    flows: Slots<Flow>,
    keys: HashMap<Key, u32, SeededState>,
    /// The flow found last.
    cached: Option<(Key, u32)>,
    recent: Option<Recent>,
    owners: Owners,
    max_flows: usize,
    timers: TimerWheel,
    expired: Vec<u32>,
    /// Flows whose sockets held more than one budget.
    ready: VecDeque<u32>,
    gather: Gather,
    replies: Replies,
    v4_only: V4Only,
    /// Forwards, by number.
    inbound: HashMap<u32, Inbound, SeededState>,
    /// Those whose sockets held more than one budget.
    inbound_ready: Vec<u32>,
    clients: Clients,
    held: Held,
    relayed: relay::Answers,
}

/// What a UDP header says, found to agree with its packet.
#[derive(Clone, Copy, Debug)]
struct Header {
    src: u16,
    dst: u16,
    /// Of the payload.
    len: usize,
}

impl Udp {
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        Self {
            flows: Slots::new(Origin::Udp),
            keys: HashMap::with_hasher(SeededState::new(config.seed)),
            cached: None,
            recent: None,
            owners: Owners::new(config.seed),
            max_flows: config.max_flows,
            timers: TimerWheel::new(now),
            expired: Vec::new(),
            ready: VecDeque::new(),
            gather: Gather::default(),
            replies: Replies::default(),
            v4_only: V4Only::new(config.seed),
            inbound: HashMap::with_hasher(SeededState::new(config.seed)),
            inbound_ready: Vec::new(),
            clients: Clients::new(config.seed, now),
            held: Held::new(config.seed),
            relayed: relay::Answers::default(),
        }
    }

    /// A datagram from a guest to somewhere outside or to the host alias.
    pub(crate) fn datagram(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
        place: Place<'_>,
    ) -> Result<(), Drop> {
        let header = Header::parse(packet)?;
        let guest = SocketAddr::new(packet.src, header.src);
        let shown = SocketAddr::new(packet.dst, header.dst);
        if !self.clients.is_empty()
            && let Some(client) = self.clients.answered(guest, shown, io.now)
        {
            return self.answer(net, io, packet, place, &client, header.len);
        }
        let host = match policy::route(&net.config, shown) {
            Route::To(host) => self.v4_only.redirect(host, io.now),
            Route::Dns => return Err(Drop::NoFlow),
            Route::Forbidden => {
                icmp::unreachable(net, io, packet, Unreachable::Prohibited);
                return Err(Drop::Forbidden);
            }
            Route::NoGuest => {
                icmp::unreachable(net, io, packet, Unreachable::Host);
                return Err(Drop::NoFlow);
            }
        };
        let key = Key { guest, v4: host.is_ipv4() };
        let index = match self.find(key) {
            Some(index) => index,
            None => self.first(net, io, packet, place, key)?,
        };
        self.follow(index, packet.port);
        let sock = self.sent(index, host, shown, packet.src_mac, header.len, io.now);
        let to = Destination {
            owner: Owner::Flow(index),
            sock: sock.ok_or(Drop::NoFlow)?,
            addr: host,
            options: gather::options(packet, net.config.is_own(packet.dst)),
        };
        self.pass_on(net, io, packet, place, to, header.len);
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
        let idle = self.flows.get(index).is_some_and(|f| f.reading == Reading::Idle);
        if idle && (ready.readable || ready.error) {
            self.receive(net, io, index);
        }
    }

    /// Ends what is idle, and goes on reading where more was there than one turn allows.
    pub(crate) fn handle_timeout(&mut self, net: &mut Net, io: &mut Io<'_>) {
        let mut expired = std::mem::take(&mut self.expired);
        self.timers.expired(io.now, &mut expired);
        for index in expired.drain(..) {
            match self.flows.get(index).map(Flow::expiry) {
                Some(at) if at > io.now => self.timers.set(index, at),
                Some(_) => self.close(io, index),
                None => {}
            }
        }
        self.expired = expired;
        self.clients.handle_timeout(io.now);
        for _ in 0..self.held.expire(io.now) {
            net.stats.drop(Drop::NoFlow);
        }
        self.forwards_go_on(net, io);
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop_front() else { break };
            if let Some(flow) = self.flows.get_mut(index)
                && flow.reading == Reading::Ready
            {
                flow.reading = Reading::Idle;
                self.receive(net, io, index);
            }
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if !self.ready.is_empty() || !self.inbound_ready.is_empty() {
            return Some(Instant::ZERO);
        }
        if self.inbound.is_empty() && self.clients.is_empty() {
            return self.timers.next();
        }
        let forwards = earlier(self.clients.next_timeout(), self.held.next_timeout());
        earlier(self.timers.next(), forwards)
    }

    /// The link of `port` has room again, or is gone.
    pub(crate) fn port_writable(&mut self, net: &Net, port: PortId) {
        self.forwards_writable(net, port);
        for index in self.owners.take_waiting(port) {
            if let Some(flow) = self.flows.get_mut(index)
                && flow.reading == Reading::Waiting
            {
                flow.reading = Reading::Ready;
                self.ready.push_back(index);
            }
        }
    }

    pub(crate) fn shutdown(&mut self, _net: &mut Net, io: &mut Io<'_>) {
        let all: Vec<u32> = self.flows.iter().map(|(index, _)| index).collect();
        for index in all {
            self.close(io, index);
        }
    }

    pub(crate) fn snapshot(&self) -> Vec<FlowInfo> {
        let info = |flow: &Flow| FlowInfo {
            protocol: "udp",
            guest: flow.key.guest,
            remote: flow.peers.only().map(|p| p.shown()),
            state: flow.state(),
        };
        let client = |client: &Client| FlowInfo {
            protocol: "udp",
            guest: client.guest,
            remote: Some(client.shown),
            state: client.state(),
        };
        let flows = self.flows.iter().map(|(_, flow)| info(flow));
        flows.chain(self.clients.iter().map(client)).collect()
    }

    /// Sends what the frames of a batch had for one flow.
    pub(crate) fn end_of_batch(&mut self, net: &mut Net, io: &mut Io<'_>, batch: &FrameBatch) {
        if let Some(failed) = self.gather.flush(io.host, batch, &mut net.stats) {
            self.failed(net, io, failed.owner);
        }
    }

    /// The host did not take everything: it may say why.
    fn failed(&mut self, net: &mut Net, io: &mut Io<'_>, owner: Owner) {
        match owner {
            Owner::Flow(index) => self.errors(net, io, index),
            Owner::Forward(forward) => self.forward_errors(net, io, forward),
        }
    }

    fn find(&mut self, key: Key) -> Option<u32> {
        if let Some((cached, index)) = self.cached
            && cached == key
        {
            return Some(index);
        }
        let index = self.keys.get(&key).copied()?;
        self.cached = Some((key, index));
        Some(index)
    }

    /// The first datagram of an endpoint.
    fn first(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
        place: Place<'_>,
        key: Key,
    ) -> Result<u32, Drop> {
        // Closing a socket lets its name be used again: nothing may wait for it.
        self.end_of_batch(net, io, place.batch);
        if let Some(index) = self.find(key) {
            return Ok(index);
        }
        if self.owners.flows(packet.port) >= self.max_flows {
            self.evict(io, packet.port);
        }
        let opened = self.open(net, io, key, packet.src_mac, packet.port);
        if let Err(Drop::HostUnsupported) = opened {
            icmp::unreachable(net, io, packet, Unreachable::Net);
        }
        opened
    }

    fn open(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        key: Key,
        mac: Mac,
        port: PortId,
    ) -> Result<u32, Drop> {
        if self.owners.flows(port) >= self.max_flows {
            return Err(Drop::Limit);
        }
        let kind = if key.v4 { DatagramKind::Udp4 } else { DatagramKind::Udp6 };
        let opened = self.flows.insert_with(|token| {
            let sock = io.host.datagram_open(token, kind)?;
            Ok(Flow::new(key, sock, mac, port, io.now))
        });
        let index = opened.map_err(|failure| match failure {
            Failure::Exhausted => Drop::HostExhausted,
            _ => Drop::HostUnsupported,
        })?;
        net.stats.udp_opened += 1;
        let position = self.owners.add(port, index);
        if let Some(flow) = self.flows.get_mut(index) {
            flow.position = position;
            self.timers.set(index, flow.expiry());
        }
        self.keys.insert(key, index);
        Ok(index)
    }

    /// Notes that a flow's guest sends to `host`, which it calls `shown`.
    fn sent(
        &mut self,
        index: u32,
        host: SocketAddr,
        shown: SocketAddr,
        mac: Mac,
        len: usize,
        now: Instant,
    ) -> Option<SockId> {
        let flow = self.flows.get_mut(index)?;
        flow.sent(mac, len, now);
        let crowded = self.owners.peers(flow.port) >= PEERS_OF_GUEST;
        let limit = if crowded { PEERS_WHEN_CROWDED } else { PEERS };
        let before = flow.peers.len();
        flow.peers.touch(host, shown, now, limit);
        let after = flow.peers.len();
        if after != before {
            self.owners.add_peers(flow.port, after.saturating_sub(before));
            self.owners.remove_peers(flow.port, before.saturating_sub(after));
        }
        Some(flow.sock)
    }

    /// Ends the idlest of a few of a guest's flows.
    fn evict(&mut self, io: &mut Io<'_>, port: PortId) {
        let flows = &self.flows;
        let idle = |index: &u32| flows.get(*index).map(Flow::last);
        if let Some(chosen) = self.owners.sample(port).min_by_key(idle) {
            self.close(io, chosen);
        }
    }

    fn close(&mut self, io: &mut Io<'_>, index: u32) {
        let Some(flow) = self.flows.remove(index) else { return };
        io.host.close(flow.sock, Close::Normal);
        self.keys.remove(&flow.key);
        self.cached = None;
        self.recent = None;
        self.timers.cancel(index);
        self.disown(index, &flow);
    }

    /// A guest may go on at another port of the switch; its flows are counted there.
    fn follow(&mut self, index: u32, port: PortId) {
        let Some(mut flow) = self.flows.take_if(index, |f| f.port != port) else { return };
        self.disown(index, &flow);
        self.owners.add_peers(port, flow.peers.len());
        (flow.port, flow.position) = (port, self.owners.add(port, index));
        if flow.reading == Reading::Waiting {
            flow.reading = Reading::Ready;
            self.ready.push_back(index);
        }
        self.flows.put_back(index, flow);
    }

    fn disown(&mut self, index: u32, flow: &Flow) {
        self.owners.remove_peers(flow.port, flow.peers.len());
        if flow.reading == Reading::Waiting {
            self.owners.stop_waiting(flow.port, index);
        }
        let moved = self.owners.remove(flow.port, flow.position);
        if let Some(moved) = moved.and_then(|m| self.flows.get_mut(m)) {
            moved.position = flow.position;
        }
    }

    /// Hands a datagram to the host, with others to the same place if it came in a batch.
    fn pass_on(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
        place: Place<'_>,
        to: Destination,
        len: usize,
    ) {
        if !self.gather.fits(&to) || place.index.is_none() {
            self.end_of_batch(net, io, place.batch);
        }
        if let Some(index) = place.index {
            let start = ETHERNET_HEADER + packet.ip.len() - packet.payload.len() + HEADER;
            self.gather.push(to, index, start, len);
            self.remember(net, packet, place, to, io.now);
            return;
        }
        let payload = packet.payload.get(HEADER..HEADER + len).unwrap_or(&[]);
        if let Some(failed) = gather::send(io.host, &to, &[payload], &mut net.stats) {
            self.failed(net, io, failed.owner);
        }
    }

    /// Reads a budget of datagrams from a flow's socket and sends them to its guest.
    fn receive(&mut self, net: &mut Net, io: &mut Io<'_>, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let (links, now) = (&mut *io.links, io.now);
        let mut room = true;
        let drained = io.host.datagram_recv(flow.sock, BUDGET, &mut |batch| {
            let (guest, mac) = (flow.key.guest, flow.mac);
            let mut strangers = 0;
            let known = batch.iter().filter_map(|datagram| {
                let Some(peer) = flow.peers.find(datagram.from) else {
                    strangers += 1;
                    return None;
                };
                flow.received(now);
                Some((Path { from: peer.shown(), guest, mac }, datagram.data))
            });
            room &= self.replies.send(net, links, known);
            for _ in 0..strangers {
                net.stats.drop(Drop::UnknownPeer);
            }
        });
        match drained {
            Drained::Empty => {}
            Drained::More if room => {
                flow.reading = Reading::Ready;
                self.ready.push_back(index);
            }
            Drained::More => {
                flow.reading = Reading::Waiting;
                self.owners.wait(flow.port, index);
            }
        }
    }
}

/// A header whose checksum is still to be made.
fn header(from: u16, to: u16, len: usize) -> [u8; HEADER] {
    let len = u16::try_from(HEADER + len).unwrap_or(u16::MAX);
    let ([f0, f1], [t0, t1], [l0, l1]) = (from.to_be_bytes(), to.to_be_bytes(), len.to_be_bytes());
    [f0, f1, t0, t1, l0, l1, 0, 0]
}

impl Header {
    /// Checks lengths and, unless somebody trusted has, the checksum. Zero means none over IPv4
    /// and is not allowed over IPv6 (RFC 768, RFC 8200 section 8.1).
    fn parse(packet: &Packet<'_>) -> Result<Self, Drop> {
        let [s0, s1, d0, d1, l0, l1, c0, c1, ..] = *packet.payload else {
            return Err(Drop::Malformed);
        };
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let (src, dst) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
        let whole = packet.payload.get(..len).ok_or(Drop::Malformed)?;
        if len < HEADER || src == 0 || dst == 0 {
            return Err(Drop::Malformed);
        }
        let none = [c0, c1] == [0, 0];
        if !packet.checksum_trusted && (!none || packet.is_v6()) {
            let mut sum = Sum::new();
            let length = u32::from(u16::from_be_bytes([l0, l1]));
            sum.add_pseudo_header(packet.src, packet.dst, packet.protocol.into(), length);
            sum.add(whole);
            if none || !sum.is_valid() {
                return Err(Drop::Checksum);
            }
        }
        Ok(Self { src, dst, len: len - HEADER })
    }
}
