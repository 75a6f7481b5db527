//! What the resolver has to know of a DNS message (RFC 1035 section 4.1): the header, the question,
//! the OPT record (RFC 6891). Everything else is the nameserver's business.

mod build;
mod records;

use std::ops::Range;

pub(crate) use build::{Alias, Builder, opt_len, put_opt, relay, with_alias};
pub(crate) use records::{Record, records};

use crate::hash;
use crate::name::{self, Folded, MAX_NAME};

pub(crate) const HEADER: usize = 12;

/// An answer over UDP to somebody who does not say what he can take.
pub(crate) const PLAIN_UDP: usize = 512;

/// Over TCP.
pub(crate) const MAX_MESSAGE: usize = 65535;

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
pub(crate) const SOA: u16 = 6;
pub(crate) const PTR: u16 = 12;
pub(crate) const AAAA: u16 = 28;
pub(crate) const OPT: u16 = 41;
pub(crate) const TSIG: u16 = 250;
const IXFR: u16 = 251;
const AXFR: u16 = 252;
pub(crate) const ANY: u16 = 255;

pub(crate) const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

const QR: u8 = 0x80;
const OPCODE: u8 = 0x78;
const RD: u8 = 0x01;
pub(crate) const AA: u8 = 0x04;
pub(crate) const TC: u8 = 0x02;
const RA: u8 = 0x80;
const AD: u8 = 0x20;
const CD: u8 = 0x10;

/// What makes two questions the same: the name, letter case aside, the type, and some flags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    pub(crate) hash: u64,
    name: &'a [u8],
    kind: u16,
    pub(crate) flags: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
}

/// A message that may be answered.
#[derive(Clone, Debug)]
pub(crate) struct Query<'a> {
    pub(crate) message: &'a [u8],
    question: Option<Question>,
    pub(crate) edns: Option<Edns>,
    /// There is nothing in it but the question and an OPT record.
    plain: bool,
}

#[derive(Clone, Debug)]
struct Question {
    name: Range<usize>,
    kind: u16,
    class: u16,
    /// Where the section ends.
    end: usize,
}

/// The asker's OPT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    pub(crate) size: u16,
    pub(crate) version: u8,
    pub(crate) dnssec: bool,
    pub(crate) options: Options,
}

/// What the options in an OPT record mean for others who ask the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Options {
    None,
    /// They may be left unanswered, and the answer does not depend on them: cookies, padding,
    /// keepalive.
    Optional,
    Other,
}

/// What is to be done with a message from a client.
#[derive(Debug)]
pub(crate) enum Checked<'a> {
    /// Not a query at all.
    Ignore,
    /// Answered with that.
    Refused(Query<'a>, Rcode),
    /// A question of its own name.
    Query(Query<'a>),
    /// Another opcode: a nameserver may know what to do.
    Other(Query<'a>),
}

pub(crate) fn check(message: &[u8]) -> Checked<'_> {
    let Some(header) = message.get(..HEADER) else { return Checked::Ignore };
    if header[2] & QR != 0 || message.len() > MAX_MESSAGE {
        return Checked::Ignore;
    }
    let count = u16::from_be_bytes([header[4], header[5]]);
    let question = if count == 1 { Question::parse(message) } else { None };
    let mut query = Query { message, question, edns: None, plain: false };
    if header[2] & OPCODE != 0 {
        return Checked::Other(query);
    }
    // No query has other than one question (RFC 9619).
    let Some(question) = &query.question else { return Checked::Refused(query, Rcode::FormErr) };
    let kind = question.kind;
    let Some((edns, plain)) = scan(message, question.end) else {
        return Checked::Refused(query, Rcode::FormErr);
    };
    (query.edns, query.plain) = (edns, plain);
    // There is no zone here to hand out, and one message could not hold it.
    if kind == AXFR || kind == IXFR {
        return Checked::Refused(query, Rcode::Refused);
    }
    Checked::Query(query)
}

/// The OPT record, and whether there is nothing else. `None` if the records make no sense.
fn scan(message: &[u8], from: usize) -> Option<(Option<Edns>, bool)> {
    let mut edns = None;
    let mut plain = true;
    let mut end = from;
    for record in records(message, from) {
        let record = record?;
        end = record.rdata.end;
        if record.kind != OPT {
            plain = false;
            continue;
        }
        // One only, of the root, in the additional section (RFC 6891 section 6.1.1).
        if edns.is_some() || record.section != 2 || message.get(record.start) != Some(&0) {
            return None;
        }
        let [_, version, flags, _] = record.ttl.to_be_bytes();
        edns = Some(Edns {
            size: record.class,
            version,
            dnssec: flags & 0x80 != 0,
            options: Options::parse(message.get(record.rdata)?)?,
        });
    }
    Some((edns, plain && end == message.len()))
}

impl Options {
    fn parse(mut data: &[u8]) -> Option<Self> {
        let mut options = Self::None;
        while !data.is_empty() {
            let (head, rest) = data.split_first_chunk::<4>()?;
            let code = u16::from_be_bytes([head[0], head[1]]);
            let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
            data = rest.get(len..)?;
            options = match (options, code) {
                (Self::None | Self::Optional, 10..=12) => Self::Optional,
                _ => Self::Other,
            };
        }
        Some(options)
    }
}

impl<'a> Query<'a> {
    pub(crate) fn id(&self) -> [u8; 2] {
        [self.message[0], self.message[1]]
    }

    pub(crate) fn kind(&self) -> u16 {
        self.question.as_ref().map_or(0, |question| question.kind)
    }

    /// The name in wire form, as the client wrote it.
    pub(crate) fn raw_name(&self) -> &'a [u8] {
        let name = self.question.as_ref().map(|question| question.name.clone());
        name.and_then(|name| self.message.get(name)).unwrap_or_default()
    }

    pub(crate) fn name(&self) -> Folded {
        name::fold(self.raw_name())
    }

    /// The question is about the Internet.
    pub(crate) fn is_internet(&self) -> bool {
        let class = self.question.as_ref().map(|question| question.class);
        matches!(class, Some(CLASS_IN | CLASS_ANY))
    }

    /// Bytes that the client can take.
    pub(crate) fn limit(&self, udp: bool) -> usize {
        match self.edns {
            _ if !udp => MAX_MESSAGE,
            Some(edns) => usize::from(edns.size).max(PLAIN_UDP),
            None => PLAIN_UDP,
        }
    }

    /// What others must ask too to be given the same answer; `None` if the answer is for this
    /// client alone.
    pub(crate) fn key(&self, name_hash: u64) -> Option<Key<'a>> {
        let question = self.question.as_ref()?;
        // Meta types, signatures, options and versions have answers that are no data.
        let data = question.class == CLASS_IN && !(128..=255).contains(&question.kind);
        let edns = self.edns.is_none_or(|e| e.version == 0 && e.options != Options::Other);
        if !(self.plain && data && edns && question.kind != OPT) {
            return None;
        }
        let dnssec = self.edns.is_some_and(|edns| edns.dnssec);
        let flags =
            (self.message[2] & RD) | (self.message[3] & (AD | CD)) | (u8::from(dnssec) << 1);
        let kind = question.kind;
        let hash = hash::join(name_hash, u32::from(kind) << 8 | u32::from(flags));
        Some(Key { hash, name: self.raw_name(), kind, flags })
    }

    /// The answer may be made for somebody else's question.
    pub(crate) fn is_shared(&self) -> bool {
        self.edns.is_none_or(|edns| edns.options == Options::None)
    }

    /// An answer that is nothing but an error.
    pub(crate) fn error(&self, rcode: Rcode, out: &mut Vec<u8>) {
        Builder::new(self, MAX_MESSAGE, out).finish(rcode, false);
    }

    /// An answer that is nothing but the error of a nameserver's reply.
    pub(crate) fn rcode(&self, reply: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        self.error(Rcode::NoError, out);
        let rcode = reply.get(3).map_or(0, |flags| flags & 0x0f);
        if let Some(flags) = out.get_mut(start + 3) {
            *flags |= rcode;
        }
    }

    /// Header and question of an answer, with no records yet.
    fn start(&self, out: &mut Vec<u8>) {
        let end = self.question.as_ref().map_or(HEADER, |question| question.end);
        let start = out.len();
        out.extend_from_slice(self.message.get(..end).unwrap_or_default());
        if let Some(header) = out.get_mut(start..start + HEADER) {
            header[2] = QR | (header[2] & (OPCODE | RD));
            header[3] = RA | (header[3] & CD);
            header[4..].fill(0);
            header[5] = u8::from(self.question.is_some());
        }
    }

    /// The same question about another name.
    pub(crate) fn about(&self, name: &[u8]) -> Option<Vec<u8>> {
        let question = self.question.as_ref()?;
        let mut message = self.message.get(..HEADER)?.to_vec();
        message[4..].fill(0);
        message[5] = 1;
        message.extend_from_slice(name);
        message.extend(question.kind.to_be_bytes());
        message.extend(question.class.to_be_bytes());
        if let Some(edns) = self.edns {
            message[11] = 1;
            put_opt(&mut message, edns.size, edns.dnssec, 0);
        }
        Some(message)
    }
}

impl<'a> Key<'a> {
    /// The key of a message that has one, of which hash and flags are known.
    pub(crate) fn again(message: &'a [u8], (hash, flags): (u64, u8)) -> Option<Self> {
        let Question { name, kind, .. } = Question::parse(message)?;
        Some(Self { hash, name: message.get(name)?, kind, flags })
    }

    /// Whether a message's question is the same, where `flags` are those of its key.
    pub(crate) fn is_asked_by(&self, message: &[u8], flags: u8) -> bool {
        let end = HEADER + self.name.len();
        flags == self.flags
            && message.get(end..end + 2) == Some(&self.kind.to_be_bytes())
            && message.get(HEADER..end).is_some_and(|name| name.eq_ignore_ascii_case(self.name))
    }
}

impl Question {
    /// The first question; names in it are never compressed, there is nothing before them.
    fn parse(message: &[u8]) -> Option<Self> {
        let mut at = HEADER;
        loop {
            let len = usize::from(*message.get(at)?);
            at += 1;
            match len {
                0 => break,
                1..=63 => at += len,
                _ => return None,
            }
            // The root label is still to come.
            if at - HEADER >= MAX_NAME {
                return None;
            }
        }
        let fixed = message.get(at..at + 4)?;
        Some(Self {
            name: HEADER..at,
            kind: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            end: at + 4,
        })
    }
}

/// Whether `reply` answers the query `asked`: the question is the same, letter case aside. The id
/// has been looked at before.
pub(crate) fn answers(reply: &[u8], asked: &[u8]) -> bool {
    let (Some(header), Some(before)) = (reply.get(..HEADER), asked.get(..HEADER)) else {
        return false;
    };
    if header[2] & QR == 0 || (header[2] ^ before[2]) & OPCODE != 0 {
        return false;
    }
    // An error may come without the question that it is about.
    if header[4..6] == [0, 0] && header[3] & 0x0f != 0 {
        return true;
    }
    if header[4..6] != before[4..6] {
        return false;
    }
    match Question::parse(asked) {
        Some(question) => {
            let (name, rest) = (question.name, question.end - 4..question.end);
            let same = |part: Range<usize>, equal: fn(&[u8], &[u8]) -> bool| {
                let parts = reply.get(part.clone()).zip(asked.get(part));
                parts.is_some_and(|(theirs, ours)| equal(theirs, ours))
            };
            // Only letters of the name have a case.
            same(name, <[u8]>::eq_ignore_ascii_case) && same(rest, |theirs, ours| theirs == ours)
        }
        None => true,
    }
}

/// Whether the nameserver gave up: another one may know better.
pub(crate) fn is_failure(reply: &[u8]) -> bool {
    // SERVFAIL, NOTIMP, REFUSED
    reply.get(3).is_some_and(|flags| matches!(flags & 0x0f, 2 | 4 | 5))
}

pub(crate) fn is_truncated(reply: &[u8]) -> bool {
    reply.get(2).is_some_and(|flags| flags & TC != 0)
}

/// Where the question section of a reply ends, if it has one question.
pub(crate) fn question_end(reply: &[u8]) -> Option<usize> {
    match reply.get(4..6)? {
        [0, 0] => Some(HEADER),
        [0, 1] => Some(Question::parse(reply)?.end),
        _ => None,
    }
}

/// Whether the records of a reply are such. One that is cut may end within a record.
pub(crate) fn is_sound(reply: &[u8]) -> bool {
    let Some(end) = question_end(reply) else { return false };
    records(reply, end).all(|record| record.is_some()) || is_truncated(reply)
}

#[cfg(test)]
mod tests;
