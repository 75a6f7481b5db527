//! How connections begin: a guest's SYN that dials out, a forward's connection that dials in, and
//! segments that belong to nothing.

use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vmlan_wire::{Mac, OutFrame};

use super::flow::{Cx, Flow, Start, State};
use super::output::{WINDOW_SHIFT, own_mss};
use super::segment::{ACK, Head, Offer, Out, RST, Segment};
use super::seq::Seq;
use super::{Inbound, Tcp};
use crate::flow::Key;
use crate::gateway::{self, icmp};
use crate::hash::SeededState;
use crate::io::{Close, Failure, Io, PortId, StreamTarget, Token};
use crate::net::Net;
use crate::packet::Packet;
use crate::policy::{self, Route};
use crate::stats::Drop;
use crate::time::Instant;

/// How often a guest that nobody has seen yet is asked for.
const SOLICIT: Duration = Duration::from_millis(250);

/// Ports from which the gateway calls guests.
const FIRST_PORT: u16 = 1024;

/// Initial sequence numbers (RFC 6528): a keyed hash of the connection plus a clock, so that nobody
/// can guess them and a reused connection starts ahead of its predecessor.
#[derive(Debug)]
pub(super) struct IsnKey(SeededState);

impl IsnKey {
    pub(super) fn new(seed: [u8; 16]) -> Self {
        Self(SeededState::new(seed.map(|b| b.rotate_left(3) ^ 0x5a)))
    }

    fn isn(&self, key: &Key, now: Instant) -> Seq {
        #[expect(clippy::cast_possible_truncation, reason = "32 bits are wanted")]
        let (hash, clock) = (self.0.hash_one(key) as u32, (now.micros() / 4) as u32);
        Seq(hash.wrapping_add(clock))
    }
}

impl Tcp {
    /// A guest's SYN for a connection that is not there.
    pub(super) fn open_outbound(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
        key: Key,
        syn: &Segment<'_>,
    ) -> Result<(), Drop> {
        let target = match policy::route(&net.config, key.remote) {
            Route::To(to) => StreamTarget::Tcp(to),
            Route::Dns => StreamTarget::Dns(packet.port),
            Route::Forbidden => {
                icmp::unreachable(net, io, packet, icmp::Unreachable::Prohibited);
                return Err(Drop::Forbidden);
            }
            Route::NoGuest => {
                icmp::unreachable(net, io, packet, icmp::Unreachable::Host);
                return Err(Drop::Forbidden);
            }
        };
        if !self.make_room(net, io, packet.port) {
            send_stray(net, io, packet.src_mac, &key, syn, None);
            return Err(Drop::Limit);
        }
        let index = self.flows.vacant_key();
        let Ok(slot) = u32::try_from(index) else { return Err(Drop::Limit) };
        let token = self.token(slot);
        // The host's own services are not a hop away.
        let outside = matches!(target, StreamTarget::Tcp(to) if policy::is_outside(to.ip()));
        let ttl = outside.then(|| packet.ttl.saturating_sub(1));
        let start = Start {
            key,
            mac: packet.src_mac,
            iss: self.isn.isn(&key, io.now),
            now: io.now,
            inbound: false,
        };
        let mut flow = Flow::new(start, State::Dialing);
        flow.ttl = packet.ttl;
        flow.rcv.nxt = syn.seq.plus(1);
        flow.rcv.edge = flow.rcv.nxt;
        flow.snd.wnd = u32::from(syn.window);
        flow.snd.max_wnd = flow.snd.wnd;
        flow.take_offer(net, &syn.offer());
        match io.host.connect(token, &target, ttl) {
            Ok(sock) => flow.sock = Some(sock),
            Err(failure) => {
                flow.refuse(&mut Cx { net, io, pool: &mut self.pool }, failure);
                let exhausted = failure == Failure::Exhausted;
                return if exhausted { Err(Drop::HostExhausted) } else { Ok(()) };
            }
        }
        flow.owner = Some((packet.port, self.owners.add(packet.port, slot)));
        self.insert(net, slot, flow);
        Ok(())
    }

    /// The token under which the next accepted connection will live.
    pub(crate) fn reserve(&mut self) -> Option<Token> {
        u32::try_from(self.flows.vacant_key()).ok().map(|index| self.token(index))
    }

    /// A connection that a forward accepted: opens one to the guest.
    pub(crate) fn open_inbound(&mut self, net: &mut Net, io: &mut Io<'_>, inbound: Inbound) {
        let client = inbound.client.or_else(|| self.free_port(net, inbound.guest));
        let key = client.map(|remote| Key { guest: inbound.guest, remote });
        let free = key.filter(|key| !self.by_key.contains_key(key));
        // The slot must still be the reserved one, or the socket's events would go astray.
        let slot = self.reserve().filter(|token| *token == inbound.token).map(Token::index);
        let (Some(key), Some(slot)) = (free, slot) else {
            net.stats.drop(Drop::Limit);
            return io.host.close(inbound.sock, Close::Reset);
        };
        let mut flow = self.inbound(key, io.now);
        flow.sock = Some(inbound.sock);
        self.call(net, io, slot, flow);
    }

    /// A connection to a guest that has still to be found.
    pub(super) fn inbound(&mut self, key: Key, now: Instant) -> Flow {
        self.time_wait.forget(&key);
        let iss = self.isn.isn(&key, now);
        Flow::new(Start { key, mac: Mac([0; 6]), iss, now, inbound: true }, State::Resolving)
    }

    /// Stores a new flow and has its guest called.
    pub(super) fn call(&mut self, net: &mut Net, io: &mut Io<'_>, slot: u32, mut flow: Flow) {
        flow.resolve(&mut Cx { net, io, pool: &mut self.pool });
        if flow.state == State::Resolving {
            self.resolving.insert((flow.key.guest.ip(), slot));
        }
        self.insert(net, slot, flow);
        self.settle(net, io, slot);
    }

    fn insert(&mut self, net: &mut Net, slot: u32, flow: Flow) {
        self.by_key.insert(flow.key, slot);
        if self.generations.len() <= slot as usize {
            self.generations.resize(slot as usize + 1, 0);
        }
        let deadline = flow.deadline();
        self.flows.insert(flow);
        if let Some(deadline) = deadline {
            self.timers.set_earlier(slot, deadline);
        }
        net.stats.tcp_opened += 1;
    }

    /// Sees to it that the guest behind `port` may have one more flow, if need be by resetting the
    /// one of its flows that was silent longest, of a sample.
    fn make_room(&mut self, net: &mut Net, io: &mut Io<'_>, port: PortId) -> bool {
        if self.owners.flows(port) < self.max_flows {
            return true;
        }
        let flows = &mut self.flows;
        let sample = self.owners.sample(port).filter_map(|i| Some((i, flows.get(i as usize)?)));
        let Some((index, _)) = sample.min_by_key(|(_, f)| f.last_heard) else { return false };
        if let Some(flow) = self.flows.get_mut(index as usize) {
            let cx = &mut Cx { net, io, pool: &mut self.pool };
            flow.send_rst(cx);
            flow.die(cx, Close::Reset);
        }
        self.settle(net, io, index);
        true
    }

    /// The gateway's address with a port that is free towards `guest`.
    pub(super) fn free_port(&mut self, net: &Net, guest: SocketAddr) -> Option<SocketAddr> {
        let gateway = match guest.ip() {
            IpAddr::V4(_) => IpAddr::V4(net.config.gateway),
            IpAddr::V6(_) => IpAddr::V6(net.config.own_v6()),
        };
        for _ in FIRST_PORT..=u16::MAX {
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT).max(FIRST_PORT);
            let remote = SocketAddr::new(gateway, self.next_port);
            if !self.by_key.contains_key(&Key { guest, remote }) {
                return Some(remote);
            }
        }
        None
    }
}

impl Flow {
    /// Takes what the guest's SYN offers, and decides what of ours it can use.
    pub(super) fn take_offer(&mut self, net: &Net, offer: &Offer) {
        self.rcv.summed = net.has_no_offload(self.mac);
        let own = own_mss(net, self.mac, self.key.guest.is_ipv6());
        // RFC 9293 section 3.7.1: 536 without the option; tiny values would make tiny segments.
        self.snd.mss = offer.mss.unwrap_or(536).clamp(64, own);
        if let Some(shift) = offer.window_scale {
            (self.snd.shift, self.rcv.shift) = (shift, WINDOW_SHIFT);
        }
        self.snd.sack = offer.sack;
    }

    /// The host's connection stands: the guest's SYN is answered.
    pub(super) fn connected(&mut self, cx: &mut Cx<'_, '_>) {
        self.state = State::SynReceived;
        self.send_syn(cx);
    }

    /// Calls the guest if its MAC address is known, else asks for it.
    pub(super) fn resolve(&mut self, cx: &mut Cx<'_, '_>) {
        if let Some(guest) = cx.net.neighbors.get(self.key.guest.ip()) {
            self.mac = guest.mac;
            self.state = State::SynSent;
            self.dial = self.dial.map(|_| Failure::TimedOut);
            self.snd.backoff = 0;
            return self.send_syn(cx);
        }
        self.snd.backoff = self.snd.backoff.saturating_add(1);
        self.snd.timer = Some(cx.io.now + SOLICIT);
        gateway::solicit(cx.net, cx.io, self.key.guest.ip());
    }
}

/// Answers a segment that belongs to no connection: with a reset, or as `answer` says for one that
/// ended lately.
pub(super) fn send_stray(
    net: &mut Net,
    io: &mut Io<'_>,
    to: Mac,
    key: &Key,
    segment: &Segment<'_>,
    answer: Option<(Seq, Seq)>,
) {
    // RFC 9293 section 3.10.7.1.
    let (seq, ack, flags) = match answer {
        Some((seq, ack)) => (seq, ack, ACK),
        None if segment.has(ACK) => (segment.ack, Seq(0), RST),
        None => (Seq(0), segment.seq.plus(segment.len()), RST | ACK),
    };
    let out = Out { seq, ack, flags, window: 0, options: &[], payload_len: 0, gso: None };
    let head = Head::build(key, to, net.config.gateway_mac, &out);
    net.transmit(io, to, &[OutFrame::whole(head.bytes(), head.offload)]);
}
