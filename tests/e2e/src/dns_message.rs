//! DNS messages as the tests see them (RFC 1035, 3597, 6891): questions put together, replies taken
//! apart into what can be compared. Written for the tests alone, so that no mistake is shared with
//! the resolver under test. A malformed reply is a failed test.

use std::fmt::Write;

pub const A: u16 = 1;
pub const NS: u16 = 2;
pub const CNAME: u16 = 5;
pub const SOA: u16 = 6;
pub const PTR: u16 = 12;
pub const MX: u16 = 15;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;
pub const SRV: u16 = 33;
pub const DNAME: u16 = 39;
pub const OPT: u16 = 41;
pub const DNSKEY: u16 = 48;
pub const HTTPS: u16 = 65;
pub const ANY: u16 = 255;
pub const CAA: u16 = 257;

pub const IN: u16 = 1;
pub const CHAOS: u16 = 3;

pub const NOERROR: u16 = 0;
pub const FORMERR: u16 = 1;
pub const SERVFAIL: u16 = 2;
pub const NXDOMAIN: u16 = 3;
pub const NOTIMP: u16 = 4;
pub const REFUSED: u16 = 5;

/// Bits of the header's second word.
const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
pub const TRUNCATED: u16 = 0x0200;
pub const RECURSION: u16 = 0x0100;
const AUTHENTIC: u16 = 0x0020;
pub const UNCHECKED: u16 = 0x0010;
/// "DNSSEC OK", in the TTL of an OPT record.
const DO: u32 = 0x8000;

/// A question with everything that its asker can say besides.
#[derive(Clone, Debug)]
pub struct Query {
    /// As a user writes it; `\.` and `\DDD` as in a zone file.
    pub name: String,
    pub kind: u16,
    pub class: u16,
    /// Opcode and flags as in the header.
    pub flags: u16,
    /// The size in an OPT record, and DO.
    pub edns: Option<(u16, bool)>,
}

impl Query {
    pub fn new(name: &str, kind: u16) -> Self {
        Self { name: name.to_owned(), kind, class: IN, flags: RECURSION, edns: None }
    }

    #[must_use]
    pub fn edns(mut self, edns: Option<(u16, bool)>) -> Self {
        self.edns = edns;
        self
    }

    /// The message, under this id.
    pub fn encode(&self, id: u16) -> Vec<u8> {
        let additional = u16::from(self.edns.is_some());
        let mut message: Vec<u8> =
            [id, self.flags, 1, 0, 0, additional].into_iter().flat_map(u16::to_be_bytes).collect();
        message.extend(wire_name(&self.name));
        message.extend(self.kind.to_be_bytes());
        message.extend(self.class.to_be_bytes());
        if let Some((size, dnssec)) = self.edns {
            message.push(0);
            message.extend(OPT.to_be_bytes());
            message.extend(size.to_be_bytes());
            message.extend(if dnssec { DO } else { 0 }.to_be_bytes());
            message.extend([0, 0]);
        }
        message
    }
}

/// A reply, or a query that reached a server of the test's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub id: u16,
    pub flags: u16,
    /// With the upper bits that an OPT record carries.
    pub rcode: u16,
    pub question: Vec<(String, u16, u16)>,
    pub answer: Vec<Record>,
    pub authority: Vec<Record>,
    /// Without the OPT record.
    pub additional: Vec<Record>,
    /// The size in an OPT record, and DO.
    pub edns: Option<(u16, bool)>,
    /// Bytes on the wire.
    pub len: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub name: String,
    pub kind: u16,
    pub class: u16,
    pub ttl: u32,
    /// Names in full, with their letters as they came; all else in hexadecimal digits.
    pub data: String,
}

impl Message {
    /// Takes a message apart; `Err` says what is wrong with it.
    pub fn decode(message: &[u8]) -> Result<Self, String> {
        let mut reader = Reader { message, at: 0 };
        let [id, flags, questions, answers, authorities, additionals] =
            [(); 6].map(|()| reader.u16().unwrap_or_default());
        if message.len() < 12 {
            return Err(format!("{} bytes are no message", message.len()));
        }
        let question = (0..questions)
            .map(|_| Ok((reader.name()?, reader.u16()?, reader.u16()?)))
            .collect::<Result<_, String>>()?;
        let answer = reader.records(answers)?;
        let authority = reader.records(authorities)?;
        let mut additional = reader.records(additionals)?;
        if reader.at != message.len() {
            return Err(format!("{} bytes too many", message.len() - reader.at));
        }
        let mut rcode = flags & 0xf;
        let mut edns = None;
        if let Some(at) = additional.iter().position(|record| record.kind == OPT) {
            let opt = additional.remove(at);
            if !opt.name.is_empty() {
                return Err(format!("an OPT record of {:?}", opt.name));
            }
            rcode |= u16::try_from(opt.ttl >> 24 << 4).expect("12 bits");
            edns = Some((opt.class, opt.ttl & DO != 0));
        }
        if additional.iter().any(|record| record.kind == OPT) {
            return Err("two OPT records".to_owned());
        }
        let len = message.len();
        Ok(Self { id, flags, rcode, question, answer, authority, additional, edns, len })
    }

    pub fn is_reply(&self) -> bool {
        self.flags & QR != 0
    }

    pub fn truncated(&self) -> bool {
        self.flags & TRUNCATED != 0
    }

    pub fn authoritative(&self) -> bool {
        self.flags & AUTHORITATIVE != 0
    }

    pub fn authentic(&self) -> bool {
        self.flags & AUTHENTIC != 0
    }

    /// What the answers of one type say.
    pub fn data(&self, kind: u16) -> Vec<&str> {
        let records = self.answer.iter().filter(|record| record.kind == kind);
        records.map(|record| record.data.as_str()).collect()
    }

    /// The IPv4 and IPv6 addresses among the answers, as one writes them.
    pub fn addresses(&self) -> Vec<String> {
        let address = |record: &Record| {
            let digits = u128::from_str_radix(&record.data, 16).ok()?;
            match record.kind {
                A => Some(std::net::Ipv4Addr::from(u32::try_from(digits).ok()?).to_string()),
                AAAA => Some(std::net::Ipv6Addr::from(digits).to_string()),
                _ => None,
            }
        };
        self.answer.iter().filter_map(address).collect()
    }
}

/// An answer to `query`, as a server of the test's gives it: the question repeated, and records of
/// the question's name and type.
pub fn answer(query: &[u8], rcode: u16, ttl: u32, records: &[Vec<u8>]) -> Vec<u8> {
    reply(query, rcode, ttl, records, None)
}

/// An answer without records, but for the SOA that says how long that holds (RFC 2308): its TTL and
/// its last field.
pub fn nothing(query: &[u8], rcode: u16, ttl: u32, minimum: u32) -> Vec<u8> {
    let names = [wire_name("ns.test"), wire_name("hostmaster.test")].concat();
    let numbers = [1, 7200, 900, 86_400, minimum].map(u32::to_be_bytes).concat();
    reply(query, rcode, ttl, &[], Some([names, numbers].concat()))
}

fn reply(
    query: &[u8],
    rcode: u16,
    ttl: u32,
    records: &[Vec<u8>],
    authority: Option<Vec<u8>>,
) -> Vec<u8> {
    const AVAILABLE: u16 = 0x80;
    const SIZE: u16 = 4096;
    let mut reader = Reader { message: query, at: 12 };
    let asked = reader.name().and_then(|_| Ok((reader.u16()?, reader.u16()?)));
    let (kind, class) = asked.expect("a question");
    let edns = Message::decode(query).ok().and_then(|query| query.edns);
    let kept = u16::from_be_bytes([query[2], query[3]]) & (OPCODE | RECURSION);
    let answers = u16::try_from(records.len()).expect("a handful of records");
    let flags = QR | kept | AVAILABLE | rcode;
    let mut message = query[..2].to_vec();
    for word in [flags, 1, answers, authority.is_some().into(), edns.is_some().into()] {
        message.extend(word.to_be_bytes());
    }
    message.extend(&query[12..reader.at]);
    let mut put = |name: &[u8], kind: u16, class: u16, ttl: u32, data: &[u8]| {
        message.extend(name);
        message.extend(kind.to_be_bytes());
        message.extend(class.to_be_bytes());
        message.extend(ttl.to_be_bytes());
        message.extend(u16::try_from(data.len()).expect("a short record").to_be_bytes());
        message.extend(data);
    };
    for record in records {
        put(&[0xc0, 12], kind, class, ttl, record);
    }
    if let Some(data) = authority {
        put(&wire_name("test"), SOA, IN, ttl, &data);
    }
    if let Some((_, dnssec)) = edns {
        put(&[0], OPT, SIZE, if dnssec { DO } else { 0 }, &[]);
    }
    message
}

/// A name's labels with their lengths.
pub fn wire_name(name: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    let mut label = Vec::new();
    let mut bytes = name.bytes();
    let mut flush = |label: &mut Vec<u8>| {
        if !label.is_empty() {
            wire.push(u8::try_from(label.len()).expect("a short label"));
            wire.append(label);
        }
    };
    while let Some(byte) = bytes.next() {
        match byte {
            b'.' => flush(&mut label),
            b'\\' => {
                let digit = |byte: Option<u8>| byte.expect("an escape") - b'0';
                match bytes.next().expect("an escape") {
                    hundreds @ b'0'..=b'9' => {
                        let tens = digit(bytes.next());
                        label.push((hundreds - b'0') * 100 + tens * 10 + digit(bytes.next()));
                    }
                    other => label.push(other),
                }
            }
            other => label.push(other),
        }
    }
    flush(&mut label);
    wire.push(0);
    wire
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bytes(&mut self, count: usize) -> Result<&[u8], String> {
        let bytes = self.message.get(self.at..self.at + count);
        self.at += count;
        bytes.ok_or_else(|| format!("it ends before byte {}", self.at))
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.bytes(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, String> {
        let bytes = self.bytes(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from(self.u16()?) << 16 | u32::from(self.u16()?))
    }

    /// Without the root's dot: `www.test`, and nothing for the root itself.
    fn name(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let mut end = None;
        for _ in 0..128 {
            let length = self.u8()?;
            match length {
                0 => {
                    self.at = end.unwrap_or(self.at);
                    return Ok(text);
                }
                1..=63 => {
                    let separator = if text.is_empty() { "" } else { "." };
                    text.push_str(separator);
                    for &byte in self.bytes(length.into())? {
                        match byte {
                            b'.' | b'\\' => write!(text, "\\{}", char::from(byte)),
                            0x21..=0x7e => write!(text, "{}", char::from(byte)),
                            _ => write!(text, "\\{byte:03}"),
                        }
                        .expect("a string takes everything");
                    }
                }
                192.. => {
                    let to = usize::from(length & 63) << 8 | usize::from(self.u8()?);
                    if to >= self.at - 2 {
                        return Err(format!("a pointer at byte {} leads to {to}", self.at - 2));
                    }
                    end.get_or_insert(self.at);
                    self.at = to;
                }
                _ => return Err(format!("a label of length {length}")),
            }
        }
        Err("a name without an end".to_owned())
    }

    fn records(&mut self, count: u16) -> Result<Vec<Record>, String> {
        (0..count).map(|_| self.record()).collect()
    }

    fn record(&mut self) -> Result<Record, String> {
        let (name, kind, class, ttl) = (self.name()?, self.u16()?, self.u16()?, self.u32()?);
        let end = usize::from(self.u16()?) + self.at;
        // The types whose names may be compressed, and how many bytes and names they have.
        let (before, names) = match kind {
            NS | CNAME | PTR | DNAME => (0, 1),
            SOA => (0, 2),
            MX => (2, 1),
            SRV => (6, 1),
            _ => (0, 0),
        };
        let mut data = String::new();
        hex(&mut data, self.bytes(before)?);
        for _ in 0..names {
            write!(data, " {}.", self.name()?).expect("a string takes everything");
        }
        let rest = end.checked_sub(self.at).ok_or("names longer than their record")?;
        hex(&mut data, self.bytes(rest)?);
        Ok(Record { name, kind, class, ttl, data })
    }
}

fn hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_is_taken_apart() {
        let query = Query::new("We\\.ird\\255.Test.", MX).edns(Some((1232, true)));
        let mut data = 10_u16.to_be_bytes().to_vec();
        data.extend([4, b'm', b'a', b'i', b'l', 0xc0, 12]);
        let asked = query.encode(0x1234);
        let decoded = Message::decode(&asked).expect("a query");
        assert_eq!(decoded.edns, Some((1232, true)));
        assert!(!decoded.is_reply() && decoded.id == 0x1234);
        let reply = Message::decode(&answer(&asked, NOERROR, 60, &[data])).expect("a reply");
        assert_eq!(reply.question, [("We\\.ird\\255.Test".to_owned(), MX, IN)]);
        assert_eq!(reply.data(MX), ["000a mail.We\\.ird\\255.Test."]);
        assert_eq!((reply.answer[0].ttl, reply.is_reply()), (60, true));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let whole = answer(&Query::new("x.test", A).encode(1), NOERROR, 60, &[vec![1, 2, 3, 4]]);
        for end in 0..whole.len() {
            assert!(Message::decode(&whole[..end]).is_err(), "{end} bytes");
        }
        assert!(Message::decode(&[whole.as_slice(), &[0]].concat()).is_err());
        let mut looped = whole.clone();
        let pointer = whole.len() - 16;
        looped[pointer + 1] = u8::try_from(pointer).expect("a short message");
        assert!(Message::decode(&looped).is_err());
    }
}
