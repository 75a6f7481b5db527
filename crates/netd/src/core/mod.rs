//! The engine with its two ways out, and the work of one pass of the loop: read the links that are
//! ready, hand over what the host has answered, do what is due, flush the links that were sent to.
//!
//! Every step is bounded, and what is left over keeps the next pass from waiting. What others want
//! done is in `commands`, what is known of guests in `guests`.

/// The doors of the engine and what they are given.
macro_rules! engine {
    ($core:ident) => {{
        let (host, links) = (&mut $core.sockets, &mut $core.ports);
        (&mut $core.engine, vmlan_engine::Io { host, links, now: $core.now })
    }};
}

mod commands;
mod guests;

use std::collections::HashMap;
use std::time::{Duration, Instant as SystemInstant};

use mio::event::Event;
use vmlan_config::Reservation;
use vmlan_dns::{Answers, Origin};
use vmlan_engine::{Engine, ForwardId, Instant, PortId, Token, Waiting};
use vmlan_host::Sockets;
use vmlan_link::{Link, PeerId};
use vmlan_wire::{FrameBatch, Mac};

use crate::DaemonError;
use crate::clock::Clock;
use crate::names::LeaseNames;
use crate::paused::{Pause, Paused};
use crate::ports::{LinkId, Ports, Turn};
use crate::pulse::Pulse;

pub(crate) use guests::{GuestInfo, internal_name};

/// Storage for the frames of one read. Memory is used only as far as reads reach.
const BATCH: usize = 640 * 1024;

/// Reads in a pass while only few links are ready; with more, each has one turn.
const MIN_TURNS: usize = 4;
const MAX_TURNS: usize = 64;

/// Times that links are flushed in a pass, each after flows have filled the room that the flush
/// before it had made.
const FLUSHES: usize = 4;

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) engine: Engine,
    pub(crate) sockets: Sockets,
    pub(crate) ports: Ports,
    pub(crate) clock: Clock,
    now: Instant,
    batch: FrameBatch,
    /// The state of the resolver's search domains that guests have been told.
    search_changes: u32,
    /// Storage for answers that are being taken.
    dns_answers: Answers<u64>,
    /// How many questions were asked for the control API, and the answers that it has not taken.
    asked: u64,
    pub(crate) answered: Vec<Resolved>,
    /// Ports with room again, for [`Core::flush`].
    writable: Vec<PortId>,
    /// Guests that said who they are.
    pub(crate) guests: Vec<GuestInfo>,
    /// Links of guests that are gone, and until when what they have sent is still read.
    leaving: Vec<(LinkId, Instant)>,
    /// Guests that are not read until those that they send to have room.
    paused: Paused,
    /// Answers to questions of tunnels' clients, by the number that was asked with.
    pub(crate) resolved: Vec<(u64, Vec<u8>)>,
    /// Where the guests of a bridge are attached, all of them.
    pub(crate) bridge: Option<PortId>,
    /// The network is the one that the host is on, and all that is served here is that it is there.
    pub(crate) lan: Option<Lan>,
    /// Somebody wants the network to be there without a guest.
    pub(crate) held: bool,
    reservations: Vec<Reservation>,
    pub(crate) lease_names: LeaseNames,
    /// What clients of the control API said of the forwards that they opened.
    pub(crate) labels: HashMap<ForwardId, Label>,
    /// Goes up with each forward or zone that they add or remove.
    pub(crate) additions: u64,
    pub(crate) pulse: Pulse,
}

/// What guests of the network that the host is on are told.
#[derive(Debug)]
pub(crate) struct Lan {
    pub(crate) warnings: Vec<String>,
    /// Where the cards of machines that are gone stay.
    pub(crate) cards: Option<Box<dyn Cards>>,
}

/// Takes away what machines leave on a network.
pub trait Cards: std::fmt::Debug {
    /// The machine with this MAC address is gone.
    fn remove(&self, mac: Mac) -> Result<(), String>;
}

/// A forward as who opened it wrote it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Label {
    /// Where it listens.
    pub(crate) local: Option<String>,
    /// The guest that it goes with.
    pub(crate) guest: Option<Mac>,
}

/// The answer to a question of the control API's.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) number: u64,
    pub(crate) origin: Origin,
    pub(crate) message: Vec<u8>,
}

/// Set in the numbers of the control API's questions: those of engines and tunnels are without.
const ASKED: u64 = 1 << 62;

/// On whose account they are.
const ASKED_GUEST: u32 = u32::MAX - 1;

/// How long what a guest has sent before it left is read.
const LEAVING: Duration = Duration::from_secs(1);

/// Set in the numbers of questions that tunnels' clients ask: engines use lower ones.
pub(crate) const TUNNEL_QUERY: u64 = 1 << 63;

/// On whose account these are: no port of the switch.
const TUNNEL_GUEST: u32 = u32::MAX;

impl Core {
    pub(crate) fn new(engine: Engine, mut sockets: Sockets, ports: Ports, clock: Clock) -> Self {
        let search_changes = sockets.resolver().search_changes();
        Self {
            engine,
            sockets,
            ports,
            clock,
            now: clock.now(),
            batch: FrameBatch::with_capacity(BATCH),
            search_changes,
            dns_answers: Answers::default(),
            asked: 0,
            answered: Vec::new(),
            writable: Vec::new(),
            guests: Vec::new(),
            leaving: Vec::new(),
            paused: Paused::default(),
            resolved: Vec::new(),
            bridge: None,
            lan: None,
            held: false,
            reservations: Vec::new(),
            lease_names: LeaseNames::default(),
            labels: HashMap::new(),
            additions: 0,
            pulse: Pulse::new(clock.now()),
        }
    }

    /// Attaches a link. Its first guest gets a port at once, so that it hears broadcasts before it
    /// first speaks.
    pub(crate) fn add_link(
        &mut self,
        link: Box<dyn Link>,
    ) -> Result<(LinkId, PortId), DaemonError> {
        let index = self.ports.add(link).map_err(DaemonError::io("cannot poll a guest's link"))?;
        match (self.ports.id(index), self.add_guest(index, PeerId(0))) {
            (Some(id), Some(port)) => Ok((id, port)),
            _ => {
                self.close_link(index);
                Err(DaemonError::NoPort)
            }
        }
    }

    /// Lets the link of a guest that is gone go, once what it has sent is read.
    pub(crate) fn let_go(&mut self, link: LinkId) {
        if self.ports.id(link.index) == Some(link) {
            self.ports.set_ready(link.index);
            self.leaving.push((link, self.now + LEAVING));
        }
    }

    /// Starts a pass.
    pub(crate) fn tick(&mut self) {
        self.now = self.clock.now();
    }

    /// When this pass began.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Ends a pass, and returns when that was.
    pub(crate) fn end_pass(&mut self) -> Instant {
        let now = self.clock.now();
        self.pulse.beat(self.now, now);
        now
    }

    /// An event of a socket that the host crate opened for itself.
    pub(crate) fn internal_event(&mut self, event: &Event) {
        self.sockets.handle_internal(event.token(), event, self.now);
    }

    pub(crate) fn host_event(&mut self, token: Token, event: &Event) {
        let ready = Sockets::readiness(event);
        let (engine, mut io) = engine!(self);
        engine.handle_host(token, ready, &mut io);
    }

    /// What follows the events of a pass.
    pub(crate) fn work(&mut self) {
        self.read_links();
        self.dns();
        self.timeouts();
        self.flush();
        self.close_left();
        self.name_leases();
        if !self.ports.captures.is_empty() {
            self.ports.captures.flush();
        }
    }

    /// When [`Core::work`] has to be done even without an event; a time in the past means at once.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if self.ports.ready_len() > 0 || self.ports.is_dirty() || !self.resolved.is_empty() {
            return Some(Instant::ZERO);
        }
        let links = self.ports.next_timeout().map(|at| self.clock.at(at));
        let paused = self.paused.next_timeout();
        let names = self.lease_names.next_timeout();
        let times = [self.engine.next_timeout(), self.sockets.next_timeout(), links, paused, names];
        times.into_iter().flatten().min()
    }

    /// Whether everything that guests have sent so far has been passed on.
    pub(crate) fn is_settled(&self) -> bool {
        let read = self.ports.ready_len() == 0 && self.paused.is_empty();
        read && !self.ports.is_dirty() && !self.engine.is_sending()
    }

    /// Resets every flow and tells the guests.
    pub(crate) fn shutdown(&mut self) {
        self.now = self.clock.now();
        let (engine, mut io) = engine!(self);
        engine.shutdown(&mut io);
        self.flush();
    }

    fn read_links(&mut self) {
        let turns = self.ports.ready_len().clamp(MIN_TURNS, MAX_TURNS);
        for _ in 0..turns {
            let Some(index) = self.ports.next_ready() else { return };
            let port = match self.ports.recv(index, &mut self.batch) {
                Turn::Frames(port) => Some(port),
                Turn::NewGuest(peer) => self.add_guest(index, peer),
                Turn::Nothing => None,
                Turn::Closed => {
                    self.close_link(index);
                    continue;
                }
            };
            if let Some((caps, ports)) = self.ports.take_new_caps(index) {
                ports.into_iter().for_each(|port| self.engine.set_port_caps(port, caps));
            }
            if let Some(port) = port {
                self.handle_batch(index, port);
            }
            for port in self.ports.take_gone(index) {
                let (engine, mut io) = engine!(self);
                engine.remove_port(port, &mut io);
            }
        }
    }

    /// Hands over what was read from a link. Its guest is paused while others have no room for it.
    fn handle_batch(&mut self, index: u32, port: PortId) {
        let Some(link) = self.ports.id(index) else { return };
        let mut batch = std::mem::take(&mut self.batch);
        if let Some(waiting) = self.handle_frames(port, &batch, 0, true) {
            self.paused.add((link, port), waiting, &mut batch, self.now);
            self.ports.pause(index, true);
        }
        self.batch = batch;
    }

    /// A guest that was paused goes on, if it can.
    fn resume(&mut self, pause: Pause, may_wait: bool) {
        let Pause { link, port, mut batch, waiting, .. } = pause;
        match self.handle_frames(port, &batch, waiting.next, may_wait) {
            Some(waiting) => self.paused.add((link, port), waiting, &mut batch, self.now),
            None if self.ports.id(link.index) == Some(link) => self.ports.pause(link.index, false),
            None => {}
        }
        self.paused.give_back(batch);
    }

    /// Guests whose patience is over go on: what those that they waited for do not take is lost.
    fn lose_patience(&mut self) {
        while let Some(pause) = self.paused.take_due(self.now) {
            self.engine.give_up(pause.waiting.on);
            self.resume(pause, true);
        }
    }

    /// What the engine counts meanwhile is the port's.
    fn handle_frames(
        &mut self,
        port: PortId,
        batch: &FrameBatch,
        from: usize,
        may_wait: bool,
    ) -> Option<Waiting> {
        let count = |engine: &Engine| {
            let stats = engine.stats();
            (stats.frames_in, stats.bytes_in, *stats.all_dropped())
        };
        if from == 0 {
            self.ports.capture(port, batch);
        }
        let (frames, bytes, dropped) = count(&self.engine);
        let (engine, mut io) = engine!(self);
        let waiting = engine.handle_frames_from(port, batch, from, may_wait, &mut io);
        let after = count(&self.engine);
        let Some(traffic) = self.ports.traffic_mut(port) else { return waiting };
        traffic.from_guest.0 += after.0 - frames;
        traffic.from_guest.1 += after.1 - bytes;
        if after.2 != dropped {
            for (sum, (now, before)) in traffic.dropped.iter_mut().zip(after.2.iter().zip(dropped))
            {
                *sum += now - before;
            }
        }
        waiting
    }

    fn dns(&mut self) {
        let changes = self.sockets.resolver().search_changes();
        if changes != self.search_changes {
            self.search_changes = changes;
            let search = self.sockets.resolver().search().to_vec();
            self.engine.set_search(search, self.now);
        }
        self.sockets.flush_dns(self.now);
        let mut answers = std::mem::take(&mut self.dns_answers);
        std::mem::swap(&mut answers, self.sockets.dns_answers());
        if !answers.is_empty() {
            let (resolved, answered) = (&mut self.resolved, &mut self.answered);
            let (engine, mut io) = engine!(self);
            let of_guests = answers.iter().filter_map(|answer| {
                if answer.to & TUNNEL_QUERY != 0 {
                    resolved.push((answer.to, answer.message.to_vec()));
                    return None;
                }
                if answer.to & ASKED != 0 {
                    let (number, message) = (answer.to, answer.message.to_vec());
                    answered.push(Resolved { number, origin: answer.origin, message });
                    return None;
                }
                Some((Token(answer.to), answer.message))
            });
            engine.handle_dns_answers(of_guests, &mut io);
        }
        answers.clear();
        self.dns_answers = answers;
    }

    fn timeouts(&mut self) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= self.now);
        if due(self.sockets.next_timeout()) {
            self.sockets.handle_timeout(self.now);
        }
        if due(self.engine.next_timeout()) {
            let (engine, mut io) = engine!(self);
            engine.handle_timeout(&mut io);
        }
        self.lose_patience();
        if self.ports.next_timeout().is_some() {
            self.ports.handle_timeout(SystemInstant::now());
        }
    }

    fn flush(&mut self) {
        for _ in 0..FLUSHES {
            if !self.ports.is_dirty() {
                return;
            }
            let mut writable = std::mem::take(&mut self.writable);
            self.ports.flush(&mut writable);
            for port in writable.drain(..) {
                let (engine, mut io) = engine!(self);
                engine.handle_port_writable(port, &mut io);
                while let Some(pause) = self.paused.take_on(port) {
                    self.resume(pause, true);
                }
            }
            self.writable = writable;
        }
    }

    fn add_guest(&mut self, index: u32, peer: PeerId) -> Option<PortId> {
        let caps = self.ports.caps(index)?;
        let port = self.engine.add_port(caps)?;
        self.ports.bind(index, peer, port);
        Some(port)
    }

    fn close_left(&mut self) {
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|(link, until)| {
            let there = self.ports.id(link.index) == Some(*link);
            let more = self.ports.is_ready(link.index) && self.now < *until;
            if there && !more {
                self.close_link(link.index);
            }
            there && more
        });
        self.leaving = leaving;
    }

    pub(crate) fn close_link(&mut self, index: u32) {
        if let Some(pause) = self.ports.id(index).and_then(|link| self.paused.take_of(link)) {
            self.resume(pause, false);
        }
        for port in self.ports.remove(index) {
            let (engine, mut io) = engine!(self);
            engine.remove_port(port, &mut io);
        }
    }
}
