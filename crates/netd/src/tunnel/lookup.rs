//! Names that clients of a tunnel ask for, by the network's own resolver: the same question for
//! both families, and one answer of both.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use slab::Slab;

use crate::core::{Core, TUNNEL_QUERY};

/// Lookups of all clients together.
const MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Lookups {
    lookups: Slab<Lookup>,
    /// Tells successive lookups of one place apart.
    generation: u32,
}

#[derive(Debug)]
struct Lookup {
    generation: u32,
    client: usize,
    name: String,
    /// Answers that are still to come.
    missing: [bool; 2],
    /// IPv4 addresses first, which every guest has.
    found: Vec<IpAddr>,
}

const TYPES: [RecordType; 2] = [RecordType::A, RecordType::AAAA];

impl Lookups {
    /// Asks for a name on behalf of a client. Without room nobody answers, and the client's time
    /// runs out.
    pub(super) fn ask(&mut self, client: usize, name: String, core: &mut Core) {
        self.generation = self.generation.wrapping_add(1);
        let messages = TYPES.map(|record_type| message(&name, record_type));
        let [Some(a), Some(aaaa)] = messages else {
            // The resolver would say the same.
            core.resolved.push((self.nobody(client, name), Vec::new()));
            return;
        };
        if self.lookups.len() >= MAX {
            return;
        }
        let index = self.insert(client, name, [true, true]);
        for (family, message) in [a, aaaa].iter().enumerate() {
            let number = self.number(index, family);
            if !core.resolve(number, message) {
                core.resolved.push((number, Vec::new()));
            }
        }
    }

    /// An answer: once both are there, whose lookup it was and what has been found.
    pub(super) fn answered(
        &mut self,
        number: u64,
        answer: &[u8],
    ) -> Option<(usize, String, Vec<IpAddr>)> {
        let (index, family) = (index_of(number), usize::from(number & FAMILY != 0));
        if !self.lookups.contains(index) || self.number(index, family) != number {
            return None;
        }
        let lookup = self.lookups.get_mut(index)?;
        if let Some(missing) = lookup.missing.get_mut(family) {
            *missing = false;
        }
        let addresses = addresses(answer);
        if family == 0 {
            lookup.found.splice(..0, addresses);
        } else {
            lookup.found.extend(addresses);
        }
        if lookup.missing.contains(&true) {
            return None;
        }
        let lookup = self.lookups.remove(index);
        Some((lookup.client, lookup.name, lookup.found))
    }

    /// A client is gone: nobody waits for its answers.
    pub(super) fn forget(&mut self, client: usize) {
        self.lookups.retain(|_, lookup| lookup.client != client);
    }

    /// A lookup that is over with an empty answer.
    fn nobody(&mut self, client: usize, name: String) -> u64 {
        let index = self.insert(client, name, [true, false]);
        self.number(index, 0)
    }

    fn insert(&mut self, client: usize, name: String, missing: [bool; 2]) -> usize {
        let generation = self.generation;
        let found = Vec::new();
        self.lookups.insert(Lookup { generation, client, name, missing, found })
    }

    fn number(&self, index: usize, family: usize) -> u64 {
        let generation = self.lookups.get(index).map_or(0, |lookup| lookup.generation);
        let family = if family == 0 { 0 } else { FAMILY };
        TUNNEL_QUERY | family | u64::from(generation) << 16 | (index as u64 & INDEX)
    }
}

/// Which family's answer, in a query's number.
const FAMILY: u64 = 1 << 62;
const INDEX: u64 = 0xffff;

fn index_of(number: u64) -> usize {
    (number & INDEX) as usize
}

fn message(name: &str, record_type: RecordType) -> Option<Vec<u8>> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, record_type));
    message.to_vec().ok()
}

/// The addresses in an answer; none in what is broken.
fn addresses(answer: &[u8]) -> Vec<IpAddr> {
    let Ok(message) = Message::from_vec(answer) else { return Vec::new() };
    let addresses = message.answers.iter().filter_map(|record| match record.data {
        RData::A(ip) => Some(IpAddr::V4(ip.0)),
        RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
        _ => None,
    });
    addresses.collect()
}
