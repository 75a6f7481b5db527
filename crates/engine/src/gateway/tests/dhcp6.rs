use std::net::Ipv6Addr;
use std::time::Duration;

use vmlan_wire::Mac;

use crate::io::PortId;
use crate::stats::Drop;
use crate::testing::*;

const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION: u8 = 11;

const SERVER_ID: [u8; 10] = [0, 3, 0, 1, 0x52, 0x55, 192, 168, 5, 2];

fn link_local(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x100, u16::from(n))
}

fn address(n: u64) -> Ipv6Addr {
    config().ipv6.nth(n)
}

fn option(code: u16, data: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

fn client_id(n: u8) -> Vec<u8> {
    option(1, &[0, 4, 9, 9, n])
}

fn server_id() -> Vec<u8> {
    option(2, &SERVER_ID)
}

fn ia(id: u32, wanted: Option<Ipv6Addr>) -> Vec<u8> {
    let inner = wanted.map_or(Vec::new(), |a| option(5, &[&a.octets()[..], &[0; 8]].concat()));
    option(3, &[&id.to_be_bytes()[..], &[0; 8], &inner].concat())
}

fn frame(n: u8, kind: u8, options: &[Vec<u8>]) -> Vec<u8> {
    let body = [&[kind, 0xab, 0xcd, n][..], &options.concat()].concat();
    let all: Ipv6Addr = "ff02::1:2".parse().unwrap();
    let packet = ip(link_local(n).into(), all.into(), 17, 1, &udp(546, 547, &body));
    to_mac(Mac([0x33, 0x33, 0, 1, 0, 2]), n, &packet)
}

#[derive(Debug)]
struct Reply {
    kind: u8,
    options: Vec<(u16, Vec<u8>)>,
}

fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let len = usize::from(be16(bytes, 2));
        found.push((be16(bytes, 0), bytes[4..4 + len].to_vec()));
        bytes = &bytes[4 + len..];
    }
    found
}

impl Reply {
    fn new(n: u8, frame: &[u8]) -> Self {
        let parsed = Parsed::new(frame);
        assert_eq!((parsed.dst_mac, parsed.dst), (mac(n), link_local(n).into()));
        assert_eq!(parsed.src, config().link_local());
        assert_eq!([be16(&parsed.payload, 0), be16(&parsed.payload, 2)], [547, 546]);
        assert_eq!(parsed.payload[9..12], [0xab, 0xcd, n]);
        let reply = Self { kind: parsed.payload[8], options: options(&parsed.payload[12..]) };
        assert_eq!(reply.option(2), Some(&SERVER_ID[..]));
        reply
    }

    fn option(&self, code: u16) -> Option<&[u8]> {
        self.options.iter().find(|o| o.0 == code).map(|o| &o.1[..])
    }

    /// Address, preferred and valid lifetime of an association; or its status.
    fn ia(&self, index: usize) -> Result<(Ipv6Addr, u32, u32), u16> {
        let ia = &self.options.iter().filter(|o| o.0 == 3).nth(index).unwrap().1;
        let (code, inner) = options(&ia[12..]).remove(0);
        if code == 13 {
            return Err(be16(&inner, 0));
        }
        assert_eq!(code, 5);
        let word = |at: usize| u32::from_be_bytes(inner[at..at + 4].try_into().unwrap());
        let octets: [u8; 16] = inner[..16].try_into().unwrap();
        Ok((octets.into(), word(16), word(20)))
    }

    fn status(&self) -> Option<u16> {
        self.option(13).map(|s| be16(s, 0))
    }
}

fn ask(world: &mut World, port: PortId, n: u8, kind: u8, options: &[Vec<u8>]) -> Reply {
    let sent = world.ask(port, &frame(n, kind, options));
    assert_eq!(sent.len(), 1, "{sent:02x?}");
    Reply::new(n, &sent[0])
}

fn join(world: &mut World, port: PortId, n: u8) -> Ipv6Addr {
    let advertise = ask(world, port, n, SOLICIT, &[client_id(n), ia(1, None)]);
    assert_eq!(advertise.kind, ADVERTISE);
    let offered = advertise.ia(0).unwrap().0;
    let request = [client_id(n), server_id(), ia(1, Some(offered))];
    let reply = ask(world, port, n, REQUEST, &request);
    assert_eq!((reply.kind, reply.ia(0).unwrap().0), (REPLY, offered));
    offered
}

fn neighbor(world: &World, ip: Ipv6Addr) -> Option<(Mac, bool)> {
    world.engine.net.neighbors.get(ip.into()).map(|n| (n.mac, n.leased))
}

#[test]
fn four_messages_and_an_address() {
    let mut config = config();
    config.search = vec!["corp.example".to_owned(), "x.corp.example".to_owned()];
    let mut world = World::with(config);
    let port = world.attach();
    let advertise = ask(&mut world, port, 1, SOLICIT, &[client_id(1), ia(77, None)]);
    assert_eq!(advertise.kind, ADVERTISE);
    assert_eq!(advertise.option(1), Some(&[0, 4, 9, 9, 1][..]));
    assert_eq!(advertise.option(7), Some(&[255][..]));
    assert_eq!(advertise.ia(0), Ok((address(15), 54_000, 86_400)));
    assert_eq!(neighbor(&world, address(15)), None);
    let request = [client_id(1), server_id(), ia(77, Some(address(15)))];
    let reply = ask(&mut world, port, 1, REQUEST, &request);
    assert_eq!((reply.kind, reply.ia(0)), (REPLY, Ok((address(15), 54_000, 86_400))));
    assert_eq!(neighbor(&world, address(15)), Some((mac(1), true)));
    for message in [&advertise, &reply] {
        assert_eq!(
            message.option(3).unwrap()[..12],
            [0, 0, 0, 77, 0, 0, 0xa8, 0xc0, 0, 1, 0x0e, 0]
        );
        assert_eq!(message.option(23), Some(&address(3).octets()[..]));
        // Not compressed: RFC 8415 section 10.
        let names = b"\x04corp\x07example\0\x01x\x04corp\x07example\0";
        assert_eq!(message.option(24), Some(&names[..]));
    }
}

#[test]
fn rapid_commit_needs_two() {
    let mut world = World::new();
    let port = world.attach();
    let solicit = [client_id(1), option(14, &[]), ia(1, None)];
    let reply = ask(&mut world, port, 1, SOLICIT, &solicit);
    assert_eq!((reply.kind, reply.option(14)), (REPLY, Some(&[][..])));
    assert_eq!(reply.ia(0).unwrap().0, address(15));
    assert_eq!(neighbor(&world, address(15)), Some((mac(1), true)));
}

#[test]
fn the_number_is_the_one_of_the_ipv4_address_where_there_is_one() {
    let mut world = World::new();
    let port = world.attach();
    assert_eq!(join(&mut world, port, 1), address(15));
    // The second guest has 192.168.5.40.
    let mut dhcp = [&[1, 1, 6, 0, 1, 2, 3, 4][..], &[0; 20], &mac(2).0].concat();
    dhcp.resize(236, 0);
    dhcp.extend([99, 130, 83, 99, 53, 1, 3, 50, 4, 192, 168, 5, 40, 255]);
    let packet = ip(
        std::net::Ipv4Addr::UNSPECIFIED.into(),
        std::net::Ipv4Addr::BROADCAST.into(),
        17,
        64,
        &udp(68, 67, &dhcp),
    );
    assert_eq!(world.ask(port, &to_mac(BROADCAST, 2, &packet)).len(), 1);
    assert_eq!(join(&mut world, port, 2), address(40));
    assert_eq!(join(&mut world, port, 3), address(16));
    // A guest that asks for one gets it, if it is one of the pool's and free.
    for (n, wanted, given) in [(4, 99, 99), (5, 15, 17), (6, 1, 18), (7, 0x1_0000_0015, 19)] {
        let solicit = [client_id(n), ia(1, Some(address(wanted)))];
        assert_eq!(ask(&mut world, port, n, SOLICIT, &solicit).ia(0).unwrap().0, address(given));
    }
}

#[test]
fn renewal_rebinding_and_expiry() {
    let mut world = World::new();
    let port = world.attach();
    join(&mut world, port, 1);
    join(&mut world, port, 2);
    for _ in 0..3 {
        world.pass(Duration::from_secs(43_200));
        let renew = [client_id(1), server_id(), ia(1, Some(address(15)))];
        assert_eq!(
            ask(&mut world, port, 1, RENEW, &renew).ia(0),
            Ok((address(15), 54_000, 86_400))
        );
    }
    assert_eq!(neighbor(&world, address(16)), None);
    // What a restart of the server forgot, somebody else's, and another network's.
    let rebind =
        |world: &mut World, ip| ask(world, port, 3, REBIND, &[client_id(3), ia(1, Some(ip))]).ia(0);
    assert_eq!(rebind(&mut world, address(50)), Ok((address(50), 54_000, 86_400)));
    assert_eq!(rebind(&mut world, address(15)), Err(3));
    let foreign = "2001:db8::5".parse().unwrap();
    assert_eq!(rebind(&mut world, foreign), Ok((foreign, 0, 0)));
}

#[test]
fn confirmation_says_whether_this_is_the_link() {
    let mut world = World::new();
    let port = world.attach();
    let confirm = |world: &mut World, ip| {
        ask(world, port, 1, CONFIRM, &[client_id(1), ia(1, Some(ip))]).status()
    };
    assert_eq!(confirm(&mut world, address(15)), Some(0));
    assert_eq!(confirm(&mut world, "2001:db8::5".parse().unwrap()), Some(4));
    assert!(world.ask(port, &frame(1, CONFIRM, &[client_id(1), ia(1, None)])).is_empty());
}

#[test]
fn release_and_decline() {
    let mut world = World::new();
    let port = world.attach();
    join(&mut world, port, 1);
    let back = |world: &mut World, n, kind, ip| {
        ask(world, port, n, kind, &[client_id(n), server_id(), ia(1, Some(ip))])
    };
    // Somebody else's.
    let reply = back(&mut world, 2, RELEASE, address(15));
    assert_eq!((reply.ia(0), reply.status()), (Err(3), Some(0)));
    assert_eq!(back(&mut world, 2, DECLINE, address(15)).ia(0), Err(3));
    assert_eq!(neighbor(&world, address(15)), Some((mac(1), true)));

    let reply = back(&mut world, 1, RELEASE, address(15));
    assert_eq!((reply.status(), reply.option(3)), (Some(0), None));
    assert_eq!(neighbor(&world, address(15)), None);
    assert_eq!(join(&mut world, port, 1), address(15));
    assert_eq!(back(&mut world, 1, DECLINE, address(15)).status(), Some(0));
    assert_eq!(neighbor(&world, address(15)), None);
    assert_eq!(join(&mut world, port, 1), address(16));
}

#[test]
fn information_without_an_address() {
    let mut world = World::new();
    let port = world.attach();
    for options in [vec![], vec![client_id(1)], vec![client_id(1), server_id()]] {
        let reply = ask(&mut world, port, 1, INFORMATION, &options);
        assert_eq!(reply.kind, REPLY);
        assert_eq!(reply.option(23), Some(&address(3).octets()[..]));
        assert_eq!((reply.option(3), reply.option(24)), (None, None));
    }
}

#[test]
fn one_address_for_each_guest() {
    let mut world = World::new();
    let port = world.attach();
    let mut solicit = vec![client_id(1)];
    solicit.extend((0..20).map(|id| ia(id, None)));
    let advertise = ask(&mut world, port, 1, SOLICIT, &solicit);
    assert_eq!(advertise.ia(0).unwrap().0, address(15));
    assert_eq!((advertise.ia(1), advertise.ia(7)), (Err(2), Err(2)));
    assert_eq!(advertise.options.iter().filter(|o| o.0 == 3).count(), 8);
    // None at all: still an answer with the rest.
    assert_eq!(ask(&mut world, port, 1, SOLICIT, &[client_id(1)]).kind, ADVERTISE);
}

#[test]
fn messages_without_what_they_need_are_dropped() {
    let mut world = World::new();
    let port = world.attach();
    let other = option(2, &[0, 3, 0, 1, 1, 2, 3, 4, 5, 6]);
    let (c, s, i) = (client_id(1), server_id(), ia(1, Some(address(15))));
    let cases: Vec<(u8, Vec<Vec<u8>>)> = vec![
        (SOLICIT, vec![i.clone()]),
        (SOLICIT, vec![c.clone(), s.clone(), i.clone()]),
        (REQUEST, vec![c.clone(), i.clone()]),
        (REQUEST, vec![c.clone(), other.clone(), i.clone()]),
        (REQUEST, vec![s.clone(), i.clone()]),
        (RENEW, vec![c.clone(), i.clone()]),
        (REBIND, vec![c.clone(), s.clone(), i.clone()]),
        (CONFIRM, vec![c.clone(), s.clone(), i.clone()]),
        (RELEASE, vec![c.clone(), other.clone(), i.clone()]),
        (DECLINE, vec![c.clone(), i.clone()]),
        (INFORMATION, vec![c.clone(), other]),
        (INFORMATION, vec![c.clone(), i.clone()]),
        (ADVERTISE, vec![c.clone(), s.clone()]),
        (REPLY, vec![c.clone(), s.clone()]),
        (12, vec![c.clone()]),
        (0, vec![]),
        (200, vec![c.clone()]),
        // Lengths that lie: an option, an association, an address in it, identifiers.
        (SOLICIT, vec![c.clone(), vec![0, 3, 0, 99, 1]]),
        (SOLICIT, vec![c.clone(), vec![0, 3, 0]]),
        (SOLICIT, vec![c.clone(), option(3, &[0; 11])]),
        (SOLICIT, vec![c.clone(), option(3, &[&[0; 12][..], &option(5, &[0; 15])].concat())]),
        (SOLICIT, vec![c.clone(), option(3, &[&[0; 12][..], &[0, 5, 0xff, 0xff]].concat())]),
        (SOLICIT, vec![option(1, &[7; 131]), i.clone()]),
        (SOLICIT, vec![option(1, &[]), i]),
    ];
    let count = cases.len() as u64;
    for (kind, options) in cases {
        assert!(world.ask(port, &frame(1, kind, &options)).is_empty(), "{kind} {options:?}");
    }
    assert_eq!(world.dropped(Drop::Malformed), count);
    assert!(!world.engine.leases().iter().any(|l| l.leased));
}

#[test]
fn options_nested_without_end_are_not_followed() {
    let mut world = World::new();
    let port = world.attach();
    // As deep as a packet can be, in each option that holds options.
    for (code, head) in [(3, 12), (4, 4), (5, 24), (9, 34), (17, 4), (25, 12)] {
        let mut inner: Vec<u8> = Vec::new();
        let header = vec![0u8; head];
        while inner.len() < 60_000 - 4 * head {
            inner = option(code, &[&header[..], &inner].concat());
            if inner.len() > 1300 && code == 3 {
                break;
            }
        }
        let body = [&[SOLICIT, 1, 1, 1][..], &client_id(1), &inner].concat();
        let all: Ipv6Addr = "ff02::1:2".parse().unwrap();
        let packet = ip(link_local(1).into(), all.into(), 17, 1, &udp(546, 547, &body));
        world.ask(port, &to_mac(Mac([0x33, 0x33, 0, 1, 0, 2]), 1, &packet));
    }
    // A status code without a status, and a vendor class without a vendor.
    for code in [13, 16] {
        let solicit = [client_id(1), option(code, &[]), ia(1, None)];
        assert_eq!(ask(&mut world, port, 1, SOLICIT, &solicit).kind, ADVERTISE);
    }
}

#[test]
fn a_flood_of_solicitations_leaves_others_theirs() {
    let mut world = World::new();
    let (bad, good) = (world.attach(), world.attach());
    for n in 3..=255 {
        world.send(bad, &frame(n, SOLICIT, &[client_id(n), option(14, &[]), ia(1, None)]));
    }
    let taken = world.engine.leases().iter().filter(|l| l.leased).count();
    assert!(taken <= 120, "{taken}");
    join(&mut world, good, 1);
}
