//! Questions to a resolver and its answers, in words.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record as WireRecord, RecordType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmlan_dns::Origin;

/// More than the resolver announces nobody need have room for.
const MAX_PAYLOAD: u16 = 1232;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question(Query);

/// Why text is no question, or an answer no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DnsError(String);

/// An answer, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Answer {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub rcode: String,
    pub flags: Vec<String>,
    /// static, hosts file, native, upstream, cache or resolver.
    pub from: String,
    /// The nameserver that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    pub milliseconds: u64,
    pub answer: Vec<Record>,
    pub authority: Vec<Record>,
    pub additional: Vec<Record>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    pub name: String,
    /// Seconds that are left.
    pub ttl: u32,
    pub class: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub data: String,
}

impl Question {
    /// About a name and a type: A, AAAA, MX, ..., or TYPE and a number. An address without a type is
    /// asked for its name.
    pub fn new(name: &str, kind: Option<&str>) -> Result<Self, DnsError> {
        let wrong = |e: &dyn std::fmt::Display| DnsError(format!("{name}: {e}"));
        let address = name.parse::<IpAddr>().ok().filter(|_| kind.is_none());
        let kind = match kind {
            Some(text) => record_type(text)?,
            None if address.is_some() => RecordType::PTR,
            None => RecordType::A,
        };
        if address.is_none() && name != "." {
            vmlan_dns::check_name(name).map_err(|e| DnsError(e.to_string()))?;
        }
        let mut name = match address {
            Some(address) => Name::from(address),
            None => Name::from_ascii(name).map_err(|e| wrong(&e))?,
        };
        name.set_fqdn(true);
        Ok(Self(Query::query(name, kind)))
    }

    /// As it is asked, by somebody who has room for any answer.
    pub fn message(&self) -> Result<Vec<u8>, DnsError> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_PAYLOAD);
        message.set_edns(edns);
        message.add_query(self.0.clone());
        message.to_vec().map_err(|e| DnsError(format!("{}: {e}", self.0.name())))
    }

    /// The answer to it in words.
    pub fn answer(
        &self,
        message: &[u8],
        origin: Origin,
        milliseconds: u64,
    ) -> Result<Answer, DnsError> {
        let message = Message::from_vec(message);
        let message = message.map_err(|e| {
            DnsError(format!("{}: an answer that makes no sense: {e}", self.0.name()))
        })?;
        let (from, server) = match origin {
            Origin::Static => ("static", None),
            Origin::HostsFile => ("hosts file", None),
            Origin::Native => ("native", None),
            Origin::Upstream(server) => ("upstream", Some(server.to_string())),
            Origin::Cache => ("cache", None),
            Origin::Resolver => ("resolver", None),
        };
        let meta = &message.metadata;
        let flags = [
            ("aa", meta.authoritative),
            ("tc", meta.truncation),
            ("rd", meta.recursion_desired),
            ("ra", meta.recursion_available),
            ("ad", meta.authentic_data),
            ("cd", meta.checking_disabled),
        ];
        let records = |records: &[WireRecord]| records.iter().map(Record::new).collect();
        Ok(Answer {
            name: self.0.name().to_string(),
            kind: self.0.query_type().to_string(),
            rcode: rcode(meta.response_code),
            flags: flags.iter().filter(|(_, set)| *set).map(|(name, _)| (*name).into()).collect(),
            from: from.into(),
            server,
            milliseconds,
            answer: records(&message.answers),
            authority: records(&message.authorities),
            additional: records(&message.additionals),
        })
    }
}

impl Answer {
    /// The name exists, whether or not it has such a record.
    pub fn is_found(&self) -> bool {
        self.rcode == "NOERROR"
    }
}

impl Record {
    fn new(record: &WireRecord) -> Self {
        Self {
            name: record.name.to_string(),
            ttl: record.ttl,
            class: record.dns_class.to_string(),
            kind: record.record_type().to_string(),
            data: record.data.to_string(),
        }
    }
}

fn record_type(text: &str) -> Result<RecordType, DnsError> {
    let upper = text.to_ascii_uppercase();
    let number = upper.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok());
    match number {
        Some(number) => Ok(RecordType::from(number)),
        None => upper
            .parse()
            .map_err(|_| DnsError(format!("{text} is no type of record; TYPE65 is number 65"))),
    }
}

/// As everybody writes it.
fn rcode(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".into(),
        ResponseCode::FormErr => "FORMERR".into(),
        ResponseCode::ServFail => "SERVFAIL".into(),
        ResponseCode::NXDomain => "NXDOMAIN".into(),
        ResponseCode::NotImp => "NOTIMP".into(),
        ResponseCode::Refused => "REFUSED".into(),
        other => format!("RCODE{}", u16::from(other)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn questions_are_read() {
        let of = |name: &str, kind: Option<&str>| {
            let Question(query) = Question::new(name, kind).unwrap();
            format!("{} {}", query.name(), query.query_type())
        };
        assert_eq!(of("a.test", None), "a.test. A");
        assert_eq!(of("a.test.", Some("type65")), "a.test. HTTPS");
        assert_eq!(of("10.0.0.1", None), "1.0.0.10.in-addr.arpa. PTR");
        assert_eq!(of("10.0.0.1", Some("a")), "10.0.0.1. A");
        assert_eq!(of(".", Some("NS")), ". NS");
        for (name, kind) in [("a..b", None), ("", None), ("a", Some("NONSENSE"))] {
            assert!(Question::new(name, kind).is_err(), "{name} {kind:?}");
        }
    }

    #[test]
    fn answers_are_told_in_words() {
        let question = Question::new("a.test", None).unwrap();
        let mut message = Message::from_vec(&question.message().unwrap()).unwrap();
        message.metadata.message_type = MessageType::Response;
        message.metadata.response_code = ResponseCode::NXDomain;
        let server = Origin::Upstream(SocketAddr::from(([127, 0, 0, 53], 53)));
        let answer = question.answer(&message.to_vec().unwrap(), server, 3).unwrap();
        assert_eq!((&*answer.rcode, &*answer.from), ("NXDOMAIN", "upstream"));
        assert_eq!((answer.server.as_deref(), answer.is_found()), (Some("127.0.0.53:53"), false));
        assert_eq!(answer.flags, ["rd"]);
        assert!(question.answer(&[0; 5], Origin::Cache, 0).is_err());
    }
}
