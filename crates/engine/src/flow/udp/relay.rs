//! Relays: datagrams to and from guests that the engine's owner carries itself, one by one, each to
//! whatever guest it names. Guests see them as datagrams of the gateway's.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use super::Udp;
use super::held::Keeping;
use super::reply::Path;
use crate::gateway;
use crate::io::{Failure, Io};
use crate::net::Net;
use crate::stats::Drop;

/// Set in the numbers that relays have among forwards.
const RELAY: u32 = 1 << 31;

/// Answers that wait to be taken, and their bytes.
const MAX_ANSWERS: usize = 1024;
const MAX_BYTES: usize = 4 << 20;

/// A relay's number, chosen by the engine's owner; below 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelayId(pub u32);

/// A guest's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relayed {
    pub relay: RelayId,
    pub guest: SocketAddr,
    pub data: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Answers {
    queue: VecDeque<Relayed>,
    bytes: usize,
}

impl Udp {
    /// Sends a datagram to a guest. `port` is the sender's on the host, which the guest sees as the
    /// gateway's if it is free there.
    pub(crate) fn relay(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        relay: RelayId,
        port: u16,
        guest: SocketAddr,
        data: &[u8],
    ) -> Result<(), Failure> {
        let gateway = match guest.ip() {
            IpAddr::V4(_) => IpAddr::V4(net.config.gateway),
            IpAddr::V6(_) => IpAddr::V6(net.config.own_v6()),
        };
        let kept = (port >= super::clients::FIRST_OWN_PORT).then(|| (gateway, port).into());
        let forward = relay.0 | RELAY;
        // One client for each guest endpoint, known by its address.
        let shown = self.clients.asks(&net.config, forward, guest, guest, kept, io.now);
        let Some(from) = shown else {
            net.stats.drop(Drop::Limit);
            return Err(Failure::Exhausted);
        };
        match net.neighbors.get(guest.ip()).map(|neighbor| neighbor.mac) {
            Some(mac) => {
                let path = Path { from, guest, mac };
                self.replies.send(net, io.links, std::iter::once((path, data)));
            }
            None => match self.held.keep(from, guest, data, io.now) {
                Keeping::First => gateway::solicit(net, io, guest.ip()),
                Keeping::Next => {}
                Keeping::Full => net.stats.drop(Drop::Limit),
            },
        }
        Ok(())
    }

    /// A guest's answer that has come since the last call.
    pub(crate) fn next_relayed(&mut self) -> Option<Relayed> {
        let answer = self.relayed.queue.pop_front()?;
        self.relayed.bytes = self.relayed.bytes.saturating_sub(answer.data.len());
        Some(answer)
    }

    /// Forgets a relay. What it has not taken is lost.
    pub(crate) fn end_relay(&mut self, relay: RelayId) {
        self.recent = None;
        self.clients.remove_forward(relay.0 | RELAY);
        self.relayed.queue.retain(|answer| answer.relay != relay);
        self.relayed.bytes = self.relayed.queue.iter().map(|answer| answer.data.len()).sum();
    }
}

impl Answers {
    /// Keeps a guest's answer for the relay that is among forwards as `forward`; false if it is
    /// none.
    pub(super) fn take(
        &mut self,
        net: &mut Net,
        forward: u32,
        guest: SocketAddr,
        data: &[u8],
    ) -> bool {
        if forward & RELAY == 0 {
            return false;
        }
        if self.queue.len() >= MAX_ANSWERS || self.bytes + data.len() > MAX_BYTES {
            net.stats.drop(Drop::Limit);
            return true;
        }
        self.bytes += data.len();
        let relay = RelayId(forward & !RELAY);
        self.queue.push_back(Relayed { relay, guest, data: data.to_vec() });
        true
    }
}
