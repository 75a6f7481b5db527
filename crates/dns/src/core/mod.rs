//! The resolver without I/O: what a message from a client leads to, and what a nameserver's reply
//! or a lookup's end leads to. What has to be done outside is left on a list of [`Step`]s.
//!
//! The order is: the network's own names, the machine's hosts file, its own functions where they
//! may know more than the nameservers, the cache, the nameservers. Every table is bounded, by guest
//! and in total.

mod known;
mod lookup;
mod question;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Instant;

use hashbrown::HashTable;
use slab::Slab;

#[cfg_attr(not(target_os = "macos"), allow(unused_imports, reason = "not told by libc"))]
pub(crate) use lookup::FoundRecord;
pub(crate) use lookup::{Found, Wanted};
pub(crate) use question::{MAX_TRIES, Question, Refusal, Tries, Way};

use crate::answers::{Answers, Origin};
use crate::cache::Cache;
use crate::hash::{Hashed, Numbered};
use crate::hosts::Hosts;
use crate::message::{self, A, AAAA, ANY, Alias, CNAME, Checked, Key, PTR, Query, Rcode};
use crate::name;
use crate::names::{self, Names};
use crate::native;
use crate::nsswitch::{Machine, Sources};
use crate::servers::Servers;
use known::{Known, own, tell};
use lookup::Lookups;
use question::Waiter;

/// Questions at the nameservers.
const MAX_QUESTIONS: usize = 8192;

/// Messages that wait for an answer, of one guest and in all, and their bytes.
const MAX_WAITING: usize = 8192;
const MAX_WAITING_PER_GUEST: usize = 2048;
const MAX_BYTES: usize = 4 << 20;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// With a message of its own; the number is the owner's.
    Datagram(u64),
    /// The same, with room for any answer.
    Call(u64),
    /// On a stream, which may be gone by the time of the answer.
    Stream { index: usize, generation: u32 },
}

/// Who asked, and on whose account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) client: Client,
    pub(crate) guest: u32,
}

/// What has to be done outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask a nameserver this question.
    Ask(usize),
    /// Start this lookup.
    Look(usize),
}

/// What the machine's own files say.
#[derive(Debug, Default)]
pub(crate) struct HostFiles {
    pub(crate) hosts: Hosts,
    pub(crate) sources: Sources,
    pub(crate) machine: Machine,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) names: Names,
    pub(crate) servers: Servers,
    /// `None` if the machine's own way does not count.
    pub(crate) host: Option<HostFiles>,
    /// Outside names have IPv6 addresses.
    pub(crate) ipv6: bool,
    /// The same for guests that want it otherwise.
    pub(crate) ipv6_of: HashMap<u32, bool>,
    /// Guests for which the machine's own way does not count.
    pub(crate) plain: HashSet<u32>,
    pub(crate) answers: Answers<Client>,
    pub(crate) steps: Vec<Step>,
    pub(crate) questions: Slab<Question>,
    pub(crate) lookups: Lookups,
    cache: Cache,
    /// Questions whose answer others may have too, by the hash of their keys.
    by_key: HashTable<usize>,
    waiting: Waiting,
    scratch: Vec<u8>,
}

/// How much waits for an answer.
#[derive(Debug, Default)]
struct Waiting {
    by_guest: Numbered<u32, usize>,
    count: usize,
    bytes: usize,
}

impl Core {
    pub(crate) fn new(names: Names, servers: Servers) -> Self {
        Self {
            names,
            servers,
            host: None,
            ipv6: true,
            ipv6_of: HashMap::new(),
            plain: HashSet::new(),
            answers: Answers::default(),
            steps: Vec::new(),
            questions: Slab::new(),
            lookups: Lookups::default(),
            cache: Cache::default(),
            by_key: HashTable::new(),
            waiting: Waiting::default(),
            scratch: Vec::new(),
        }
    }

    fn has_ipv6(&self, asker: Asker) -> bool {
        self.ipv6_of.get(&asker.guest).copied().unwrap_or(self.ipv6)
    }

    /// What was known of outside names counts no more.
    pub(crate) fn forget(&mut self) {
        self.cache.clear();
        self.lookups.forget();
    }

    /// A message from a client. False if there will be no answer.
    pub(crate) fn query(&mut self, asker: Asker, message: &[u8], now: Instant) -> bool {
        match message::check(message) {
            Checked::Ignore => return false,
            Checked::Refused(query, rcode) => self.error(asker, &query, rcode),
            Checked::Other(query) => {
                let name = query.name();
                let name = Hashed::new(&name);
                if matches!(self.names.find(name), names::Found::Elsewhere(_)) {
                    self.forward(asker, &query, &Alias::new(), name, now);
                } else {
                    self.error(asker, &query, Rcode::NotImp);
                }
            }
            Checked::Query(query) => self.resolve(asker, &query, now),
        }
        true
    }

    fn resolve(&mut self, asker: Asker, query: &Query<'_>, now: Instant) {
        let name = query.name();
        let name = Hashed::new(&name);
        let alias = match self.names.find(name) {
            names::Found::Elsewhere(alias) => alias,
            found => return own(&mut self.answers, asker, query, &found),
        };
        if !query.is_internet() {
            return self.forward(asker, query, &Alias::new(), name, now);
        }
        let kind = query.kind();
        if !alias.is_empty() && matches!(kind, CNAME | ANY) {
            return own(&mut self.answers, asker, query, &names::Found::Elsewhere(alias));
        }
        let target = alias.last().map_or(name, |target| Hashed::new(target));
        let plain = self.plain.contains(&asker.guest);
        if let Some(host) = self.host.as_ref().filter(|_| !plain) {
            let address = if kind == PTR { name::reverse(target.name) } else { None };
            let listed = match (kind, address) {
                (A | AAAA | ANY, _) => host.hosts.addresses(target).map(Known::Addresses),
                (_, Some(address)) => host.hosts.name(address).map(Known::Name),
                _ => None,
            };
            if let Some(known) = &listed
                && host.sources.files_first()
            {
                return tell(&mut self.answers, asker, query, &alias, known, Origin::HostsFile);
            }
            let native = match (kind, address) {
                (A | AAAA, _) => {
                    listed.is_some() || host.sources.wants_name(target.name, &host.machine)
                }
                (_, Some(address)) => {
                    listed.is_some() || host.sources.wants_address(address, &host.machine)
                }
                _ => false,
            };
            // A meta type has no records.
            let native = native || (native::EVERY_TYPE && !(128..=255).contains(&kind));
            if native && let Some(wanted) = Wanted::new(target.name, kind, address) {
                return self.look(asker, query, alias, wanted, now);
            }
        }
        if kind == AAAA && !self.has_ipv6(asker) {
            let nothing = Known::Addresses(&[]);
            return tell(&mut self.answers, asker, query, &alias, &nothing, Origin::Resolver);
        }
        self.forward(asker, query, &alias, target, now);
    }

    /// Gives the cached answer, or has a nameserver asked.
    fn forward(
        &mut self,
        asker: Asker,
        query: &Query<'_>,
        alias: &Alias,
        target: Hashed<'_>,
        now: Instant,
    ) {
        let limit = query.limit(asker.is_udp());
        let about = alias.last().and_then(|target| query.about(target));
        let checked;
        let asked = match about.as_deref().map(message::check) {
            None => query,
            Some(Checked::Query(about)) => {
                checked = about;
                &checked
            }
            Some(_) => return self.error(asker, query, Rcode::ServFail),
        };
        let key = asked.key(target.hash);
        if let Some(key) = &key
            && self.answer_from_cache(asker, query, alias, (key, asked, limit), now)
        {
            return;
        }
        if !self.waiting.admits(asker.guest, query.message.len()) {
            return self.error(asker, query, Rcode::ServFail);
        }
        let waiter = || Waiter::new(asker, query.message, limit, alias.clone());
        let shared = asked.is_shared();
        if let Some(key) = key.as_ref().filter(|_| shared)
            && let Some(question) = self.same(key, asker.is_udp(), limit)
        {
            question.others.push(waiter());
            self.waiting.add(asker.guest, query.message.len());
            return;
        }
        if self.questions.len() >= MAX_QUESTIONS {
            return self.error(asker, query, Rcode::ServFail);
        }
        let mut question = Question::new(asked.message, limit, asker.is_udp(), now);
        self.waiting.add(asker.guest, query.message.len());
        if about.is_some() {
            question.others.push(waiter());
        } else {
            question.first = Some((asker, query.id()));
        }
        question.tries.next = self.servers.first(now);
        question.key = key.as_ref().map(|key| (key.hash, key.flags));
        question.shared = shared;
        let index = self.questions.insert(question);
        if let Some(key) = key.filter(|_| shared) {
            let questions = &self.questions;
            let hash = |&at: &usize| questions.get(at).and_then(|q| q.key).map_or(0, |key| key.0);
            self.by_key.insert_unique(key.hash, index, hash);
        }
        self.steps.push(Step::Ask(index));
    }

    /// The question that is the same as one with this key, if its answer will be as large. Over TCP
    /// there may be more in an answer.
    fn same(&mut self, key: &Key<'_>, udp: bool, limit: usize) -> Option<&mut Question> {
        let is = |&index: &usize| {
            self.questions.get(index).is_some_and(|question| {
                let flags = question.key.map_or(0, |key| key.1);
                let large = question.udp == udp && question.limit >= limit;
                large && key.is_asked_by(&question.message, flags)
            })
        };
        let index = *self.by_key.find(key.hash, is)?;
        self.questions.get_mut(index)
    }

    fn answer_from_cache(
        &mut self,
        asker: Asker,
        query: &Query<'_>,
        alias: &Alias,
        (key, asked, limit): (&Key<'_>, &Query<'_>, usize),
        now: Instant,
    ) -> bool {
        let Self { cache, answers, scratch, .. } = self;
        if alias.is_empty() {
            return answers.write(asker.client, Origin::Cache, |out| {
                cache.answer(key, query, limit, now, out)
            });
        }
        scratch.clear();
        cache.answer(key, asked, limit, now, scratch)
            && answers.write(asker.client, Origin::Cache, |out| {
                message::with_alias(query, alias, scratch, limit, out).is_some()
            })
    }

    /// A nameserver has answered a question, over TCP or not.
    pub(crate) fn replied(
        &mut self,
        index: usize,
        reply: &[u8],
        server: SocketAddr,
        tcp: bool,
        now: Instant,
    ) {
        let Some(question) = self.take(index) else { return };
        if let Some(key) = question.key.and_then(|key| Key::again(&question.message, key)) {
            let limit = if tcp { message::MAX_MESSAGE } else { question.limit };
            self.cache.insert(&key, reply, limit, now);
        }
        let origin = Origin::Upstream(server);
        if let Some((asker, id)) = question.first {
            self.waiting.remove(asker.guest, question.message.len());
            self.answers.write(asker.client, origin, |out| {
                message::relay(reply, id, question.limit, out);
                true
            });
        }
        for waiter in question.others {
            self.waiting.remove(waiter.asker.guest, waiter.message.len());
            if !waiter.give(&mut self.answers, reply, origin)
                && let Checked::Query(query) = message::check(&waiter.message)
            {
                let name = query.name();
                let target = waiter.alias.last().map_or(&*name, |target| &**target);
                self.forward(waiter.asker, &query, &waiter.alias, Hashed::new(target), now);
            }
        }
    }

    /// Nobody has answered a question.
    pub(crate) fn failed(&mut self, index: usize) {
        let Some(mut question) = self.take(index) else { return };
        if let Some((asker, id)) = question.first {
            self.waiting.remove(asker.guest, question.message.len());
            if let Some(place) = question.message.get_mut(..2) {
                place.copy_from_slice(&id);
            }
            self.error_for(asker, &question.message, Rcode::ServFail);
        }
        for waiter in question.others {
            self.waiting.remove(waiter.asker.guest, waiter.message.len());
            self.error_for(waiter.asker, &waiter.message, Rcode::ServFail);
        }
    }

    /// Whether nobody waits for a nameserver.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn is_idle(&self) -> bool {
        self.by_key.is_empty() && self.waiting.count == 0 && self.waiting.bytes == 0
    }

    fn take(&mut self, index: usize) -> Option<Question> {
        let question = self.questions.try_remove(index)?;
        if let Some((hash, _)) = question.key.filter(|_| question.shared)
            && let Ok(found) = self.by_key.find_entry(hash, |&at| at == index)
        {
            found.remove();
        }
        Some(question)
    }

    fn error(&mut self, asker: Asker, query: &Query<'_>, rcode: Rcode) {
        self.answers.write(asker.client, Origin::Resolver, |out| {
            query.error(rcode, out);
            true
        });
    }

    fn error_for(&mut self, asker: Asker, message: &[u8], rcode: Rcode) {
        match message::check(message) {
            Checked::Query(query) | Checked::Other(query) | Checked::Refused(query, _) => {
                self.error(asker, &query, rcode);
            }
            Checked::Ignore => {}
        }
    }
}

impl Asker {
    fn is_udp(&self) -> bool {
        matches!(self.client, Client::Datagram(_))
    }
}

impl Waiting {
    fn admits(&self, guest: u32, bytes: usize) -> bool {
        self.count < MAX_WAITING
            && self.bytes + bytes <= MAX_BYTES
            && self.by_guest.get(&guest).is_none_or(|&count| count < MAX_WAITING_PER_GUEST)
    }

    fn add(&mut self, guest: u32, bytes: usize) {
        self.count += 1;
        self.bytes += bytes;
        *self.by_guest.entry(guest).or_default() += 1;
    }

    fn remove(&mut self, guest: u32, bytes: usize) {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(count) = self.by_guest.get_mut(&guest) {
            *count -= 1;
            if *count == 0 {
                self.by_guest.remove(&guest);
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
