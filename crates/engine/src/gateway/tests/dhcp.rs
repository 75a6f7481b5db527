use std::net::Ipv4Addr;
use std::time::Duration;

use vmlan_wire::Mac;

use crate::gateway::SavedLease;
use crate::io::PortId;
use crate::stats::Drop;
use crate::testing::*;

const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

/// A client's message, option by option.
struct Message {
    mac: Mac,
    kind: u8,
    ciaddr: Ipv4Addr,
    flags: u16,
    options: Vec<(u8, Vec<u8>)>,
}

fn message(n: u8, kind: u8) -> Message {
    Message { mac: mac(n), kind, ciaddr: NONE, flags: 0, options: Vec::new() }
}

impl Message {
    fn with(mut self, code: u8, data: &[u8]) -> Self {
        self.options.push((code, data.to_vec()));
        self
    }

    fn wants(self, ip: Ipv4Addr) -> Self {
        self.with(50, &ip.octets())
    }

    fn server(self, ip: Ipv4Addr) -> Self {
        self.with(54, &ip.octets())
    }

    fn client(mut self, ip: Ipv4Addr) -> Self {
        self.ciaddr = ip;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, self.mac.0[5], 0, 0];
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.ciaddr.octets());
        bytes.extend([0; 12]);
        bytes.extend(self.mac.0);
        bytes.resize(236, 0);
        bytes.extend([99, 130, 83, 99, 53, 1, self.kind]);
        for (code, data) in &self.options {
            bytes.extend([*code, data.len() as u8]);
            bytes.extend(data);
        }
        bytes.push(255);
        bytes
    }

    fn frame(&self) -> Vec<u8> {
        let dst = if self.ciaddr == NONE { Ipv4Addr::BROADCAST } else { GATEWAY };
        let to = if self.ciaddr == NONE { BROADCAST } else { GATEWAY_MAC };
        frame(self.mac, to, self.ciaddr, dst, &self.bytes())
    }
}

fn frame(from: Mac, to: Mac, src: Ipv4Addr, dst: Ipv4Addr, bytes: &[u8]) -> Vec<u8> {
    ethernet(to, from, 0x0800, &ip(src.into(), dst.into(), 17, 64, &udp(68, 67, bytes)))
}

/// A server's message taken apart.
#[derive(Debug)]
struct Reply {
    dst_mac: Mac,
    dst: Ipv4Addr,
    bytes: Vec<u8>,
}

impl Reply {
    fn new(frame: &[u8]) -> Self {
        let parsed = Parsed::new(frame);
        assert_eq!((parsed.protocol, parsed.src), (17, GATEWAY.into()));
        assert_eq!([be16(&parsed.payload, 0), be16(&parsed.payload, 2)], [67, 68]);
        let bytes = parsed.payload[8..].to_vec();
        assert_eq!(bytes[..4], [2, 1, 6, 0]);
        assert!(bytes.len() >= 300);
        let std::net::IpAddr::V4(dst) = parsed.dst else { panic!() };
        Self { dst_mac: parsed.dst_mac, dst, bytes }
    }

    fn option(&self, code: u8) -> Option<Vec<u8>> {
        let mut at = 240;
        let mut found: Option<Vec<u8>> = None;
        while self.bytes[at] != 255 {
            let len = usize::from(self.bytes[at + 1]);
            if self.bytes[at] == code {
                found.get_or_insert_default().extend(&self.bytes[at + 2..at + 2 + len]);
            }
            at += 2 + len;
        }
        found
    }

    fn kind(&self) -> u8 {
        self.option(53).unwrap()[0]
    }

    fn yiaddr(&self) -> Ipv4Addr {
        Ipv4Addr::from(<[u8; 4]>::try_from(&self.bytes[16..20]).unwrap())
    }
}

/// The one answer to a message.
fn ask(world: &mut World, port: PortId, message: &Message) -> Reply {
    let sent = world.ask(port, &message.frame());
    assert_eq!(sent.len(), 1, "{sent:02x?}");
    Reply::new(&sent[0])
}

fn silent(world: &mut World, port: PortId, message: &Message) {
    assert_eq!(world.ask(port, &message.frame()), Vec::<Vec<u8>>::new());
}

/// The way of a guest to its address.
fn join(world: &mut World, port: PortId, n: u8) -> Ipv4Addr {
    world.sent(port);
    world.send(port, &message(n, DISCOVER).frame());
    world.pass(Duration::from_millis(200));
    let offer = Reply::new(world.sent(port).last().unwrap());
    assert_eq!(offer.kind(), OFFER);
    let ip = offer.yiaddr();
    let ack = ask(world, port, &message(n, REQUEST).server(GATEWAY).wants(ip));
    assert_eq!((ack.kind(), ack.yiaddr()), (ACK, ip));
    ip
}

fn neighbor(world: &World, ip: Ipv4Addr) -> Option<(Mac, bool)> {
    world.engine.net.neighbors.get(ip.into()).map(|n| (n.mac, n.leased))
}

#[test]
fn the_first_guest_gets_15_at_once_with_all_that_it_needs() {
    let mut config = config();
    config.search = vec!["corp.example".to_owned()];
    let mut world = World::with(config);
    let port = world.attach();
    let offer = ask(&mut world, port, &message(1, DISCOVER).with(61, &[1, 2, 3]));
    assert_eq!((offer.kind(), offer.yiaddr()), (OFFER, guest(15)));
    assert_eq!((offer.dst_mac, offer.dst), (mac(1), guest(15)));
    assert_eq!(offer.bytes[4..8], [0xde, 0xad, 0xbe, 1]);
    assert_eq!(offer.bytes[28..34], mac(1).0);
    assert_eq!(neighbor(&world, guest(15)), None);
    let request = message(1, REQUEST).server(GATEWAY).wants(guest(15)).with(61, &[1, 2, 3]);
    let ack = ask(&mut world, port, &request);
    for reply in [&offer, &ack] {
        for (code, expected) in [
            (1, vec![255, 255, 255, 0]),
            (3, vec![192, 168, 5, 2]),
            (6, vec![192, 168, 5, 3]),
            (15, b"corp.example".to_vec()),
            (26, vec![0x05, 0xdc]),
            (28, vec![192, 168, 5, 255]),
            (51, 86_400u32.to_be_bytes().to_vec()),
            (54, vec![192, 168, 5, 2]),
            (58, 43_200u32.to_be_bytes().to_vec()),
            (59, 75_600u32.to_be_bytes().to_vec()),
            (61, vec![1, 2, 3]),
            (119, b"\x04corp\x07example\0".to_vec()),
        ] {
            assert_eq!(reply.option(code), Some(expected), "option {code}");
        }
    }
    assert_eq!((ack.kind(), ack.yiaddr()), (ACK, guest(15)));
    assert_eq!(neighbor(&world, guest(15)), Some((mac(1), true)));
}

#[test]
fn broadcast_is_answered_by_broadcast_to_the_client_alone() {
    let mut world = World::new();
    let port = world.attach();
    let mut discover = message(1, DISCOVER);
    discover.flags = 0x8000;
    let offer = ask(&mut world, port, &discover);
    assert_eq!((offer.dst_mac, offer.dst), (mac(1), Ipv4Addr::BROADCAST));
    assert_eq!(be16(&offer.bytes, 10), 0x8000);
    assert_eq!(offer.option(119), None);
    assert_eq!(offer.option(61), None);
}

#[test]
fn a_guest_comes_back_to_its_address_and_may_ask_for_one() {
    let mut world = World::new();
    let port = world.attach();
    assert_eq!(join(&mut world, port, 1), guest(15));
    assert_eq!(join(&mut world, port, 2), guest(16));
    assert_eq!(join(&mut world, port, 1), guest(15));
    let offer = ask(&mut world, port, &message(3, DISCOVER).wants(guest(77)));
    assert_eq!(offer.yiaddr(), guest(77));
    // What is taken, not in the pool, or not here is not given.
    for (n, wanted) in [(4, guest(15)), (5, guest(2)), (6, guest(10)), (7, guest(255))] {
        let offer = ask(&mut world, port, &message(n, DISCOVER).wants(wanted));
        assert_eq!(offer.yiaddr(), guest(13 + n), "{wanted}");
    }
    let offer = ask(&mut world, port, &message(8, DISCOVER).wants(Ipv4Addr::new(10, 0, 0, 9)));
    assert_eq!(offer.yiaddr(), guest(21));
}

#[test]
fn renewal_goes_on_and_expiry_frees() {
    let mut world = World::new();
    let port = world.attach();
    join(&mut world, port, 1);
    for _ in 0..3 {
        world.pass(Duration::from_secs(43_200));
        let ack = ask(&mut world, port, &message(1, REQUEST).client(guest(15)));
        assert_eq!((ack.kind(), ack.yiaddr()), (ACK, guest(15)));
        assert_eq!((ack.dst, ack.dst_mac), (guest(15), mac(1)));
        assert_eq!(ack.bytes[12..16], guest(15).octets());
    }
    world.pass(Duration::from_secs(86_401));
    assert_eq!(neighbor(&world, guest(15)), None);
    // Not needed by anybody else meanwhile, it is given again.
    assert_eq!(join(&mut world, port, 1), guest(15));
}

#[test]
fn a_release_frees_and_only_the_owner_s_does() {
    let mut world = World::new();
    let port = world.attach();
    join(&mut world, port, 1);
    join(&mut world, port, 2);
    let mut forged = message(2, RELEASE).client(guest(15)).server(GATEWAY);
    silent(&mut world, port, &forged);
    forged.ciaddr = guest(99);
    silent(&mut world, port, &forged);
    assert_eq!(world.dropped(Drop::Source), 2);
    assert_eq!(neighbor(&world, guest(15)), Some((mac(1), true)));
    silent(&mut world, port, &message(1, RELEASE).client(guest(15)).server(GATEWAY));
    assert_eq!(neighbor(&world, guest(15)), None);
    let ack = ask(&mut world, port, &message(3, REQUEST).wants(guest(15)));
    assert_eq!(ack.kind(), ACK);
}

#[test]
fn what_is_not_ours_to_give_gets_a_nak() {
    let mut world = World::new();
    let port = world.attach();
    join(&mut world, port, 1);
    join(&mut world, port, 2);
    let cases = [
        // After a restart, on another network; somebody else's; the gateway's; the wrong own one.
        message(3, REQUEST).wants(Ipv4Addr::new(10, 0, 0, 5)),
        message(3, REQUEST).wants(guest(15)),
        message(3, REQUEST).wants(GATEWAY),
        message(3, REQUEST).wants(guest(255)),
        message(1, REQUEST).wants(guest(40)),
        // Selecting an address that was never free.
        message(3, REQUEST).server(GATEWAY).wants(guest(16)),
    ];
    for case in cases {
        let nak = ask(&mut world, port, &case);
        assert_eq!((nak.kind(), nak.yiaddr()), (NAK, NONE));
        assert_eq!((nak.dst, nak.dst_mac), (Ipv4Addr::BROADCAST, case.mac));
        assert_eq!(nak.option(54), Some(GATEWAY.octets().to_vec()));
        assert_eq!((nak.option(51), nak.option(1)), (None, None));
    }
    assert_eq!(neighbor(&world, guest(15)), Some((mac(1), true)));
}

#[test]
fn a_lease_that_a_restart_forgot_is_confirmed_if_it_is_free() {
    let mut world = World::new();
    let port = world.attach();
    let reboot = ask(&mut world, port, &message(1, REQUEST).wants(guest(33)));
    assert_eq!((reboot.kind(), reboot.yiaddr()), (ACK, guest(33)));
    let renewal = ask(&mut world, port, &message(2, REQUEST).client(guest(34)));
    assert_eq!((renewal.kind(), renewal.yiaddr()), (ACK, guest(34)));
    // Unless somebody uses it.
    announce(&mut world, port, 9, guest(35));
    assert_eq!(ask(&mut world, port, &message(3, REQUEST).wants(guest(35))).kind(), NAK);
}

#[test]
fn an_offer_that_is_not_taken_is_free_again() {
    let mut world = World::new();
    let port = world.attach();
    assert_eq!(ask(&mut world, port, &message(1, DISCOVER)).yiaddr(), guest(15));
    assert_eq!(ask(&mut world, port, &message(1, DISCOVER)).yiaddr(), guest(15));
    assert_eq!(ask(&mut world, port, &message(2, DISCOVER)).yiaddr(), guest(16));
    // The first took another server's; the second never came back.
    silent(&mut world, port, &message(1, REQUEST).server(guest(200)).wants(guest(200)));
    let ack = ask(&mut world, port, &message(3, REQUEST).wants(guest(15)));
    assert_eq!(ack.kind(), ACK);
    world.pass(Duration::from_secs(61));
    assert_eq!(ask(&mut world, port, &message(4, REQUEST).wants(guest(16))).kind(), ACK);
}

#[test]
fn a_declined_address_rests() {
    let mut world = World::new();
    let port = world.attach();
    join(&mut world, port, 1);
    silent(&mut world, port, &message(2, DECLINE).server(GATEWAY).wants(guest(15)));
    assert_eq!(neighbor(&world, guest(15)), Some((mac(1), true)));
    silent(&mut world, port, &message(1, DECLINE).server(GATEWAY).wants(guest(15)));
    assert_eq!(neighbor(&world, guest(15)), None);
    assert_eq!(join(&mut world, port, 1), guest(16));
    assert_eq!(ask(&mut world, port, &message(2, REQUEST).wants(guest(15))).kind(), NAK);
    world.pass(Duration::from_secs(601));
    assert_eq!(ask(&mut world, port, &message(2, REQUEST).wants(guest(15))).kind(), ACK);
}

#[test]
fn information_without_an_address() {
    let mut world = World::new();
    let port = world.attach();
    let ack = ask(&mut world, port, &message(1, INFORM).client(guest(9)));
    assert_eq!((ack.kind(), ack.yiaddr(), ack.dst), (ACK, NONE, guest(9)));
    assert_eq!(ack.option(51), None);
    assert_eq!(ack.option(6), Some(DNS.octets().to_vec()));
    assert_eq!(neighbor(&world, guest(9)), Some((mac(1), false)));
}

#[test]
fn with_others_present_an_address_is_asked_for_before_it_is_offered() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    world.send(port, &message(1, DISCOVER).frame());
    let probe = arp(1, BROADCAST, (GATEWAY_MAC, NONE), (Mac([0; 6]), guest(15)));
    assert_eq!(world.one(port), probe);
    assert_eq!(world.sent(other)[1], probe);
    // A repetition while it waits changes nothing but the transaction.
    silent(&mut world, port, &message(1, DISCOVER));
    // Somebody has .15, and .16 is known to be in use.
    world.send(other, &arp(2, GATEWAY_MAC, (mac(9), guest(15)), (GATEWAY_MAC, NONE)));
    announce(&mut world, other, 10, guest(16));
    world.sent(port);
    world.pass(Duration::from_millis(150));
    let next = arp(1, BROADCAST, (GATEWAY_MAC, NONE), (Mac([0; 6]), guest(17)));
    assert_eq!(world.one(port), next);
    world.pass(Duration::from_millis(151));
    let offer = Reply::new(&world.one(port));
    assert_eq!((offer.kind(), offer.yiaddr()), (OFFER, guest(17)));
    assert_eq!(neighbor(&world, guest(15)), Some((mac(9), false)));
    // What a guest had before is offered without asking.
    join(&mut world, port, 1);
    assert_eq!(ask(&mut world, port, &message(1, DISCOVER)).yiaddr(), guest(17));
}

#[test]
fn a_guest_that_goes_while_its_address_is_asked_for_is_forgotten() {
    let mut world = World::new();
    let (port, other) = (world.attach(), world.attach());
    world.send(port, &message(1, DISCOVER).frame());
    world.io(|engine, io| engine.remove_port(port, io));
    world.sent(other);
    world.pass(Duration::from_secs(1));
    assert!(world.sent(other).is_empty());
}

#[test]
fn reservations_are_kept() {
    let mut config = config();
    config.reservations = vec![(mac(5), guest(15)), (mac(6), guest(9))];
    let mut world = World::with(config);
    let (port, other) = (world.attach(), world.attach());
    assert_eq!(join(&mut world, port, 1), guest(16));
    // Even from one who uses it without asking.
    announce(&mut world, other, 9, guest(15));
    assert_eq!(join(&mut world, port, 5), guest(15));
    assert_eq!(neighbor(&world, guest(15)), Some((mac(5), true)));
    assert_eq!(join(&mut world, port, 6), guest(9));
    assert_eq!(ask(&mut world, port, &message(1, REQUEST).wants(guest(9))).kind(), NAK);
}

#[test]
fn malformed_and_forged_messages_are_dropped() {
    let mut world = World::new();
    let port = world.attach();
    let good = message(1, DISCOVER).bytes();
    let send = |world: &mut World, bytes: &[u8]| {
        let sent = world.ask(port, &frame(mac(1), BROADCAST, NONE, Ipv4Addr::BROADCAST, bytes));
        sent.len()
    };
    let change = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    // A reply, no Ethernet address, address lengths up to the absurd, no cookie, no such message.
    let bad = [(0, 2), (1, 6), (2, 0), (2, 5), (2, 16), (2, 255), (238, 0), (242, 99), (242, 2)];
    for (at, value) in bad {
        assert_eq!(send(&mut world, &change(at, value)), 0, "byte {at}");
    }
    for cut in [0, 1, 28, 100, 239] {
        assert_eq!(send(&mut world, &good[..cut]), 0, "{cut} bytes");
    }
    // From another's address, and through a relay.
    assert_eq!(send(&mut world, &change(33, 9)), 0);
    assert_eq!(send(&mut world, &change(24, 10)), 0);
    assert_eq!(world.dropped(Drop::Spoofed), 2);
    // Options that run out: what was read before counts.
    for options in [&[53, 1, 1][..], &[53, 1, 1, 50], &[53, 1, 1, 50, 200, 1], &[53, 1, 1, 50, 0]] {
        assert_eq!(send(&mut world, &[&good[..240], options].concat()), 1);
    }
    assert_eq!(send(&mut world, &[&good[..240], &[53, 200, 1]].concat()), 0);
    assert_eq!(send(&mut world, &good[..240]), 0);
    // Options as long as a datagram can hold.
    let mut long = good[..243].to_vec();
    for _ in 0..4 {
        long.extend([61, 255]);
        long.extend([7; 255]);
    }
    assert_eq!(send(&mut world, &long), 1);
}

#[test]
fn long_search_lists_are_left_out_where_the_client_has_no_room() {
    let mut config = config();
    config.search = ('a'..='i').map(|c| c.to_string().repeat(50)).collect();
    let mut world = World::with(config);
    let port = world.attach();
    assert_eq!(ask(&mut world, port, &message(1, DISCOVER)).option(119), None);
    let roomy = message(1, DISCOVER).with(57, &1400u16.to_be_bytes());
    let offer = ask(&mut world, port, &roomy);
    assert!(offer.option(119).unwrap().len() > 255);
    assert_eq!(offer.option(15), None);
}

#[test]
fn a_flood_takes_half_the_pool_and_leaves_others_the_rest() {
    let mut world = World::new();
    let (bad, good) = (world.attach(), world.attach());
    for n in 0..=255u8 {
        for offset in 0..2u8 {
            let mut flood = message(n, DISCOVER);
            flood.mac.0[4] = 1 + offset;
            world.send(bad, &flood.frame());
            let mut take = message(n, REQUEST).wants(guest(n));
            take.mac.0[4] = 1 + offset;
            world.send(bad, &take.frame());
        }
        world.pass(Duration::from_millis(200));
    }
    let taken = world.engine.leases().iter().filter(|l| l.leased).count();
    assert!(taken <= 120, "{taken}");
    assert!(guest(15) < join(&mut world, good, 200));
}

#[test]
fn an_exhausted_pool_is_silence_and_a_departure_ends_it() {
    let mut config = config();
    config.first_guest = guest(251);
    let mut world = World::with(config);
    let ports: Vec<PortId> = (0..5).map(|_| world.attach()).collect();
    for (n, port) in ports.iter().enumerate().take(4) {
        assert_eq!(join(&mut world, *port, n as u8), guest(251 + n as u8));
    }
    silent(&mut world, ports[4], &message(9, DISCOVER));
    world.pass(Duration::from_secs(1));
    assert!(world.sent(ports[4]).is_empty());
    assert_eq!(world.dropped(Drop::Limit), 1);
    world.io(|engine, io| engine.remove_port(ports[2], io));
    assert_eq!(join(&mut world, ports[4], 9), guest(253));
    assert_eq!(neighbor(&world, guest(253)), Some((mac(9), true)));
}

#[test]
fn leases_outlive_the_daemon() {
    let mut world = World::new();
    let port = world.attach();
    let before = world.engine.lease_changes();
    for n in 1..=3 {
        join(&mut world, port, n);
    }
    assert_eq!(world.engine.lease_changes(), before + 3);
    silent(&mut world, port, &message(1, RELEASE).client(guest(15)).server(GATEWAY));
    world.pass(Duration::from_secs(100));
    let mut saved = world.engine.saved_leases();
    saved.sort_by_key(|l| l.ip);
    let list: Vec<_> = saved.iter().map(|l| (l.ip, l.mac)).collect();
    assert_eq!(list, [(guest(16).into(), mac(2)), (guest(17).into(), mac(3))]);

    let mut world = World::new();
    let port = world.attach();
    let now = world.now;
    for lease in saved {
        assert!(world.engine.restore_lease(lease, now), "{lease:?}");
    }
    let over = SavedLease { ip: guest(20).into(), mac: mac(4), until: now };
    assert!(!world.engine.restore_lease(over, now));
    for ip in [GATEWAY, guest(16), guest(255), Ipv4Addr::new(10, 0, 0, 1)] {
        let lease = SavedLease { ip: ip.into(), mac: mac(4), until: now + Duration::from_secs(9) };
        assert!(!world.engine.restore_lease(lease, now), "{ip}");
    }
    assert_eq!(ask(&mut world, port, &message(9, REQUEST).wants(guest(16))).kind(), NAK);
    let renewal = ask(&mut world, port, &message(2, REQUEST).client(guest(16)));
    assert_eq!((renewal.kind(), renewal.yiaddr()), (ACK, guest(16)));
    assert_eq!(join(&mut world, port, 3), guest(17));
    assert_eq!(join(&mut world, port, 9), guest(15));
}
