//! TCP: the guest's connections are ended here and carried on by stream sockets of the host.
//!
//! [`Tcp`] is the table and the doors; [`flow::Flow`] is one connection:
//! `open` and `dial` make it, `input` takes segments, `relay` moves bytes to and from the socket, `output`
//! makes segments. Frames of one batch that continue the same flow are gathered (`train`) so that
//! one system call and one acknowledgement serve them all.

mod dial;
mod flow;
mod input;
mod open;
mod output;
mod ranges;
mod relay;
mod ring;
mod segment;
mod seq;
mod timewait;
mod train;
mod unreachable;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use slab::Slab;
use vmlan_wire::FrameBatch;

use crate::config::Config;
use crate::flow::owners::Owners;
use crate::flow::{Key, Origin};
use crate::hash::SeededState;
use crate::io::{Close, Failure, Io, PortId, Readiness, SockId, Token};
use crate::net::Net;
use crate::packet::Packet;
use crate::snapshot::FlowInfo;
use crate::stats::Drop;
use crate::time::Instant;
use crate::timer::TimerWheel;
pub use dial::DialId;
use flow::{Ack, Cx, Flow, State};
use ring::Pool;
use segment::{RST, SYN, Segment};
use std::time::Duration;
use timewait::TimeWait;
use train::Train;

/// Silence after which a connection is probed (RFC 9293's two hours).
const KEEPALIVE: Duration = Duration::from_secs(7200);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
const KEEPALIVES: u8 = 9;

/// How long a guest may leave data unacknowledged (RFC 9293's user timeout, and about as long as
/// Linux tries), or leave the probes of its closed window unanswered.
const USER_TIMEOUT: Duration = Duration::from_secs(900);

/// SYNs without an answer after which the guest counts as gone.
const MAX_SYNS: u8 = 6;

/// How long flows wait for a guest whose link is gone: it may be reconnecting.
const ORPHAN: Duration = Duration::from_secs(10);

/// All TCP connections of a network.
#[derive(Debug)]
pub(crate) struct Tcp {
    flows: Slab<Flow>,
    by_key: HashMap<Key, u32, SeededState>,
    /// Told apart the successive flows of one slot.
    generations: Vec<u32>,
    owners: Owners,
    max_flows: usize,
    pool: Pool,
    timers: TimerWheel,
    time_wait: TimeWait,
    train: Train,
    /// Flows touched by the batch at hand.
    dirty: Vec<u32>,
    /// Flows whose guest's MAC address is asked for, by its address.
    resolving: BTreeSet<(IpAddr, u32)>,
    /// Flows that found their port full.
    blocked: Vec<u32>,
    expired: Vec<u32>,
    isn: open::IsnKey,
    next_port: u16,
    /// Outcomes of dials that nobody has taken yet.
    dialed: VecDeque<(DialId, Result<(), Failure>)>,
}

/// A connection accepted on the host, to be opened towards a guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inbound {
    /// From [`Tcp::reserve`].
    pub(crate) token: Token,
    pub(crate) sock: SockId,
    pub(crate) guest: SocketAddr,
    /// The address the guest shall see as the client's; the gateway's with a free port if `None`.
    pub(crate) client: Option<SocketAddr>,
}

impl Tcp {
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        let state = SeededState::new(config.seed);
        Self {
            flows: Slab::new(),
            by_key: HashMap::with_hasher(state),
            generations: Vec::new(),
            owners: Owners::new(config.seed),
            max_flows: config.max_flows,
            pool: Pool::default(),
            timers: TimerWheel::new(now),
            time_wait: TimeWait::new(config.seed),
            train: Train::default(),
            dirty: Vec::new(),
            resolving: BTreeSet::new(),
            blocked: Vec::new(),
            expired: Vec::new(),
            isn: open::IsnKey::new(config.seed),
            next_port: u16::from_le_bytes([config.seed[0], config.seed[1]]),
            dialed: VecDeque::new(),
        }
    }

    /// A segment that did not come by [`Tcp::take_next`].
    pub(crate) fn segment(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), Drop> {
        let seg = Segment::parse(packet.payload)?;
        if !packet.checksum_ok() {
            return Err(Drop::Checksum);
        }
        let (Some(from), Some(to)) = ports(packet.payload) else { return Err(Drop::Malformed) };
        let key = Key {
            guest: SocketAddr::new(packet.src, from),
            remote: SocketAddr::new(packet.dst, to),
        };
        if let Some(index) = self.by_key.get(&key).copied() {
            let Some(flow) = self.flows.get_mut(index as usize) else { return Ok(()) };
            if flow.mac != packet.src_mac {
                return Err(Drop::Source);
            }
            flow.input(&mut Cx { net, io, pool: &mut self.pool }, &seg);
            self.touch(index);
            return Ok(());
        }
        if seg.has(SYN) && !seg.has(RST) && !seg.has(segment::ACK) {
            self.time_wait.forget(&key);
            return self.open_outbound(net, io, packet, key, &seg);
        }
        if seg.has(RST) {
            return Err(Drop::NoFlow);
        }
        let answer = self.time_wait.answer(&key, &seg, io.now);
        open::send_stray(net, io, packet.src_mac, &key, &seg, answer);
        if answer.is_some() { Ok(()) } else { Err(Drop::NoFlow) }
    }

    /// Everything that the batch left to be done.
    pub(crate) fn end_of_batch(&mut self, net: &mut Net, io: &mut Io<'_>, batch: &FrameBatch) {
        self.flush(net, io, batch);
        // The slot may have another flow by the next batch, and the next batch another port.
        self.train.flow = None;
        while let Some(index) = self.dirty.pop() {
            if let Some(flow) = self.flows.get_mut(index as usize) {
                flow.dirty = false;
            }
            self.settle(net, io, index);
        }
    }

    /// An event of a flow's socket.
    pub(crate) fn host_ready(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        token: Token,
        ready: Readiness,
    ) {
        let index = token.index();
        if self.token(index) != token {
            return;
        }
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        flow.host_closed |= ready.closed;
        flow.can_read |= ready.readable || ready.closed || ready.error;
        flow.can_write |= ready.writable;
        if flow.state == State::Dialing && (ready.writable || ready.error || ready.closed) {
            let failure = match flow.sock {
                Some(sock) if ready.error || ready.closed => io.host.take_error(sock),
                _ => None,
            };
            let cx = &mut Cx { net, io, pool: &mut self.pool };
            match failure {
                Some(failure) => flow.refuse(cx, failure),
                None if ready.writable => flow.connected(cx),
                None => {}
            }
        } else if flow.state == State::Open
            && ready.error
            && flow.sock.is_some_and(|sock| io.host.take_error(sock).is_some())
        {
            // A read may never tell: none is made after the end of the stream, nor while the guest
            // takes nothing.
            flow.host_failed();
        }
        self.settle(net, io, index);
    }

    /// The link of `port` has room again.
    pub(crate) fn port_writable(&mut self, net: &mut Net, io: &mut Io<'_>, port: PortId) {
        let blocked = std::mem::take(&mut self.blocked);
        for index in blocked {
            let Some(flow) = self.flows.get_mut(index as usize) else { continue };
            if net.port_of(flow.mac).is_some_and(|p| p != port) {
                self.blocked.push(index);
                continue;
            }
            (flow.blocked, flow.waiting) = (false, false);
            self.settle(net, io, index);
        }
    }

    /// A port is gone. Its guests may come back by another; flows whose guest does not are reset.
    pub(crate) fn port_gone(&mut self, net: &Net, io: &Io<'_>) {
        self.blocked.clear();
        for (index, flow) in &mut self.flows {
            (flow.blocked, flow.waiting) = (false, false);
            if net.port_of(flow.mac).is_none() && flow.orphaned.is_none() {
                flow.orphaned = Some(io.now + ORPHAN);
                if let Ok(index) = u32::try_from(index) {
                    self.timers.set_earlier(index, io.now + ORPHAN);
                }
            }
        }
    }

    /// A guest's address has become known: connections to it may be waiting.
    pub(crate) fn guest_found(&mut self, net: &mut Net, io: &mut Io<'_>, ip: IpAddr) {
        let waiting: Vec<_> = self.resolving.range((ip, 0)..=(ip, u32::MAX)).copied().collect();
        for (ip, index) in waiting {
            let Some(flow) = self.flows.get_mut(index as usize) else { continue };
            if flow.state == State::Resolving {
                flow.resolve(&mut Cx { net, io, pool: &mut self.pool });
            }
            if flow.state != State::Resolving {
                self.resolving.remove(&(ip, index));
            }
            self.settle(net, io, index);
        }
    }

    pub(crate) fn handle_timeout(&mut self, net: &mut Net, io: &mut Io<'_>) {
        let mut expired = std::mem::take(&mut self.expired);
        self.timers.expired(io.now, &mut expired);
        for index in expired.drain(..) {
            if let Some(flow) = self.flows.get_mut(index as usize) {
                flow.on_timer(&mut Cx { net, io, pool: &mut self.pool });
            }
            self.settle(net, io, index);
        }
        self.expired = expired;
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Whether a guest has still to send, or we have to pass on, the end of a stream.
    pub(crate) fn is_sending(&self) -> bool {
        self.flows.iter().any(|(_, flow)| flow.is_sending())
    }

    /// Resets every connection on both sides. A stream that the guest had ended, and the host's
    /// system taken over to its end, is delivered: a reset would destroy what is on its way.
    pub(crate) fn shutdown(&mut self, net: &mut Net, io: &mut Io<'_>) {
        for (_, flow) in &mut self.flows {
            let cx = &mut Cx { net, io, pool: &mut self.pool };
            flow.send_rst(cx);
            flow.die(cx, if flow.rcv.shut { Close::Normal } else { Close::Reset });
        }
        self.flows.clear();
        self.by_key.clear();
        self.resolving.clear();
        self.owners.clear();
        self.dialed.clear();
    }

    pub(crate) fn snapshot(&self) -> Vec<FlowInfo> {
        let flows = self.flows.iter();
        flows
            .map(|(_, f)| FlowInfo {
                protocol: "tcp",
                guest: f.key.guest,
                remote: Some(f.key.remote),
                state: f.state_name(),
            })
            .collect()
    }

    fn touch(&mut self, index: u32) {
        if let Some(flow) = self.flows.get_mut(index as usize)
            && !flow.dirty
        {
            flow.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Lets a flow do all it can, then removes it or sets its timer.
    fn settle(&mut self, net: &mut Net, io: &mut Io<'_>, index: u32) {
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        flow.settle(&mut Cx { net, io, pool: &mut self.pool });
        if flow.dial.is_some() {
            self.tell_dialed(index);
        }
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        if flow.state == State::Dead {
            return self.remove(net, io.now, index);
        }
        if flow.blocked && !flow.waiting {
            flow.waiting = true;
            self.blocked.push(index);
        }
        if let Some(deadline) = flow.deadline() {
            self.timers.set_earlier(index, deadline);
        }
    }

    fn remove(&mut self, net: &mut Net, now: Instant, index: u32) {
        let Some(flow) = self.flows.try_remove(index as usize) else { return };
        self.timers.cancel(index);
        if let Some(generation) = self.generations.get_mut(index as usize) {
            *generation = generation.wrapping_add(1);
        }
        self.by_key.remove(&flow.key);
        self.resolving.remove(&(flow.key.guest.ip(), index));
        if let Some((port, position)) = flow.owner
            && let Some(moved) = self.owners.remove(port, position)
            && let Some(moved) = self.flows.get_mut(moved as usize)
        {
            moved.owner = Some((port, position));
        }
        if flow.is_complete() {
            self.time_wait.remember(flow.key, flow.snd.nxt, flow.rcv.nxt, now);
        }
        net.stats.tcp_closed += 1;
    }

    /// The token of the flow in slot `index`, or of the next one there.
    fn token(&self, index: u32) -> Token {
        let generation = self.generations.get(index as usize).copied().unwrap_or(0);
        Token::new(Origin::Tcp, index, generation)
    }
}

impl Flow {
    /// The earliest time at which [`Flow::on_timer`] has something to do.
    fn deadline(&self) -> Option<Instant> {
        let quiet = KEEPALIVE + KEEPALIVE_INTERVAL * u32::from(self.keepalives);
        // While the host connects, the host alone knows how long that may take.
        let idle = (self.state == State::Open).then(|| self.last_heard + quiet);
        [self.snd.timer, self.rcv.ack_at, self.orphaned, idle].into_iter().flatten().min()
    }

    /// Whether the guest, which has let another timeout pass, counts as gone.
    fn has_waited_enough(&mut self, now: Instant) -> bool {
        if self.state != State::Open {
            return self.snd.backoff >= MAX_SYNS;
        }
        let mut since = *self.snd.stalled.get_or_insert(now);
        if self.snd.wnd == 0 {
            // A guest that answers probes of its closed window lives (RFC 9293 section 3.8.6.1).
            since = since.max(self.last_heard);
        }
        now.since(since) >= USER_TIMEOUT
    }

    fn on_timer(&mut self, cx: &mut Cx<'_, '_>) {
        let now = cx.io.now;
        if self.orphaned.is_some_and(|at| at <= now) {
            if cx.net.port_of(self.mac).is_none() {
                return self.die(cx, Close::Reset);
            }
            self.orphaned = None;
        }
        if self.rcv.ack_at.is_some_and(|at| at <= now) {
            self.rcv.ack = Ack::Now;
        }
        if self.snd.timer.is_some_and(|at| at <= now) {
            if self.has_waited_enough(now) {
                self.send_rst(cx);
                return self.die(cx, Close::Reset);
            }
            match self.state {
                State::Resolving => self.resolve(cx),
                State::SynSent | State::SynReceived => {
                    self.snd.backoff = self.snd.backoff.saturating_add(1);
                    self.send_syn(cx);
                }
                State::Open => self.timed_out(cx),
                State::Dialing | State::Dead => self.snd.timer = None,
            }
        }
        let quiet = KEEPALIVE + KEEPALIVE_INTERVAL * u32::from(self.keepalives);
        if self.state == State::Open && now >= self.last_heard + quiet {
            if self.keepalives == KEEPALIVES {
                return self.die(cx, Close::Reset);
            }
            self.keepalives += 1;
            self.send_keepalive(cx);
        }
    }
}

/// Source and destination port of a TCP header.
fn ports(tcp: &[u8]) -> (Option<u16>, Option<u16>) {
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    (port(0), port(2))
}
