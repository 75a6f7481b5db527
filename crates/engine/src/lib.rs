//! vmlan's virtual network as one machine: a switch, a gateway that answers for itself, and flows
//! that carry guests' TCP, UDP and ICMP over sockets of the host. It does no I/O and has no clock:
//! frames, host events, commands and timeouts come in by [`Engine`]'s doors, and what it wants done
//! goes out by [`Host`] and [`Links`].
//!
//! The doors, in the order a loop uses them:
//! - *frames*: [`Engine::handle_frames`], [`Engine::handle_port_writable`]
//! - *host events*: [`Engine::handle_host`], [`Engine::handle_dns_answers`]
//! - *commands*: ports and forwards added and removed, [`Engine::dial`] and [`Engine::relay`] for
//!   whoever carries clients of the host to guests by itself, [`Engine::shutdown`]
//! - *time*: [`Engine::handle_timeout`], to be called at [`Engine::next_timeout`]
//!
//! Nothing reachable from a frame panics, blocks, or grows without bound.
#![forbid(unsafe_code)]

mod between;
pub mod config;
mod flow;
mod forward;
mod fragment;
mod gateway;
mod hash;
mod ingress;
pub mod io;
mod neighbor;
mod net;
mod packet;
mod policy;
pub mod snapshot;
pub mod stats;
mod switch;
#[cfg(test)]
mod testing;
pub mod time;
mod timer;

use std::net::{IpAddr, SocketAddr};

use vmlan_wire::FrameBatch;

pub use between::{PATIENCE, Waiting};
pub use config::Config;
pub use flow::tcp::DialId;
pub use flow::udp::{RelayId, Relayed};
pub use forward::{Forward, ForwardId, parse_forward, parse_listen, parse_publish};
pub use gateway::{PresentLease, SavedLease};
pub use io::{Failure, Host, Io, Links, PortId, Readiness, SockId, Token};
pub use stats::{Drop, Stats};
pub use switch::PortCaps;
pub use time::Instant;

use between::Run;
use flow::{Flows, Origin};
use forward::Forwards;
use fragment::Reassembler;
use gateway::Gateway;
use net::Net;
use packet::Place;
use time::earlier;

/// One virtual network.
#[derive(Debug)]
pub struct Engine {
    net: Net,
    gateway: Gateway,
    /// When the gateway has something to do: asked for in every pass of a loop, and seldom another.
    gateway_timeout: Option<Instant>,
    /// The gateway was given a frame of the batch at hand.
    gateway_asked: bool,
    flows: Flows,
    forwards: Forwards,
    fragments: Reassembler,
}

impl Engine {
    pub fn new(config: Config, now: Instant) -> Self {
        let seed = config.seed;
        Self {
            gateway: Gateway::new(&config, now),
            gateway_timeout: None,
            gateway_asked: false,
            flows: Flows::new(&config, now),
            forwards: Forwards::new(),
            fragments: Reassembler::new(seed),
            net: Net::new(config),
        }
    }

    /// Whether a guest's ping failed because the host gives no right to ping sockets (on Linux,
    /// `net.ipv4.ping_group_range`).
    pub fn ping_unsupported(&self) -> bool {
        self.flows.ping.unsupported()
    }

    pub fn config(&self) -> &Config {
        &self.net.config
    }

    pub fn stats(&self) -> &Stats {
        &self.net.stats
    }

    /// Tells the addresses of the host's interfaces, whenever they change: with its loopback closed
    /// to guests these are closed too.
    pub fn set_host_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.net.config.host_addresses = addresses;
        self.net.neighbors.changes = self.net.neighbors.changes.wrapping_add(1);
    }

    /// Tells guests of other search domains: those that ask from now on, and by an advertisement
    /// the others.
    pub fn set_search(&mut self, search: Vec<String>, now: Instant) {
        let before = std::mem::replace(&mut self.net.config.search, search);
        self.gateway.set_search(&self.net.config, &before, now);
        self.gateway_worked();
    }

    /// Attaches a guest's link. `None` when all 65,536 ports are taken.
    pub fn add_port(&mut self, caps: PortCaps) -> Option<PortId> {
        let port = self.net.switch.add_port(caps);
        self.gateway_worked();
        port
    }

    /// The link behind a port can do more, or less, than before.
    pub fn set_port_caps(&mut self, port: PortId, caps: PortCaps) {
        self.net.switch.set_caps(port, caps);
    }

    /// The port leads to a network beside this one: many addresses may be behind it, and those of
    /// the router there are nobody else's.
    pub fn set_uplink(&mut self, port: PortId, now: Instant) {
        self.net.switch.set_uplink(port);
        let Some(router) = self.net.config.router else { return };
        self.net.switch.give(router.mac, port, now);
        for ip in [IpAddr::V4(router.ipv4), IpAddr::V6(router.ipv6)] {
            self.net.lease(ip, router.mac, port, now);
        }
    }

    /// Detaches a link. Its guest may come back on another port and go on; flows of a guest that
    /// does not are reset after a while.
    pub fn remove_port(&mut self, port: PortId, io: &mut Io<'_>) {
        self.net.switch.remove_port(port);
        self.net.neighbors.forget_port(port);
        self.gateway.forget_port(port);
        self.gateway_worked();
        self.flows.udp.port_writable(&self.net, port);
        self.flows.tcp.port_gone(&self.net, io);
    }

    /// Frames from the guest at `port`.
    pub fn handle_frames(&mut self, port: PortId, batch: &FrameBatch, io: &mut Io<'_>) {
        self.handle_frames_from(port, batch, 0, false, io);
    }

    /// The frames of a batch from this one on. With `may_wait`, they may end before the batch does:
    /// at a frame for another guest whose link has no room. Its sender should then not be read, and
    /// this called again, when that guest's port has become writable, or when [`PATIENCE`] is over
    /// and the port has been [given up](Engine::give_up).
    pub fn handle_frames_from(
        &mut self,
        port: PortId,
        batch: &FrameBatch,
        from: usize,
        may_wait: bool,
        io: &mut Io<'_>,
    ) -> Option<Waiting> {
        if from == 0 {
            self.net.stats.frames_in += batch.len() as u64;
            self.net.stats.bytes_in += batch.bytes();
        }
        let (mut index, mut waiting) = (from, None);
        while let Some(frame) = batch.get(index) {
            // What continues the flow of the frame before needs no second look.
            if self.flows.udp.take_next(&mut self.net, io, port, batch, index)
                || self.flows.tcp.take_next(&mut self.net, io, port, batch, index)
            {
                self.net.switch.sent_elsewhere(port, io.now);
                index += 1;
                continue;
            }
            match self.frame(port, &frame, Place { batch, index: Some(index) }, io) {
                Ok(None) => index += 1,
                Ok(Some(way)) => {
                    let run = Run { from: port, batch, index, may_wait };
                    let done = between::pass_on(&mut self.net, io, &way, run);
                    index += done;
                    if done == 0 {
                        waiting = Some(Waiting { next: index, on: way.to });
                        break;
                    }
                    continue;
                }
                Err(reason) => {
                    self.net.stats.drop(reason);
                    index += 1;
                }
            }
            self.net.switch.sent_elsewhere(port, io.now);
        }
        self.flows.tcp.end_of_batch(&mut self.net, io, batch);
        self.flows.udp.end_of_batch(&mut self.net, io, batch);
        self.tell_learned(io);
        if std::mem::take(&mut self.gateway_asked) {
            self.gateway_worked();
        }
        waiting
    }

    /// The guest at `port` has not made room in time: what is for it is dropped until it does.
    pub fn give_up(&mut self, port: PortId) {
        self.net.switch.set_stuck(port, true);
    }

    /// The link of `port` has room again.
    pub fn handle_port_writable(&mut self, port: PortId, io: &mut Io<'_>) {
        self.net.switch.set_stuck(port, false);
        self.flows.tcp.port_writable(&mut self.net, io, port);
        self.flows.udp.port_writable(&self.net, port);
    }

    /// Something happened to the socket that was opened with `token`.
    pub fn handle_host(&mut self, token: Token, ready: Readiness, io: &mut Io<'_>) {
        match token.origin() {
            Some(Origin::Tcp) => self.flows.tcp.host_ready(&mut self.net, io, token, ready),
            Some(Origin::Udp) => self.flows.udp.host_ready(&mut self.net, io, token, ready),
            Some(Origin::Ping) => self.flows.ping.host_ready(&mut self.net, io, token, ready),
            Some(Origin::Forward) => {
                self.forwards.host_ready(&mut self.net, &mut self.flows, io, token, ready);
            }
            Some(Origin::Dns) | None => {}
        }
    }

    /// Answers to queries that the engine sent by [`Host::dns_query`]. Those to one endpoint in a
    /// row leave together.
    pub fn handle_dns_answers<'a>(
        &mut self,
        answers: impl IntoIterator<Item = (Token, &'a [u8])>,
        io: &mut Io<'_>,
    ) {
        self.gateway.dns_answers(&mut self.net, io, answers);
        self.gateway_worked();
    }

    /// Does what is due, and the work that earlier calls left for want of budget.
    pub fn handle_timeout(&mut self, io: &mut Io<'_>) {
        if !self.net.config.switch_only {
            self.gateway.handle_timeout(&mut self.net, io);
            self.gateway_worked();
        }
        self.flows.handle_timeout(&mut self.net, io);
        self.forwards.handle_timeout(&mut self.net, &mut self.flows, io);
        self.fragments.handle_timeout(io.now, &mut self.net.stats);
    }

    /// When [`Engine::handle_timeout`] has to be called next; a time in the past means at once.
    pub fn next_timeout(&self) -> Option<Instant> {
        let flows = earlier(self.flows.next_timeout(), self.forwards.next_timeout());
        earlier(earlier(self.gateway_timeout, self.fragments.next_timeout()), flows)
    }

    /// Opens a forward from the host to a guest. The error names the address and the reason.
    pub fn add_forward(&mut self, forward: Forward, io: &mut Io<'_>) -> Result<ForwardId, String> {
        self.forwards.add(forward, &self.net.config, &mut self.flows, io)
    }

    /// Closes a forward's listener; its connections go on. False if there is none.
    pub fn remove_forward(&mut self, id: ForwardId, io: &mut Io<'_>) -> bool {
        self.forwards.remove(id, &mut self.flows, io)
    }

    pub fn forwards(&self) -> impl Iterator<Item = (ForwardId, &Forward)> {
        self.forwards.iter()
    }

    /// Calls a guest from the gateway's address, for a client whose stream
    /// [is handed over](Engine::attach) when the guest has [answered](Engine::next_dialed).
    /// Refused as prohibited when it is no guest's address.
    pub fn dial(&mut self, guest: SocketAddr, io: &mut Io<'_>) -> Result<DialId, Failure> {
        self.check_guest(guest)?;
        self.flows.tcp.dial(&mut self.net, io, guest)
    }

    /// A dial that a guest has answered since the last call, or that has failed, as a connect
    /// within the network would have.
    pub fn next_dialed(&mut self) -> Option<(DialId, Result<(), Failure>)> {
        self.flows.tcp.next_dialed()
    }

    /// Joins an answered dial with a stream that the host knows by the dial's token. `early` is
    /// what was read from the stream already.
    pub fn attach(&mut self, dial: DialId, stream: SockId, early: &[u8], io: &mut Io<'_>) {
        self.flows.tcp.attach(&mut self.net, io, dial, stream, early);
    }

    /// Gives up a dial that has no stream yet.
    pub fn hang_up(&mut self, dial: DialId, io: &mut Io<'_>) {
        self.flows.tcp.hang_up(&mut self.net, io, dial);
    }

    /// Sends a guest a datagram of a client's, as from the gateway and, if it is free, the client's
    /// own port. Answers come by [`Engine::next_relayed`].
    pub fn relay(
        &mut self,
        relay: RelayId,
        port: u16,
        guest: SocketAddr,
        data: &[u8],
        io: &mut Io<'_>,
    ) -> Result<(), Failure> {
        self.check_guest(guest)?;
        self.flows.udp.relay(&mut self.net, io, relay, port, guest, data)
    }

    /// A guest's answer to a relayed datagram that has come since the last call.
    pub fn next_relayed(&mut self) -> Option<Relayed> {
        self.flows.udp.next_relayed()
    }

    /// Ends a relay; its number is free again.
    pub fn end_relay(&mut self, relay: RelayId) {
        self.flows.udp.end_relay(relay);
    }

    /// Whether a guest's stream has not ended yet, or its end has not been passed on.
    pub fn is_sending(&self) -> bool {
        self.flows.tcp.is_sending()
    }

    /// Ends every flow and closes every socket. Streams are reset on both sides, but for what the
    /// host's system was told to deliver to their ends.
    pub fn shutdown(&mut self, io: &mut Io<'_>) {
        self.forwards.shutdown(&mut self.flows, io);
        self.flows.shutdown(&mut self.net, io);
    }

    /// Clients of the host reach guests this way, and nobody else.
    fn check_guest(&self, guest: SocketAddr) -> Result<(), Failure> {
        let possible = self.net.config.is_guest(guest.ip()) && guest.port() != 0;
        if possible { Ok(()) } else { Err(Failure::Prohibited) }
    }

    fn gateway_worked(&mut self) {
        if !self.net.config.switch_only {
            self.gateway_timeout = self.gateway.next_timeout(&self.net);
        }
    }

    /// Flows that wait for a guest's address go on as soon as it is known.
    fn tell_learned(&mut self, io: &mut Io<'_>) {
        for ip in self.net.neighbors.take_fresh() {
            self.gateway.guest_found(&mut self.net, ip, io.now);
            self.flows.tcp.guest_found(&mut self.net, io, ip);
            self.flows.udp.guest_found(&mut self.net, io, ip);
        }
    }
}
