//! Queries over TCP (RFC 7766): the far end of the guests' streams, and one connection to a
//! nameserver for each query, so that a slow answer holds up no other and nameservers that take
//! one question only serve as well as those that take many.

mod stream;
mod upstream;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant as Moment};

use mio::Registry;
use slab::Slab;
use vmlan_engine::Readiness;
use vmlan_engine::io::Failure;

use super::message::{self, Checked, Rcode};
use super::{GIVE_UP, Shared};
use crate::sockets::register;
use crate::sys;
use crate::token::{Class, Internal};
use stream::Stream;
use upstream::{Progress, Upstream};

const MAX_STREAMS: usize = 256;

/// Queries on their way.
const MAX_UPSTREAMS: usize = 128;

/// Bytes of answers that guests have not read yet, before the stream that needs more is cut off.
const MAX_OUTPUTS: usize = 4 << 20;

/// A stream without a question is closed after this time (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(30);

const SWEEP: Duration = Duration::from_secs(1);

/// Every message follows its length.
const PREFIX: usize = 2;

/// Bytes of one read.
const CHUNK: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Tcp {
    streams: Slab<Stream>,
    upstreams: Slab<Upstream>,
    generation: u32,
    sweep: Option<Moment>,
}

impl Tcp {
    /// The engine's end of a new stream.
    pub(super) fn open(&mut self, registry: &Registry, now: Moment) -> Result<OwnedFd, Failure> {
        if self.streams.len() >= MAX_STREAMS {
            return Err(Failure::Exhausted);
        }
        let (theirs, fd) = sys::socket_pair().map_err(crate::failure::failure)?;
        let generation = self.next_generation();
        let internal = Internal::new(Class::DnsStream, self.streams.vacant_key(), generation);
        register(registry, &fd, internal.token()).ok_or(Failure::Exhausted)?;
        self.streams.insert(Stream {
            fd,
            generation: internal.generation,
            input: Vec::new(),
            output: Vec::new(),
            queries: 0,
            ended: false,
            used: now,
        });
        self.sweep.get_or_insert(now + SWEEP);
        Ok(theirs)
    }

    pub(super) fn handle_stream(
        &mut self,
        shared: &mut Shared,
        registry: &Registry,
        internal: Internal,
        now: Moment,
    ) {
        let known = self.streams.get(internal.index);
        if known.is_some_and(|stream| stream.generation == internal.generation) {
            self.pump(shared, registry, internal.index, now);
        }
    }

    pub(super) fn handle_upstream(
        &mut self,
        shared: &mut Shared,
        registry: &Registry,
        internal: Internal,
        ready: Readiness,
        now: Moment,
    ) {
        let Some(upstream) = self.upstreams.get_mut(internal.index) else { return };
        if upstream.generation != internal.generation {
            return;
        }
        let progress = upstream.advance(ready);
        self.settle(shared, registry, internal.index, progress, now);
    }

    pub(super) fn handle_timeout(&mut self, shared: &mut Shared, registry: &Registry, now: Moment) {
        if self.sweep.is_none_or(|due| due > now) {
            return;
        }
        // Each nameserver gets its share of the time.
        let servers = u32::try_from(shared.servers.len()).unwrap_or(1).max(1);
        let overdue: Vec<usize> = self
            .upstreams
            .iter()
            .filter(|(_, upstream)| now.duration_since(upstream.sent_at) >= GIVE_UP / servers)
            .map(|(index, _)| index)
            .collect();
        for index in overdue {
            self.settle(shared, registry, index, Progress::Failed, now);
        }
        self.streams
            .retain(|_, stream| stream.queries > 0 || now.duration_since(stream.used) < IDLE);
        self.sweep = (!self.streams.is_empty() || !self.upstreams.is_empty()).then(|| now + SWEEP);
    }

    pub(super) fn next_timeout(&self) -> Option<Moment> {
        self.sweep
    }

    /// Moves a stream on: reads, takes up what is complete, writes, and closes it when both sides
    /// are done.
    fn pump(&mut self, shared: &mut Shared, registry: &Registry, index: usize, now: Moment) {
        loop {
            self.take_up(shared, registry, index, now);
            let free = self.upstreams.len() < MAX_UPSTREAMS;
            let Some(stream) = self.streams.get_mut(index) else { return };
            if stream.flush().is_err() {
                break;
            }
            if stream.is_done() {
                break;
            }
            if stream.is_complete() && free && stream.has_room() {
                continue;
            }
            // What is not read stays in the socket, and the guest finds it full.
            if stream.ended || !free || !stream.has_room() {
                return;
            }
            match stream.read() {
                Ok(true) => stream.used = now,
                Ok(false) => return,
                Err(()) => break,
            }
        }
        self.streams.try_remove(index);
    }

    /// Starts the queries that are complete, as far as there is room.
    fn take_up(&mut self, shared: &mut Shared, registry: &Registry, index: usize, now: Moment) {
        while self.upstreams.len() < MAX_UPSTREAMS {
            let Some(stream) = self.streams.get_mut(index) else { return };
            if !stream.has_room() {
                return;
            }
            let Some(framed) = stream.next_message() else { return };
            let message = framed.get(PREFIX..).unwrap_or_default();
            let query = match message::check(message) {
                Checked::Ignore => continue,
                Checked::Malformed(query) => {
                    stream.put(&query.error(Rcode::FormErr));
                    continue;
                }
                Checked::Query(query) => query,
            };
            if let Some(addresses) = shared.hosts.get(&query) {
                stream.put(&query.addresses(addresses, false));
                continue;
            }
            stream.queries += 1;
            let stream_generation = stream.generation;
            shared.servers.refresh(now);
            let upstream = self.upstreams.insert(Upstream {
                fd: None,
                generation: 0,
                stream: index,
                stream_generation,
                server: None,
                written: 0,
                answer: Vec::new(),
                next: shared.servers.first(now),
                tried: 0,
                sent_at: now,
                asked_at: now,
                query: framed,
            });
            self.ask_next(shared, registry, upstream, now);
        }
    }

    /// Takes a query to the next nameserver, or answers that there is none.
    fn ask_next(&mut self, shared: &mut Shared, registry: &Registry, index: usize, now: Moment) {
        let servers = shared.servers.len();
        loop {
            let generation = self.next_generation();
            let Some(upstream) = self.upstreams.get_mut(index) else { return };
            let waited = now.duration_since(upstream.asked_at);
            if upstream.tried >= servers || waited >= GIVE_UP {
                let message = upstream.query.get(PREFIX..).unwrap_or_default();
                let answer = match message::check(message) {
                    Checked::Query(query) => query.error(Rcode::ServFail),
                    _ => Vec::new(),
                };
                return self.answer(index, &answer);
            }
            let Some(server) = shared.servers.at(upstream.next) else { return };
            upstream.next = upstream.next.wrapping_add(1);
            upstream.tried += 1;
            let internal = Internal::new(Class::DnsTcp, index, generation);
            if upstream.connect(registry, server, internal, now).is_ok() {
                return;
            }
        }
    }

    fn settle(
        &mut self,
        shared: &mut Shared,
        registry: &Registry,
        index: usize,
        progress: Progress,
        now: Moment,
    ) {
        let full = self.upstreams.len() >= MAX_UPSTREAMS;
        let Some(upstream) = self.upstreams.get_mut(index) else { return };
        let stream = upstream.stream;
        match progress {
            Progress::Waiting => return,
            Progress::Answered => {
                let answer = std::mem::take(&mut upstream.answer);
                let message = answer.get(PREFIX..).unwrap_or_default();
                if !message::is_failure(message) {
                    if upstream.tried > 1
                        && let Some(server) = upstream.server
                    {
                        shared.servers.prefer(server, now);
                    }
                    self.answer(index, message);
                } else if upstream.tried < shared.servers.len() {
                    self.ask_next(shared, registry, index, now);
                } else {
                    self.answer(index, message);
                }
            }
            Progress::Failed => self.ask_next(shared, registry, index, now),
        }
        self.pump(shared, registry, stream, now);
        if full {
            // Others may have waited for room.
            let waiting: Vec<usize> = self.streams.iter().map(|(index, _)| index).collect();
            for index in waiting {
                self.pump(shared, registry, index, now);
            }
        }
    }

    /// Ends a query and gives its stream the answer.
    fn answer(&mut self, index: usize, answer: &[u8]) {
        let Some(upstream) = self.upstreams.try_remove(index) else { return };
        let held: usize = self.streams.iter().map(|(_, stream)| stream.output.len()).sum();
        let Some(stream) = self.streams.get_mut(upstream.stream) else { return };
        if stream.generation != upstream.stream_generation {
            return;
        }
        if held + answer.len() > MAX_OUTPUTS {
            self.streams.try_remove(upstream.stream);
            return;
        }
        stream.queries -= 1;
        if !answer.is_empty() {
            stream.put(answer);
        }
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }
}
