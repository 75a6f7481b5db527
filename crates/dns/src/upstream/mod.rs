//! The way to the nameservers: which one is asked when, over what, and when to stop.
//!
//! A nameserver that refuses, fails or cannot be reached is passed over at once; one that is silent
//! gets company after a while, and whoever answers first is believed. A question that came over TCP
//! is asked over TCP, where an answer may be longer, and over UDP where a nameserver has no TCP.

mod tcp;
mod udp;

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::Registry;
use mio::event::Event;

use crate::core::{Core, MAX_TRIES, Refusal};
use crate::message;
use crate::token::{Class, Key};
use tcp::Tcp;
use udp::Udp;

pub use udp::Datagrams;

/// Nobody waits longer for an answer.
const GIVE_UP: Duration = Duration::from_secs(10);

/// How exactly retries are timed.
const SWEEP: Duration = Duration::from_millis(250);

/// Questions that are retried at once: a nameserver's socket has room for these. More in one go, and
/// it would lose the same ones each time.
const MAX_RETRIES: usize = 128;

/// Where sockets are registered, and under which numbers.
#[derive(Debug)]
pub(crate) struct Poll {
    pub(crate) registry: Registry,
    pub(crate) base: usize,
    generation: u32,
}

#[derive(Debug)]
pub(crate) struct Upstream {
    udp: Udp,
    tcp: Tcp,
    sweep: Option<Instant>,
    /// When an event was last heard of.
    heard: Option<Instant>,
    /// Questions that an attempt has failed; empty between calls.
    lost: Vec<usize>,
}

/// A question to be retried. First come those that were sent least often, and of these the latest:
/// what nobody has answered for long is the least likely to be answered.
type Overdue = (usize, Reverse<Instant>, usize);

impl Poll {
    pub(crate) fn new(registry: Registry, base: usize) -> Self {
        Self { registry, base, generation: 0 }
    }

    pub(crate) fn key(&mut self, class: Class, index: usize) -> Key {
        self.generation = self.generation.wrapping_add(1);
        Key::new(class, index, self.generation)
    }
}

impl Upstream {
    pub(crate) fn new() -> Self {
        Self {
            udp: Udp::default(),
            tcp: Tcp::default(),
            sweep: None,
            heard: None,
            lost: Vec::new(),
        }
    }

    /// Has a question asked of the next nameserver, on to the one after where that fails at once.
    pub(crate) fn ask(&mut self, core: &mut Core, poll: &mut Poll, index: usize, now: Instant) {
        self.sweep.get_or_insert(now + SWEEP);
        loop {
            let Core { questions, servers, .. } = core;
            let Some(question) = questions.get_mut(index) else { return };
            let tries = &mut question.tries;
            let Some(server) = servers.at(tries.next) else {
                return self.conclude(core, index, now);
            };
            tries.next = tries.next.wrapping_add(1);
            tries.count += 1;
            tries.last = now;
            let sent = if question.udp {
                self.udp.queue(question, index, poll, server, now)
            } else {
                self.tcp.ask(question, index, poll, server, now)
            };
            if sent {
                return;
            }
            question.tries.failed += 1;
            if question.tries.count >= servers.len() {
                return self.conclude_if_hopeless(core, index, now);
            }
        }
    }

    pub(crate) fn has_unsent(&self) -> bool {
        self.udp.has_unsent()
    }

    /// Sends what is queued. To be called when no more is expected soon.
    pub(crate) fn flush(
        &mut self,
        core: &mut Core,
        poll: &mut Poll,
        lanes: &mut dyn Datagrams,
        now: Instant,
    ) {
        while self.udp.flush(core, lanes, &mut self.lost) {
            self.go_on(core, poll, now);
        }
    }

    pub(crate) fn handle(
        &mut self,
        core: &mut Core,
        poll: &mut Poll,
        lanes: &mut dyn Datagrams,
        (key, event): (Key, &Event),
        now: Instant,
    ) {
        self.heard = Some(now);
        if key.class == Class::Udp {
            if self.udp.is(key) {
                self.read(core, lanes, key.index, now);
            }
        } else if self.tcp.is(key) {
            let error = event.is_error();
            self.tcp_ready(core, poll, key.index, error, now);
        }
        self.go_on(core, poll, now);
    }

    pub(crate) fn handle_timeout(
        &mut self,
        core: &mut Core,
        poll: &mut Poll,
        lanes: &mut dyn Datagrams,
        now: Instant,
    ) {
        for index in self.udp.take_unread() {
            self.read(core, lanes, index, now);
        }
        if self.sweep.is_some_and(|due| due <= now) {
            self.sweep(core, poll, now);
        }
        self.go_on(core, poll, now);
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if self.udp.has_unread() { self.heard } else { self.sweep }
    }

    /// Retries what is overdue, gives up what is too old, closes sockets without work.
    fn sweep(&mut self, core: &mut Core, poll: &mut Poll, now: Instant) {
        let (mut old, mut overdue) = (Vec::new(), Vec::<Overdue>::new());
        let most = core.servers.attempts().min(MAX_TRIES);
        for (index, question) in &core.questions {
            let tries = &question.tries;
            if now.saturating_duration_since(question.asked_at) >= GIVE_UP {
                old.push(index);
            } else if tries.count < most
                && now.saturating_duration_since(tries.last) >= core.servers.patience(tries.count)
            {
                overdue.push((tries.count, Reverse(question.asked_at), index));
            }
        }
        if overdue.len() > MAX_RETRIES {
            overdue.select_nth_unstable(MAX_RETRIES);
            overdue.truncate(MAX_RETRIES);
        }
        for (_, _, index) in overdue {
            if let Some(question) = core.questions.get(index) {
                self.udp.suspect(&question.tries);
            }
            self.ask(core, poll, index, now);
        }
        for index in old {
            self.conclude(core, index, now);
        }
        self.udp.sweep(core, now);
        self.tcp.sweep(now);
        let idle = core.questions.is_empty() && self.tcp.is_empty() && !self.udp.has_retired();
        self.sweep = (!idle).then(|| now + SWEEP);
    }

    fn read(&mut self, core: &mut Core, lanes: &mut dyn Datagrams, socket: usize, now: Instant) {
        let Self { udp, tcp, lost, .. } = self;
        udp.read(core, lanes, socket, lost, &mut |udp, core, index, server, reply, lost| {
            settle(udp, tcp, core, index, (server, reply, false), now, lost);
        });
    }

    fn tcp_ready(
        &mut self,
        core: &mut Core,
        poll: &mut Poll,
        conn: usize,
        error: bool,
        now: Instant,
    ) {
        let Self { udp, tcp, lost, .. } = self;
        match tcp.advance(core, conn, error, now) {
            tcp::Progress::Waiting => {}
            tcp::Progress::Answered { index, server, reply } => {
                settle(udp, tcp, core, index, (server, &reply, true), now, lost);
            }
            // The nameserver may have ended a connection that had served before.
            tcp::Progress::Stale { index, server } => {
                let Some(question) = core.questions.get_mut(index) else { return };
                if !tcp.ask_fresh(question, index, poll, server, now) {
                    lost.push(index);
                }
            }
            tcp::Progress::Refused { index, server } => {
                let Some(question) = core.questions.get_mut(index) else { return };
                if !udp.queue(question, index, poll, server, now) {
                    lost.push(index);
                }
            }
            tcp::Progress::Failed { index } => lost.push(index),
        }
        tcp.take_waiting(core, poll, now, lost);
    }

    /// Takes questions that an attempt has failed to their next nameserver, or ends them.
    fn go_on(&mut self, core: &mut Core, poll: &mut Poll, now: Instant) {
        while let Some(index) = self.lost.pop() {
            let servers = core.servers.len();
            let Some(question) = core.questions.get_mut(index) else { continue };
            question.tries.failed += 1;
            if question.tries.count < servers {
                self.ask(core, poll, index, now);
            } else {
                self.conclude_if_hopeless(core, index, now);
            }
        }
    }

    fn conclude_if_hopeless(&mut self, core: &mut Core, index: usize, now: Instant) {
        let tries = core.questions.get(index).map(|question| &question.tries);
        if tries.is_some_and(|tries| tries.failed >= tries.count) {
            self.conclude(core, index, now);
        }
    }

    /// Ends a question that nobody has answered.
    fn conclude(&mut self, core: &mut Core, index: usize, now: Instant) {
        forget(&mut self.udp, &mut self.tcp, core, index);
        let refusal = core.questions.get_mut(index).and_then(|q| q.tries.refusal.take());
        match refusal {
            Some(refusal) => core.replied(index, &refusal.reply, refusal.server, false, now),
            None => core.failed(index),
        }
    }
}

/// Lets go of everything that a question has under way.
fn forget(udp: &mut Udp, tcp: &mut Tcp, core: &mut Core, index: usize) {
    if let Some(question) = core.questions.get_mut(index) {
        udp.forget(&mut question.tries);
        tcp.forget(index);
    }
}

/// A nameserver's reply to a question.
fn settle(
    udp: &mut Udp,
    tcp: &mut Tcp,
    core: &mut Core,
    index: usize,
    (server, reply, over_tcp): (SocketAddr, &[u8], bool),
    now: Instant,
    lost: &mut Vec<usize>,
) {
    let Some(question) = core.questions.get_mut(index) else { return };
    // A stream has room for all of it.
    let cut = message::is_truncated(reply) && !question.udp && !over_tcp;
    if !message::is_sound(reply) || cut {
        return lost.push(index);
    }
    if message::is_failure(reply) {
        let refusal = || Box::new(Refusal { reply: reply.into(), server });
        question.tries.refusal.get_or_insert_with(refusal);
        return lost.push(index);
    }
    if question.tries.count > 1 {
        core.servers.prefer(server, now);
    }
    forget(udp, tcp, core, index);
    core.replied(index, reply, server, over_tcp, now);
}
