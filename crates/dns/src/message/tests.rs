use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RecordType};

use super::*;
use crate::hash::Hashed;

fn ask(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = edns {
        let mut opt = Edns::new();
        opt.set_max_payload(size);
        message.set_edns(opt);
    }
    message.to_vec().unwrap()
}

fn query(message: &[u8]) -> Query<'_> {
    match check(message) {
        Checked::Query(query) => query,
        other => panic!("{other:?}"),
    }
}

fn refused(message: &[u8]) -> Rcode {
    match check(message) {
        Checked::Refused(query, rcode) => {
            let mut out = Vec::new();
            query.error(rcode, &mut out);
            let answer = Message::from_vec(&out).unwrap();
            assert_eq!(u16::from(answer.metadata.response_code), rcode as u16);
            rcode
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn queries_have_one_question() {
    let good = ask("a.example.", RecordType::A, None);
    assert!(matches!(check(&good[..11]), Checked::Ignore));
    let mut reply = good.clone();
    reply[2] |= QR;
    assert!(matches!(check(&reply), Checked::Ignore));
    for count in [0, 2] {
        let mut other = good.clone();
        other[5] = count;
        assert_eq!(refused(&other), Rcode::FormErr, "{count} questions");
    }
    for len in HEADER..good.len() {
        assert_eq!(refused(&good[..len]), Rcode::FormErr, "{len} bytes");
    }
    let compressed = [&good[..HEADER], &[0xc0, 12, 0, 1, 0, 1]].concat();
    assert_eq!(refused(&compressed), Rcode::FormErr);
    let label = [&[60][..], &[b'a'; 60]].concat();
    let long = [&good[..HEADER], &label.repeat(5), &[0, 0, 1, 0, 1]].concat();
    assert_eq!(refused(&long), Rcode::FormErr);
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(refused(&ask("a.example.", kind, None)), Rcode::Refused);
    }
    let mut notify = good;
    notify[2] |= 4 << 3;
    assert!(matches!(check(&notify), Checked::Other(_)));
}

#[test]
fn opt_records_are_understood() {
    let message = ask("a.example.", RecordType::A, Some(1400));
    let edns = query(&message).edns.unwrap();
    assert_eq!((edns.size, edns.version, edns.dnssec), (1400, 0, false));
    assert_eq!(query(&message).limit(true), 1400);
    assert_eq!(query(&message).limit(false), MAX_MESSAGE);
    assert_eq!(query(&ask("a.example.", RecordType::A, Some(100))).limit(true), PLAIN_UDP);
    assert_eq!(query(&ask("a.example.", RecordType::A, None)).limit(true), PLAIN_UDP);
    // There is one at most.
    let opt = &message[message.len() - 11..];
    let mut two = [&message[..], opt].concat();
    two[11] = 2;
    assert_eq!(refused(&two), Rcode::FormErr);
    // Elsewhere it makes no sense.
    let mut answer = message.clone();
    (answer[7], answer[11]) = (1, 0);
    assert_eq!(refused(&answer), Rcode::FormErr);
    // Records that are not there.
    let mut more = message;
    more[9] = 3;
    assert_eq!(refused(&more), Rcode::FormErr);
}

#[test]
fn keys_tell_what_matters() {
    let plain = ask("a.example.", RecordType::A, None);
    let hash = Hashed::new(b"\x01a\x07example\0").hash;
    // With one hash for all, since that alone makes no two the same.
    let is_same = |message: &[u8]| {
        let query = query(message);
        query.key(hash).map(|key| key.is_asked_by(&plain, RD))
    };
    assert_eq!(query(&plain).key(hash).map(|key| key.flags), Some(RD));
    let same =
        [ask("A.Example.", RecordType::A, None), ask("a.example.", RecordType::A, Some(900))];
    for message in same {
        assert_eq!(is_same(&message), Some(true));
    }
    let mut others =
        vec![ask("b.example.", RecordType::A, None), ask("a.example.", RecordType::MX, None)];
    for (at, bits) in [(2, RD), (3, CD), (3, AD)] {
        let mut other = plain.clone();
        other[at] ^= bits;
        others.push(other);
    }
    let mut signed = ask("a.example.", RecordType::A, Some(1232));
    let at = signed.len() - 4;
    signed[at] = 0x80;
    others.push(signed);
    for other in others {
        assert_eq!(is_same(&other), Some(false));
    }
    for alone in [RecordType::ANY, RecordType::from(249), RecordType::OPT] {
        assert_eq!(is_same(&ask("a.example.", alone, None)), None, "{alone}");
    }
    let with = |code: u16| {
        let mut message = Message::from_vec(&ask("a.example.", RecordType::A, Some(1232))).unwrap();
        let option = EdnsOption::Unknown(code, vec![1; 8]);
        message.edns.as_mut().unwrap().options_mut().insert(option);
        message.to_vec().unwrap()
    };
    assert_eq!(is_same(&with(10)), Some(true));
    assert!(!query(&with(10)).is_shared() && query(&plain).is_shared());
    assert_eq!(is_same(&with(65001)), None);
    let trailing = [&plain[..], &[0]].concat();
    assert_eq!(is_same(&trailing), None);
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
    for (at, what) in [(13, "name"), (reply.len() - 3, "type"), (reply.len() - 1, "class")] {
        let mut other = reply.clone();
        other[at] ^= 3;
        assert!(!answers(&other, &asked), "another {what}");
    }
    // 65 and 97 are `A` and `a`.
    let typed = |kind| ask("x.example.", RecordType::from(kind), None);
    let mut https = typed(65);
    https[2] |= QR;
    assert!(answers(&https, &typed(65)) && !answers(&https, &typed(97)));
    let mut opcode = reply.clone();
    opcode[2] |= 2 << 3;
    assert!(!answers(&opcode, &asked));
    assert!(!answers(&reply[..20], &asked));
    let mut bare = reply[..HEADER].to_vec();
    bare[5] = 0;
    assert!(!answers(&bare, &asked), "an empty answer to a question");
    bare[3] |= 1;
    assert!(answers(&bare, &asked), "an error without the question");
}

#[test]
fn own_answers_fit_and_say_what_is_missing() {
    let list: Vec<std::net::IpAddr> =
        (0..100).map(|n| std::net::Ipv4Addr::new(10, 0, 0, n).into()).collect();
    for (edns, count, cut) in [(None, 30, true), (Some(512), 29, true), (Some(4096), 100, false)] {
        let message = ask("a.example.", RecordType::A, edns);
        let query = query(&message);
        let mut out = vec![9; 7];
        let mut builder = Builder::new(&query, query.limit(true), &mut out);
        builder.addresses(&list);
        builder.finish(Rcode::NoError, true);
        assert!(out.len() - 7 <= query.limit(true));
        let answer = Message::from_vec(&out[7..]).unwrap();
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (count, cut), "{edns:?}");
        assert_eq!(answer.edns.is_some(), edns.is_some());
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    }
}

#[test]
fn an_unknown_version_of_edns_is_told() {
    let mut message = ask("a.example.", RecordType::A, Some(1232));
    let at = message.len() - 5;
    message[at] = 1;
    let query = query(&message);
    assert_eq!(query.edns.unwrap().version, 1);
    let mut out = Vec::new();
    Builder::new(&query, 512, &mut out).finish(Rcode::NoError, true);
    let answer = Message::from_vec(&out).unwrap();
    assert_eq!(u16::from(answer.metadata.response_code), 16);
}
