//! What the service itself has to know of a DNS message (RFC 1035 section 4.1): the header, the
//! question, and the size that the asker can take. Everything else is the nameserver's business.

use std::net::IpAddr;
use std::ops::Range;

pub(super) const HEADER: usize = 12;

/// Bytes of a name in wire form.
pub(super) const MAX_NAME: usize = 255;

/// A question asks for little; what is larger is no query that this service carries.
pub(super) const MAX_QUERY: usize = 4096;

/// An answer over UDP to somebody who does not say what he can take.
const PLAIN_UDP: usize = 512;

/// Over TCP.
pub(super) const MAX_MESSAGE: usize = 65535;

const A: u16 = 1;
const AAAA: u16 = 28;
const OPT: u16 = 41;
const ANY: u16 = 255;

const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

const QR: u8 = 0x80;
const AA: u8 = 0x04;
const TC: u8 = 0x02;
const RA: u8 = 0x80;

/// Seconds that a static answer may be kept.
const TTL: u32 = 5;

/// The size that the service itself announces.
const OUR_UDP: u16 = 1232;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rcode {
    FormErr = 1,
    ServFail = 2,
}

/// A message that may be answered.
#[derive(Clone, Debug)]
pub(super) struct Query<'a> {
    message: &'a [u8],
    question: Option<Question>,
}

#[derive(Clone, Debug)]
struct Question {
    name: Range<usize>,
    kind: u16,
    class: u16,
    /// Where the section ends.
    end: usize,
}

/// What is to be done with a message from a guest.
#[derive(Debug)]
pub(super) enum Checked<'a> {
    /// Not a query at all.
    Ignore,
    Malformed(Query<'a>),
    Query(Query<'a>),
}

pub(super) fn check(message: &[u8]) -> Checked<'_> {
    let Some(header) = message.get(..HEADER) else { return Checked::Ignore };
    if header[2] & QR != 0 {
        return Checked::Ignore;
    }
    let questions = u16::from_be_bytes([header[4], header[5]]);
    let question = if questions == 1 { Question::parse(message) } else { None };
    let malformed = questions > 1 || (questions == 1 && question.is_none());
    let query = Query { message, question };
    if malformed { Checked::Malformed(query) } else { Checked::Query(query) }
}

/// Whether `reply` answers the query `asked`: the question is the same, letter case aside. The id
/// has been looked at before.
pub(super) fn answers(reply: &[u8], asked: &[u8]) -> bool {
    let (Some(header), Some(before)) = (reply.get(..HEADER), asked.get(..HEADER)) else {
        return false;
    };
    if header[2] & QR == 0 {
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
            let section = HEADER..question.end;
            match (reply.get(section.clone()), asked.get(section)) {
                (Some(theirs), Some(ours)) => theirs.eq_ignore_ascii_case(ours),
                _ => false,
            }
        }
        None => true,
    }
}

/// Whether the nameserver gave up: another one may know better.
pub(super) fn is_failure(reply: &[u8]) -> bool {
    // SERVFAIL, NOTIMP, REFUSED
    reply.get(3).is_some_and(|flags| matches!(flags & 0x0f, 2 | 4 | 5))
}

impl<'a> Query<'a> {
    /// The name in wire form, if the question is about the Internet.
    pub(super) fn name(&self) -> Option<&'a [u8]> {
        let question = self.question.as_ref()?;
        if question.class != CLASS_IN && question.class != CLASS_ANY {
            return None;
        }
        self.message.get(question.name.clone())
    }

    /// An answer that is nothing but an error.
    pub(super) fn error(&self, rcode: Rcode) -> Vec<u8> {
        let mut reply = self.start(0);
        reply[3] |= rcode as u8;
        reply
    }

    /// The answer for a name with these addresses: those of the family that was asked for. `udp`
    /// says that it has to fit a datagram.
    pub(super) fn addresses(&self, addresses: &[IpAddr], udp: bool) -> Vec<u8> {
        let kind = self.question.as_ref().map_or(0, |question| question.kind);
        let edns = self.edns_size();
        let limit = match (udp, edns) {
            (false, _) => MAX_MESSAGE,
            (true, None) => PLAIN_UDP,
            (true, Some(size)) => usize::from(size).max(PLAIN_UDP),
        };
        let opt = if edns.is_some() { OPT_RECORD } else { 0 };
        let mut reply = self.start(AA);
        let mut count = 0_u16;
        for address in addresses {
            let wanted = match address {
                IpAddr::V4(_) => kind == A || kind == ANY,
                IpAddr::V6(_) => kind == AAAA || kind == ANY,
            };
            if !wanted {
                continue;
            }
            if reply.len() + ADDRESS_RECORD + opt > limit {
                reply[2] |= TC;
                break;
            }
            put_address(&mut reply, *address);
            count += 1;
        }
        reply[6..8].copy_from_slice(&count.to_be_bytes());
        if edns.is_some() {
            put_opt(&mut reply);
            reply[10..12].copy_from_slice(&1_u16.to_be_bytes());
        }
        reply
    }

    /// Header and question of an answer, with no records yet.
    fn start(&self, flags: u8) -> Vec<u8> {
        const KEPT: u8 = 0x79; // opcode and "recursion desired"
        let end = self.question.as_ref().map_or(HEADER, |question| question.end);
        let mut reply = self.message.get(..end).unwrap_or_default().to_vec();
        reply.resize(end.max(HEADER), 0);
        reply[2] = QR | (reply[2] & KEPT) | flags;
        reply[3] = RA;
        reply[4..HEADER].fill(0);
        reply[5] = u8::from(self.question.is_some());
        reply
    }

    /// The size that the asker's OPT record announces (RFC 6891 section 6.1.2).
    fn edns_size(&self) -> Option<u16> {
        const MOST: u16 = 8;
        let question = self.question.as_ref()?;
        let count = |at: usize| {
            Some(u16::from_be_bytes([*self.message.get(at)?, *self.message.get(at + 1)?]))
        };
        let records = count(6)?.saturating_add(count(8)?).saturating_add(count(10)?);
        let mut at = question.end;
        for _ in 0..records.min(MOST) {
            at = skip_name(self.message, at)?;
            let fixed = self.message.get(at..at + 10)?;
            if u16::from_be_bytes([fixed[0], fixed[1]]) == OPT {
                return Some(u16::from_be_bytes([fixed[2], fixed[3]]));
            }
            at += 10 + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        }
        None
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

/// A name in lower case and wire form; `None` if it cannot be one.
pub(super) fn wire_name(name: &str) -> Option<Vec<u8>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..=63).contains(len))?;
        wire.push(len);
        wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    wire.push(0);
    (wire.len() <= MAX_NAME).then_some(wire)
}

/// Where a name in a record ends.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let len = usize::from(*message.get(at)?);
        match len {
            0 => return Some(at + 1),
            1..=63 => at += 1 + len,
            192..=255 => return Some(at + 2),
            _ => return None,
        }
    }
}

/// The largest address record, with a pointer for its name.
const ADDRESS_RECORD: usize = 2 + 10 + 16;

const OPT_RECORD: usize = 1 + 10;

fn put_address(reply: &mut Vec<u8>, address: IpAddr) {
    let pointer = 0xc000 | 12_u16;
    let (kind, len) = if address.is_ipv6() { (AAAA, 16_u16) } else { (A, 4) };
    reply.extend(pointer.to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend(CLASS_IN.to_be_bytes());
    reply.extend(TTL.to_be_bytes());
    reply.extend(len.to_be_bytes());
    match address {
        IpAddr::V4(ip) => reply.extend(ip.octets()),
        IpAddr::V6(ip) => reply.extend(ip.octets()),
    }
}

fn put_opt(reply: &mut Vec<u8>) {
    reply.push(0);
    reply.extend(OPT.to_be_bytes());
    reply.extend(OUR_UDP.to_be_bytes());
    reply.extend([0; 6]);
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
