//! Frames that no kernel would send, built byte by byte, and a guest that sends them.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{ChildStdin, ChildStdout, Stdio};

use crate::netns::Netns;
use crate::process::Process;

pub type Mac = [u8; 6];

pub const BROADCAST: Mac = [0xff; 6];
/// Where frames to ff02::1 go.
pub const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;

/// A process in a guest that sends whatever it is told from `tap0`.
#[derive(Debug)]
pub struct Sender {
    _process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

const SCRIPT: &str = "
import socket, sys
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
card.bind(('tap0', 0))
for line in sys.stdin:
    card.send(bytes.fromhex(line.strip()))
    print('sent', flush=True)
";

impl Sender {
    #[track_caller]
    pub fn new(guest: &Netns) -> Self {
        let mut command = guest.command("python3");
        command.args(["-u", "-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        let input = process.child().stdin.take().expect("stdin is a pipe");
        let output = BufReader::new(process.child().stdout.take().expect("stdout is a pipe"));
        Self { _process: process, input, output }
    }

    /// Sends a frame and returns when the guest's kernel has it.
    #[track_caller]
    pub fn send(&mut self, frame: &[u8]) {
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(self.input, "{hex}").expect("the sender is there");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the sender is there");
        assert_eq!(line, "sent\n");
    }
}

pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// "`sender` is at `card`", in a frame from that card. 1 asks, 2 answers.
pub fn arp(operation: u16, to: Mac, card: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [&[0, 1, 8, 0, 6, 4][..], &operation.to_be_bytes()].concat();
    let asked = if to == BROADCAST { [0; 6] } else { to };
    let body = [&head[..], &card, &sender.octets(), &asked, &target.octets()].concat();
    ethernet(to, card, 0x0806, &body)
}

pub fn udp(ports: (u16, u16), from: IpAddr, to: IpAddr, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).expect("a short datagram").to_be_bytes();
    let ports = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    let mut datagram = [&ports[..], &length, &[0, 0], data].concat();
    let sum = checksum(from, to, PROTOCOL_UDP, &datagram);
    datagram[6..8].copy_from_slice(&sum);
    packet(from, to, PROTOCOL_UDP, 64, &datagram)
}

/// A message of ICMPv6 with the hop limit of neighbour discovery.
pub fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let sum = checksum(from.into(), to.into(), PROTOCOL_ICMPV6, &message);
    message[2..4].copy_from_slice(&sum);
    packet(from.into(), to.into(), PROTOCOL_ICMPV6, 255, &message)
}

/// "`target` is at `card`", whatever was known before.
pub fn neighbor_advertisement(target: Ipv6Addr, card: Mac) -> Vec<u8> {
    [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), &[2, 1], &card].concat()
}

/// "Who has `target`? I am at `card`."
pub fn neighbor_solicitation(target: Ipv6Addr, card: Mac) -> Vec<u8> {
    [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[1, 1], &card].concat()
}

/// "I am a router" for half an hour, with a prefix of its own.
pub fn router_advertisement(card: Mac) -> Vec<u8> {
    let head = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let times = [0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0];
    let prefix = Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0);
    [&head[..], &[1, 1], &card, &[3, 4, 64, 0xc0], &times, &prefix.octets()].concat()
}

/// A packet in a frame of its family.
pub fn framed(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    ethernet(to, from, kind, packet)
}

fn packet(from: IpAddr, to: IpAddr, protocol: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short packet");
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = (length + 20).to_be_bytes();
            let start = [0x45, 0, total[0], total[1], 0, 9, 0, 0, hops, protocol, 0, 0];
            let mut header = [&start[..], &from.octets(), &to.octets()].concat();
            let sum = ones_complement(&header);
            header[10..12].copy_from_slice(&sum);
            [&header, payload].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = length.to_be_bytes();
            let start = [0x60, 0, 0, 0, length[0], length[1], protocol, hops];
            [&start[..], &from.octets(), &to.octets(), payload].concat()
        }
        _ => panic!("addresses of two families"),
    }
}

fn checksum(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> [u8; 2] {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u16::try_from(payload.len()).expect("a short packet").to_be_bytes();
    let pseudo = [&octets(from)[..], &octets(to), &length, &[0, protocol]].concat();
    ones_complement(&[&pseudo, payload].concat())
}

/// RFC 1071.
fn ones_complement(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|c| u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = words.map(u32::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    (!(sum as u16)).to_be_bytes()
}
