//! What a client and a proxy say to each other before the client's stream begins: SOCKS5 (RFC 1928,
//! without authentication) and HTTP CONNECT (RFC 9110 section 9.3.6), told apart by the first
//! byte. Bytes in, bytes out: no I/O, no clock, nothing that grows beyond [`MAX_HEAD`] and one
//! read.
//!
//! Where a target leads and who may go there is the caller's business.
#![forbid(unsafe_code)]

mod http;
mod socks5;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

pub use socks5::{Datagram, datagram, datagram_header};

/// Most bytes that a client may say before it has asked for something.
pub const MAX_HEAD: usize = 8 * 1024;

/// Where a client wants to go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    Ip(IpAddr),
    /// A name to be resolved where the proxy is: printable ASCII, not empty.
    Name(String),
}

/// An address as a client writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub host: Host,
    pub port: u16,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A stream.
    Connect(Target),
    /// A relay for datagrams, for as long as the stream is open. The target is where the client
    /// will send from, as far as it knows.
    Associate(Target),
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there; for a relay of datagrams, at this address.
    Done(SocketAddr),
    /// Nobody may go there by this proxy.
    NotAllowed,
    /// There is no such name.
    NoSuchName,
    NetUnreachable,
    HostUnreachable,
    Refused,
    TimedOut,
    /// The proxy itself cannot.
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done(_) => "done",
            Self::NotAllowed => "only guests of the network are reached here",
            Self::NoSuchName => "the network has no such name",
            Self::NetUnreachable | Self::HostUnreachable => "nobody has the address",
            Self::Refused => "the guest has refused the connection",
            Self::TimedOut => "the guest has not answered in time",
            Self::Failed => "there is no room for more",
        })
    }
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read more.
    Wait,
    /// Send this and go on.
    Send(Vec<u8>),
    /// Do this, and send its outcome as [`Handshake::answer`] has it.
    Do(Request),
    /// Send this and close.
    Refuse(Vec<u8>),
}

/// A client that has not said everything yet.
#[derive(Debug, Default)]
pub struct Handshake {
    input: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    New,
    /// SOCKS5, and the method is settled.
    Greeted,
    /// A request has come, by SOCKS5 or HTTP.
    Asked(Protocol),
    /// Nothing more is read.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Socks5,
    Http,
}

impl Handshake {
    /// Adds what the client has said.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.state != State::Over {
            self.input.extend_from_slice(bytes);
        }
    }

    /// What follows from it. To be called until it is to wait, has something to do or refuses.
    pub fn step(&mut self) -> Step {
        let parsed = match (self.state, self.input.first()) {
            (State::Asked(_) | State::Over, _) | (_, None) => return Step::Wait,
            (State::New, Some(&socks5::VERSION)) => socks5::greeting(&self.input),
            (State::New, Some(_)) => http::request(&self.input),
            (State::Greeted, Some(_)) => socks5::request(&self.input),
        };
        match parsed {
            None if self.input.len() > MAX_HEAD => self.refuse(Vec::new()),
            None => Step::Wait,
            Some((Parsed::Refused(answer), _)) => self.refuse(answer),
            Some((Parsed::Greeting(answer), len)) => {
                self.consume(len);
                self.state = State::Greeted;
                Step::Send(answer)
            }
            Some((Parsed::Request(request), len)) => {
                self.consume(len);
                let socks = self.state == State::Greeted;
                self.state = State::Asked(if socks { Protocol::Socks5 } else { Protocol::Http });
                Step::Do(request)
            }
        }
    }

    /// What to tell the client; without [`Outcome::Done`], the end follows.
    pub fn answer(&self, outcome: Outcome) -> Vec<u8> {
        match self.state {
            State::Asked(Protocol::Http) => http::answer(outcome),
            _ => socks5::answer(outcome),
        }
    }

    /// What the client has said beyond its request: the start of its stream.
    pub fn into_rest(self) -> Vec<u8> {
        self.input
    }

    fn consume(&mut self, len: usize) {
        self.input.drain(..len.min(self.input.len()));
    }

    fn refuse(&mut self, answer: Vec<u8>) -> Step {
        self.state = State::Over;
        self.input = Vec::new();
        Step::Refuse(answer)
    }
}

/// The start of the input understood, with its length beside it.
enum Parsed {
    Greeting(Vec<u8>),
    Request(Request),
    Refused(Vec<u8>),
}

impl Host {
    /// A name, or an address in letters, which most programs do not tell apart.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let plain = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        if let Some(v6) = plain {
            return v6.parse::<Ipv6Addr>().ok().map(|ip| Self::Ip(ip.into()));
        }
        if let Ok(ip) = text.parse() {
            return Some(Self::Ip(ip));
        }
        let sound = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        sound.then(|| Self::Name(text.to_owned()))
    }
}
