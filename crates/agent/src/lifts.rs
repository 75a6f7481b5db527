//! Ways between the network and places inside the guest that it cannot reach by itself.
//!
//! A *lift* is a port of the guest's own address; who comes there from an address that may (the
//! network's gateway) is led to a listener on the loopback or to a UNIX socket. A *door* is a UNIX
//! socket of the guest that leads to the host: for each client a port is opened where the host may
//! call back once. All of it is bounded, and others than the gateway are turned away.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, sockopt};
use vmlan_agent::message::{Lift, Listener, Orders, Proto, Target};

use crate::connect::{connect, door};
use crate::datagrams::UdpLift;
use crate::poll::{LOCAL_TOKENS, Poll, Source};
use crate::relay::{Relay, Relayed};

/// Streams at once.
const MAX_RELAYS: usize = 1024;

/// Clients of doors that the host has not called back yet.
const MAX_AWAITED: usize = 64;

/// For the host to call back.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections accepted in one turn.
const BUDGET: usize = 32;

/// Everything that is open, and for whom.
#[derive(Debug)]
pub(crate) struct Lifts {
    objects: BTreeMap<u64, Object>,
    lifts: BTreeMap<Target, (u64, u16)>,
    doors: BTreeMap<String, u64>,
    at: Ipv4Addr,
    from: Vec<IpAddr>,
    next: u64,
    /// Nothing is accepted: there is no room, or no descriptor.
    full: bool,
    /// Doors where somebody waits, and the ports where the host is to call.
    calls: Vec<(String, u16)>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum Object {
    Tcp { listener: Source, to: Target },
    Udp(UdpLift),
    Door { listener: Source, path: String },
    Awaited { listener: Source, client: OwnedFd, until: Instant },
    Relay(Box<Relay>),
}

impl Lifts {
    pub(crate) fn new() -> Self {
        Self {
            objects: BTreeMap::new(),
            lifts: BTreeMap::new(),
            doors: BTreeMap::new(),
            at: Ipv4Addr::UNSPECIFIED,
            from: Vec::new(),
            next: 1,
            full: false,
            calls: Vec::new(),
            buffer: vec![0; 64 * 1024],
        }
    }

    /// The lifts that are in place.
    pub(crate) fn list(&self) -> Vec<Lift> {
        self.lifts.iter().map(|(to, (_, port))| Lift { to: to.clone(), port: *port }).collect()
    }

    /// Whether a listener is one of ours.
    pub(crate) fn owns(&self, listener: &Listener) -> bool {
        let same = |to: &Target, port: u16| {
            listener.at == SocketAddr::from((self.at, port))
                && (listener.proto == Proto::Udp) == matches!(to, Target::Udp(_))
        };
        self.lifts.iter().any(|(to, (_, port))| same(to, *port))
    }

    /// Has what is wanted and nothing else. What cannot be opened is tried again by the next call;
    /// connections that are there stay.
    pub(crate) fn follow(&mut self, poll: &Poll, orders: &Orders) {
        if self.at != orders.at {
            for (_, (id, _)) in std::mem::take(&mut self.lifts) {
                self.objects.remove(&id);
            }
        }
        self.at = orders.at;
        self.from.clone_from(&orders.from);
        let objects = &mut self.objects;
        self.lifts.retain(|to, (id, _)| orders.lifts.contains(to) || objects.remove(id).is_none());
        self.doors.retain(|path, id| {
            let wanted = orders.doors.contains(path);
            if !wanted {
                objects.remove(id);
                let _ = std::fs::remove_file(path);
            }
            wanted
        });
        for to in &orders.lifts {
            if !self.lifts.contains_key(to)
                && let Ok(opened) = self.open(poll, to)
            {
                self.lifts.insert(to.clone(), opened);
            }
        }
        for path in &orders.doors {
            if !self.doors.contains_key(path)
                && let Ok(id) = self.open_door(poll, path, orders.uid)
            {
                self.doors.insert(path.clone(), id);
            }
        }
    }

    /// Clients of doors that the host has to be told of.
    pub(crate) fn take_calls(&mut self) -> Vec<(String, u16)> {
        std::mem::take(&mut self.calls)
    }

    /// Closes what nobody uses, and accepts again if there is room.
    pub(crate) fn tidy(&mut self, poll: &Poll) {
        let now = Instant::now();
        self.objects.retain(|_, object| match object {
            Object::Awaited { until, .. } => now < *until,
            Object::Udp(lift) => {
                lift.tidy(now);
                true
            }
            _ => true,
        });
        if self.full && self.count(|object| matches!(object, Object::Relay(_))) < MAX_RELAYS {
            self.set_full(poll, false);
        }
    }

    fn count(&self, is: impl Fn(&Object) -> bool) -> usize {
        self.objects.values().filter(|object| is(object)).count()
    }

    fn set_full(&mut self, poll: &Poll, full: bool) {
        self.full = full;
        let asked = if full { EventFlags::empty() } else { EventFlags::IN };
        for object in self.objects.values_mut() {
            if let Object::Tcp { listener, .. } | Object::Door { listener, .. } = object {
                // What cannot be asked about is closed by whoever ordered it.
                let _ = listener.ask(poll, asked);
            }
        }
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn open(&mut self, poll: &Poll, to: &Target) -> io::Result<(u64, u16)> {
        let id = self.id();
        let (object, port) = match to {
            Target::Udp(to) => {
                let (lift, port) = UdpLift::open(poll, id * LOCAL_TOKENS, self.at, *to)?;
                (Object::Udp(lift), port)
            }
            Target::Tcp(_) | Target::Unix(_) => {
                let (listener, port) = self.listen(poll, id)?;
                (Object::Tcp { listener, to: to.clone() }, port)
            }
        };
        self.objects.insert(id, object);
        Ok((id, port))
    }

    fn listen(&self, poll: &Poll, id: u64) -> io::Result<(Source, u16)> {
        let socket = TcpListener::bind((self.at, 0))?;
        socket.set_nonblocking(true)?;
        let port = socket.local_addr()?.port();
        let mut listener = Source::new(socket.into(), id * LOCAL_TOKENS);
        if !self.full {
            listener.ask(poll, EventFlags::IN)?;
        }
        Ok((listener, port))
    }

    fn open_door(&mut self, poll: &Poll, path: &str, uid: u32) -> io::Result<u64> {
        let id = self.id();
        let mut listener = Source::new(door(path, uid)?, id * LOCAL_TOKENS);
        listener.ask(poll, EventFlags::IN)?;
        self.objects.insert(id, Object::Door { listener, path: path.to_owned() });
        Ok(id)
    }

    /// A descriptor is ready.
    pub(crate) fn handle(&mut self, poll: &Poll, token: u64) {
        let id = token / LOCAL_TOKENS;
        let Some(object) = self.objects.get_mut(&id) else { return };
        match object {
            Object::Relay(relay) => {
                if relay.go_on(poll) == Relayed::Ended {
                    self.objects.remove(&id);
                }
            }
            Object::Udp(lift) => match token % LOCAL_TOKENS {
                0 => lift.hear_clients(poll, &mut self.buffer, &self.from),
                number => lift.hear_listener(number, &mut self.buffer),
            },
            Object::Tcp { .. } => self.accept_lift(poll, id),
            Object::Door { .. } => self.accept_door(poll, id),
            Object::Awaited { .. } => self.called_back(poll, id),
        }
    }

    fn accept_lift(&mut self, poll: &Poll, id: u64) {
        for _ in 0..BUDGET {
            if self.count(|object| matches!(object, Object::Relay(_))) >= MAX_RELAYS {
                return self.set_full(poll, true);
            }
            let Some(Object::Tcp { listener, to }) = self.objects.get(&id) else { return };
            match accept(listener, &self.from) {
                Ok(Some(client)) => match connect(to) {
                    Ok(server) => self.relay(poll, client, server, true),
                    Err(_) => reset(&client),
                },
                // Turned away.
                Ok(None) => {}
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return self.set_full(poll, true),
            }
        }
    }

    fn accept_door(&mut self, poll: &Poll, id: u64) {
        let Some(Object::Door { listener, path }) = self.objects.get(&id) else { return };
        let path = path.clone();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let client = match rustix::net::accept_with(listener, flags) {
            Ok(client) => client,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(_) => return self.set_full(poll, true),
        };
        if self.count(|object| matches!(object, Object::Awaited { .. })) >= MAX_AWAITED {
            return;
        }
        let id = self.id();
        if let Ok((listener, port)) = self.listen(poll, id) {
            let until = Instant::now() + PATIENCE;
            self.objects.insert(id, Object::Awaited { listener, client, until });
            self.calls.push((path, port));
        }
    }

    fn called_back(&mut self, poll: &Poll, id: u64) {
        let Some(Object::Awaited { listener, .. }) = self.objects.get(&id) else { return };
        if let Ok(Some(host)) = accept(listener, &self.from)
            && let Some(Object::Awaited { client, .. }) = self.objects.remove(&id)
        {
            self.relay(poll, host, client, false);
        }
    }

    fn relay(&mut self, poll: &Poll, client: OwnedFd, server: OwnedFd, connecting: bool) {
        let id = self.id();
        let Ok(mut relay) = Relay::new([client, server], id * LOCAL_TOKENS, connecting) else {
            return;
        };
        if relay.go_on(poll) == Relayed::GoesOn {
            self.objects.insert(id, Object::Relay(Box::new(relay)));
        }
    }
}

/// A client; None if it is one that is turned away.
fn accept(listener: &Source, from: &[IpAddr]) -> Result<Option<OwnedFd>, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (client, peer) = rustix::net::acceptfrom_with(listener, flags)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    if peer.is_some_and(|peer| from.contains(&peer.ip())) {
        return Ok(Some(client));
    }
    reset(&client);
    Ok(None)
}

/// Has a connection end by a RST when it is dropped.
fn reset(client: &OwnedFd) {
    let _ = sockopt::set_socket_linger(client, Some(Duration::ZERO));
}
