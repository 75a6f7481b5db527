//! DNS over UDP at the gateway's addresses: a query goes to the host's name service as it is, and
//! the answer goes back as it is, from the address and port that were asked. What names mean is
//! the host's business; over TCP it is a flow's.
//!
//! Queries that wait for an answer are bounded for each port and in total, and given up after a
//! while: then the guest's resolver has given up too, or asked again.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use arrayvec::ArrayVec;
use slab::Slab;
use smoltcp::wire::IpProtocol;
use vmlan_wire::Mac;

use super::udp;
use crate::flow::Origin;
use crate::flow::udp::{Path, Replies};
use crate::io::{Io, PortId, Token};
use crate::net::{IpHeader, Net};
use crate::packet::{Packet, is_unicast};
use crate::stats::Drop;
use crate::time::Instant;
use crate::timer::TimerWheel;

pub(super) const PORT: u16 = 53;

const PENDING: usize = 8192;
const PENDING_PER_PORT: u16 = 2048;
const PATIENCE: Duration = Duration::from_secs(15);

/// Answers handed on at once.
const RUN: usize = 32;

const HEADER: usize = 12;
/// QR, in the third byte of the header: this is an answer.
const ANSWER: u8 = 0x80;

#[derive(Debug)]
pub(super) struct Dns {
    pending: Slab<Pending>,
    per_port: Vec<u16>,
    generation: u32,
    timers: TimerWheel,
    expired: Vec<u32>,
    replies: Replies,
}

/// Where an answer has to go.
#[derive(Debug)]
struct Pending {
    token: Token,
    port: PortId,
    mac: Mac,
    guest: SocketAddr,
    /// The address that was asked.
    server: IpAddr,
    tos: u8,
}

impl Dns {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pending: Slab::new(),
            per_port: Vec::new(),
            generation: 0,
            timers: TimerWheel::new(now),
            expired: Vec::new(),
            replies: Replies::default(),
        }
    }

    /// Passes a query on.
    pub(super) fn query(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), Drop> {
        let udp = udp::parse(packet)?;
        let message = udp.payload();
        if message.len() < HEADER || message.get(2).is_none_or(|b| b & ANSWER != 0) {
            return Err(Drop::Malformed);
        }
        if !is_unicast(packet.src) {
            return Err(Drop::Source);
        }
        let token = self.remember(packet, udp.src_port(), io.now).ok_or(Drop::Limit)?;
        net.stats.dns_queries += 1;
        io.host.dns_query(token, packet.port, message);
        Ok(())
    }

    /// Gives guests their answers. One that nobody waits for is dropped.
    pub(super) fn answer<'a>(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        answers: impl IntoIterator<Item = (Token, &'a [u8])>,
    ) {
        let mut run: ArrayVec<(Path, &[u8]), RUN> = ArrayVec::new();
        for (token, message) in answers {
            let Some(pending) = self.take(token, net) else {
                net.stats.drop(Drop::NoFlow);
                continue;
            };
            let Some(header) = udp::header(PORT, pending.guest.port(), message) else {
                net.stats.drop(Drop::TooBig);
                continue;
            };
            if pending.tos != 0 {
                let mut ip = IpHeader::new(pending.server, pending.guest.ip(), IpProtocol::Udp);
                ip.tos = pending.tos;
                net.send_ip(io, pending.mac, &ip, &header, message);
                continue;
            }
            if run.is_full() {
                self.replies.send(net, io.links, run.drain(..));
            }
            let from = SocketAddr::new(pending.server, PORT);
            run.push((Path { from, guest: pending.guest, mac: pending.mac }, message));
        }
        self.replies.send(net, io.links, run.drain(..));
    }

    /// Who waits for an answer, if he is still there: one to a guest that has left must not be
    /// flooded to the others.
    fn take(&mut self, token: Token, net: &Net) -> Option<Pending> {
        let slot = token.index() as usize;
        self.pending.get(slot).filter(|pending| pending.token == token)?;
        self.forget(slot).filter(|pending| net.port_of(pending.mac).is_some())
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, net: &mut Net) {
        let mut expired = std::mem::take(&mut self.expired);
        self.timers.expired(now, &mut expired);
        for slot in expired.drain(..) {
            if self.forget(slot as usize).is_some() {
                net.stats.drop(Drop::Expired);
            }
        }
        self.expired = expired;
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    fn remember(&mut self, packet: &Packet<'_>, from: u16, now: Instant) -> Option<Token> {
        let port = usize::from(packet.port.0);
        if self.per_port.len() <= port {
            self.per_port.resize(port + 1, 0);
        }
        let held = self.per_port.get_mut(port)?;
        if *held >= PENDING_PER_PORT || self.pending.len() >= PENDING {
            return None;
        }
        *held += 1;
        if self.pending.is_empty() {
            // Nobody turned the wheel while nothing was on it.
            self.timers.expired(now, &mut self.expired);
        }
        let slot = u32::try_from(self.pending.vacant_key()).ok()?;
        self.generation = self.generation.wrapping_add(1);
        let token = Token::new(Origin::Dns, slot, self.generation);
        self.pending.insert(Pending {
            token,
            port: packet.port,
            mac: packet.src_mac,
            guest: SocketAddr::new(packet.src, from),
            server: packet.dst,
            tos: packet.tos,
        });
        self.timers.set(slot, now + PATIENCE);
        Some(token)
    }

    fn forget(&mut self, slot: usize) -> Option<Pending> {
        let pending = self.pending.try_remove(slot)?;
        self.timers.cancel(u32::try_from(slot).unwrap_or(u32::MAX));
        if let Some(held) = self.per_port.get_mut(usize::from(pending.port.0)) {
            *held = held.saturating_sub(1);
        }
        Some(pending)
    }
}
