//! Everything together in virtual time: an engine, its host, its links and its guests. Time jumps
//! from one event to the next, so that an hour of waiting costs nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use vmlan_engine::config::Ipv4Net;
use vmlan_engine::{Config, DialId, Engine, Forward, ForwardId, Instant, Io, PortId};
use vmlan_wire::FrameBatch;

use crate::guest::SimGuest;
use crate::host::{HostEvent, Remote, SimHost};
use crate::links::{LinkOptions, SimLinks};
use crate::wire::SimFrame;

/// Frames that the engine is given at once.
const BATCH: usize = 64;

/// Turns without any time passing: beyond, something runs in a circle.
const MAX_TURNS: u32 = 1_000_000;

/// A simulated world around one engine.
#[derive(Debug)]
pub struct World {
    pub engine: Engine,
    pub host: SimHost,
    pub links: SimLinks,
    pub guests: Vec<SimGuest>,
    pub now: Instant,
    ports: Vec<PortId>,
    batch: FrameBatch,
    /// Turns since time last passed.
    turns: u32,
    /// Turns of the loop since the beginning: what waiting costs.
    pub steps: u64,
}

impl World {
    /// The default network.
    pub fn new(seed: u64) -> Self {
        Self::with(Self::config(seed), seed)
    }

    /// The default network's configuration.
    pub fn config(seed: u64) -> Config {
        let net = Ipv4Net { network: Ipv4Addr::new(192, 168, 5, 0), prefix: 24 };
        let mut bytes = [0x5a; 16];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Config::new(net, None, bytes).expect("the default network is valid")
    }

    pub fn with(config: Config, seed: u64) -> Self {
        let now = Instant::from_micros(1_000_000);
        let links = SimLinks::new(seed, config.gateway_mac, config.mtu);
        let mut world = Self {
            engine: Engine::new(config, now),
            host: SimHost::default(),
            links,
            guests: Vec::new(),
            now,
            ports: Vec::new(),
            batch: FrameBatch::default(),
            turns: 0,
            steps: 0,
        };
        world.tell_time();
        world
    }

    /// Attaches a guest with a stack and returns its index in `guests`: the first has .15.
    pub fn add_guest(&mut self, options: LinkOptions) -> usize {
        let port = self.add_port(options);
        let config = self.engine.config();
        let index = self.guests.len();
        let number = 15 + index as u8;
        let v4 = config.ipv4.nth(u32::from(number));
        let v6 = config.ipv6.nth(u64::from(number));
        let mtu = options.caps.mtu.min(config.mtu);
        let guest = SimGuest::new(
            port,
            number,
            mtu,
            (v4, config.ipv4.prefix, config.gateway),
            (v6, config.ipv6.gateway()),
            self.now,
        );
        self.guests.push(guest);
        index
    }

    /// Attaches a port without a stack: the test makes and reads its frames.
    pub fn add_port(&mut self, options: LinkOptions) -> PortId {
        let port = self.engine.add_port(options.caps).expect("a port is free");
        self.links.add(port, options);
        self.ports.push(port);
        port
    }

    /// Pulls a guest's plug.
    pub fn remove_port(&mut self, port: PortId) {
        let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
        self.engine.remove_port(port, &mut io);
        self.ports.retain(|p| *p != port);
        self.links.remove(port);
    }

    pub fn add_forward(&mut self, forward: Forward) -> Result<ForwardId, String> {
        let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
        self.engine.add_forward(forward, &mut io)
    }

    pub fn remove_forward(&mut self, id: ForwardId) -> bool {
        let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
        self.engine.remove_forward(id, &mut io)
    }

    pub fn shutdown(&mut self) {
        self.io(Engine::shutdown);
    }

    /// Calls a door of the engine.
    pub fn io<R>(&mut self, f: impl FnOnce(&mut Engine, &mut Io<'_>) -> R) -> R {
        let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
        f(&mut self.engine, &mut io)
    }

    /// Hands an answered dial the stream that `client` is at the other end of, if there may be
    /// another.
    pub fn attach(&mut self, dial: DialId, client: Remote, early: &[u8]) {
        match self.host.adopt(dial.token(), client) {
            Some(stream) => self.io(|engine, io| engine.attach(dial, stream, early, io)),
            None => self.io(|engine, io| engine.hang_up(dial, io)),
        }
    }

    /// Gives one frame to the engine at once, without the cable.
    pub fn inject(&mut self, port: PortId, frame: impl Into<SimFrame>) {
        self.inject_all(port, [frame.into()]);
    }

    /// Gives frames to the engine in one batch.
    pub fn inject_all(&mut self, port: PortId, frames: impl IntoIterator<Item = SimFrame>) {
        self.batch.clear();
        for frame in frames {
            self.batch.push_copy(&frame.data, frame.offload);
        }
        let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
        self.engine.handle_frames(port, &self.batch, &mut io);
    }

    /// Takes the next frame that has arrived at a port without a stack.
    pub fn take(&mut self, port: PortId) -> Option<SimFrame> {
        self.links.to_guest(port)
    }

    /// When something happens next.
    pub fn next_event(&mut self) -> Option<Instant> {
        let now = self.now;
        let guests = self.guests.iter_mut().filter_map(|g| g.next(now)).min();
        // Frames for ports without a stack wait for the test.
        let times = [self.engine.next_timeout(), guests, self.host.next_event(), self.links_next()];
        times.into_iter().flatten().min().map(|t| t.max(now))
    }

    fn links_next(&mut self) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for id in &self.ports {
            let watched = self.guests.iter().any(|g| g.port == *id);
            let port = self.links.port(*id);
            let down = port.down.next().filter(|_| watched && !port.paused);
            let first = [port.up.next(), down].into_iter().flatten().min();
            next = next.into_iter().chain(first).min();
        }
        next
    }

    /// Goes on to the next event and lets it happen; false if nothing will happen any more.
    pub fn step(&mut self) -> bool {
        self.step_before(None)
    }

    /// Runs until `done`, and returns how long that took. Panics when it takes longer than
    /// `limit`, or when nothing happens any more.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        let deadline = start + limit;
        while !done(self) {
            let stepped = self.step_before(Some(deadline));
            assert!(stepped, "it did not happen within {limit:?}: {}", self.summary());
        }
        self.check();
        self.now.since(start)
    }

    /// Lets `span` pass.
    pub fn run_for(&mut self, span: Duration) {
        let deadline = self.now + span;
        while self.step_before(Some(deadline)) {}
        self.now = deadline;
        self.tell_time();
        self.check();
    }

    /// Panics if the engine made a frame that it must not make.
    pub fn check(&self) {
        assert!(self.links.violations.is_empty(), "bad frames: {:#?}", self.links.violations);
    }

    /// What a test that fails has to know.
    fn summary(&self) -> String {
        let stats = self.engine.stats();
        let drops: Vec<_> = stats.drops().collect();
        let flows = self.engine.flows();
        format!(
            "at {:?}\n{stats:?}\n{drops:?}\n{} flows, the first {:#?}\n{:#?}\n{:#?}",
            self.now,
            flows.len(),
            &flows[..flows.len().min(8)],
            self.host,
            self.guests,
        )
    }

    fn step_before(&mut self, deadline: Option<Instant>) -> bool {
        let Some(next) = self.next_event() else { return false };
        if deadline.is_some_and(|d| next > d) {
            return false;
        }
        if next > self.now {
            self.turns = 0;
        }
        self.turns += 1;
        self.steps += 1;
        assert!(self.turns < MAX_TURNS, "no end of work: {}", self.summary());
        self.now = next;
        self.tell_time();
        self.turn();
        true
    }

    fn tell_time(&mut self) {
        self.host.set_time(self.now);
        self.links.set_time(self.now);
    }

    /// One pass over everybody at the present time, as the daemon's loop makes it.
    fn turn(&mut self) {
        for i in 0..self.guests.len() {
            self.turn_guest(i);
        }
        for i in 0..self.ports.len() {
            self.turn_port(self.ports[i]);
        }
        while let Some(port) = self.links.writable() {
            let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
            self.engine.handle_port_writable(port, &mut io);
        }
        self.turn_host();
        let now = self.now;
        if self.engine.next_timeout().is_some_and(|t| t <= now) {
            let mut io = Io { host: &mut self.host, links: &mut self.links, now };
            self.engine.handle_timeout(&mut io);
        }
    }

    fn turn_guest(&mut self, index: usize) {
        let now = self.now;
        let guest = &mut self.guests[index];
        while let Some(frame) = self.links.to_guest(guest.port) {
            guest.receive(frame.data);
        }
        if guest.next(now).is_some_and(|t| t <= now) {
            guest.poll(now);
        }
        while let Some(frame) = guest.transmitted() {
            self.links.from_guest(guest.port, frame);
        }
    }

    fn turn_port(&mut self, port: PortId) {
        loop {
            self.batch.clear();
            while self.batch.len() < BATCH
                && let Some(frame) = self.links.to_engine(port)
            {
                self.batch.push_copy(&frame.data, frame.offload);
            }
            if self.batch.is_empty() {
                return;
            }
            let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
            self.engine.handle_frames(port, &self.batch, &mut io);
        }
    }

    fn turn_host(&mut self) {
        // What the engine causes meanwhile waits for the next turn.
        for _ in 0..BATCH {
            let Some(event) = self.host.poll() else { return };
            let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
            match event {
                HostEvent::Ready(token, ready) => self.engine.handle_host(token, ready, &mut io),
                HostEvent::DnsAnswer(token, message) => {
                    self.engine.handle_dns_answers([(token, &message[..])], &mut io);
                }
            }
        }
    }
}

/// An address as text, for tests.
pub fn addr(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}
