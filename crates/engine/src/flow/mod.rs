//! Flows: a guest's TCP connections, UDP endpoints and pings, each tied to a socket of the host.

mod error;
mod owners;
mod peers;
pub(crate) mod ping;
pub(crate) mod slots;
pub(crate) mod tcp;
pub(crate) mod udp;

use std::net::SocketAddr;

use crate::config::Config;
use crate::io::{Io, Token};
use crate::net::Net;
use crate::snapshot::FlowInfo;
use crate::time::{Instant, earlier};

/// Who a token belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Tcp,
    Udp,
    Ping,
    Forward,
    Dns,
}

/// A flow's two ends as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
}

const INDEX_BITS: u32 = 32;
const GENERATION_BITS: u32 = 24;

impl Token {
    /// `index` into the origin's table, and a `generation` that tells its successive users apart.
    pub(crate) fn new(origin: Origin, index: u32, generation: u32) -> Self {
        let generation = u64::from(generation) & ((1 << GENERATION_BITS) - 1);
        let origin = origin as u64;
        Self(origin << (INDEX_BITS + GENERATION_BITS) | generation << INDEX_BITS | u64::from(index))
    }

    pub(crate) fn origin(self) -> Option<Origin> {
        match self.0 >> (INDEX_BITS + GENERATION_BITS) {
            0 => Some(Origin::Tcp),
            1 => Some(Origin::Udp),
            2 => Some(Origin::Ping),
            3 => Some(Origin::Forward),
            4 => Some(Origin::Dns),
            _ => None,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are meant")]
    pub(crate) fn index(self) -> u32 {
        self.0 as u32
    }
}

#[derive(Debug)]
pub(crate) struct Flows {
    pub(crate) tcp: tcp::Tcp,
    pub(crate) udp: udp::Udp,
    pub(crate) ping: ping::Ping,
}

impl Flows {
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        Self {
            tcp: tcp::Tcp::new(config, now),
            udp: udp::Udp::new(config, now),
            ping: ping::Ping::new(config, now),
        }
    }

    pub(crate) fn handle_timeout(&mut self, net: &mut Net, io: &mut Io<'_>) {
        self.tcp.handle_timeout(net, io);
        self.udp.handle_timeout(net, io);
        self.ping.handle_timeout(net, io);
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let datagrams = earlier(self.udp.next_timeout(), self.ping.next_timeout());
        earlier(self.tcp.next_timeout(), datagrams)
    }

    pub(crate) fn shutdown(&mut self, net: &mut Net, io: &mut Io<'_>) {
        self.tcp.shutdown(net, io);
        self.udp.shutdown(net, io);
        self.ping.shutdown(net, io);
    }

    pub(crate) fn snapshot(&self) -> Vec<FlowInfo> {
        let mut flows = self.tcp.snapshot();
        flows.extend(self.udp.snapshot());
        flows.extend(self.ping.snapshot());
        flows
    }
}
