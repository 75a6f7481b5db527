//! Messages read back by another implementation.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as HickoryQuery, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::*;

fn ask(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(HickoryQuery::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn query(message: &[u8]) -> Query<'_> {
    match check(message) {
        Checked::Query(query) => query,
        other => panic!("{other:?}"),
    }
}

fn addresses(reply: &[u8]) -> Vec<IpAddr> {
    let message = Message::from_vec(reply).unwrap();
    let data = message.answers.iter().map(|record| match &record.data {
        RData::A(a) => IpAddr::V4(a.0),
        RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
        other => panic!("{other:?}"),
    });
    data.collect()
}

#[test]
fn addresses_are_those_of_the_family_asked_for() {
    let (v4, v6): (IpAddr, IpAddr) = ("192.168.5.2".parse().unwrap(), "fd76::2".parse().unwrap());
    for (kind, expected) in [
        (RecordType::A, vec![v4]),
        (RecordType::AAAA, vec![v6]),
        (RecordType::ANY, vec![v4, v6]),
        (RecordType::HTTPS, vec![]),
    ] {
        let asked = ask("Host.Lima.Internal.", kind, None);
        let reply = query(&asked).addresses(&[v4, v6], true);
        assert_eq!(addresses(&reply), expected, "{kind}");
        let message = Message::from_vec(&reply).unwrap();
        assert_eq!(message.metadata.id, 0x1234);
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        assert!(message.metadata.authoritative && message.metadata.recursion_available);
        assert!(message.metadata.recursion_desired && !message.metadata.truncation);
        assert_eq!(message.queries[0].name().to_string(), "Host.Lima.Internal.");
        assert!(message.edns.is_none());
        assert!(answers(&reply, &asked));
    }
}

#[test]
fn what_does_not_fit_is_cut_and_says_so() {
    let many: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([10, 0, 0, n])).collect();
    for (edns, udp, limit, all) in
        [(None, true, 512, false), (Some(1232), true, 1232, false), (None, false, 65535, true)]
    {
        let asked = ask("many.example.", RecordType::A, edns);
        let reply = query(&asked).addresses(&many, udp);
        let message = Message::from_vec(&reply).unwrap();
        assert!(reply.len() <= limit, "{} over {limit}", reply.len());
        assert_eq!(message.metadata.truncation, !all);
        assert_eq!(message.answers.len() == 100, all);
        assert_eq!(message.edns.is_some(), edns.is_some());
    }
}

#[test]
fn errors_carry_the_question() {
    let asked = ask("x.example.", RecordType::MX, Some(4096));
    let reply = query(&asked).error(Rcode::ServFail);
    let message = Message::from_vec(&reply).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(message.queries.len(), 1);
    assert!(answers(&reply, &asked));
    assert!(is_failure(&reply));
}

#[test]
fn what_is_no_query_is_ignored_and_what_is_broken_refused() {
    let good = ask("x.example.", RecordType::A, None);
    assert!(matches!(check(&good[..11]), Checked::Ignore));
    let mut reply = good.clone();
    reply[2] |= QR;
    assert!(matches!(check(&reply), Checked::Ignore));

    let mut two = good.clone();
    two[5] = 2;
    let Checked::Malformed(bad) = check(&two) else { panic!("two questions") };
    let error = bad.error(Rcode::FormErr);
    assert_eq!(error.len(), HEADER);
    assert_eq!(Message::from_vec(&error).unwrap().metadata.response_code, ResponseCode::FormErr);
    for len in HEADER..good.len() {
        assert!(matches!(check(&good[..len]), Checked::Malformed(_)), "{len}");
    }
    let mut compressed = good[..HEADER].to_vec();
    compressed.extend([0xc0, 12, 0, 1, 0, 1]);
    assert!(matches!(check(&compressed), Checked::Malformed(_)));
    let mut long = good[..HEADER].to_vec();
    for _ in 0..5 {
        long.push(60);
        long.extend([b'a'; 60]);
    }
    long.extend([0, 0, 1, 0, 1]);
    assert!(matches!(check(&long), Checked::Malformed(_)));
}

#[test]
fn a_reply_must_be_about_the_question() {
    let asked = ask("x.example.", RecordType::A, None);
    let mut reply = asked.clone();
    assert!(!answers(&reply, &asked), "a query is no reply");
    reply[2] |= QR;
    assert!(answers(&reply, &asked));
    let mut shouting = reply.clone();
    shouting[13] = b'X';
    assert!(answers(&shouting, &asked));
    let mut other = reply.clone();
    other[13] = b'y';
    assert!(!answers(&other, &asked));
    let mut kind = reply.clone();
    let last = kind.len() - 3;
    kind[last] = 28;
    assert!(!answers(&kind, &asked));
    assert!(!answers(&reply[..20], &asked));
    let mut bare = reply[..HEADER].to_vec();
    bare[5] = 0;
    assert!(!answers(&bare, &asked), "an empty answer to a question");
    bare[3] |= 1;
    assert!(answers(&bare, &asked), "an error without the question");
}

#[test]
fn names_are_folded_and_checked() {
    assert_eq!(wire_name("Host.Lima.").unwrap(), b"\x04host\x04lima\x00");
    let asked = ask("HOST.lima.", RecordType::A, None);
    assert_eq!(query(&asked).name().unwrap().to_ascii_lowercase(), wire_name("host.lima").unwrap());
    for wrong in ["", ".", "a..b", &"a".repeat(64), &"a.".repeat(128)] {
        assert_eq!(wire_name(wrong), None, "{wrong}");
    }
}
