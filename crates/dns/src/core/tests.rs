use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::A as Address;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::Origin;
use crate::names::{Names, Target};
use crate::testing::{Rig, SERVER, Todo};

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn ask(id: u16, text: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name(text), kind));
    if let Some(size) = edns {
        let mut opt = Edns::new();
        opt.set_max_payload(size);
        message.set_edns(opt);
    }
    message.to_vec().unwrap()
}

/// What a nameserver makes of a question: some addresses.
fn replied(asked: &[u8], count: u8) -> Vec<u8> {
    let mut message = Message::from_vec(asked).unwrap();
    message.metadata.message_type = MessageType::Response;
    let owner = message.queries[0].name().clone();
    for n in 0..count {
        let data = RData::A(Address::new(192, 0, 2, n));
        message.add_answer(Record::from_rdata(owner.clone(), 60, data));
    }
    message.to_vec().unwrap()
}

fn rig(list: &[(&str, &str)]) -> Rig {
    let mut names = Names::default();
    for (name, target) in list {
        let target =
            target.parse().map_or_else(|_| Target::Alias((*target).into()), Target::Address);
        names.add(name, &target).unwrap();
    }
    Rig::new(names)
}

impl Rig {
    fn next_question(&mut self) -> (usize, Vec<u8>) {
        match self.todo.pop_front() {
            Some(Todo::Ask(number, message)) => (number, message),
            other => panic!("{other:?}"),
        }
    }

    fn next_lookup(&mut self) -> usize {
        match self.todo.pop_front() {
            Some(Todo::Look(number)) => number,
            other => panic!("{other:?}"),
        }
    }

    fn next_answer(&mut self) -> (u64, Message, Origin) {
        let (client, bytes, origin) = self.answers.pop_front().expect("an answer");
        (client, Message::from_vec(&bytes).unwrap(), origin)
    }

    /// The addresses, or the rcode, that a name has without a nameserver being asked.
    fn known(&mut self, text: &str, kind: RecordType) -> String {
        self.query(1, 1, &ask(5, text, kind, None), true);
        assert!(self.todo.is_empty(), "{text} {kind} leaks: {:?}", self.todo);
        let (_, answer, _) = self.next_answer();
        if answer.metadata.response_code != ResponseCode::NoError {
            return format!("{:?}", answer.metadata.response_code);
        }
        let data: Vec<String> =
            answer.answers.iter().map(|record| record.data.to_string()).collect();
        data.join(" ")
    }
}

const ALL: [RecordType; 12] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::CNAME,
    RecordType::TXT,
    RecordType::MX,
    RecordType::SRV,
    RecordType::PTR,
    RecordType::SOA,
    RecordType::CAA,
    RecordType::HTTPS,
    RecordType::DNSKEY,
    RecordType::ANY,
];

#[test]
fn a_plain_guest_asks_nameserver_and_nothing_else_of_the_machine() {
    let mut rig = rig(&[("own.test", "10.0.0.9")]);
    rig = rig.with_host("10.0.0.1 listed.test\n", "hosts: files custom dns\n");
    rig.set_plain(7);
    let mut ask_as = |guest, text: &str| {
        rig.query(1, guest, &ask(5, text, RecordType::A, None), true);
        match rig.todo.pop_front() {
            Some(Todo::Ask(number, message)) => {
                assert!(rig.reply(number, &replied(&message, 1), false));
                rig.next_answer().2
            }
            Some(Todo::Look(_)) => Origin::Native,
            None => rig.next_answer().2,
        }
    };
    assert_eq!(ask_as(1, "listed.test"), Origin::HostsFile);
    assert_eq!(ask_as(1, "other.test"), Origin::Native);
    for name in ["listed.test", "other.test"] {
        assert_eq!(ask_as(7, name), Origin::Upstream(SERVER), "{name}");
        assert_eq!(ask_as(7, name), Origin::Cache, "{name}");
    }
    assert_eq!(ask_as(7, "own.test"), Origin::Static);
    // What one guest was answered is not what another is.
    assert_eq!(ask_as(1, "listed.test"), Origin::HostsFile);
}

#[test]
fn own_names_never_leak_whatever_the_type() {
    let mut rig =
        rig(&[("host.lima.internal", "192.168.5.2"), ("a.test", "b.test"), ("b.test", "a.test")]);
    for kind in ALL {
        let of = rig.known("HOST.lima.Internal.", kind);
        let has = matches!(kind, RecordType::A | RecordType::ANY);
        assert_eq!(of, if has { "192.168.5.2" } else { "" }, "{kind}");
        assert_eq!(rig.known("lima-b.internal.", kind), "NXDomain", "{kind}");
        assert!(rig.known("a.test.", kind).starts_with("b.test."), "{kind}");
    }
    assert_eq!(rig.known("a.test.", RecordType::A), "b.test. a.test.", "once round");
    // Nor in another class, or with another opcode.
    let mut chaos = ask(1, "host.lima.internal.", RecordType::TXT, None);
    *chaos.last_mut().unwrap() = 3;
    let mut update = ask(2, "host.lima.internal.", RecordType::SOA, None);
    update[2] |= 5 << 3;
    for (message, code) in [(chaos, ResponseCode::NoError), (update, ResponseCode::NotImp)] {
        rig.query(1, 1, &message, true);
        assert_eq!(rig.next_answer().1.metadata.response_code, code);
        assert!(rig.todo.is_empty());
    }
}

#[test]
fn the_first_client_gets_the_reply_as_it_is() {
    let mut rig = rig(&[]);
    let asked = ask(0x1234, "WWW.example.", RecordType::A, Some(1232));
    rig.query(7, 1, &asked, true);
    let (number, sent) = rig.next_question();
    assert_eq!(sent[2..], asked[2..]);
    let mut reply = replied(&sent, 3);
    reply[..2].copy_from_slice(&[0xab, 0xcd]);
    assert!(rig.reply(number, &reply, false));
    let (client, bytes, origin) = rig.answers.pop_front().unwrap();
    assert_eq!((client, origin), (7, Origin::Upstream(SERVER)));
    assert_eq!((&bytes[..2], &bytes[2..]), (&asked[..2], &reply[2..]));
    assert!(rig.is_idle());
}

#[test]
fn identical_questions_are_asked_once() {
    let mut rig = rig(&[]);
    let questions = [
        ask(1, "www.example.", RecordType::A, Some(1232)),
        ask(2, "WWW.Example.", RecordType::A, Some(1232)),
        ask(3, "www.example.", RecordType::A, None),
    ];
    for (client, message) in (1..).zip(&questions) {
        rig.query(client, 1, message, true);
    }
    let (number, sent) = rig.next_question();
    assert!(rig.todo.is_empty());
    assert!(rig.reply(number, &replied(&sent, 2), false));
    for (client, text, edns) in
        [(1, "www.example.", true), (2, "WWW.Example.", true), (3, "www.example.", false)]
    {
        let (to, answer, _) = rig.next_answer();
        assert_eq!((to, u64::from(answer.metadata.id)), (client, client));
        assert_eq!(answer.queries[0].name().to_string(), text);
        assert_eq!((answer.answers.len(), answer.edns.is_some()), (2, edns));
    }
    assert!(rig.is_idle());
    // From now on it is known.
    rig.advance(Duration::from_secs(10));
    rig.query(9, 1, &questions[0], true);
    let (_, answer, origin) = rig.next_answer();
    assert_eq!((answer.answers[0].ttl, origin), (50, Origin::Cache));
}

#[test]
fn a_waiter_without_room_asks_for_itself() {
    let mut rig = rig(&[]);
    rig.query(1, 1, &ask(1, "www.example.", RecordType::A, Some(1232)), true);
    rig.query(2, 1, &ask(2, "www.example.", RecordType::A, None), true);
    // One that can take more does not wait for less.
    rig.query(3, 1, &ask(3, "www.example.", RecordType::A, Some(4096)), true);
    let (number, sent) = rig.next_question();
    let (larger, sent_too) = rig.next_question();
    assert!(rig.todo.is_empty());
    assert!(rig.reply(number, &replied(&sent, 40), false));
    assert_eq!(rig.next_answer().0, 1);
    assert!(rig.reply(larger, &replied(&sent_too, 40), false));
    assert_eq!(rig.next_answer().0, 3);
    let (small, asked) = rig.next_question();
    assert_eq!(asked[2..], ask(2, "www.example.", RecordType::A, None)[2..]);
    // An answer larger than was asked for is cut.
    assert!(rig.reply(small, &replied(&asked, 40), false));
    let (client, answer, _) = rig.next_answer();
    assert_eq!((client, answer.metadata.truncation, answer.answers.len()), (2, true, 0));
    assert!(rig.is_idle());
}

#[test]
fn an_alias_leads_outside() {
    let mut rig = rig(&[("a.test", "b.test"), ("b.test", "www.example")]);
    rig.query(1, 1, &ask(1, "A.test.", RecordType::A, Some(1232)), true);
    rig.query(2, 1, &ask(2, "www.example.", RecordType::A, Some(1232)), true);
    let (number, sent) = rig.next_question();
    assert!(rig.todo.is_empty(), "it is one question");
    assert_eq!(Message::from_vec(&sent).unwrap().queries[0].name(), &name("www.example."));
    assert!(rig.reply(number, &replied(&sent, 1), false));
    let shown = |answer: &Message| {
        let record = |r: &Record| format!("{} {}", r.name, r.data);
        answer.answers.iter().map(record).collect::<Vec<_>>().join(", ")
    };
    for _ in 0..2 {
        let (client, answer, _) = rig.next_answer();
        assert_eq!(u64::from(answer.metadata.id), client);
        let expected = match client {
            1 => "A.test. b.test., b.test. www.example., www.example. 192.0.2.0",
            _ => "www.example. 192.0.2.0",
        };
        assert_eq!(shown(&answer), expected);
    }
    // And from the cache.
    rig.query(3, 1, &ask(3, "a.test.", RecordType::A, None), true);
    let (_, answer, origin) = rig.next_answer();
    assert_eq!((answer.answers.len(), origin), (3, Origin::Cache));
    assert!(rig.is_idle());
}

#[test]
fn a_guest_beyond_its_share_is_refused_at_once_and_others_are_not() {
    let mut rig = rig(&[]);
    let question = |n: usize| ask(4, &format!("name{n}.example."), RecordType::A, None);
    for n in 0..super::MAX_WAITING_PER_GUEST {
        rig.query(1, 1, &question(n), true);
        rig.next_question();
    }
    rig.query(2, 1, &question(9999), true);
    let (to, answer, _) = rig.next_answer();
    assert_eq!((to, answer.metadata.response_code), (2, ResponseCode::ServFail));
    assert!(rig.todo.is_empty());
    rig.query(3, 2, &question(9999), true);
    rig.next_question();
    // A place that becomes free is taken again.
    rig.fail(0);
    rig.next_answer();
    rig.query(2, 1, &question(9998), true);
    rig.next_question();
}

#[test]
fn failures_reach_everybody() {
    let mut rig = rig(&[("a.test", "www.example")]);
    for (client, text) in [(1, "www.example."), (2, "www.example."), (3, "a.test.")] {
        rig.query(client, 1, &ask(4, text, RecordType::A, None), true);
    }
    let (number, _) = rig.next_question();
    rig.fail(number);
    for client in 1..=3 {
        let (to, answer, _) = rig.next_answer();
        assert_eq!((to, answer.metadata.response_code), (client, ResponseCode::ServFail));
    }
    assert!(rig.is_idle());
    // An error without the question is everybody's, too.
    for client in 1..=2 {
        rig.query(client, 1, &ask(4, "www.example.", RecordType::A, None), true);
    }
    let (number, sent) = rig.next_question();
    let mut bare = sent[..12].to_vec();
    (bare[2], bare[3], bare[5]) = (0x81, 5, 0);
    assert!(rig.reply(number, &bare, false));
    for _ in 0..2 {
        assert_eq!(rig.next_answer().1.metadata.response_code, ResponseCode::Refused);
    }
    assert!(rig.is_idle());
}

#[test]
fn a_guest_has_a_part_of_the_room_only() {
    let mut rig = rig(&[]);
    let message = |n: u16| ask(n, &format!("n{n}.example."), RecordType::A, None);
    for n in 0..3000 {
        rig.query(u64::from(n), 1, &message(n), true);
    }
    assert_eq!((rig.todo.len(), rig.answers.len()), (2048, 3000 - 2048));
    rig.query(9000, 2, &message(3000), true);
    assert_eq!(rig.todo.len(), 2049);
    for guest in 3..20 {
        for n in 0..1024 {
            rig.query(
                0,
                guest,
                &ask(n, &format!("g{guest}n{n}.example."), RecordType::A, None),
                true,
            );
        }
    }
    assert_eq!(rig.todo.len(), 8192);
    while let Some(Todo::Ask(number, _)) = rig.todo.pop_front() {
        rig.fail(number);
    }
    assert!(rig.is_idle());
}

#[test]
fn the_machines_own_ways_come_first() {
    let hosts = "10.0.0.5 nas.lan nas\nfd00::5 nas.lan\n";
    let mut rig = rig(&[]).with_host(hosts, "hosts: files custom dns\n");
    rig.set_ipv6(false);
    assert_eq!(rig.known("NAS.lan.", RecordType::A), "10.0.0.5");
    assert_eq!(rig.known("nas.lan.", RecordType::AAAA), "fd00::5", "the file has it");
    assert_eq!(rig.known("nas.", RecordType::AAAA), "", "the file knows the name");
    assert_eq!(rig.known("5.0.0.10.in-addr.arpa.", RecordType::PTR), "nas.lan.");
    // One lookup for both families and everybody.
    for (client, kind) in [(1, RecordType::A), (2, RecordType::AAAA), (3, RecordType::A)] {
        rig.query(client, 1, &ask(6, "vpn.corp.", kind, None), true);
    }
    let number = rig.next_lookup();
    assert_eq!((rig.wanted(number).as_deref(), rig.todo.len()), (Some("vpn.corp"), 0));
    rig.found(number, Some(&["10.8.0.1", "fd08::1"]));
    let counts: Vec<usize> = (0..3).map(|_| rig.next_answer().1.answers.len()).collect();
    assert_eq!(counts, [1, 0, 1]);
    assert_eq!(rig.known("vpn.corp.", RecordType::A), "10.8.0.1", "for a while");
    rig.advance(Duration::from_secs(6));
    rig.query(4, 1, &ask(6, "vpn.corp.", RecordType::A, None), true);
    let number = rig.next_lookup();
    rig.found(number, None);
    assert_eq!(rig.next_answer().1.metadata.response_code, ResponseCode::NXDomain);
    // Types that the functions do not know are the nameserver's.
    rig.query(5, 1, &ask(7, "vpn.corp.", RecordType::MX, None), true);
    rig.next_question();
    // Outside names have no IPv6 addresses here.
    let mut plain = Rig::new(Names::default());
    plain.set_ipv6(false);
    assert_eq!(plain.known("www.example.", RecordType::AAAA), "");
}

#[test]
fn slow_lookups_are_bounded_by_guest() {
    let mut rig = rig(&[]).with_host("", "hosts: files custom dns\n");
    for n in 0..100 {
        rig.query(n, 1, &ask(6, &format!("n{n}.corp."), RecordType::A, None), true);
    }
    assert_eq!((rig.todo.len(), rig.answers.len()), (64, 36));
    rig.query(500, 2, &ask(6, "other.corp.", RecordType::A, None), true);
    assert_eq!(rig.todo.len(), 65);
}
