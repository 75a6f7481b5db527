//! DHCP, with a client that writes its messages option by option.

mod crowds;
mod leases;
mod messages;

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
