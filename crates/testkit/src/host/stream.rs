//! A simulated stream socket with its far end. It behaves as Linux does where it matters: writes
//! are partial, "writable" comes once a third of the send buffer is free after it was full, data
//! that came before a RST can still be read, an error is told once.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};

use vmlan_engine::Token;
use vmlan_engine::io::{Close, Failure, Received, Sent};

use super::agenda::{Agenda, ENDED, FAILED, READABLE, WRITABLE, What};
use super::remote::{Answer, Ending, Remote};
use super::{Conn, Seen};

/// Of what the guest sends, so much is kept for tests to look at.
const KEEP: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Up,
    /// Refused, reset or closed by the far end altogether.
    Dead,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) conn: usize,
    id: u32,
    token: Token,
    state: State,
    remote: Remote,
    /// Written by the engine, not read by the far end yet.
    held: usize,
    /// A write found no room: an event is owed.
    want_write: bool,
    fin_out: bool,
    drain_planned: bool,
    /// Pattern bytes that wait for the engine.
    arrived: usize,
    /// Bytes beside the pattern (echoes, the test's own) that wait for the engine.
    queue: VecDeque<u8>,
    /// Pattern bytes made and read.
    made: u64,
    taken: u64,
    feed_planned: bool,
    fin_in: bool,
    /// The far end has closed both directions.
    gone: bool,
    error: Option<Failure>,
}

impl Stream {
    /// A connection attempt whose outcome will come.
    pub(super) fn connecting(
        id: u32,
        token: Token,
        conn: usize,
        remote: Remote,
        agenda: &mut Agenda,
    ) -> Self {
        if remote.answer != Answer::Silence {
            agenda.schedule(remote.delay, What::Outcome(id));
        }
        Self {
            conn,
            id,
            token,
            state: State::Connecting,
            remote,
            held: 0,
            want_write: false,
            fin_out: false,
            drain_planned: false,
            arrived: 0,
            queue: VecDeque::new(),
            made: 0,
            taken: 0,
            feed_planned: false,
            fin_in: false,
            gone: false,
            error: None,
        }
    }

    /// A connection that the engine accepted.
    pub(super) fn accepted(
        id: u32,
        token: Token,
        conn: usize,
        remote: Remote,
        log: &mut Conn,
        agenda: &mut Agenda,
    ) -> Self {
        let mut stream = Self::connecting(id, token, conn, remote, agenda);
        stream.state = State::Up;
        log.up = true;
        stream.feed(log, agenda);
        stream
    }

    pub(super) fn outcome(&mut self, log: &mut Conn, agenda: &mut Agenda) {
        if self.state != State::Connecting {
            return;
        }
        match self.remote.answer {
            Answer::Accept => {
                self.state = State::Up;
                log.up = true;
                agenda.raise(self.token, WRITABLE);
                self.feed(log, agenda);
            }
            Answer::Fail(why) => {
                self.state = State::Dead;
                self.error = Some(why);
                agenda.raise(self.token, FAILED);
            }
            Answer::Silence => {}
        }
    }

    /// More arrives from the far end, as far as there is room.
    pub(super) fn feed(&mut self, log: &mut Conn, agenda: &mut Agenda) {
        self.feed_planned = false;
        if self.state != State::Up || self.fin_in {
            return;
        }
        let source = &self.remote.source;
        let room = source.buffer.saturating_sub(self.arrived + self.queue.len());
        let left = source.bytes - self.made;
        let n = left.min(room as u64).min(source.chunk as u64);
        if n > 0 {
            self.made += n;
            self.arrived += n as usize;
            agenda.raise(self.token, READABLE);
        }
        if self.made < source.bytes && room > n as usize {
            self.feed_planned = true;
            agenda.schedule(source.every, What::Feed(self.id));
        }
        self.end_if_due(log, agenda);
    }

    /// Acts on the script's ending once everything is sent.
    fn end_if_due(&mut self, log: &mut Conn, agenda: &mut Agenda) {
        if self.state != State::Up || self.made < self.remote.source.bytes {
            return;
        }
        let eof = log.seen == Some(Seen::Fin) && self.held == 0;
        match self.remote.ending {
            Ending::FinAfterEof if eof => self.fin(agenda),
            Ending::Fin => self.fin(agenda),
            Ending::Close => {
                self.fin(agenda);
                self.gone = true;
            }
            Ending::Reset => self.reset(Failure::Reset, agenda),
            Ending::Hold | Ending::FinAfterEof => {}
        }
    }

    /// The far end sends FIN.
    pub(super) fn fin(&mut self, agenda: &mut Agenda) {
        if self.state == State::Up && !self.fin_in {
            self.fin_in = true;
            agenda.raise(self.token, ENDED);
        }
    }

    /// The connection breaks.
    pub(super) fn reset(&mut self, why: Failure, agenda: &mut Agenda) {
        if self.state == State::Up {
            self.state = State::Dead;
            self.error = Some(why);
            self.held = 0;
            agenda.raise(self.token, FAILED);
        }
    }

    /// The far end sends these bytes.
    pub(super) fn push(&mut self, data: &[u8], agenda: &mut Agenda) {
        if self.state == State::Up && !self.fin_in {
            self.queue.extend(data);
            agenda.raise(self.token, READABLE);
        }
    }

    /// Changes how the far end reads.
    pub(super) fn set_reading(&mut self, chunk: usize, agenda: &mut Agenda) {
        self.remote.sink.chunk = chunk;
        self.plan_drain(agenda);
    }

    pub(super) fn send(
        &mut self,
        bufs: &[IoSlice<'_>],
        log: &mut Conn,
        agenda: &mut Agenda,
    ) -> Sent {
        assert!(!self.fin_out, "the engine writes to {:?} after its own FIN", log.target);
        if self.state == State::Connecting {
            return Sent::Blocked;
        }
        if self.gone {
            self.gone = false;
            self.reset(Failure::Reset, agenda);
        }
        if self.state == State::Dead {
            return Sent::Failed(self.error.take().unwrap_or(Failure::Reset));
        }
        let total: usize = bufs.iter().map(|b| b.len()).sum();
        let room = self.remote.sink.buffer.saturating_sub(self.held);
        let mut n = 0;
        for buf in bufs {
            let part = &buf[..buf.len().min(room - n)];
            self.accept(part, log);
            n += part.len();
        }
        self.held += n;
        self.want_write |= n < total;
        self.plan_drain(agenda);
        if n == 0 && total > 0 { Sent::Blocked } else { Sent::Data(n) }
    }

    /// The kernel takes over a piece of what the guest sent.
    fn accept(&mut self, data: &[u8], log: &mut Conn) {
        if let Some(pattern) = self.remote.sink.pattern
            && let Err(at) = pattern.check(log.received, data)
        {
            log.mismatch.get_or_insert(at);
        }
        let keep = data.len().min(KEEP - log.head.len().min(KEEP));
        log.head.extend_from_slice(&data[..keep]);
        log.received += data.len() as u64;
        if self.remote.source.echo {
            self.queue.extend(data);
        }
    }

    fn plan_drain(&mut self, agenda: &mut Agenda) {
        // An echo server that cannot get rid of its answers stops reading.
        let stuck = self.remote.source.echo && self.queue.len() > self.remote.source.buffer;
        if self.held > 0 && self.remote.sink.chunk > 0 && !self.drain_planned && !stuck {
            self.drain_planned = true;
            agenda.schedule(self.remote.sink.every, What::Drain(self.id));
        }
    }

    /// The far end reads.
    pub(super) fn drain(&mut self, log: &mut Conn, agenda: &mut Agenda) {
        self.drain_planned = false;
        if self.state != State::Up {
            return;
        }
        let sink = &self.remote.sink;
        let n = self.held.min(sink.chunk);
        self.held -= n;
        log.read += n as u64;
        let reset = sink.reset_after.is_some_and(|limit| log.read >= limit);
        if self.want_write && (sink.buffer - self.held) * 3 >= sink.buffer {
            self.want_write = false;
            agenda.raise(self.token, WRITABLE);
        }
        if self.remote.source.echo && !self.queue.is_empty() {
            agenda.raise(self.token, READABLE);
        }
        if reset {
            self.reset(Failure::Reset, agenda);
            return;
        }
        self.plan_drain(agenda);
        self.end_if_due(log, agenda);
    }

    pub(super) fn recv(
        &mut self,
        bufs: &mut [IoSliceMut<'_>],
        log: &mut Conn,
        agenda: &mut Agenda,
    ) -> Received {
        if self.state == State::Connecting {
            return Received::Blocked;
        }
        let mut n = 0;
        for buf in bufs.iter_mut() {
            n += self.read_into(buf);
        }
        if n > 0 {
            log.sent += n as u64;
            if self.made < self.remote.source.bytes && !self.feed_planned {
                self.feed_planned = true;
                agenda.schedule(self.remote.source.every, What::Feed(self.id));
            }
            self.plan_drain(agenda);
            return Received::Data(n);
        }
        if bufs.iter().all(|b| b.is_empty()) && self.arrived + self.queue.len() > 0 {
            return Received::Data(0);
        }
        if let Some(why) = self.error.take() {
            return Received::Failed(why);
        }
        if self.fin_in || self.state == State::Dead { Received::Eof } else { Received::Blocked }
    }

    fn read_into(&mut self, buf: &mut [u8]) -> usize {
        let n = buf.len().min(self.arrived);
        self.remote.source.pattern.fill(self.taken, &mut buf[..n]);
        self.taken += n as u64;
        self.arrived -= n;
        let rest = &mut buf[n..];
        let more = rest.len().min(self.queue.len());
        for (to, from) in rest.iter_mut().zip(self.queue.drain(..more)) {
            *to = from;
        }
        n + more
    }

    pub(super) fn shutdown_write(&mut self, log: &mut Conn, agenda: &mut Agenda) {
        self.fin_out = true;
        if log.seen.is_none() {
            log.seen = Some(Seen::Fin);
        }
        if self.held == 0 {
            self.end_if_due(log, agenda);
        }
    }

    /// The engine is done with the socket.
    pub(super) fn close(&mut self, how: Close, log: &mut Conn) {
        log.closed = true;
        log.unread = self.arrived + self.queue.len();
        match how {
            Close::Reset => log.seen = Some(Seen::Reset),
            Close::Normal => {
                log.read += self.held as u64;
                // Linux answers unread data with RST (RFC 2525 section 2.17).
                let lost = log.unread > 0 && self.state == State::Up;
                if lost {
                    log.seen = Some(Seen::Reset);
                } else if log.seen.is_none() && log.up {
                    log.seen = Some(Seen::Fin);
                }
            }
        }
    }

    pub(super) fn take_error(&mut self) -> Option<Failure> {
        self.error.take()
    }

    /// Bytes that the kernel would hold for this socket.
    pub(super) fn bytes(&self) -> usize {
        self.held + self.arrived + self.queue.len()
    }
}
