//! The tunnel: a port of the host's loopback by which programs of the host reach the network's
//! guests, as a SOCKS5 and HTTP CONNECT proxy. Names mean what they mean to guests.
//!
//! A client is served here until its guest has answered; then its stream is the engine's, like a
//! forward's. Only guests are reached: whatever else a name or address leads to, the host itself
//! included, is refused as not allowed.
//!
//! Clients are bounded, and so is the time that each has; when there are too many, the one that
//! has had longest goes. The daemon's loop is never kept waiting.

mod client;
mod lookup;
mod relay;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant as SystemInstant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::io::Errno;
use slab::Slab;
use vmlan_engine::DialId;
use vmlan_engine::io::ListenAddr;

use crate::core::Core;
use crate::token::Owner;
use client::{Client, Then};
use lookup::Lookups;

const MAX_TUNNELS: usize = 64;

/// Clients that are served at once, those with relays for datagrams among them.
const MAX_CLIENTS: usize = 512;
const MAX_RELAYS: usize = 128;

/// For a client to say what it wants, and again for that to be there.
const DEADLINE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);

/// When the host is out of descriptors, clients wait in the backlog for as long.
const REST: Duration = Duration::from_millis(100);

/// Clients taken from a backlog in one turn.
const BUDGET: usize = 64;

/// Random ports that are tried until one is free on both loopbacks.
const TRIES: usize = 16;

#[derive(Debug)]
pub(crate) struct Tunnels {
    registry: Registry,
    tunnels: Slab<Tunnel>,
    /// Counts tunnels that came and went.
    changes: u32,
    clients: Slab<Client>,
    dials: HashMap<DialId, usize>,
    lookups: Lookups,
    /// Listeners with more in their backlogs, and when to go on with them.
    backlogs: Vec<u32>,
    resume: Option<SystemInstant>,
    /// Relays with more datagrams than one turn allows.
    busy: Vec<usize>,
}

/// A port, on each loopback that the host has.
#[derive(Debug)]
struct Tunnel {
    port: u16,
    listeners: Vec<TcpListener>,
}

/// What clients work with besides themselves.
struct Cx<'a> {
    core: &'a mut Core,
    registry: &'a Registry,
    /// The client's own number.
    own: u32,
    /// Whether there may be another relay.
    room: bool,
}

impl Tunnels {
    pub(crate) fn new(registry: Registry) -> Self {
        Self {
            registry,
            tunnels: Slab::new(),
            changes: 0,
            clients: Slab::new(),
            dials: HashMap::new(),
            lookups: Lookups::default(),
            backlogs: Vec::new(),
            resume: None,
            busy: Vec::new(),
        }
    }

    /// Opens a port; a random free one for 0. The error names it and, where the system tells, its
    /// holder.
    pub(crate) fn open(&mut self, port: u16) -> Result<u16, String> {
        if self.tunnels.len() >= MAX_TUNNELS {
            return Err(format!("the network has {MAX_TUNNELS} tunnels already"));
        }
        let mut tried = listen(port);
        for _ in 0..TRIES {
            if port != 0 || tried.is_ok() {
                break;
            }
            tried = listen(port);
        }
        let (port, listeners) = tried?;
        let vacant = self.tunnels.vacant_entry();
        for (family, listener) in (0..).zip(&listeners) {
            let index = u32::try_from(vacant.key()).map_err(|e| e.to_string())? * 2 + family;
            let (fd, token) = (listener.as_raw_fd(), Owner::TunnelListener(index).token());
            let registered = self.registry.register(&mut SourceFd(&fd), token, Interest::READABLE);
            registered.map_err(|e| format!("cannot poll: {e}"))?;
        }
        vacant.insert(Tunnel { port, listeners });
        self.changes = self.changes.wrapping_add(1);
        Ok(port)
    }

    /// Closes a port; what runs through it goes on.
    pub(crate) fn close(&mut self, port: u16) {
        self.tunnels.retain(|_, tunnel| tunnel.port != port);
        self.changes = self.changes.wrapping_add(1);
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.tunnels.iter().map(|(_, tunnel)| tunnel.port).collect();
        ports.sort_unstable();
        ports
    }

    /// Goes up whenever [`Tunnels::ports`] changes.
    pub(crate) fn changes(&self) -> u32 {
        self.changes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tunnels.is_empty()
    }

    /// A listener is ready.
    pub(crate) fn accept(&mut self, index: u32, core: &mut Core) {
        for _ in 0..BUDGET {
            let tunnel = self.tunnels.get(index as usize / 2);
            let Some(listener) = tunnel.and_then(|t| t.listeners.get(index as usize % 2)) else {
                return;
            };
            match listener.accept() {
                Ok((stream, peer)) => {
                    let local = stream.local_addr();
                    if let Ok(local) = local
                        && stream.set_nonblocking(true).is_ok()
                    {
                        let client = Client::of_proxy(stream.into(), local.ip(), peer);
                        self.add(client, core);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(_) => return self.put_off(index, SystemInstant::now() + REST),
            }
        }
        self.put_off(index, SystemInstant::now());
    }

    /// Serves a client of the control API, which has said where it wants to go.
    pub(crate) fn connect(
        &mut self,
        stream: OwnedFd,
        early: Vec<u8>,
        guest: SocketAddr,
        core: &mut Core,
    ) {
        if let Some(index) = self.add(Client::of_api(stream, early), core) {
            self.with(index, core, |client, cx| client.call(vec![guest], cx));
        }
    }

    /// A client's stream is ready.
    pub(crate) fn handle(&mut self, index: u32, event: &Event, core: &mut Core) {
        self.with(index as usize, core, |client, cx| client.go_on(event, cx));
    }

    /// A relay's socket is ready.
    pub(crate) fn handle_relay(&mut self, index: u32, core: &mut Core) {
        self.receive(index as usize, core);
    }

    /// What the engine and the resolver have answered, and what was left over.
    pub(crate) fn work(&mut self, core: &mut Core) {
        for (number, message) in std::mem::take(&mut core.resolved) {
            if let Some((index, name, found)) = self.lookups.answered(number, &message) {
                self.with(index, core, |client, cx| client.resolved(&name, &found, cx));
            }
        }
        while let Some((dial, outcome)) = core.engine.next_dialed() {
            if let Some(index) = self.dials.remove(&dial) {
                self.with(index, core, |client, cx| client.dialed(dial, outcome, cx));
            }
        }
        while let Some(answer) = core.engine.next_relayed() {
            if let Some(client) = self.clients.get(answer.relay.0 as usize) {
                client.answer_datagram(&answer);
            }
        }
        for index in std::mem::take(&mut self.busy) {
            self.receive(index, core);
        }
        if self.resume.is_some_and(|at| at <= SystemInstant::now()) {
            self.resume = None;
            for index in std::mem::take(&mut self.backlogs) {
                self.accept(index, core);
            }
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<SystemInstant> {
        let busy = (!self.busy.is_empty()).then(SystemInstant::now);
        let deadlines = self.clients.iter().filter_map(|(_, client)| client.deadline());
        [busy, self.resume].into_iter().flatten().chain(deadlines).min()
    }

    /// Lets clients go that took too long.
    pub(crate) fn handle_timeout(&mut self, core: &mut Core, now: SystemInstant) {
        let late = |client: &Client| client.deadline().is_some_and(|deadline| deadline <= now);
        let late: Vec<usize> =
            self.clients.iter().filter(|(_, client)| late(client)).map(|(i, _)| i).collect();
        for index in late {
            self.with(index, core, |client, _| client.time_is_up());
        }
    }

    fn put_off(&mut self, index: u32, until: SystemInstant) {
        self.backlogs.push(index);
        self.resume = Some(self.resume.map_or(until, |at| at.min(until)));
    }

    /// Makes room, so that nobody can keep others out by saying nothing.
    fn add(&mut self, client: Client, core: &mut Core) -> Option<usize> {
        if self.clients.len() >= MAX_CLIENTS {
            let oldest = self.clients.iter().filter_map(|(i, c)| Some((c.deadline()?, i))).min();
            self.remove(oldest?.1, core);
        }
        let vacant = self.clients.vacant_entry();
        let index = vacant.key();
        let token = Owner::Tunnel(u32::try_from(index).ok()?).token();
        let both = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut SourceFd(&client.raw_fd()), token, both).ok()?;
        vacant.insert(client);
        Some(index)
    }

    /// Lets a client do something, and does what follows from it.
    fn with(
        &mut self,
        index: usize,
        core: &mut Core,
        f: impl FnOnce(&mut Client, &mut Cx<'_>) -> Then,
    ) {
        let room = self.clients.iter().filter(|(_, c)| c.has_relay()).count() < MAX_RELAYS;
        let Some(client) = self.clients.get_mut(index) else { return };
        let own = u32::try_from(index).unwrap_or(u32::MAX);
        match f(client, &mut Cx { core, registry: &self.registry, own, room }) {
            Then::Wait => {}
            Then::Resolve(name) => self.lookups.ask(index, name, core),
            Then::Dialing(dial) => {
                self.dials.insert(dial, index);
            }
            Then::Attach(dial) => {
                let (stream, early) = self.clients.remove(index).into_stream();
                core.attach(dial, stream, &early);
            }
            Then::Close => self.remove(index, core),
        }
    }

    fn receive(&mut self, index: usize, core: &mut Core) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let own = u32::try_from(index).unwrap_or(u32::MAX);
        let (names, more) = client.receive(own, core);
        if more {
            self.busy.push(index);
        }
        for name in names {
            self.lookups.ask(index, name, core);
        }
    }

    fn remove(&mut self, index: usize, core: &mut Core) {
        let Some(client) = self.clients.try_remove(index) else { return };
        self.busy.retain(|busy| *busy != index);
        self.lookups.forget(index);
        let own = u32::try_from(index).unwrap_or(u32::MAX);
        if let Some(dial) = client.end(own, core) {
            self.dials.remove(&dial);
        }
    }
}

/// Listens on both loopbacks, or on the one that there is.
fn listen(port: u16) -> Result<(u16, Vec<TcpListener>), String> {
    let bind = |ip: IpAddr, port| {
        let at = SocketAddr::new(ip, port);
        let listener = TcpListener::bind(at).and_then(|l| l.set_nonblocking(true).map(|()| l));
        listener.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    };
    let told = |ip: IpAddr, port, errno| {
        vmlan_host::bind_failure(&ListenAddr::Tcp(SocketAddr::new(ip, port)), errno)
    };
    let (v4, v6): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    let first = bind(v4, port).map_err(|errno| told(v4, port, errno))?;
    let port = first.local_addr().map_err(|e| e.to_string())?.port();
    match bind(v6, port) {
        Ok(second) => Ok((port, vec![first, second])),
        Err(Errno::ADDRINUSE) => Err(told(v6, port, Errno::ADDRINUSE)),
        // There is no IPv6.
        Err(_) => Ok((port, vec![first])),
    }
}
