//! What the host's nameserver says arrives unchanged: every row of the table is asked of it, and
//! then twice through vmlan, with each size and transport that an asker can choose.

use std::time::Instant;

use vmlan_e2e::World;
use vmlan_e2e::dns_client::{Client, Transport};
use vmlan_e2e::dns_message::{
    A, AAAA, ANY, CAA, CHAOS, CNAME, DNAME, DNSKEY, HTTPS, MX, Message, NS, PTR, Query, RECURSION,
    Record, SOA, SRV, TXT, UNCHECKED,
};
use vmlan_e2e::named::Named;
use vmlan_e2e::world::{DNS, OUTSIDE};

const LONGEST: &str = "llllllllllllllllllllllllllllllllllllllllllllllllllllllllllllll.\
    lllllllllllllllllllllllllllllllllllllllllllllllllllllllllllll.\
    lllllllllllllllllllllllllllllllllllllllllllllllllllllllllllll.\
    lllllllllllllllllllllllllllllllllllllllllllllllllllllllllllll.test";

/// Addresses' names.
const WWW4: &str = "10.113.0.203.in-addr.arpa";
const TWO4: &str = "11.113.0.203.in-addr.arpa";
const NONE4: &str = "12.113.0.203.in-addr.arpa";
const WWW6: &str = "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";

/// Types that the client of the tests does not name.
const HINFO: u16 = 13;
const RP: u16 = 17;
const LOC: u16 = 29;
const NAPTR: u16 = 35;
const DS: u16 = 43;
const SSHFP: u16 = 44;
const NSEC: u16 = 47;
const TLSA: u16 = 52;
const SVCB: u16 = 64;
const URI: u16 = 256;
const UNKNOWN: u16 = 65280;
const EMPTY: u16 = 65281;

#[rustfmt::skip]
const TABLE: &[(&str, u16)] = &[
    // Each type where it exists.
    ("www.test", A), ("www.test", AAAA), ("www.test", TXT), ("www.test", LOC),
    ("www.test", SSHFP), ("test", A), ("test", AAAA), ("test", NS), ("test", SOA), ("test", MX),
    ("test", TXT), ("test", CAA), ("test", HTTPS), ("alias.test", CNAME), ("_sip._tcp.test", SRV),
    ("_none._tcp.test", SRV), ("_dns.test", SVCB), ("https.test", HTTPS),
    ("httpsalias.test", HTTPS), ("naptr.test", NAPTR), ("tlsa.test", TLSA), ("hinfo.test", HINFO),
    ("rp.test", RP), ("uri.test", URI), ("tree.test", DNAME), ("unknown.test", UNKNOWN),
    ("emptydata.test", EMPTY), ("www.test", ANY), ("test", ANY),
    (WWW4, PTR), (TWO4, PTR), (WWW6, PTR), (NONE4, PTR),
    // Names that exist without the type, and names that do not exist.
    ("v4only.test", AAAA), ("v6only.test", A), ("onlytxt.test", A), ("onlytxt.test", MX),
    ("www.test", DNSKEY), ("www.test", HTTPS), ("terminal.tree2.test", A), ("tree2.test", TXT),
    ("missing.test", A), ("missing.test", AAAA), ("missing.test", MX), ("missing.test", ANY),
    ("www.missing.test", TXT), ("www.elsewhere.example", A), ("elsewhere.example", TXT),
    ("example", SOA), ("nothing.invalid", A), ("", NS), ("", SOA), ("test", UNKNOWN),
    // Aliases, whole trees of them, and wildcards.
    ("alias.test", A), ("alias.test", AAAA), ("alias.test", MX), ("chain1.test", A),
    ("chain1.test", AAAA), ("chain1.test", TXT), ("dangling.test", A), ("outward.test", A),
    ("loop1.test", A), ("any.wild.test", A), ("any.wild.test", MX), ("any.wild.test", AAAA),
    ("deep.below.wild.test", TXT), ("x.tree.test", A), ("x.y.tree.test", TXT), ("tree.test", A),
    // Letters: mixed case, IDNA, bytes that are no letters, and the longest that there is.
    ("WwW.TeSt", A), ("MIXED.case.NAME.test", A), ("mixed.case.name.test", A), ("MISSING.test", A),
    ("xn--bcher-kva.test", A), ("XN--N3H.test", AAAA), ("with\\.dot.test", A),
    ("with\\032space.test", A), ("\\195\\188nicode.test", A), ("_under_score.test", A),
    ("a.test", A), (LONGEST, A),
    ("63letters-63letters-63letters-63letters-63letters-63letters-63l.test", A),
    // Times to live.
    ("short.test", A), ("zero.test", A), ("week.test", A),
    // More than fits.
    ("many.test", A), ("hundred.test", A), ("crowd.test", A), ("throng.test", A), ("mob.test", A),
    ("crowd6.test", AAAA), ("mails.test", MX), ("_many._tcp.test", SRV), ("text255.test", TXT),
    ("text2k.test", TXT), ("text6k.test", TXT), ("text60k.test", TXT),
    // Other servers' names, and servers that give nothing.
    ("www.child.test", A), ("www.child.test", AAAA), ("back.child.test", A),
    ("missing.child.test", A), ("child.test", NS), ("lame.test", A), ("www.refused.test", A),
    // Signed ones.
    ("signed.test", DNSKEY), ("signed.test", SOA), ("www.signed.test", A),
    ("www.signed.test", NSEC), ("alias.signed.test", AAAA), ("missing.signed.test", A),
    ("www.signed.test", TXT), ("x.wild.signed.test", A), ("insecure.signed.test", DS),
];

/// How an asker can ask.
#[derive(Clone, Copy, Debug)]
struct Way {
    transport: Transport,
    edns: Option<(u16, bool)>,
    flags: u16,
}

const UDP: Way = Way { transport: Transport::Udp, edns: None, flags: RECURSION };
const TCP: Way = Way { transport: Transport::Tcp, ..UDP };

/// A question, how the nameserver answered it, and when.
struct Row {
    query: Query,
    way: Transport,
    truth: Message,
    asked: Instant,
}

/// Asks everything in one way.
#[track_caller]
fn check(way: Way) {
    let world = World::with(&["--dns-ipv6", "true"]);
    let _named = Named::start(&world.outside);
    let mut upstream = Client::new(&world.host, OUTSIDE);
    let mut guest = Client::new(&world.guest, DNS);
    let table =
        TABLE.iter().map(|&(name, kind)| Query { flags: way.flags, ..Query::new(name, kind) });
    let chaos = Query { class: CHAOS, ..Query::new("version.bind", TXT) };
    let ask = |query: Query| {
        let query = query.edns(way.edns);
        let truth = upstream.ask(&query, way.transport);
        Row { query, way: way.transport, truth, asked: Instant::now() }
    };
    let rows: Vec<Row> = table.chain([chaos]).map(ask).collect();

    let mut wrong = Vec::new();
    for time in ["first", "second"] {
        for row in &rows {
            let reply = guest.ask(&row.query, way.transport);
            if let Err(why) = compare(row, &reply, time == "first") {
                let Query { name, kind, .. } = &row.query;
                let header = |m: &Message| format!("{:04x}/{}, {} bytes", m.flags, m.rcode, m.len);
                let (truth, reply) = (header(&row.truth), header(&reply));
                wrong.push(format!("{time} {name} {kind} ({truth} became {reply}): {why}"));
            }
        }
    }
    let count = wrong.len();
    assert!(wrong.is_empty(), "{way:?}: {count} are not as upstream\n{}", wrong.join("\n"));
}

/// Whether a reply is the nameserver's own.
fn compare(row: &Row, reply: &Message, first: bool) -> Result<(), String> {
    let truth = &row.truth;
    let same = |what: &str, same: bool| if same { Ok(()) } else { Err(format!("another {what}")) };
    same("rcode", reply.rcode == truth.rcode)?;
    same("question", reply.question == truth.question)?;
    same("set of flags", reply.flags == truth.flags)?;
    let dnssec = |message: &Message| message.edns.map(|(_, dnssec)| dnssec);
    same("OPT record", dnssec(reply) == dnssec(truth))?;
    let limit = row.query.edns.map_or(512, |(size, _)| size);
    same("size than asked for", row.way == Transport::Tcp || reply.len <= usize::from(limit))?;
    // What is left of an answer that did not fit is for nobody to use.
    if truth.truncated() {
        return Ok(());
    }
    let passed = row.asked.elapsed().as_secs() + 1;
    records("answer", &truth.answer, &reply.answer, passed)?;
    records("authority", &truth.authority, &reply.authority, passed)?;
    if first {
        records("additional section", &truth.additional, &reply.additional, passed)?;
    }
    Ok(())
}

/// The same records in the same order, none of them alive for longer, nor for less than the time
/// that passed would make it. The letter case of names may be that of this question or of another
/// one (RFC 4343).
fn records(what: &str, truth: &[Record], reply: &[Record], passed: u64) -> Result<(), String> {
    let timeless = |record: &Record| {
        let [name, data] = [&record.name, &record.data].map(|text| text.to_ascii_lowercase());
        Record { ttl: 0, name, data, ..record.clone() }
    };
    if truth.iter().map(timeless).ne(reply.iter().map(timeless)) {
        return Err(format!("another {what}: {reply:?} instead of {truth:?}"));
    }
    for (truth, reply) in truth.iter().zip(reply) {
        let least = u64::from(truth.ttl).saturating_sub(passed);
        if reply.ttl > truth.ttl || u64::from(reply.ttl) < least {
            return Err(format!("{what}: {} instead of {} seconds", reply.ttl, truth.ttl));
        }
    }
    Ok(())
}

#[test]
fn datagrams_of_512_bytes() {
    check(UDP);
}

#[test]
fn datagrams_of_512_bytes_with_edns() {
    check(Way { edns: Some((512, false)), ..UDP });
}

#[test]
fn datagrams_of_1232_bytes() {
    check(Way { edns: Some((1232, false)), ..UDP });
}

#[test]
fn datagrams_of_4096_bytes() {
    check(Way { edns: Some((4096, false)), ..UDP });
}

#[test]
fn datagrams_with_signatures() {
    check(Way { edns: Some((4096, true)), ..UDP });
}

#[test]
fn datagrams_with_signatures_in_little_space() {
    check(Way { edns: Some((1232, true)), flags: RECURSION | UNCHECKED, ..UDP });
}

#[test]
fn connections() {
    check(TCP);
}

#[test]
fn connections_with_signatures() {
    check(Way { edns: Some((1232, true)), ..TCP });
}

/// Referrals, and no more than the nameserver itself knows.
#[test]
fn without_recursion() {
    check(Way { edns: Some((1232, false)), flags: 0, ..UDP });
}
