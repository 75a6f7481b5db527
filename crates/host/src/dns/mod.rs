//! The name service that guests ask: a few names of its own, and every other message unchanged to
//! the machine's nameservers, over UDP and TCP (RFC 1035, RFC 7766).
//!
//! Every table here is bounded, for guests may ask as much as they like.

mod hosts;
mod message;
mod servers;
mod tcp;
mod udp;

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant as Moment};

use mio::Registry;
use vmlan_engine::io::Failure;
use vmlan_engine::{Instant, Readiness, Token};

use crate::sys::Batches;
use crate::token::{Class, Internal};
use hosts::Hosts;
use message::{Checked, Rcode};
use servers::Servers;
use tcp::Tcp;
use udp::Udp;

pub use servers::DnsSource;

/// A nameserver that is silent for so long gets company.
const RETRY: Duration = Duration::from_secs(2);

/// Nobody waits longer for an answer.
const GIVE_UP: Duration = Duration::from_secs(10);

/// Answers that wait to be taken; the loop takes them in every pass.
const MAX_ANSWERS: usize = 8192;

#[derive(Debug)]
pub(crate) struct Dns {
    shared: Shared,
    udp: Udp,
    tcp: Tcp,
    /// When the caller's time was last heard, on his clock and on ours: a query comes without.
    clock: Option<(Moment, Instant)>,
}

/// What both transports use.
#[derive(Debug)]
struct Shared {
    hosts: Hosts,
    servers: Servers,
    random: Random,
    answers: VecDeque<(Token, Vec<u8>)>,
}

/// Numbers that nobody outside can foresee: a keyed hash (SipHash) of a counter, the key drawn by
/// the system.
#[derive(Debug, Default)]
struct Random {
    key: RandomState,
    counter: u64,
}

impl Dns {
    pub(crate) fn new(source: DnsSource, hosts: Vec<(String, Vec<IpAddr>)>) -> Self {
        Self {
            shared: Shared {
                hosts: Hosts::new(hosts),
                servers: Servers::new(source),
                random: Random::default(),
                answers: VecDeque::new(),
            },
            udp: Udp::default(),
            tcp: Tcp::default(),
            clock: None,
        }
    }

    pub(crate) fn query(&mut self, registry: &Registry, token: Token, message: &[u8]) {
        let shared = &mut self.shared;
        let query = match message::check(message) {
            Checked::Ignore => return,
            Checked::Malformed(query) => {
                return shared.answer(token, query.error(Rcode::FormErr));
            }
            Checked::Query(query) => query,
        };
        if let Some(addresses) = shared.hosts.get(&query) {
            let answer = query.addresses(addresses, true);
            return shared.answer(token, answer);
        }
        let now = Moment::now();
        shared.servers.refresh(now);
        if !self.udp.query(shared, registry, token, message, now) {
            self.shared.answer(token, query.error(Rcode::ServFail));
        }
    }

    /// The engine's end of a new stream.
    pub(crate) fn open_stream(&mut self, registry: &Registry) -> Result<OwnedFd, Failure> {
        self.tcp.open(registry, Moment::now())
    }

    pub(crate) fn handle(
        &mut self,
        registry: &Registry,
        batches: &mut Batches,
        internal: Internal,
        ready: Readiness,
        now: Instant,
    ) {
        let moment = self.hear(now);
        let shared = &mut self.shared;
        match internal.class {
            Class::DnsUdp => self.udp.handle(shared, registry, batches, internal, ready, moment),
            Class::DnsStream => self.tcp.handle_stream(shared, registry, internal, moment),
            Class::DnsTcp => self.tcp.handle_upstream(shared, registry, internal, ready, moment),
            Class::Loopback => {}
        }
    }

    pub(crate) fn take_answer(&mut self) -> Option<(Token, Vec<u8>)> {
        self.shared.answers.pop_front()
    }

    pub(crate) fn handle_timeout(
        &mut self,
        registry: &Registry,
        batches: &mut Batches,
        now: Instant,
    ) {
        let moment = self.hear(now);
        self.udp.handle_timeout(&mut self.shared, registry, batches, moment);
        self.tcp.handle_timeout(&mut self.shared, registry, moment);
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if !self.shared.answers.is_empty() {
            return Some(Instant::ZERO);
        }
        let due = [self.udp.next_timeout(), self.tcp.next_timeout()].into_iter().flatten().min()?;
        // Before the caller's time is known, any time of his is past.
        let Some((moment, now)) = self.clock else { return Some(Instant::ZERO) };
        Some(now + due.saturating_duration_since(moment))
    }

    fn hear(&mut self, now: Instant) -> Moment {
        let moment = Moment::now();
        self.clock = Some((moment, now));
        moment
    }
}

impl Shared {
    fn answer(&mut self, token: Token, message: Vec<u8>) {
        if self.answers.len() < MAX_ANSWERS {
            self.answers.push_back((token, message));
        }
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        self.key.hash_one(self.counter)
    }

    /// A number below `bound`, which is small.
    #[expect(clippy::cast_possible_truncation, reason = "below a bound that fits")]
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % (bound.max(1) as u64)) as usize
    }

    #[expect(clippy::cast_possible_truncation, reason = "16 bits are meant")]
    fn id(&mut self) -> u16 {
        self.next() as u16
    }
}
