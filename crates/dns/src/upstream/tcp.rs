//! Questions over TCP (RFC 7766). A connection carries one question at a time, so that a slow
//! answer holds up no other, and is used again while the nameserver keeps it open.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};
use slab::Slab;

use super::Poll;
use crate::core::{Core, Question};
use crate::message::{self, MAX_MESSAGE};
use crate::random::Random;
use crate::sys;
use crate::token::{Class, Key};

const MAX_CONNECTIONS: usize = 64;

/// How long a connection without a question is kept.
const IDLE: Duration = Duration::from_secs(5);

/// Every message follows its length.
const PREFIX: usize = 2;

/// Bytes of one read.
const CHUNK: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Tcp {
    connections: Slab<Connection>,
    /// Questions that wait for a connection, and for which nameserver.
    waiting: VecDeque<(usize, Instant, SocketAddr)>,
    random: Random,
}

#[derive(Debug)]
struct Connection {
    fd: OwnedFd,
    server: SocketAddr,
    generation: u32,
    question: Option<usize>,
    /// The question with its length; what is unsent starts at `written`.
    output: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    /// It has brought an answer.
    proven: bool,
    used: Instant,
}

/// How far a connection has come.
pub(super) enum Progress {
    Waiting,
    Answered {
        index: usize,
        server: SocketAddr,
        reply: Vec<u8>,
    },
    /// It was used before and may have been closed for its rest.
    Stale {
        index: usize,
        server: SocketAddr,
    },
    /// Nobody is there, over TCP at least.
    Refused {
        index: usize,
        server: SocketAddr,
    },
    Failed {
        index: usize,
    },
}

impl Tcp {
    pub(super) fn is(&self, key: Key) -> bool {
        let known = self.connections.get(key.index);
        known.is_some_and(|connection| connection.generation == key.generation)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Asks on a connection that is there, or a new one. False if it cannot be.
    pub(super) fn ask(
        &mut self,
        question: &mut Question,
        index: usize,
        poll: &mut Poll,
        server: SocketAddr,
        now: Instant,
    ) -> bool {
        let free = self
            .connections
            .iter()
            .find(|(_, connection)| connection.question.is_none() && connection.server == server);
        match free.map(|(at, _)| at) {
            Some(at) => {
                let id = self.random.id();
                let Some(connection) = self.connections.get_mut(at) else { return false };
                connection.start(question, index, id, now);
                // A failure is an event, too.
                let _ = connection.write();
                true
            }
            None => self.ask_fresh(question, index, poll, server, now),
        }
    }

    /// Asks on a new connection.
    pub(super) fn ask_fresh(
        &mut self,
        question: &mut Question,
        index: usize,
        poll: &mut Poll,
        server: SocketAddr,
        now: Instant,
    ) -> bool {
        if self.connections.len() >= MAX_CONNECTIONS {
            let idle = self.connections.iter().find(|(_, other)| other.question.is_none());
            match idle.map(|(at, _)| at) {
                Some(at) => drop(self.connections.try_remove(at)),
                None => {
                    self.waiting.push_back((index, question.asked_at, server));
                    return true;
                }
            }
        }
        let Ok(fd) = sys::tcp_socket(server) else { return false };
        match rustix::net::connect(&fd, &server) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(_) => return false,
        }
        let key = poll.key(Class::Tcp, self.connections.vacant_key());
        if sys::register(&poll.registry, &fd, key.token(poll.base)).is_none() {
            return false;
        }
        let mut connection = Connection {
            fd,
            server,
            generation: key.generation,
            question: None,
            output: Vec::new(),
            written: 0,
            input: Vec::new(),
            proven: false,
            used: now,
        };
        connection.start(question, index, self.random.id(), now);
        self.connections.insert(connection);
        true
    }

    /// Writes and reads as far as it goes. What has come to its end is taken off the table, and a
    /// connection that may serve again stays.
    pub(super) fn advance(
        &mut self,
        core: &Core,
        at: usize,
        error: bool,
        now: Instant,
    ) -> Progress {
        let Some(connection) = self.connections.get_mut(at) else { return Progress::Waiting };
        let server = connection.server;
        let index = connection.question;
        let done = connection.advance(error);
        let asked = index.and_then(|index| core.questions.get(index));
        let progress = match (done, index) {
            (Ok(None), _) => return Progress::Waiting,
            (Ok(Some(reply)), Some(index)) => {
                let sent = connection.output.get(PREFIX..).unwrap_or_default();
                let right = reply.get(..2) == sent.get(..2) && message::answers(&reply, sent);
                if right && asked.is_some() {
                    connection.question = None;
                    connection.proven = true;
                    connection.used = now;
                    return Progress::Answered { index, server, reply };
                }
                Progress::Failed { index }
            }
            (Err(Errno::CONNREFUSED), Some(index)) => Progress::Refused { index, server },
            (Err(_), Some(index)) if connection.proven && connection.input.is_empty() => {
                Progress::Stale { index, server }
            }
            (Err(_), Some(index)) => Progress::Failed { index },
            (_, None) => Progress::Waiting,
        };
        self.connections.try_remove(at);
        progress
    }

    /// Gives connections that are free to questions that wait.
    pub(super) fn take_waiting(
        &mut self,
        core: &mut Core,
        poll: &mut Poll,
        now: Instant,
        lost: &mut Vec<usize>,
    ) {
        let free = |tcp: &Self| {
            tcp.connections.len() < MAX_CONNECTIONS
                || tcp.connections.iter().any(|(_, connection)| connection.question.is_none())
        };
        while !self.waiting.is_empty() && free(self) {
            let Some((index, asked_at, server)) = self.waiting.pop_front() else { return };
            let question = core.questions.get_mut(index);
            let Some(question) = question.filter(|question| question.asked_at == asked_at) else {
                continue;
            };
            if !self.ask(question, index, poll, server, now) {
                lost.push(index);
            }
        }
    }

    /// Ends what is under way for a question.
    pub(super) fn forget(&mut self, index: usize) {
        self.connections.retain(|_, connection| connection.question != Some(index));
        self.waiting.retain(|(waiting, ..)| *waiting != index);
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        self.connections.retain(|_, connection| {
            let rested = now.saturating_duration_since(connection.used);
            connection.question.is_some() || rested < IDLE
        });
    }
}

impl Connection {
    fn start(&mut self, question: &Question, index: usize, id: u16, now: Instant) {
        self.question = Some(index);
        self.used = now;
        self.written = 0;
        self.input.clear();
        self.output.clear();
        let len = u16::try_from(question.message.len().min(MAX_MESSAGE)).unwrap_or(u16::MAX);
        self.output.extend(len.to_be_bytes());
        self.output.extend(id.to_be_bytes());
        self.output.extend_from_slice(question.message.get(2..).unwrap_or_default());
    }

    /// The answer, once it is complete.
    fn advance(&mut self, error: bool) -> Result<Option<Vec<u8>>, Errno> {
        if error && let Ok(Err(errno)) = sockopt::socket_error(&self.fd) {
            return Err(errno);
        }
        if !self.write()? {
            return Ok(None);
        }
        let mut chunk = [0; CHUNK];
        loop {
            if let Some(&[high, low]) = self.input.get(..PREFIX) {
                let len = PREFIX + usize::from(u16::from_be_bytes([high, low]));
                if self.input.len() >= len {
                    self.input.truncate(len);
                    return Ok(Some(std::mem::take(&mut self.input).split_off(PREFIX)));
                }
            }
            match rustix::net::recv(&self.fd, &mut chunk, RecvFlags::empty()) {
                Ok((0, _)) => return Err(Errno::CONNRESET),
                Ok((len, _)) => self.input.extend_from_slice(chunk.get(..len).unwrap_or_default()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno),
            }
            // Nobody asked for that.
            if self.question.is_none() {
                return Err(Errno::PROTO);
            }
        }
    }

    /// True if all is written.
    fn write(&mut self) -> Result<bool, Errno> {
        if self.question.is_none() {
            return Ok(true);
        }
        while let Some(rest) = self.output.get(self.written..).filter(|rest| !rest.is_empty()) {
            match rustix::net::send(&self.fd, rest, sys::SEND_FLAGS) {
                Ok(len) => self.written += len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }
}
