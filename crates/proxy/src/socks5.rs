//! SOCKS5 (RFC 1928): messages of a few bytes, and the header of relayed datagrams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{Host, Outcome, Parsed, Request, Target};

pub(crate) const VERSION: u8 = 5;

const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;

const CONNECT: u8 = 1;
const UDP_ASSOCIATE: u8 = 3;

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Replies (section 6) that no [`Outcome`] stands for.
const GENERAL_FAILURE: u8 = 1;
const NO_SUCH_COMMAND: u8 = 7;
const NO_SUCH_ADDRESS_TYPE: u8 = 8;

const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The methods that a client offers (section 3); `None` while they are not all there.
pub(crate) fn greeting(input: &[u8]) -> Option<(Parsed, usize)> {
    let count = usize::from(*input.get(1)?);
    let methods = input.get(2..2 + count)?;
    if methods.contains(&NO_AUTHENTICATION) {
        Some((Parsed::Greeting(vec![VERSION, NO_AUTHENTICATION]), 2 + count))
    } else {
        Some((Parsed::Refused(vec![VERSION, NO_METHOD]), 2 + count))
    }
}

/// What a client asks for (section 4); `None` while it is not all there.
pub(crate) fn request(input: &[u8]) -> Option<(Parsed, usize)> {
    let [version, command, _, kind, rest @ ..] = input else { return None };
    let refused = |reply| Some((Parsed::Refused(message(reply, NOWHERE)), input.len()));
    if *version != VERSION {
        return refused(GENERAL_FAILURE);
    }
    let read = match address(*kind, rest) {
        Address::Incomplete => return None,
        Address::Unknown => return refused(NO_SUCH_ADDRESS_TYPE),
        Address::Wrong => return refused(GENERAL_FAILURE),
        Address::Read(target, len) => (target, 4 + len),
    };
    let (target, len) = read;
    match *command {
        CONNECT => Some((Parsed::Request(Request::Connect(target)), len)),
        UDP_ASSOCIATE => Some((Parsed::Request(Request::Associate(target)), len)),
        _ => refused(NO_SUCH_COMMAND),
    }
}

/// The reply to a request (section 6).
pub(crate) fn answer(outcome: Outcome) -> Vec<u8> {
    let (reply, bound) = match outcome {
        Outcome::Done(bound) => (0, bound),
        Outcome::Failed => (GENERAL_FAILURE, NOWHERE),
        Outcome::NotAllowed => (2, NOWHERE),
        Outcome::NetUnreachable => (3, NOWHERE),
        Outcome::HostUnreachable | Outcome::NoSuchName => (4, NOWHERE),
        Outcome::Refused => (5, NOWHERE),
        // "TTL expired" is what proxies say of a time that is up.
        Outcome::TimedOut => (6, NOWHERE),
    };
    message(reply, bound)
}

/// A datagram between a client and its relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    pub target: Target,
    pub data: &'a [u8],
}

/// Reads a client's datagram (section 7). `None` for what is broken, and for fragments, which no
/// relay has to put together.
pub fn datagram(input: &[u8]) -> Option<Datagram<'_>> {
    let [0, 0, 0, kind, rest @ ..] = input else { return None };
    match address(*kind, rest) {
        Address::Read(target, len) => Some(Datagram { target, data: rest.get(len..)? }),
        Address::Incomplete | Address::Unknown | Address::Wrong => None,
    }
}

/// The header of a datagram for a client, from `from`.
pub fn datagram_header(from: SocketAddr) -> Vec<u8> {
    let mut out = vec![0, 0, 0];
    put_address(&mut out, from);
    out
}

enum Address {
    Incomplete,
    /// A type that is not known.
    Unknown,
    /// A name that is none.
    Wrong,
    /// With the bytes that it takes.
    Read(Target, usize),
}

/// An address of a type and its port (section 5).
fn address(kind: u8, rest: &[u8]) -> Address {
    let (host, at) = match kind {
        IPV4 => match rest.first_chunk::<4>() {
            Some(octets) => (Some(Host::Ip(Ipv4Addr::from(*octets).into())), 4),
            None => return Address::Incomplete,
        },
        IPV6 => match rest.first_chunk::<16>() {
            Some(octets) => (Some(Host::Ip(Ipv6Addr::from(*octets).into())), 16),
            None => return Address::Incomplete,
        },
        NAME => match rest.split_first() {
            Some((len, rest)) => match rest.get(..usize::from(*len)) {
                Some(name) => (Host::parse(name), 1 + name.len()),
                None => return Address::Incomplete,
            },
            None => return Address::Incomplete,
        },
        _ => return Address::Unknown,
    };
    let Some([high, low]) = rest.get(at..).and_then(<[u8]>::first_chunk) else {
        return Address::Incomplete;
    };
    match host {
        Some(host) => {
            Address::Read(Target { host, port: u16::from_be_bytes([*high, *low]) }, at + 2)
        }
        None => Address::Wrong,
    }
}

fn message(reply: u8, bound: SocketAddr) -> Vec<u8> {
    let mut out = vec![VERSION, reply, 0];
    put_address(&mut out, bound);
    out
}

fn put_address(out: &mut Vec<u8>, addr: SocketAddr) {
    match addr.ip() {
        IpAddr::V4(ip) => {
            out.push(IPV4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(IPV6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&addr.port().to_be_bytes());
}
