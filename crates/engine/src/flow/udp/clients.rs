//! The clients of UDP forwards: each is shown to the guest under an address of its own, by which
//! the guest's answers find the way back.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::config::Config;
use crate::flow::owners::Owners;
use crate::hash::SeededState;
use crate::time::Instant;
use crate::timer::TimerWheel;

/// Clients that one forward knows at once.
const MAX: usize = 4096;

/// Idle times, as of flows.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_STREAM: Duration = Duration::from_secs(180);

/// Where ports are taken from when the client's own is not free (RFC 6335 section 6).
const FIRST_PORT: u16 = 49_152;

/// Client ports below are not shown: the gateway has services of its own there.
pub(super) const FIRST_OWN_PORT: u16 = 1024;

/// Ports tried before the client has to wait.
const TRIES: usize = 256;

#[derive(Debug)]
pub(super) struct Clients {
    slots: Vec<Option<Client>>,
    free: Vec<u32>,
    /// By forward and address on the host's network.
    by_addr: HashMap<(u32, SocketAddr), u32, SeededState>,
    /// By guest endpoint and the address the guest knows.
    by_shown: HashMap<(SocketAddr, SocketAddr), u32, SeededState>,
    forwards: Owners<u32>,
    timers: TimerWheel,
    expired: Vec<u32>,
    next_port: u16,
    /// Counts clients that came and went.
    pub(super) changes: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) forward: u32,
    pub(super) guest: SocketAddr,
    pub(super) addr: SocketAddr,
    /// As the guest knows it.
    pub(super) shown: SocketAddr,
    position: usize,
    last: Instant,
    questions: u32,
    answers: u32,
}

impl Clients {
    pub(super) fn new(seed: [u8; 16], now: Instant) -> Self {
        let state = SeededState::new(seed);
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_addr: HashMap::with_hasher(state),
            by_shown: HashMap::with_hasher(state),
            forwards: Owners::new(seed),
            timers: TimerWheel::new(now),
            expired: Vec::new(),
            next_port: FIRST_PORT,
            changes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_shown.is_empty()
    }

    /// The client that a guest's datagram is for.
    pub(super) fn answered(
        &mut self,
        guest: SocketAddr,
        shown: SocketAddr,
        now: Instant,
    ) -> Option<Client> {
        let index = *self.by_shown.get(&(guest, shown))?;
        let client = self.slots.get_mut(index as usize)?.as_mut()?;
        client.last = now;
        client.answers = client.answers.saturating_add(1);
        Some(*client)
    }

    /// The client of a forward with this address on the host's network.
    pub(super) fn get(&self, forward: u32, addr: SocketAddr) -> Option<Client> {
        let index = *self.by_addr.get(&(forward, addr))?;
        *self.slots.get(index as usize)?
    }

    /// The address under which the guest sees a client of a forward that sends something, new ones
    /// too. `kept` is the client's own, where it is to be kept. `None` if no port is free.
    pub(super) fn asks(
        &mut self,
        config: &Config,
        forward: u32,
        guest: SocketAddr,
        addr: SocketAddr,
        kept: Option<SocketAddr>,
        now: Instant,
    ) -> Option<SocketAddr> {
        if let Some(index) = self.by_addr.get(&(forward, addr))
            && let Some(Some(client)) = self.slots.get_mut(*index as usize)
        {
            client.last = now;
            client.questions = client.questions.saturating_add(1);
            return Some(client.shown);
        }
        if self.forwards.flows(forward) >= MAX {
            self.evict(forward);
        }
        let free = |shown: &SocketAddr| !self.by_shown.contains_key(&(guest, *shown));
        let shown = match kept.filter(free) {
            Some(kept) => kept,
            None => self.free_port(config, guest, addr.port())?,
        };
        let client = Client {
            forward,
            guest,
            addr,
            shown,
            position: 0,
            last: now,
            questions: 1,
            answers: 0,
        };
        self.insert(client);
        Some(shown)
    }

    /// Forgets the clients of a forward.
    pub(super) fn remove_forward(&mut self, forward: u32) {
        while let Some(index) = self.forwards.first(forward) {
            self.remove(index);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let mut expired = std::mem::take(&mut self.expired);
        self.timers.expired(now, &mut expired);
        for index in expired.drain(..) {
            match self.slots.get(index as usize).copied().flatten().map(|c| c.expiry()) {
                Some(at) if at > now => self.timers.set(index, at),
                Some(_) => self.remove(index),
                None => {}
            }
        }
        self.expired = expired;
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Client> {
        self.slots.iter().flatten()
    }

    fn insert(&mut self, mut client: Client) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.changes = self.changes.wrapping_add(1);
        client.position = self.forwards.add(client.forward, index);
        self.by_addr.insert((client.forward, client.addr), index);
        self.by_shown.insert((client.guest, client.shown), index);
        self.timers.set(index, client.expiry());
        if let Some(slot) = self.slots.get_mut(index as usize) {
            *slot = Some(client);
        }
    }

    fn remove(&mut self, index: u32) {
        let Some(client) = self.slots.get_mut(index as usize).and_then(Option::take) else {
            return;
        };
        self.changes = self.changes.wrapping_add(1);
        self.free.push(index);
        self.timers.cancel(index);
        self.by_addr.remove(&(client.forward, client.addr));
        self.by_shown.remove(&(client.guest, client.shown));
        if let Some(moved) = self.forwards.remove(client.forward, client.position)
            && let Some(Some(moved)) = self.slots.get_mut(moved as usize)
        {
            moved.position = client.position;
        }
    }

    /// Ends the idlest of a few of a forward's clients.
    fn evict(&mut self, forward: u32) {
        let slots = &self.slots;
        let last = |index: &u32| slots.get(*index as usize).copied().flatten().map(|c| c.last);
        if let Some(chosen) = self.forwards.sample(forward).min_by_key(last) {
            self.remove(chosen);
        }
    }

    /// The gateway's address with the client's own port, which is what the guest would see if the
    /// gateway were the host, else with one that is free.
    fn free_port(&mut self, config: &Config, guest: SocketAddr, own: u16) -> Option<SocketAddr> {
        let gateway = match guest.ip() {
            IpAddr::V4(_) => IpAddr::V4(config.gateway),
            IpAddr::V6(_) => IpAddr::V6(config.own_v6()),
        };
        let mut shown = SocketAddr::new(gateway, own);
        if own >= FIRST_OWN_PORT && !self.by_shown.contains_key(&(guest, shown)) {
            return Some(shown);
        }
        for _ in 0..TRIES {
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            shown.set_port(self.next_port);
            if !self.by_shown.contains_key(&(guest, shown)) {
                return Some(shown);
            }
        }
        None
    }
}

impl Client {
    pub(super) fn state(&self) -> &'static str {
        if self.answers == 0 { "unanswered" } else { "forwarded" }
    }

    fn expiry(&self) -> Instant {
        let stream = self.questions > 1 && self.answers > 1;
        self.last + if stream { IDLE_STREAM } else { IDLE }
    }
}
