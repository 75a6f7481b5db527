//! Questions over UDP. Each nameserver is asked from a handful of sockets that are connected to it,
//! so that nobody else can answer, with ids and source ports that cannot be foreseen (RFC 5452).

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use mio::Interest;
use mio::unix::SourceFd;
use rustix::io::Errno;
use slab::Slab;

use super::Poll;
use crate::core::{Core, Question, Tries, Way};
use crate::hash::Numbered;
use crate::message;
use crate::random::Random;
use crate::sys;
use crate::token::{Class, Key};

/// Datagrams in few system calls: lent by the owner of the resolver for a call.
pub trait Datagrams {
    /// Sends payloads to the peer of a connected socket, and tells how many were sent and which
    /// error ended it. Runs of one length may go as one message unless `segment` is taken back,
    /// which is done here where the system does not know how.
    fn send(
        &mut self,
        fd: &OwnedFd,
        payloads: &[&[u8]],
        segment: &mut bool,
    ) -> (usize, Option<Errno>);

    /// Receives up to `max` datagrams and tells how many it asked for and got.
    fn recv(
        &mut self,
        fd: &OwnedFd,
        max: usize,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(usize, usize), Errno>;
}

/// Source ports for one nameserver. What goes out together goes from one of them, chosen by chance.
const PORTS: usize = 16;

/// A port is given up after so many queries, after this time, or after a rest: nobody outside shall
/// have the time to find it, and the route may have changed, and with it the address that a
/// connected socket keeps.
const MAX_USES: u32 = 1024;
const MAX_AGE: Duration = Duration::from_secs(60);
const MAX_REST: Duration = Duration::from_secs(15);

/// Batches that are read from one socket before others get their turn.
const MAX_BATCHES: usize = 16;
const BATCH: usize = 30;

/// Attempts to find an id that is not in use.
const ID_TRIES: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Udp {
    sockets: Slab<Socket>,
    pools: Vec<Pool>,
    by_way: Numbered<Way, usize>,
    queued: Vec<Queued>,
    /// Sockets that had more to read when their turn ended.
    unread: Vec<usize>,
    retired: usize,
    random: Random,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug)]
struct Queued {
    way: Way,
    question: usize,
    len: usize,
}

/// The sockets to one nameserver.
#[derive(Debug)]
struct Pool {
    server: SocketAddr,
    ports: [Option<usize>; PORTS],
    /// The one that what is queued goes from.
    chosen: Option<usize>,
}

#[derive(Debug)]
struct Socket {
    fd: Arc<OwnedFd>,
    server: SocketAddr,
    generation: u32,
    /// The system takes many messages of one length as one.
    segment: bool,
    uses: u32,
    opened: Instant,
    used: Instant,
    /// No longer in its pool: it only waits for answers.
    retired: bool,
}

/// What becomes of a reply.
type Settle<'a> = &'a mut dyn FnMut(&mut Udp, &mut Core, usize, SocketAddr, &[u8], &mut Vec<usize>);

impl Udp {
    pub(super) fn is(&self, key: Key) -> bool {
        self.sockets.get(key.index).is_some_and(|socket| socket.generation == key.generation)
    }

    /// Puts a question on its way. False if it cannot be.
    pub(super) fn queue(
        &mut self,
        question: &mut Question,
        index: usize,
        poll: &mut Poll,
        server: SocketAddr,
        now: Instant,
    ) -> bool {
        let Ok(socket) = self.port(poll, server, now) else { return false };
        let way = (0..ID_TRIES)
            .filter_map(|_| Way::new(socket, self.random.id()))
            .find(|way| !self.by_way.contains_key(way));
        let Some(way) = way else { return false };
        if question.tries.open.try_push(way).is_err() {
            return false;
        }
        if let Some(socket) = self.sockets.get_mut(socket) {
            socket.uses += 1;
            socket.used = now;
        }
        self.by_way.insert(way, index);
        self.queued.push(Queued { way, question: index, len: question.message.len() });
        true
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.queued.is_empty()
    }

    /// Sends what is queued. True if some of it has failed.
    pub(super) fn flush(
        &mut self,
        core: &mut Core,
        lanes: &mut dyn Datagrams,
        lost: &mut Vec<usize>,
    ) -> bool {
        const MOST: usize = 64;
        if self.queued.is_empty() {
            return false;
        }
        let mut queued = std::mem::take(&mut self.queued);
        // Those of one length go together, and one that is shorter behind them.
        queued.sort_unstable_by_key(|queued| (queued.way.socket(), Reverse(queued.len)));
        let runs = queued.chunk_by(|one, other| one.way.socket() == other.way.socket());
        for run in runs.flat_map(|run| run.chunks(MOST)) {
            self.send(core, lanes, run, lost);
        }
        for pool in &mut self.pools {
            pool.chosen = None;
        }
        queued.clear();
        self.queued = queued;
        !lost.is_empty()
    }

    fn send(
        &mut self,
        core: &mut Core,
        lanes: &mut dyn Datagrams,
        run: &[Queued],
        lost: &mut Vec<usize>,
    ) {
        let Some(socket) = run.first().map(|queued| queued.way.socket()) else { return };
        let mut open: ArrayVec<(Way, usize), 64> = ArrayVec::new();
        for &Queued { way, question: index, .. } in run {
            // What was concluded meanwhile is asked of nobody.
            let question = core.questions.get_mut(index);
            let Some(question) = question.filter(|q| q.tries.open.contains(&way)) else { continue };
            if let Some(place) = question.message.get_mut(..2) {
                place.copy_from_slice(&way.id().to_be_bytes());
            }
            open.push((way, index));
        }
        let payloads: ArrayVec<&[u8], 64> = open
            .iter()
            .filter_map(|&(_, index)| Some(core.questions.get(index)?.message.as_slice()))
            .collect();
        let Some(Socket { fd, segment, .. }) = self.sockets.get_mut(socket) else { return };
        let (mut sent, mut error) = lanes.send(fd, &payloads, segment);
        let refused = error == Some(Errno::CONNREFUSED);
        if refused {
            // That was the answer to an earlier one.
            let rest = payloads.get(sent..).unwrap_or_default();
            let (more, again) = lanes.send(fd, rest, segment);
            (sent, error) = (sent + more, again);
        }
        drop(payloads);
        match error {
            // A full queue loses it, as the network may.
            None | Some(Errno::AGAIN | Errno::NOBUFS) => {}
            Some(_) => {
                for &(way, index) in open.iter().skip(sent) {
                    self.close(core, index, way);
                    lost.push(index);
                }
            }
        }
        if refused {
            self.refused(core, socket, open.as_slice(), lost);
        }
    }

    /// Reads answers, and gives those that are to `settle`.
    pub(super) fn read(
        &mut self,
        core: &mut Core,
        lanes: &mut dyn Datagrams,
        index: usize,
        lost: &mut Vec<usize>,
        settle: Settle<'_>,
    ) {
        for _ in 0..MAX_BATCHES {
            let Some(socket) = self.sockets.get(index) else { return };
            let server = socket.server;
            let fd = Arc::clone(&socket.fd);
            let read = lanes.recv(&fd, BATCH, &mut |reply| {
                if let Some(question) = self.question_of(core, index, reply) {
                    settle(self, core, question, server, reply, lost);
                }
            });
            match read {
                Ok((asked, got)) if got < asked => return,
                Ok(_) => {}
                Err(Errno::AGAIN) => return,
                // Nobody is there: what was asked here is asked elsewhere.
                Err(_) => self.refused(core, index, &[], lost),
            }
        }
        self.unread.push(index);
    }

    /// The question that a reply answers; it is under way on this socket no more.
    fn question_of(&mut self, core: &mut Core, socket: usize, reply: &[u8]) -> Option<usize> {
        let id = u16::from_be_bytes(*reply.first_chunk()?);
        let way = Way::new(socket, id)?;
        let index = *self.by_way.get(&way)?;
        let question = core.questions.get(index)?;
        if !message::answers(reply, &question.message) {
            return None;
        }
        self.close(core, index, way);
        Some(index)
    }

    /// What was sent on a socket has come back, but for what was sent just now.
    fn refused(
        &mut self,
        core: &mut Core,
        socket: usize,
        but: &[(Way, usize)],
        lost: &mut Vec<usize>,
    ) {
        let open: Vec<(Way, usize)> = core
            .questions
            .iter()
            .flat_map(|(index, question)| question.tries.open.iter().map(move |&way| (way, index)))
            .filter(|open| open.0.socket() == socket && !but.contains(open))
            .collect();
        for (way, index) in open {
            self.close(core, index, way);
            lost.push(index);
        }
    }

    fn close(&mut self, core: &mut Core, index: usize, way: Way) {
        self.by_way.remove(&way);
        if let Some(question) = core.questions.get_mut(index) {
            question.tries.open.retain(|open| *open != way);
        }
    }

    /// Lets go of a question that is being ended.
    pub(super) fn forget(&mut self, tries: &mut Tries) {
        for way in tries.open.drain(..) {
            self.by_way.remove(&way);
        }
    }

    /// Sockets that brought no answer are used no more.
    pub(super) fn suspect(&mut self, tries: &Tries) {
        if let Some(way) = tries.open.last()
            && let Some(socket) = self.sockets.get_mut(way.socket())
        {
            socket.uses = MAX_USES;
        }
    }

    pub(super) fn take_unread(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.unread)
    }

    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    pub(super) fn has_retired(&self) -> bool {
        self.retired > 0
    }

    /// Closes sockets that nothing is expected on.
    pub(super) fn sweep(&mut self, core: &Core, now: Instant) {
        let Self { sockets, pools, by_way, retired, .. } = self;
        pools.retain(|pool| {
            let known = core.servers.contains(pool.server);
            for &index in pool.ports.iter().flatten().filter(|_| !known) {
                if let Some(socket) = sockets.get_mut(index) {
                    socket.retired = true;
                }
            }
            known
        });
        let idle = |socket: &Socket| now.saturating_duration_since(socket.used) >= MAX_REST;
        if sockets.iter().any(|(_, socket)| socket.retired) {
            let mut busy = vec![false; sockets.capacity()];
            for way in by_way.keys() {
                if let Some(busy) = busy.get_mut(way.socket()) {
                    *busy = true;
                }
            }
            sockets.retain(|index, socket| {
                !socket.retired || (busy.get(index) == Some(&true) && !idle(socket))
            });
        }
        *retired = sockets.iter().filter(|(_, socket)| socket.retired).count();
    }

    /// A socket to a nameserver, chosen by chance; the same until what is queued is sent.
    fn port(&mut self, poll: &mut Poll, server: SocketAddr, now: Instant) -> Result<usize, Errno> {
        let at = match self.pools.iter().position(|pool| pool.server == server) {
            Some(at) => at,
            None => {
                self.pools.push(Pool { server, ports: [None; PORTS], chosen: None });
                self.pools.len() - 1
            }
        };
        let Self { sockets, pools, random, retired, .. } = self;
        let Some(pool) = pools.get_mut(at) else { return Err(Errno::NOBUFS) };
        let choice = *pool.chosen.get_or_insert_with(|| random.below(PORTS));
        let Some(port) = pool.ports.get_mut(choice) else { return Err(Errno::NOBUFS) };
        if let Some(index) = *port
            && let Some(socket) = sockets.get_mut(index)
        {
            if socket.is_good(now) {
                return Ok(index);
            }
            socket.retired = true;
            *retired += 1;
        }
        *port = None;
        let index = self.open(poll, server, now)?;
        if let Some(port) = self.pools.get_mut(at).and_then(|pool| pool.ports.get_mut(choice)) {
            *port = Some(index);
        }
        Ok(index)
    }

    fn open(&mut self, poll: &mut Poll, server: SocketAddr, now: Instant) -> Result<usize, Errno> {
        let fd = sys::udp_socket(server)?;
        rustix::net::connect(&fd, &server)?;
        let key = poll.key(Class::Udp, self.sockets.vacant_key());
        // Nobody waits until a datagram may be sent, and each one sent would wake the loop.
        let source = fd.as_raw_fd();
        let registered = poll.registry.register(
            &mut SourceFd(&source),
            key.token(poll.base),
            Interest::READABLE,
        );
        registered.map_err(|_| Errno::NOBUFS)?;
        Ok(self.sockets.insert(Socket {
            fd: Arc::new(fd),
            server,
            generation: key.generation,
            segment: true,
            uses: 0,
            opened: now,
            used: now,
            retired: false,
        }))
    }
}

impl Socket {
    /// It may be used once more.
    fn is_good(&self, now: Instant) -> bool {
        self.uses < MAX_USES
            && now.saturating_duration_since(self.opened) < MAX_AGE
            && now.saturating_duration_since(self.used) < MAX_REST
    }
}
