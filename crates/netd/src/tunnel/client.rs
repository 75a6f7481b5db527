//! One client of a tunnel: what it has said, where it is to be taken, and how far that has come.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant as SystemInstant;

use mio::event::Event;
use rustix::io::{Errno, retry_on_intr};
use vmlan_engine::io::Failure;
use vmlan_engine::{DialId, RelayId, Relayed};
use vmlan_proxy::{Handshake, Host, Outcome, Request, Step, Target};

use super::relay::Relay;
use super::{Cx, DEADLINE, PATIENCE};
use crate::core::Core;
use crate::token::Owner;

/// Addresses of a name that are called, one after the other.
const MAX_ADDRESSES: usize = 4;

const CHUNK: usize = 4096;

#[derive(Debug)]
pub(super) struct Client {
    stream: OwnedFd,
    manner: Manner,
    state: State,
    deadline: SystemInstant,
}

/// How a client is talked to.
#[derive(Debug)]
enum Manner {
    Proxy {
        handshake: Handshake,
        /// The client's address, and the one that it has called.
        peer: SocketAddr,
        local: IpAddr,
    },
    /// As gvisor-tap-vsock has it: `OK` and then the stream, which begins with `early`.
    Api { early: Vec<u8> },
}

#[derive(Debug)]
enum State {
    /// It has not said what it wants.
    Talking,
    /// It wants to go to a port of what a name stands for, which is being looked up.
    Resolving { port: u16 },
    /// A guest is being called; if it does not answer, so are the others, and the first one's
    /// reason is told.
    Dialing { dial: DialId, others: VecDeque<SocketAddr>, why: Option<Failure> },
    /// It has a relay for datagrams, until its stream ends.
    Relaying(Box<Relay>),
}

/// What follows for the table of clients.
#[derive(Debug)]
pub(super) enum Then {
    Wait,
    /// Ask for a name.
    Resolve(String),
    /// A dial's outcome will come.
    Dialing(DialId),
    /// The client's stream is the dial's.
    Attach(DialId),
    Close,
}

impl Client {
    pub(super) fn of_proxy(stream: OwnedFd, local: IpAddr, peer: SocketAddr) -> Self {
        Self::new(stream, Manner::Proxy { handshake: Handshake::default(), peer, local })
    }

    pub(super) fn of_api(stream: OwnedFd, early: Vec<u8>) -> Self {
        Self::new(stream, Manner::Api { early })
    }

    fn new(stream: OwnedFd, manner: Manner) -> Self {
        let deadline = SystemInstant::now() + DEADLINE;
        Self { stream, manner, state: State::Talking, deadline }
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub(super) fn deadline(&self) -> Option<SystemInstant> {
        (!self.has_relay()).then_some(self.deadline)
    }

    pub(super) fn has_relay(&self) -> bool {
        matches!(self.state, State::Relaying(_))
    }

    /// Its stream is ready.
    pub(super) fn go_on(&mut self, event: &Event, cx: &mut Cx<'_>) -> Then {
        match self.state {
            State::Talking => self.listen(cx),
            // What it says now is for the guest, and is read by the engine.
            State::Resolving { .. } | State::Dialing { .. } => {
                if event.is_error() || event.is_write_closed() { Then::Close } else { Then::Wait }
            }
            State::Relaying(_) => self.ignore(),
        }
    }

    /// Calls the first of some addresses that can be called.
    pub(super) fn call(&mut self, addresses: Vec<SocketAddr>, cx: &mut Cx<'_>) -> Then {
        self.deadline = SystemInstant::now() + PATIENCE;
        self.call_next(addresses.into(), None, cx)
    }

    /// A name has been looked up.
    pub(super) fn resolved(&mut self, name: &str, found: &[IpAddr], cx: &mut Cx<'_>) -> Then {
        match &mut self.state {
            State::Resolving { port, .. } => {
                let port = *port;
                if found.is_empty() {
                    return self.fail(Outcome::NoSuchName);
                }
                let guests = found.iter().filter(|ip| cx.core.is_guest(**ip));
                let addresses = guests.take(MAX_ADDRESSES).map(|ip| SocketAddr::new(*ip, port));
                self.call(addresses.collect(), cx)
            }
            State::Relaying(relay) => {
                relay.resolved(name, found, RelayId(cx.own), cx.core);
                Then::Wait
            }
            State::Talking | State::Dialing { .. } => Then::Wait,
        }
    }

    /// A guest has answered, or nobody has.
    pub(super) fn dialed(
        &mut self,
        id: DialId,
        outcome: Result<(), Failure>,
        cx: &mut Cx<'_>,
    ) -> Then {
        let State::Dialing { dial, others, why } = &mut self.state else { return Then::Wait };
        if *dial != id {
            return Then::Wait;
        }
        if let Err(failure) = outcome {
            let (mut others, why) = (std::mem::take(others), why.or(Some(failure)));
            if failure == Failure::TimedOut {
                // It has taken long enough.
                others.clear();
            }
            return self.call_next(others, why, cx);
        }
        let bound = SocketAddr::new(cx.core.engine.config().gateway.into(), 0);
        if self.tell(Outcome::Done(bound)) { Then::Attach(id) } else { Then::Close }
    }

    /// Takes a budget of datagrams. Names that have to be looked up come back, and whether there
    /// may be more.
    pub(super) fn receive(&mut self, own: u32, core: &mut Core) -> (Vec<String>, bool) {
        match &mut self.state {
            State::Relaying(relay) => relay.receive(RelayId(own), core),
            _ => (Vec::new(), false),
        }
    }

    pub(super) fn answer_datagram(&self, answer: &Relayed) {
        if let State::Relaying(relay) = &self.state {
            relay.answer(answer.guest, &answer.data);
        }
    }

    pub(super) fn time_is_up(&mut self) -> Then {
        match self.state {
            State::Talking => Then::Close,
            _ => self.fail(Outcome::TimedOut),
        }
    }

    /// Its stream, and what has been read from it.
    pub(super) fn into_stream(self) -> (OwnedFd, Vec<u8>) {
        let early = match self.manner {
            Manner::Proxy { handshake, .. } => handshake.into_rest(),
            Manner::Api { early } => early,
        };
        (self.stream, early)
    }

    /// Gives up what it has begun; returns a dial whose outcome will not come.
    pub(super) fn end(self, own: u32, core: &mut Core) -> Option<DialId> {
        match self.state {
            State::Dialing { dial, .. } => {
                core.hang_up(dial);
                Some(dial)
            }
            State::Relaying(_) => {
                core.engine.end_relay(RelayId(own));
                None
            }
            State::Talking | State::Resolving { .. } => None,
        }
    }

    /// Reads until it has said what it wants.
    fn listen(&mut self, cx: &mut Cx<'_>) -> Then {
        let mut chunk = [0; CHUNK];
        loop {
            let Manner::Proxy { handshake, .. } = &mut self.manner else { return Then::Wait };
            match retry_on_intr(|| rustix::io::read(&self.stream, &mut chunk)) {
                Ok(0) => return Then::Close,
                Ok(n) => handshake.push(chunk.get(..n).unwrap_or_default()),
                Err(Errno::AGAIN) => return Then::Wait,
                Err(_) => return Then::Close,
            }
            loop {
                let Manner::Proxy { handshake, .. } = &mut self.manner else { return Then::Wait };
                match handshake.step() {
                    Step::Wait => break,
                    Step::Send(message) if self.send(&message) => {}
                    Step::Send(_) => return Then::Close,
                    Step::Do(request) => return self.begin(request, cx),
                    Step::Refuse(message) => {
                        self.send(&message);
                        return Then::Close;
                    }
                }
            }
        }
    }

    fn begin(&mut self, request: Request, cx: &mut Cx<'_>) -> Then {
        self.deadline = SystemInstant::now() + PATIENCE;
        match request {
            Request::Connect(Target { host: Host::Ip(ip), port }) => {
                self.call(vec![SocketAddr::new(ip, port)], cx)
            }
            Request::Connect(Target { host: Host::Name(name), port }) => {
                self.state = State::Resolving { port };
                Then::Resolve(name)
            }
            Request::Associate(target) => self.associate(target.port, cx),
        }
    }

    /// Opens a relay for datagrams, from a port of the client's if it has said which.
    fn associate(&mut self, port: u16, cx: &mut Cx<'_>) -> Then {
        let Manner::Proxy { peer, local, .. } = &self.manner else { return Then::Close };
        let token = Owner::TunnelRelay(cx.own).token();
        match Relay::open(cx.registry, token, *local, (peer.ip(), port)) {
            Ok((relay, bound)) if cx.room => {
                self.state = State::Relaying(Box::new(relay));
                if self.tell(Outcome::Done(bound)) { Then::Wait } else { Then::Close }
            }
            _ => self.fail(Outcome::Failed),
        }
    }

    fn call_next(
        &mut self,
        mut others: VecDeque<SocketAddr>,
        mut why: Option<Failure>,
        cx: &mut Cx<'_>,
    ) -> Then {
        while let Some(guest) = others.pop_front() {
            match cx.core.dial(guest) {
                Ok(dial) => {
                    self.state = State::Dialing { dial, others, why };
                    return Then::Dialing(dial);
                }
                Err(failure) => why = why.or(Some(failure)),
            }
        }
        // Whoever has addresses, and none of a guest's, is not to be reached.
        self.fail(outcome(why.unwrap_or(Failure::Prohibited)))
    }

    /// Reads what nobody wants, until the stream ends.
    fn ignore(&mut self) -> Then {
        let mut chunk = [0; CHUNK];
        for _ in 0..16 {
            match retry_on_intr(|| rustix::io::read(&self.stream, &mut chunk)) {
                Ok(0) => return Then::Close,
                Ok(_) => {}
                Err(Errno::AGAIN) => return Then::Wait,
                Err(_) => return Then::Close,
            }
        }
        // Nothing is to be said here, and so much of it is not a mistake.
        Then::Close
    }

    fn fail(&mut self, outcome: Outcome) -> Then {
        self.tell(outcome);
        Then::Close
    }

    fn tell(&self, outcome: Outcome) -> bool {
        match &self.manner {
            Manner::Proxy { handshake, .. } => self.send(&handshake.answer(outcome)),
            Manner::Api { .. } => match outcome {
                Outcome::Done(_) => self.send(b"OK"),
                _ => {
                    let text = outcome.to_string();
                    self.send(&vmlan_api::Response::error(502, &text).into_bytes())
                }
            },
        }
    }

    /// A few bytes, for which a socket without room has waited too long already.
    fn send(&self, message: &[u8]) -> bool {
        retry_on_intr(|| rustix::io::write(&self.stream, message)) == Ok(message.len())
    }
}

fn outcome(failure: Failure) -> Outcome {
    match failure {
        Failure::Refused | Failure::Reset => Outcome::Refused,
        Failure::NetUnreachable => Outcome::NetUnreachable,
        Failure::HostUnreachable => Outcome::HostUnreachable,
        Failure::TimedOut => Outcome::TimedOut,
        Failure::Prohibited => Outcome::NotAllowed,
        Failure::TooBig | Failure::Exhausted | Failure::Unsupported | Failure::Other => {
            Outcome::Failed
        }
    }
}
