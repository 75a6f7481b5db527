//! The resolver among the host's sockets: it borrows their batches, and the engine's time becomes
//! the system's.

mod call;
mod ports;

use std::os::fd::OwnedFd;
use std::time::Instant as Moment;

use mio::Registry;
use mio::event::Event;
use rustix::io::Errno;
use vmlan_dns::{Answers, Datagrams, Options, Resolver};
use vmlan_engine::Instant;
use vmlan_engine::io::Failure;

use crate::sys::{self, Batches};
use crate::token;

pub use call::resolve;
pub use ports::{DnsPorts, PortError};

#[derive(Debug)]
pub(crate) struct Dns {
    resolver: Resolver,
    /// When the caller's time was last heard, on his clock and on ours: a query comes without.
    clock: Option<(Moment, Instant)>,
    /// The time of this pass, once somebody has asked for it.
    moment: Option<Moment>,
}

impl Dns {
    pub(crate) fn new(registry: Registry, options: Options) -> Self {
        Self {
            resolver: Resolver::new(registry, token::DNS, options, Moment::now()),
            clock: None,
            moment: None,
        }
    }

    pub(crate) fn resolver(&mut self) -> &mut Resolver {
        &mut self.resolver
    }

    pub(crate) fn query(&mut self, client: u64, guest: u32, message: &[u8]) {
        let moment = *self.moment.get_or_insert_with(Moment::now);
        self.resolver.query(client, guest, message, moment);
    }

    /// The engine's end of a new stream.
    pub(crate) fn open_stream(&mut self, guest: u32) -> Result<OwnedFd, Failure> {
        let (theirs, fd) = sys::socket_pair().map_err(crate::failure::failure)?;
        let opened = self.resolver.open_stream(fd, guest, Moment::now());
        opened.map(|()| theirs).map_err(|_| Failure::Exhausted)
    }

    pub(crate) fn handle(&mut self, batches: &mut Batches, event: &Event, now: Instant) {
        let moment = self.hear(now);
        self.resolver.handle(&mut Lanes(batches), event, moment);
    }

    pub(crate) fn flush(&mut self, batches: &mut Batches, now: Instant) {
        if self.resolver.has_unsent() {
            let moment = self.hear(now);
            self.resolver.flush(&mut Lanes(batches), moment);
        }
        // The next pass has a time of its own.
        self.moment = None;
    }

    pub(crate) fn answers(&mut self) -> &mut Answers<u64> {
        self.resolver.answers()
    }

    pub(crate) fn handle_timeout(&mut self, batches: &mut Batches, now: Instant) {
        let moment = self.hear(now);
        self.resolver.handle_timeout(&mut Lanes(batches), moment);
        self.moment = None;
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if self.resolver.is_unfinished() {
            return Some(Instant::ZERO);
        }
        let due = self.resolver.next_timeout()?;
        // Before the caller's time is known, any time of his is past.
        let Some((moment, now)) = self.clock else { return Some(Instant::ZERO) };
        Some(now + due.saturating_duration_since(moment))
    }

    fn hear(&mut self, now: Instant) -> Moment {
        let moment = *self.moment.get_or_insert_with(Moment::now);
        self.clock = Some((moment, now));
        moment
    }
}

/// Batches, as the resolver wants them.
struct Lanes<'a>(&'a mut Batches);

impl Datagrams for Lanes<'_> {
    fn send(
        &mut self,
        fd: &OwnedFd,
        payloads: &[&[u8]],
        segment: &mut bool,
    ) -> (usize, Option<Errno>) {
        self.0.send(fd, None, None, payloads, segment)
    }

    fn recv(
        &mut self,
        fd: &OwnedFd,
        max: usize,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(usize, usize), Errno> {
        self.0.recv(fd, max, None, &mut |batch| {
            for datagram in batch {
                each(datagram.data);
            }
        })
    }
}
