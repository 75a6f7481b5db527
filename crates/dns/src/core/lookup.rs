//! Names and addresses that the machine's own functions are asked for, and who waits for them. One
//! lookup tells of both families.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use slab::Slab;

use super::known::{Known, tell};
use super::{Asker, Client, Core, Step};
use crate::answers::{Answers, Origin};
use crate::message::{self, AAAA, Alias, Checked, Query, Rcode};
use crate::{name, native};

/// Lookups that have not ended, of one guest and in all.
const MAX_LOOKUPS: usize = 256;
const MAX_LOOKUPS_PER_GUEST: usize = 64;

/// Clients that wait for one lookup.
const MAX_CLIENTS: usize = 256;

/// How long what was found counts, and that nothing was.
const KEPT: Duration = Duration::from_secs(5);
const NOTHING_KEPT: Duration = Duration::from_secs(1);

/// Results that are remembered.
const MAX_KEPT: usize = 1024;

/// Nobody waits longer for a lookup.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wanted {
    Addresses(String),
    Name(IpAddr),
    /// Records of a type.
    Record(String, u16),
}

/// How a lookup ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There may be none for a name that exists.
    Addresses(Vec<IpAddr>),
    Name(String),
    /// Of any type, aliases before what they lead to. There may be none for a name that exists.
    #[cfg_attr(not(target_os = "macos"), allow(dead_code, reason = "not told by libc"))]
    Records(Vec<FoundRecord>),
    Nothing,
    /// Nobody could be asked.
    Failed,
}

/// A record as the machine's functions have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundRecord {
    /// In wire form, as what of the data is a name.
    pub(crate) owner: Box<[u8]>,
    pub(crate) kind: u16,
    pub(crate) ttl: u32,
    pub(crate) data: Box<[u8]>,
}

#[derive(Debug)]
pub(crate) struct Lookup {
    pub(crate) wanted: Wanted,
    /// The guest that asked first.
    pub(crate) guest: u32,
    started: Instant,
    clients: Vec<(Asker, Box<[u8]>, Alias)>,
}

#[derive(Debug, Default)]
pub(crate) struct Lookups {
    pub(crate) running: Slab<Lookup>,
    by_wanted: HashMap<Wanted, usize>,
    kept: HashMap<Wanted, (Found, Instant)>,
}

impl Wanted {
    /// `None` for a name that the functions could not be asked for.
    pub(super) fn new(name: &[u8], kind: u16, address: Option<IpAddr>) -> Option<Self> {
        match address {
            _ if native::EVERY_TYPE => Some(Self::Record(name::to_text(name)?, kind)),
            Some(address) => Some(Self::Name(address)),
            None => name::to_text(name).map(Self::Addresses),
        }
    }
}

impl Lookups {
    pub(super) fn forget(&mut self) {
        self.kept.clear();
    }

    fn kept(&self, wanted: &Wanted, now: Instant) -> Option<&Found> {
        let (found, until) = self.kept.get(wanted)?;
        (*until > now).then_some(found)
    }

    fn keep(&mut self, wanted: Wanted, found: &Found, now: Instant) {
        let time = match found {
            Found::Addresses(_) | Found::Name(_) | Found::Records(_) => KEPT,
            Found::Nothing => NOTHING_KEPT,
            Found::Failed => return,
        };
        if self.kept.len() >= MAX_KEPT {
            self.kept.retain(|_, (_, until)| *until > now);
        }
        if self.kept.len() < MAX_KEPT {
            self.kept.insert(wanted, (found.clone(), now + time));
        }
    }

    /// When the next lookup has taken too long.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let waited = self.running.iter().filter(|(_, lookup)| !lookup.clients.is_empty());
        waited.map(|(_, lookup)| lookup.started + PATIENCE).min()
    }
}

impl Core {
    /// Answers from what was found lately, or has it looked up.
    pub(super) fn look(
        &mut self,
        asker: Asker,
        query: &Query<'_>,
        alias: Alias,
        wanted: Wanted,
        now: Instant,
    ) {
        if let Some(found) = self.lookups.kept(&wanted, now) {
            let ipv6 = self.ipv6_of.get(&asker.guest).copied().unwrap_or(self.ipv6);
            return give(&mut self.answers, asker, query, &alias, found, ipv6);
        }
        let client = (asker, Box::from(query.message), alias);
        let Lookups { running, by_wanted, .. } = &mut self.lookups;
        if let Some(lookup) = by_wanted.get(&wanted).and_then(|&index| running.get_mut(index)) {
            if lookup.clients.len() < MAX_CLIENTS {
                return lookup.clients.push(client);
            }
            return self.error(asker, query, Rcode::ServFail);
        }
        let of_guest = running.iter().filter(|(_, lookup)| lookup.guest == asker.guest).count();
        if running.len() >= MAX_LOOKUPS || of_guest >= MAX_LOOKUPS_PER_GUEST {
            return self.error(asker, query, Rcode::ServFail);
        }
        let index = running.insert(Lookup {
            wanted: wanted.clone(),
            guest: asker.guest,
            started: now,
            clients: vec![client],
        });
        by_wanted.insert(wanted, index);
        self.steps.push(Step::Look(index));
    }

    /// A lookup has ended.
    pub(crate) fn found(&mut self, index: usize, found: &Found, now: Instant) {
        let Some(lookup) = self.lookups.running.try_remove(index) else { return };
        self.lookups.by_wanted.remove(&lookup.wanted);
        self.lookups.keep(lookup.wanted, found, now);
        for (asker, message, alias) in lookup.clients {
            if let Checked::Query(query) = message::check(&message) {
                let ipv6 = self.has_ipv6(asker);
                give(&mut self.answers, asker, &query, &alias, found, ipv6);
            }
        }
    }

    /// Lets nobody wait any more for what takes too long. The lookup itself keeps its place until
    /// it ends.
    pub(crate) fn expire_lookups(&mut self, now: Instant) {
        for (_, lookup) in &mut self.lookups.running {
            if now.saturating_duration_since(lookup.started) < PATIENCE {
                continue;
            }
            for (asker, message, alias) in std::mem::take(&mut lookup.clients) {
                if let Checked::Query(query) = message::check(&message) {
                    give(&mut self.answers, asker, &query, &alias, &Found::Failed, self.ipv6);
                }
            }
        }
    }
}

fn give(
    answers: &mut Answers<Client>,
    asker: Asker,
    query: &Query<'_>,
    alias: &Alias,
    found: &Found,
    ipv6: bool,
) {
    let name;
    let known = match found {
        Found::Addresses(_) if query.kind() == AAAA && !ipv6 => Known::Addresses(&[]),
        Found::Addresses(addresses) => Known::Addresses(addresses),
        Found::Records(_) if query.kind() == AAAA && !ipv6 => Known::Addresses(&[]),
        Found::Records(records) => Known::Records(records),
        Found::Name(text) => match name::from_text(text) {
            Ok(wire) => {
                name = wire;
                Known::Name(&name)
            }
            Err(_) => Known::Nothing,
        },
        Found::Nothing => Known::Nothing,
        Found::Failed => {
            answers.write(asker.client, Origin::Native, |out| {
                query.error(Rcode::ServFail, out);
                true
            });
            return;
        }
    };
    tell(answers, asker, query, alias, &known, Origin::Native);
}
