//! Queries over UDP. Each nameserver is asked from a handful of sockets that are connected to it,
//! so that nobody else can answer, with ids and source ports that cannot be foreseen (RFC 5452).
//! A nameserver that is silent, refuses or fails is passed over for the next.

mod queries;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant as Moment};

use mio::Registry;
use rustix::io::Errno;
use rustix::net::{SocketType, ipproto};
use slab::Slab;
use vmlan_engine::{Readiness, Token};

use super::message::MAX_QUERY;
use super::{GIVE_UP, RETRY, Shared};
use crate::sockets::register;
use crate::sys::{self, Batches};
use crate::token::{Class, Internal};
use queries::{Pending, Queries};

/// Queries on their way.
const MAX_PENDING: usize = 4096;

/// Source ports for one nameserver; on this host there is nobody to hide from.
const PORTS: usize = 8;
const LOCAL_PORTS: usize = 2;

/// A port is given up after so many queries, or after a rest: the route may have changed, and with
/// it the address that a connected socket keeps.
const MAX_USES: u32 = 4096;
const MAX_REST: Duration = Duration::from_secs(15);

/// How exactly retries are timed.
const SWEEP: Duration = Duration::from_millis(250);

/// Batches that are read from one socket before others get their turn.
const MAX_BATCHES: usize = 16;
const BATCH: usize = 30;

/// Attempts to find an id that is not in use.
const ID_TRIES: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Udp {
    sockets: Slab<Socket>,
    pools: Vec<Pool>,
    queries: Queries,
    generation: u32,
    sweep: Option<Moment>,
    /// Sockets that had more to read when their turn ended.
    unread: Vec<usize>,
    /// Queries that go to their next nameserver; empty between calls.
    moved: Vec<usize>,
}

/// The sockets to one nameserver.
#[derive(Debug)]
struct Pool {
    server: SocketAddr,
    ports: Vec<Option<usize>>,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    server: SocketAddr,
    generation: u32,
    uses: u32,
    used: Moment,
    /// No longer in its pool: it only waits for answers.
    retired: bool,
}

impl Udp {
    /// Sends a query on its way. False if there is no room for it.
    pub(super) fn query(
        &mut self,
        shared: &mut Shared,
        registry: &Registry,
        token: Token,
        message: &[u8],
        now: Moment,
    ) -> bool {
        if self.queries.pending.len() >= MAX_PENDING || message.len() > MAX_QUERY {
            return false;
        }
        let Some(&[high, low]) = message.get(..2) else { return false };
        let mut copy = self.queries.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(message);
        let index = self.queries.pending.insert(Pending {
            token,
            message: copy,
            id: [high, low],
            sent: None,
            sent_at: now,
            asked_at: now,
            next: shared.servers.first(now),
            errors: 0,
            failures: 0,
        });
        self.moved.push(index);
        self.send_moved(shared, registry, now);
        self.sweep.get_or_insert(now + SWEEP);
        true
    }

    pub(super) fn handle(
        &mut self,
        shared: &mut Shared,
        registry: &Registry,
        batches: &mut Batches,
        internal: Internal,
        ready: Readiness,
        now: Moment,
    ) {
        let known = self.sockets.get(internal.index);
        if known.is_none_or(|socket| socket.generation != internal.generation) {
            return;
        }
        if ready.readable || ready.error {
            self.read(shared, batches, internal.index, now);
            self.send_moved(shared, registry, now);
        }
    }

    pub(super) fn handle_timeout(
        &mut self,
        shared: &mut Shared,
        registry: &Registry,
        batches: &mut Batches,
        now: Moment,
    ) {
        for index in std::mem::take(&mut self.unread) {
            self.read(shared, batches, index, now);
        }
        if self.sweep.is_some_and(|due| due <= now) {
            self.sweep(shared, now);
        }
        self.send_moved(shared, registry, now);
    }

    pub(super) fn next_timeout(&self) -> Option<Moment> {
        if self.unread.is_empty() { self.sweep } else { Some(Moment::now()) }
    }

    /// Retries what is overdue, gives up what is too old, closes sockets without work.
    fn sweep(&mut self, shared: &mut Shared, now: Moment) {
        shared.servers.refresh(now);
        self.retire_pools(shared);
        let Self { sockets, queries, moved, .. } = self;
        let mut busy = vec![false; sockets.capacity()];
        let mut dead = Vec::new();
        for (index, pending) in &mut queries.pending {
            if now.duration_since(pending.asked_at) >= GIVE_UP {
                dead.push(index);
                continue;
            }
            let Some((socket, _)) = pending.sent else { continue };
            if now.duration_since(pending.sent_at) >= RETRY {
                pending.errors = 0;
                pending.failures += 1;
                moved.push(index);
                if let Some(socket) = sockets.get_mut(socket) {
                    socket.uses = MAX_USES;
                }
            }
            if let Some(busy) = busy.get_mut(socket) {
                *busy = true;
            }
        }
        for index in dead {
            // Silence is what the guest would have heard from the nameservers themselves.
            queries.remove(index);
        }
        sockets
            .retain(|index, socket| !socket.retired || busy.get(index).is_some_and(|&busy| busy));
        self.sweep =
            (!self.queries.pending.is_empty() || !self.moved.is_empty()).then(|| now + SWEEP);
    }

    /// Lets go of nameservers that are no longer in the list.
    fn retire_pools(&mut self, shared: &Shared) {
        let sockets = &mut self.sockets;
        self.pools.retain(|pool| {
            let known = shared.servers.contains(pool.server);
            for index in pool.ports.iter().flatten().filter(|_| !known) {
                if let Some(socket) = sockets.get_mut(*index) {
                    socket.retired = true;
                }
            }
            known
        });
    }

    /// Sends queries to their next nameserver, on to the one after where that fails at once.
    fn send_moved(&mut self, shared: &mut Shared, registry: &Registry, now: Moment) {
        while let Some(index) = self.moved.pop() {
            self.queries.unsend(index);
            let Some(pending) = self.queries.pending.get_mut(index) else { continue };
            if pending.errors >= shared.servers.len() {
                self.queries.fail(shared, index);
                continue;
            }
            let server = shared.servers.at(pending.next);
            pending.next = pending.next.wrapping_add(1);
            let sent = match server.map(|server| self.port(shared, registry, server, now)) {
                Some(Ok(socket)) => self.send(shared, index, socket, now),
                Some(Err(_)) | None => Err(Errno::NOBUFS),
            };
            if sent.is_err() {
                if let Some(pending) = self.queries.pending.get_mut(index) {
                    pending.errors += 1;
                }
                self.moved.push(index);
            }
        }
    }

    fn send(
        &mut self,
        shared: &mut Shared,
        index: usize,
        socket: usize,
        now: Moment,
    ) -> Result<(), Errno> {
        let Some(Socket { fd, uses, used, .. }) = self.sockets.get_mut(socket) else {
            return Err(Errno::BADF);
        };
        let mut id = shared.random.id();
        for _ in 0..ID_TRIES {
            if !self.queries.by_id.contains_key(&(socket, id)) {
                break;
            }
            id = shared.random.id();
        }
        if self.queries.by_id.contains_key(&(socket, id)) {
            return Err(Errno::NOBUFS);
        }
        let Some(pending) = self.queries.pending.get_mut(index) else { return Ok(()) };
        if let Some(place) = pending.message.get_mut(..2) {
            place.copy_from_slice(&id.to_be_bytes());
        }
        let mut sent = rustix::net::send(&*fd, &pending.message, sys::SEND_FLAGS);
        if sent == Err(Errno::CONNREFUSED) {
            // That was the answer to an earlier query.
            sent = rustix::net::send(&*fd, &pending.message, sys::SEND_FLAGS);
            self.queries.refused(socket, &mut self.moved);
        }
        match sent {
            // A full queue loses it, as the network may.
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => {}
            Err(errno) => return Err(errno),
        }
        *uses += 1;
        *used = now;
        if let Some(pending) = self.queries.pending.get_mut(index) {
            pending.sent = Some((socket, id));
            pending.sent_at = now;
        }
        self.queries.by_id.insert((socket, id), index);
        Ok(())
    }

    /// A socket to a nameserver, chosen by chance.
    fn port(
        &mut self,
        shared: &mut Shared,
        registry: &Registry,
        server: SocketAddr,
        now: Moment,
    ) -> Result<usize, Errno> {
        let pool = match self.pools.iter().position(|pool| pool.server == server) {
            Some(at) => at,
            None => {
                let ports = if server.ip().is_loopback() { LOCAL_PORTS } else { PORTS };
                self.pools.push(Pool { server, ports: vec![None; ports] });
                self.pools.len() - 1
            }
        };
        let Some(Pool { ports, .. }) = self.pools.get_mut(pool) else { return Err(Errno::NOBUFS) };
        let choice = shared.random.below(ports.len());
        let Some(port) = ports.get_mut(choice) else { return Err(Errno::NOBUFS) };
        if let Some(index) = *port
            && let Some(socket) = self.sockets.get_mut(index)
        {
            if socket.uses < MAX_USES && now.duration_since(socket.used) < MAX_REST {
                return Ok(index);
            }
            socket.retired = true;
        }
        *port = None;
        let fd = sys::socket(sys::family(server), SocketType::DGRAM, Some(ipproto::UDP))?;
        rustix::net::connect(&fd, &server)?;
        self.generation = self.generation.wrapping_add(1);
        let internal = Internal::new(Class::DnsUdp, self.sockets.vacant_key(), self.generation);
        register(registry, &fd, internal.token()).ok_or(Errno::NOBUFS)?;
        let generation = internal.generation;
        let socket = Socket { fd, server, generation, uses: 0, used: now, retired: false };
        let index = self.sockets.insert(socket);
        *port = Some(index);
        Ok(index)
    }

    fn read(&mut self, shared: &mut Shared, batches: &mut Batches, index: usize, now: Moment) {
        let Self { sockets, queries, moved, .. } = self;
        let Some(socket) = sockets.get(index) else { return };
        for _ in 0..MAX_BATCHES {
            let read = batches.recv(&socket.fd, BATCH, None, &mut |replies| {
                for reply in replies {
                    let moving = queries.reply(shared, index, socket.server, reply.data, now);
                    moved.extend(moving);
                }
            });
            match read {
                Ok((asked, got)) if got < asked => return,
                Ok(_) => {}
                Err(Errno::AGAIN) => return,
                // Nobody is there: what was asked here is asked elsewhere.
                Err(_) => queries.refused(index, moved),
            }
        }
        self.unread.push(index);
    }
}
