//! Clients on streams (RFC 7766): each message follows its length, and answers go back as they
//! come. What is not read stays in the socket, and the client finds it full.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use slab::Slab;

use crate::answers::Answer;
use crate::core::{Asker, Client, Core};
use crate::sys;
use crate::token::{Class, Key};
use crate::upstream::Poll;

/// Streams, of one guest and in all.
const MAX_STREAMS: usize = 256;
const MAX_STREAMS_PER_GUEST: usize = 64;

/// Questions of one stream on their way.
const MAX_QUERIES: usize = 16;

/// Bytes of answers that a client has not read yet, before more of its questions are looked at.
const MAX_OUTPUT: usize = 64 << 10;

/// Bytes of all streams, before the one that needs more is cut off.
const MAX_BYTES: usize = 8 << 20;

/// A stream without a question is closed after this time (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(30);

const SWEEP: Duration = Duration::from_secs(1);

/// Every message follows its length.
const PREFIX: usize = 2;

/// Bytes of one read, and reads before others have their turn.
const CHUNK: usize = 4096;
const MAX_READS: usize = 32;

/// There is no room for another stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many DNS streams are open")]
pub struct NoRoom;

#[derive(Debug, Default)]
pub(crate) struct Streams {
    table: Slab<Stream>,
    bytes: usize,
    sweep: Option<Instant>,
    /// Streams that can go on.
    ready: Vec<usize>,
    heard: Option<Instant>,
}

#[derive(Debug)]
struct Stream {
    fd: OwnedFd,
    generation: u32,
    guest: u32,
    /// Questions that are not complete, or have to wait.
    input: Vec<u8>,
    output: Vec<u8>,
    queries: usize,
    /// The client will ask no more.
    ended: bool,
    used: Instant,
}

/// How far a stream has come.
enum Turn {
    /// It waits for an event or an answer.
    Waits,
    /// Others have their turn.
    More,
    Ended,
}

impl Streams {
    pub(crate) fn open(
        &mut self,
        poll: &mut Poll,
        fd: OwnedFd,
        guest: u32,
        now: Instant,
    ) -> Result<(), NoRoom> {
        let of_guest = self.table.iter().filter(|(_, stream)| stream.guest == guest).count();
        if self.table.len() >= MAX_STREAMS || of_guest >= MAX_STREAMS_PER_GUEST {
            return Err(NoRoom);
        }
        let key = poll.key(Class::Stream, self.table.vacant_key());
        sys::register(&poll.registry, &fd, key.token(poll.base)).ok_or(NoRoom)?;
        self.table.insert(Stream {
            fd,
            generation: key.generation,
            guest,
            input: Vec::new(),
            output: Vec::new(),
            queries: 0,
            ended: false,
            used: now,
        });
        self.sweep.get_or_insert(now + SWEEP);
        Ok(())
    }

    pub(crate) fn handle(&mut self, core: &mut Core, key: Key, now: Instant) {
        let known = self.table.get(key.index);
        if known.is_some_and(|stream| stream.generation == key.generation) {
            self.pump(core, key.index, now);
        }
    }

    /// Gives a stream one of its answers.
    pub(crate) fn answer(&mut self, index: usize, generation: u32, answer: &Answer<'_, Client>) {
        let Some(stream) = self.table.get_mut(index) else { return };
        if stream.generation != generation {
            return;
        }
        stream.queries = stream.queries.saturating_sub(1);
        if self.bytes + answer.message.len() > MAX_BYTES {
            self.close(index);
            return;
        }
        let before = stream.held();
        stream.put(answer.message);
        self.bytes += stream.held() - before;
        self.ready.push(index);
    }

    /// Goes on with streams that can. True if there are more.
    pub(crate) fn go_on(&mut self, core: &mut Core, now: Instant) {
        let mut ready = std::mem::take(&mut self.ready);
        ready.sort_unstable();
        ready.dedup();
        for index in ready {
            self.pump(core, index, now);
        }
    }

    pub(crate) fn handle_timeout(&mut self, core: &mut Core, now: Instant) {
        self.go_on(core, now);
        if self.sweep.is_none_or(|due| due > now) {
            return;
        }
        let rested = |stream: &Stream| now.saturating_duration_since(stream.used) >= IDLE;
        let old: Vec<usize> = self
            .table
            .iter()
            .filter(|(_, stream)| stream.queries == 0 && rested(stream))
            .map(|(index, _)| index)
            .collect();
        for index in old {
            self.close(index);
        }
        self.sweep = (!self.table.is_empty()).then(|| now + SWEEP);
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if self.ready.is_empty() { self.sweep } else { self.heard }
    }

    /// Moves a stream on: reads, takes up what is complete, writes, and closes it when both sides
    /// are done.
    fn pump(&mut self, core: &mut Core, index: usize, now: Instant) {
        self.heard = Some(now);
        let room = MAX_BYTES.saturating_sub(self.bytes);
        let Some(stream) = self.table.get_mut(index) else { return };
        let before = stream.held();
        let turn = stream.pump(core, index, room, now);
        self.bytes = self.bytes + stream.held() - before;
        match turn {
            Turn::Waits => {}
            Turn::More => self.ready.push(index),
            Turn::Ended => self.close(index),
        }
    }

    fn close(&mut self, index: usize) {
        if let Some(stream) = self.table.try_remove(index) {
            self.bytes -= stream.held();
        }
    }
}

impl Stream {
    fn held(&self) -> usize {
        self.input.len() + self.output.len()
    }

    fn pump(&mut self, core: &mut Core, index: usize, room: usize, now: Instant) -> Turn {
        let most = self.held() + room;
        for _ in 0..MAX_READS {
            self.take_up(core, index, now);
            if self.flush().is_err() || self.is_done() {
                return Turn::Ended;
            }
            if self.ended || !self.has_room() {
                return Turn::Waits;
            }
            match self.read() {
                Ok(true) => self.used = now,
                Ok(false) => return Turn::Waits,
                Err(()) => return Turn::Ended,
            }
            if self.held() > most {
                return Turn::Ended;
            }
        }
        Turn::More
    }

    /// Asks what is complete, as far as there is room.
    fn take_up(&mut self, core: &mut Core, index: usize, now: Instant) {
        let client = Client::Stream { index, generation: self.generation };
        let asker = Asker { client, guest: self.guest };
        let mut start = 0;
        while self.queries < MAX_QUERIES {
            let rest = self.input.get(start..).unwrap_or_default();
            let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX>() else { break };
            let len = usize::from(u16::from_be_bytes(*prefix));
            let Some(message) = rest.get(..len) else { break };
            if core.query(asker, message, now) {
                self.queries += 1;
            }
            start += PREFIX + len;
        }
        self.input.drain(..start.min(self.input.len()));
    }

    fn has_room(&self) -> bool {
        self.queries < MAX_QUERIES && self.output.len() < MAX_OUTPUT
    }

    /// Nothing is left to be asked or told.
    fn is_done(&self) -> bool {
        self.ended && self.queries == 0 && self.output.is_empty()
    }

    fn put(&mut self, message: &[u8]) {
        let Ok(len) = u16::try_from(message.len()) else { return };
        self.output.extend(len.to_be_bytes());
        self.output.extend_from_slice(message);
    }

    /// Reads once. False if there is nothing now; an error if the stream is of no more use.
    fn read(&mut self) -> Result<bool, ()> {
        let mut chunk = [0; CHUNK];
        match rustix::net::recv(&self.fd, &mut chunk, RecvFlags::empty()) {
            Ok((0, _)) => self.ended = true,
            Ok((len, _)) => self.input.extend_from_slice(chunk.get(..len).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(false),
            Err(_) => return Err(()),
        }
        Ok(true)
    }

    fn flush(&mut self) -> Result<(), ()> {
        let mut sent = 0;
        while let Some(rest) = self.output.get(sent..).filter(|rest| !rest.is_empty()) {
            match rustix::net::send(&self.fd, rest, sys::SEND_FLAGS) {
                Ok(len) => sent += len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(()),
            }
        }
        self.output.drain(..sent);
        Ok(())
    }
}
