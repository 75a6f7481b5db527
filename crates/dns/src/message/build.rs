//! Answers of the resolver's own: addresses and names that it knows, errors, and a nameserver's
//! answer about the name behind an alias.

use std::net::IpAddr;

use hickory_proto::op::{Message, Query as HickoryQuery};
use hickory_proto::rr::{Name, RData, Record, rdata};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};

use super::{A, AA, AAAA, ANY, CLASS_IN, CNAME, HEADER, OPT, PTR, Query, Rcode, TC};

/// Seconds that an answer of the resolver's own may be kept.
pub(crate) const FIXED_TTL: u32 = 5;

/// The size that the resolver itself announces.
const OUR_UDP: u16 = 1232;

/// BADVERS (RFC 6891 section 6.1.3), without its lower four bits, which are zero.
const BADVERS: u8 = 1;

/// Names of a chain of aliases, the asked one first; every one but the last stands for the next.
pub(crate) type Alias = Vec<Box<[u8]>>;

/// Writes one answer.
pub(crate) struct Builder<'a, 'q> {
    query: &'a Query<'q>,
    out: &'a mut Vec<u8>,
    start: usize,
    /// Where the message must end.
    end: usize,
    answers: u16,
    /// The name of the next record: a pointer to where it was written.
    owner: u16,
    truncated: bool,
}

impl<'a, 'q> Builder<'a, 'q> {
    pub(crate) fn new(query: &'a Query<'q>, limit: usize, out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        query.start(out);
        let end = start + limit - if query.edns.is_some() { OPT_RECORD } else { 0 };
        Self { query, out, start, end, answers: 0, owner: 0xc00c, truncated: false }
    }

    /// The next name of a chain.
    pub(crate) fn alias(&mut self, target: &[u8]) {
        let at = self.out.len() + 12 - self.start;
        if self.record(CNAME, target)
            && let Some(pointer) = u16::try_from(at).ok().filter(|&at| at < 0x4000)
        {
            self.owner = 0xc000 | pointer;
        }
    }

    /// Those addresses that were asked for.
    pub(crate) fn addresses(&mut self, addresses: &[IpAddr]) {
        let kind = self.query.kind();
        for address in addresses {
            match address {
                IpAddr::V4(ip) if kind == A || kind == ANY => self.record(A, &ip.octets()),
                IpAddr::V6(ip) if kind == AAAA || kind == ANY => self.record(AAAA, &ip.octets()),
                _ => continue,
            };
        }
    }

    pub(crate) fn pointer(&mut self, name: &[u8]) {
        self.record(PTR, name);
    }

    /// A record of any name.
    pub(crate) fn foreign(&mut self, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) {
        let start = self.out.len();
        self.out.extend_from_slice(owner);
        if self.put(kind, ttl, data) {
            return;
        }
        self.out.truncate(start);
    }

    /// False if there is no room.
    fn record(&mut self, kind: u16, data: &[u8]) -> bool {
        let start = self.out.len();
        self.out.extend(self.owner.to_be_bytes());
        let put = self.put(kind, FIXED_TTL, data);
        if !put {
            self.out.truncate(start);
        }
        put
    }

    /// What follows the name of a record. False if there is no room.
    fn put(&mut self, kind: u16, ttl: u32, data: &[u8]) -> bool {
        let Ok(len) = u16::try_from(data.len()) else { return false };
        if self.truncated || self.out.len() + 10 + data.len() > self.end {
            self.truncated = true;
            return false;
        }
        self.out.extend(kind.to_be_bytes());
        self.out.extend(CLASS_IN.to_be_bytes());
        self.out.extend(ttl.to_be_bytes());
        self.out.extend(len.to_be_bytes());
        self.out.extend_from_slice(data);
        self.answers += 1;
        true
    }

    /// Ends the answer. `own` says that nobody knows better than the resolver.
    pub(crate) fn finish(self, rcode: Rcode, own: bool) {
        let Self { query, out, start, answers, truncated, .. } = self;
        let version = query.edns.map_or(0, |edns| edns.version);
        if let Some(edns) = query.edns {
            let high = if version > 0 { BADVERS } else { 0 };
            put_opt(out, OUR_UDP, edns.dnssec, high);
        }
        let Some(header) = out.get_mut(start..start + HEADER) else { return };
        header[2] |= if own { AA } else { 0 } | if truncated { TC } else { 0 };
        header[3] |= if version > 0 { 0 } else { rcode as u8 };
        header[6..8].copy_from_slice(&answers.to_be_bytes());
        header[11] = u8::from(query.edns.is_some());
    }
}

const OPT_RECORD: usize = 1 + 10;

/// Bytes of an OPT record that answers one of the client's.
pub(crate) fn opt_len(query: &Query<'_>) -> usize {
    if query.edns.is_some() { OPT_RECORD } else { 0 }
}

pub(crate) fn put_opt(out: &mut Vec<u8>, size: u16, dnssec: bool, rcode: u8) {
    out.push(0);
    out.extend(OPT.to_be_bytes());
    out.extend(size.to_be_bytes());
    out.extend([rcode, 0, u8::from(dnssec) << 7, 0, 0, 0]);
}

/// A nameserver's answer about the last name of a chain, as an answer about the first.
pub(crate) fn with_alias(
    query: &Query<'_>,
    alias: &Alias,
    reply: &[u8],
    limit: usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    let mut message = Message::from_vec(reply).ok()?;
    let name = |wire: &[u8]| Name::read(&mut BinDecoder::new(wire)).ok();
    let [high, low] = query.id();
    message.metadata.id = u16::from_be_bytes([high, low]);
    message.metadata.authoritative = false;
    let asked = message.queries.pop()?;
    let mut question = HickoryQuery::query(name(query.raw_name())?, asked.query_type());
    question.set_query_class(asked.query_class());
    message.queries = vec![question];
    let mut answers = Vec::with_capacity(alias.len() + message.answers.len());
    let owners = std::iter::once(query.raw_name()).chain(alias.iter().skip(1).map(|name| &**name));
    for (owner, target) in owners.zip(alias.iter().skip(1)) {
        let target = RData::CNAME(rdata::CNAME(name(target)?));
        answers.push(Record::from_rdata(name(owner)?, FIXED_TTL, target));
    }
    answers.append(&mut message.answers);
    message.answers = answers;
    if query.edns.is_none() {
        message.edns = None;
    }
    let mut answer = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut answer);
    encoder.set_max_size(u16::try_from(limit).unwrap_or(u16::MAX));
    message.emit(&mut encoder).ok()?;
    out.extend_from_slice(&answer);
    Some(())
}

/// A nameserver's answer as it is, or, where the client has no room for it, without its records.
pub(crate) fn relay(reply: &[u8], id: [u8; 2], limit: usize, out: &mut Vec<u8>) {
    let start = out.len();
    if reply.len() <= limit {
        out.extend_from_slice(reply);
    } else {
        let end = super::question_end(reply).unwrap_or(HEADER);
        out.extend_from_slice(reply.get(..end).unwrap_or_default());
        if let Some(header) = out.get_mut(start..start + HEADER) {
            header[2] |= TC;
            header[6..].fill(0);
        }
    }
    if let Some(place) = out.get_mut(start..start + 2) {
        place.copy_from_slice(&id);
    }
}
