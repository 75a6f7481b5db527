//! UDP forwards: datagrams from clients on the host's network to a guest, and the guest's answers
//! out of the socket that the clients know.

use std::net::{IpAddr, SocketAddr};

use arrayvec::ArrayVec;
use smoltcp::wire::IpProtocol;

use super::clients::Client;
use super::flow::Reading;
use super::gather::{self, Destination, Owner};
use super::held::Keeping;
use super::reply::Path;
use super::{BUDGET, HEADER, Udp, header};
use crate::flow::error::{HostError, Quote};
use crate::forward::kept_source;
use crate::gateway;
use crate::io::{Datagram, Drained, Io, PortId, Readiness, SockId};
use crate::net::Net;
use crate::packet::{Packet, Place};
use crate::stats::Drop;

/// Datagrams turned into frames at once.
const RUN: usize = 32;

/// A socket of the host that leads to a guest.
#[derive(Debug)]
pub(super) struct Inbound {
    sock: SockId,
    guest: SocketAddr,
    keep_source: bool,
    reading: Reading,
}

impl Udp {
    /// Adds a forward under the number by which [`Udp::forward_ready`] will name it.
    pub(crate) fn add_forward(
        &mut self,
        forward: u32,
        sock: SockId,
        guest: SocketAddr,
        keep_source: bool,
    ) {
        let inbound = Inbound { sock, guest, keep_source, reading: Reading::Idle };
        self.inbound.insert(forward, inbound);
    }

    /// Forgets a forward and its clients. The socket is the caller's to close.
    pub(crate) fn remove_forward(&mut self, forward: u32) {
        self.inbound.remove(&forward);
        self.recent = None;
        self.clients.remove_forward(forward);
    }

    /// Something happened to a forward's socket.
    pub(crate) fn forward_ready(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        forward: u32,
        ready: Readiness,
    ) {
        if ready.error {
            self.forward_errors(net, io, forward);
        }
        let idle = self.inbound.get(&forward).is_some_and(|i| i.reading == Reading::Idle);
        if idle && (ready.readable || ready.error) {
            self.forward_receive(net, io, forward);
        }
    }

    /// A guest's address has become known: what was kept for it goes out.
    pub(crate) fn guest_found(&mut self, net: &mut Net, io: &mut Io<'_>, ip: IpAddr) {
        let kept = self.held.take(ip);
        let Some(neighbor) = net.neighbors.get(ip) else { return };
        let path = |from, guest| Path { from, guest, mac: neighbor.mac };
        let datagrams = kept.iter().map(|k| (path(k.from, k.guest), k.data.as_slice()));
        self.replies.send(net, io.links, datagrams);
    }

    /// A guest's answer to a client.
    pub(super) fn answer(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
        place: Place<'_>,
        client: &Client,
        len: usize,
    ) -> Result<(), Drop> {
        let payload = packet.payload.get(HEADER..HEADER + len).unwrap_or(&[]);
        if self.relayed.take(net, client.forward, client.guest, payload) {
            return Ok(());
        }
        let inbound = self.inbound.get(&client.forward).ok_or(Drop::NoFlow)?;
        let to = Destination {
            owner: Owner::Forward(client.forward),
            sock: inbound.sock,
            addr: client.addr,
            options: gather::options(packet, net.config.is_own(packet.dst)),
        };
        self.pass_on(net, io, packet, place, to, len);
        Ok(())
    }

    /// Goes on with the forwards that had more than one turn allows.
    pub(super) fn forwards_go_on(&mut self, net: &mut Net, io: &mut Io<'_>) {
        for forward in std::mem::take(&mut self.inbound_ready) {
            if let Some(inbound) = self.inbound.get_mut(&forward) {
                inbound.reading = Reading::Idle;
                self.forward_receive(net, io, forward);
            }
        }
    }

    /// A link has room again: the forwards that waited for it are next.
    pub(super) fn forwards_writable(&mut self, net: &Net, port: PortId) {
        for (forward, inbound) in &mut self.inbound {
            let there = || net.neighbors.get(inbound.guest.ip()).is_none_or(|n| n.port == port);
            if inbound.reading == Reading::Waiting && there() {
                inbound.reading = Reading::Ready;
                self.inbound_ready.push(*forward);
            }
        }
    }

    /// Tells the guest what became of an answer.
    pub(super) fn forward_errors(&mut self, net: &mut Net, io: &mut Io<'_>, forward: u32) {
        let Some(inbound) = self.inbound.get(&forward) else { return };
        for error in HostError::take(io.host, inbound.sock) {
            let Some(client) = self.clients.get(forward, error.to) else { continue };
            let Some(neighbor) = net.neighbors.get(client.guest.ip()) else { continue };
            let header = header(client.guest.port(), client.shown.port(), error.data.len());
            let (src, dst) = (client.guest.ip(), client.shown.ip());
            let quote = Quote { src, dst, protocol: IpProtocol::Udp };
            error.relay(net, io, neighbor.mac, &quote, &header);
        }
    }

    fn forward_receive(&mut self, net: &mut Net, io: &mut Io<'_>, forward: u32) {
        let Some(inbound) = self.inbound.get(&forward) else { return };
        let (sock, guest, keep) = (inbound.sock, inbound.guest, inbound.keep_source);
        let mac = net.neighbors.get(guest.ip()).map(|n| n.mac);
        let (links, now) = (&mut *io.links, io.now);
        let (mut room, mut ask) = (true, false);
        let drained = io.host.datagram_recv(sock, BUDGET, &mut |batch| {
            for run in batch.chunks(RUN) {
                let mut datagrams: ArrayVec<(SocketAddr, &Datagram<'_>), RUN> = ArrayVec::new();
                for datagram in run {
                    let addr = datagram.from;
                    let kept = kept_source(&net.config, keep, guest, addr);
                    match self.clients.asks(&net.config, forward, guest, addr, kept, now) {
                        Some(shown) => datagrams.push((shown, datagram)),
                        None => net.stats.drop(Drop::Limit),
                    }
                }
                let Some(mac) = mac else {
                    for (from, datagram) in datagrams {
                        match self.held.keep(from, guest, datagram.data, now) {
                            Keeping::First => ask = true,
                            Keeping::Next => {}
                            Keeping::Full => net.stats.drop(Drop::Limit),
                        }
                    }
                    continue;
                };
                let paths =
                    datagrams.iter().map(|(from, d)| (Path { from: *from, guest, mac }, d.data));
                room &= self.replies.send(net, links, paths);
            }
        });
        if ask {
            gateway::solicit(net, io, guest.ip());
        }
        let Some(inbound) = self.inbound.get_mut(&forward) else { return };
        match drained {
            Drained::Empty => {}
            Drained::More if room => {
                inbound.reading = Reading::Ready;
                self.inbound_ready.push(forward);
            }
            Drained::More => inbound.reading = Reading::Waiting,
        }
    }
}
