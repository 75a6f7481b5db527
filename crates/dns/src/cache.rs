//! Answers of nameservers, kept as long as their records may be (RFC 1035 section 7.4, RFC 2308 for
//! negative ones) and within a number of bytes.
//!
//! A kept answer is the nameserver's own message: what is changed for the next client is the id,
//! the letter case of the question, the time that is left, and the OPT record, which is between
//! two neighbours (RFC 6891 section 6.1.1). Nothing is cut: an answer that the client has no room
//! for, or that may have been made short for a smaller one, is asked for anew.

use std::time::{Duration, Instant};

use hashbrown::HashTable;
use slab::Slab;

use crate::message::{
    self, CNAME, HEADER, Key, MAX_MESSAGE, OPT, Query, Record, SOA, TSIG, opt_len, put_opt, records,
};

/// Bytes that the answers and their keys may take.
const MAX_BYTES: usize = 4 << 20;

/// What an entry takes besides.
const OVERHEAD: usize = 160;

/// Nothing is kept for longer, and nothing negative (RFC 2308 section 5).
const LONGEST: u32 = 86_400;
const LONGEST_NEGATIVE: u32 = 10_800;

/// More than a client over UDP is given of what came over TCP: what a nameserver would put into a
/// datagram is its own choice.
const TCP_TO_UDP: usize = 512;

#[derive(Debug, Default)]
pub(crate) struct Cache {
    /// Places of entries, by the hash of their keys.
    index: HashTable<usize>,
    entries: Slab<Entry>,
    bytes: usize,
    /// Where the search for something to drop goes on.
    hand: usize,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    /// Of the key; the rest of that is the message's question.
    flags: u8,
    /// Without the OPT record.
    message: Box<[u8]>,
    stored: Instant,
    lifetime: Duration,
    /// Bytes that the client had room for.
    limit: usize,
    used: bool,
}

impl Cache {
    /// Writes the answer for a client, if one is kept that it can be given.
    pub(crate) fn answer(
        &mut self,
        key: &Key<'_>,
        query: &Query<'_>,
        limit: usize,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some(index) = self.find(key) else { return false };
        let Some(entry) = self.entries.get_mut(index) else { return false };
        let age = now.saturating_duration_since(entry.stored);
        if age >= entry.lifetime {
            self.remove(index);
            return false;
        }
        if !entry.suits(query, limit) {
            return false;
        }
        entry.used = true;
        let start = out.len();
        out.extend_from_slice(&entry.message);
        if let Some(copy) = out.get_mut(start..) {
            let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            entry.age(copy, age);
        }
        readdress(out, start, query);
        true
    }

    /// Keeps the answer to a question, if it may be.
    pub(crate) fn insert(&mut self, key: &Key<'_>, reply: &[u8], limit: usize, now: Instant) {
        let Some(kept) = Kept::of(reply) else { return };
        if let Some(old) = self.find(key) {
            // What was made for less room is no better.
            let known = self.entries.get(old).filter(|entry| {
                entry.limit > limit && now.saturating_duration_since(entry.stored) < entry.lifetime
            });
            if known.is_some() {
                return;
            }
            self.remove(old);
        }
        let entry = Entry {
            hash: key.hash,
            flags: key.flags,
            message: kept.message,
            stored: now,
            lifetime: Duration::from_secs(u64::from(kept.lifetime)),
            limit,
            used: false,
        };
        let size = entry.size();
        if size > MAX_BYTES / 16 {
            return;
        }
        while self.bytes + size > MAX_BYTES && self.drop_one() {}
        self.bytes += size;
        let index = self.entries.insert(entry);
        let Self { index: table, entries, .. } = self;
        let hash_of = |&at: &usize| entries.get(at).map_or(0, |entry| entry.hash);
        table.insert_unique(key.hash, index, hash_of);
    }

    fn find(&self, key: &Key<'_>) -> Option<usize> {
        let is = |&at: &usize| {
            self.entries.get(at).is_some_and(|entry| key.is_asked_by(&entry.message, entry.flags))
        };
        self.index.find(key.hash, is).copied()
    }

    pub(crate) fn clear(&mut self) {
        self.index.clear();
        self.entries.clear();
        self.bytes = 0;
    }

    /// Drops an entry that was not used since it was last looked at. False if there is none at all.
    fn drop_one(&mut self) -> bool {
        if self.entries.is_empty() {
            return false;
        }
        loop {
            self.hand = if self.hand + 1 >= self.entries.capacity() { 0 } else { self.hand + 1 };
            match self.entries.get_mut(self.hand) {
                Some(entry) if entry.used => entry.used = false,
                Some(_) => {
                    self.remove(self.hand);
                    return true;
                }
                None => {}
            }
        }
    }

    fn remove(&mut self, index: usize) {
        if let Some(entry) = self.entries.try_remove(index) {
            self.bytes -= entry.size();
            if let Ok(found) = self.index.find_entry(entry.hash, |&at| at == index) {
                found.remove();
            }
        }
    }
}

impl Entry {
    fn size(&self) -> usize {
        OVERHEAD + self.message.len()
    }

    /// Whether this is what a nameserver would tell the client.
    fn suits(&self, query: &Query<'_>, limit: usize) -> bool {
        let len = self.message.len() + opt_len(query);
        let room = if self.limit == MAX_MESSAGE && limit < MAX_MESSAGE {
            limit.min(TCP_TO_UDP)
        } else {
            limit
        };
        // With so much room left, nothing was left out.
        len <= room && (limit <= self.limit || 2 * self.message.len() <= self.limit)
    }

    fn age(&self, message: &mut [u8], by: u32) {
        if by == 0 {
            return;
        }
        let end = message::question_end(&self.message).unwrap_or(self.message.len());
        for record in records(&self.message, end).flatten() {
            let place = message.get_mut(record.ttl_at..).and_then(<[u8]>::first_chunk_mut::<4>);
            if let Some(place) = place {
                *place = u32::from_be_bytes(*place).saturating_sub(by).to_be_bytes();
            }
        }
    }
}

/// Makes a message without OPT record, which begins at `start` of `out` and ends with it, an answer
/// to `query`.
pub(crate) fn readdress(out: &mut Vec<u8>, start: usize, query: &Query<'_>) {
    let name = query.raw_name();
    if let Some(place) = out.get_mut(start..start + 2) {
        place.copy_from_slice(&query.id());
    }
    if let Some(place) = out.get_mut(start + HEADER..start + HEADER + name.len()) {
        place.copy_from_slice(name);
    }
    if let Some(edns) = query.edns {
        put_opt(out, 1232, edns.dnssec, 0);
        if let Some(place) = out.get_mut(start + 10..start + 12)
            && let &mut [high, low] = place
        {
            place.copy_from_slice(&u16::from_be_bytes([high, low]).wrapping_add(1).to_be_bytes());
        }
    }
}

/// A reply without its OPT record. `None` if that is not what it ends with.
pub(crate) fn without_opt(reply: &[u8]) -> Option<Box<[u8]>> {
    let mut opt = Opt::default();
    for record in records(reply, message::question_end(reply)?) {
        opt.pass(&record?)?;
    }
    Some(opt.cut(reply))
}

/// The OPT record of a reply, if one was passed.
#[derive(Default)]
struct Opt(Option<usize>);

impl Opt {
    /// Whether the record is another one. `None` if the OPT record is not the last, or says what
    /// cannot be kept.
    fn pass(&mut self, record: &Record) -> Option<bool> {
        if self.0.is_some() || record.kind == TSIG {
            return None;
        }
        if record.kind == OPT {
            // The upper bits of the rcode.
            if record.ttl >> 24 != 0 {
                return None;
            }
            self.0 = Some(record.start);
        }
        Some(record.kind != OPT)
    }

    fn cut(&self, reply: &[u8]) -> Box<[u8]> {
        let mut kept: Box<[u8]> =
            reply.get(..self.0.unwrap_or(reply.len())).unwrap_or_default().into();
        if self.0.is_some()
            && let Some(&mut [ref mut high, ref mut low]) = kept.get_mut(10..12)
        {
            [*high, *low] = u16::from_be_bytes([*high, *low]).wrapping_sub(1).to_be_bytes();
        }
        kept
    }
}

/// What of a reply is kept, and for how many seconds.
struct Kept {
    message: Box<[u8]>,
    lifetime: u32,
}

impl Kept {
    fn of(reply: &[u8]) -> Option<Self> {
        let rcode = reply.get(3)? & 0x0f;
        if message::is_truncated(reply) || !(rcode == 0 || rcode == 3) {
            return None;
        }
        let end = message::question_end(reply).filter(|&end| end > HEADER)?;
        let kind =
            reply.get(end - 4..end - 2).map(|kind| u16::from_be_bytes([kind[0], kind[1]]))?;
        let mut opt = Opt::default();
        let mut lifetime = LONGEST;
        let mut positive = false;
        let mut negative = None;
        let mut last = end;
        for record in records(reply, end) {
            let record = record?;
            if !opt.pass(&record)? {
                continue;
            }
            last = record.rdata.end;
            // The sign bit makes it zero (RFC 2181 section 8).
            let ttl = if record.ttl >> 31 == 0 { record.ttl } else { 0 };
            lifetime = lifetime.min(ttl);
            match (record.section, record.kind) {
                (0, found) => positive |= found == kind || kind == CNAME,
                (1, SOA) => {
                    let minimum = reply.get(record.rdata)?.last_chunk::<4>()?;
                    negative = Some(ttl.min(u32::from_be_bytes(*minimum)));
                }
                _ => {}
            }
        }
        if rcode == 3 || !positive {
            lifetime = lifetime.min(negative?).min(LONGEST_NEGATIVE);
        }
        if lifetime == 0 {
            return None;
        }
        let message = opt.cut(reply);
        (last == message.len()).then_some(Self { message, lifetime })
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
