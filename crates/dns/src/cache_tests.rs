use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME as Cname, NS, SOA as Soa};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;
use crate::hash::Hashed;
use crate::message::{Checked, check};

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn hash(query: &Query<'_>) -> u64 {
    Hashed::new(&query.name()).hash
}

fn ask(id: u16, text: &str, edns: bool) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name(text), RecordType::A));
    if edns {
        message.set_edns(Edns::new());
    }
    message
}

fn reply(text: &str, ttls: &[u32]) -> Message {
    let mut message = ask(77, text, true);
    message.metadata.message_type = MessageType::Response;
    message.metadata.authentic_data = true;
    for ttl in ttls {
        let data = RData::A(A::new(10, 0, 0, u8::try_from(ttl % 250).unwrap()));
        message.add_answer(Record::from_rdata(name(text), *ttl, data));
    }
    message
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let data = Soa::new(name("ns.example."), name("x.example."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name("example."), ttl, RData::SOA(data))
}

struct Scene {
    cache: Cache,
    start: Instant,
}

impl Scene {
    fn new() -> Self {
        Self { cache: Cache::default(), start: Instant::now() }
    }

    fn insert(&mut self, reply: &Message, limit: usize) {
        let asked = ask(1, &reply.queries[0].name().to_string(), false).to_vec().unwrap();
        let Checked::Query(query) = check(&asked) else { panic!() };
        self.cache.insert(
            &query.key(hash(&query)).unwrap(),
            &reply.to_vec().unwrap(),
            limit,
            self.start,
        );
    }

    fn get(&mut self, asked: &Message, limit: usize, after: u64) -> Option<Message> {
        let bytes = asked.to_vec().unwrap();
        let Checked::Query(query) = check(&bytes) else { panic!() };
        let mut out = vec![1, 2, 3];
        let now = self.start + Duration::from_secs(after);
        let found =
            self.cache.answer(&query.key(hash(&query)).unwrap(), &query, limit, now, &mut out);
        found.then(|| Message::from_vec(&out[3..]).unwrap())
    }

    fn kept_for(reply: &Message) -> u64 {
        let mut scene = Self::new();
        scene.insert(reply, 1232);
        let asked = ask(1, &reply.queries[0].name().to_string(), false);
        (0..200_000).step_by(1).find(|&after| scene.get(&asked, 512, after).is_none()).unwrap()
    }
}

#[test]
fn answers_age_and_are_each_askers_own() {
    let mut scene = Scene::new();
    scene.insert(&reply("www.example.", &[60, 90]), 1232);
    let answer = scene.get(&ask(9, "WWW.example.", false), 512, 20).unwrap();
    assert_eq!(
        (answer.metadata.id, answer.queries[0].name().to_string()),
        (9, "WWW.example.".into())
    );
    let ttls: Vec<u32> = answer.answers.iter().map(|record| record.ttl).collect();
    assert_eq!(ttls, [40, 70]);
    assert!(answer.metadata.authentic_data && answer.edns.is_none());
    let answer = scene.get(&ask(10, "www.example.", true), 1232, 0).unwrap();
    assert_eq!(answer.answers[0].ttl, 60);
    assert!(answer.edns.is_some());
    assert!(scene.get(&ask(11, "www.example.", true), 1232, 60).is_none());
    assert_eq!((scene.cache.bytes, scene.cache.index.len()), (0, 0));
}

#[test]
fn times_are_those_of_the_rfcs() {
    assert_eq!(Scene::kept_for(&reply("a.example.", &[30, 5])), 5);
    assert_eq!(Scene::kept_for(&reply("a.example.", &[0])), 0);
    assert_eq!(Scene::kept_for(&reply("a.example.", &[1 << 31])), 0);
    assert_eq!(Scene::kept_for(&reply("a.example.", &[1 << 30])), 86_400);
    let mut nothing = reply("a.example.", &[]);
    assert_eq!(Scene::kept_for(&nothing), 0, "nobody said for how long");
    nothing.add_authority(soa(100, 40));
    assert_eq!(Scene::kept_for(&nothing), 40);
    nothing.metadata.response_code = ResponseCode::NXDomain;
    nothing.authorities = vec![soa(20, 40)];
    assert_eq!(Scene::kept_for(&nothing), 20);
    nothing.authorities = vec![soa(86_400, 86_400)];
    assert_eq!(Scene::kept_for(&nothing), 10_800);
    let mut referral = reply("a.example.", &[]);
    referral.add_authority(Record::from_rdata(
        name("example."),
        50,
        RData::NS(NS(name("ns.example."))),
    ));
    assert_eq!(Scene::kept_for(&referral), 0);
    // An alias to a name without addresses is a negative answer.
    let mut alias = reply("a.example.", &[]);
    alias.add_answer(Record::from_rdata(
        name("a.example."),
        50,
        RData::CNAME(Cname(name("b.example."))),
    ));
    assert_eq!(Scene::kept_for(&alias), 0);
    alias.add_authority(soa(30, 30));
    assert_eq!(Scene::kept_for(&alias), 30);
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::BADCOOKIE] {
        let mut failed = reply("a.example.", &[60]);
        failed.metadata.response_code = code;
        assert_eq!(Scene::kept_for(&failed), 0, "{code}");
    }
    let mut cut = reply("a.example.", &[60]);
    cut.metadata.truncation = true;
    assert_eq!(Scene::kept_for(&cut), 0);
}

#[test]
fn nothing_is_cut_and_nothing_is_left_out() {
    let large = reply("www.example.", &[60; 40]);
    let len = large.to_vec().unwrap().len();
    let mut scene = Scene::new();
    scene.insert(&large, 1232);
    let asked = ask(1, "www.example.", true);
    assert!(len > 616 && scene.get(&asked, 512, 0).is_none(), "no room");
    assert!(scene.get(&asked, len, 0).is_some());
    // For one who can take more, the nameserver might have had more to say.
    assert!(scene.get(&asked, 4096, 0).is_none());
    assert!(scene.get(&asked, MAX_MESSAGE, 0).is_none());
    // What came over TCP is whole, but what of it a datagram would hold is not known.
    scene.insert(&large, MAX_MESSAGE);
    assert!(scene.get(&asked, MAX_MESSAGE, 0).is_some());
    assert!(scene.get(&asked, 4096, 0).is_none());
    // And it is not replaced by less.
    scene.insert(&large, 1232);
    assert!(scene.get(&asked, MAX_MESSAGE, 0).is_some());
    let small = reply("small.example.", &[60]);
    scene.insert(&small, 512);
    for limit in [512, 1232, MAX_MESSAGE] {
        assert!(scene.get(&ask(1, "small.example.", true), limit, 0).is_some(), "{limit}");
    }
}

#[test]
fn it_is_bounded_and_keeps_what_is_used() {
    let mut scene = Scene::new();
    scene.insert(&reply("used.example.", &[60; 20]), 1232);
    for n in 0..20_000 {
        scene.insert(&reply(&format!("n{n}.example."), &[60; 20]), 1232);
        if n % 100 == 0 {
            assert!(scene.get(&ask(1, "used.example.", false), 512, 1).is_some(), "{n}");
        }
        assert!(scene.cache.bytes <= MAX_BYTES);
    }
    assert!(scene.cache.entries.len() > 1000);
    let held: usize = scene.cache.entries.iter().map(|(_, entry)| entry.size()).sum();
    assert_eq!((held, scene.cache.index.len()), (scene.cache.bytes, scene.cache.entries.len()));
    scene.cache.clear();
    assert!(scene.get(&ask(1, "used.example.", false), 512, 1).is_none());
}
