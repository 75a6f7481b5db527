//! What the network or the host says about a datagram, told to the guest that sent it: the ICMP
//! error quotes the guest's own packet, with the addresses the guest knows.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use smoltcp::wire::IpProtocol;

use super::flow::Key;
use super::gather::{self, Destination, Owner};
use super::{Udp, header};
use crate::flow::error::{HostError, Quote};
use crate::hash::SeededState;
use crate::io::{DatagramOptions, Io};
use crate::net::Net;
use crate::time::Instant;

/// How long a port of the host's loopback is taken to be served over IPv4 only.
const V4_ONLY: Duration = Duration::from_secs(30);

/// Ports remembered.
const V4_ONLY_PORTS: usize = 1024;

/// Ports that refused at `::1`: the host alias over IPv6 leads to 127.0.0.1 for them.
#[derive(Debug)]
pub(super) struct V4Only {
    until: HashMap<u16, Instant, SeededState>,
}

impl V4Only {
    pub(super) fn new(seed: [u8; 16]) -> Self {
        Self { until: HashMap::with_hasher(SeededState::new(seed)) }
    }

    /// Where a datagram for `to` really goes.
    pub(super) fn redirect(&self, to: SocketAddr, now: Instant) -> SocketAddr {
        if let SocketAddr::V6(v6) = to
            && *v6.ip() == Ipv6Addr::LOCALHOST
            && self.until.get(&to.port()).is_some_and(|until| *until > now)
        {
            return SocketAddr::from((Ipv4Addr::LOCALHOST, to.port()));
        }
        to
    }

    fn learn(&mut self, port: u16, now: Instant) {
        if self.until.len() >= V4_ONLY_PORTS {
            self.until.clear();
        }
        self.until.insert(port, now + V4_ONLY);
    }

    fn forget(&mut self, port: u16) {
        self.until.remove(&port);
    }
}

impl Udp {
    /// Relays what is in the error queue of a flow's socket.
    pub(super) fn errors(&mut self, net: &mut Net, io: &mut Io<'_>, index: u32) {
        let Some(flow) = self.flows.get(index) else { return };
        for error in HostError::take(io.host, flow.sock) {
            self.error(net, io, index, &error);
        }
    }

    fn error(&mut self, net: &mut Net, io: &mut Io<'_>, index: u32, error: &HostError) {
        let port = error.to.port();
        if error.is_refused() && error.to.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST) {
            self.v4_only.learn(port, io.now);
            self.recent = None;
            self.again_over_v4(net, io, index, error);
            return;
        }
        let Some(flow) = self.flows.get_mut(index) else { return };
        let Some(peer) = flow.peers.find_failed(error.to) else { return };
        let (guest, shown) = (flow.key.guest, peer.shown());
        if guest.is_ipv6() && error.to.is_ipv4() && error.is_refused() {
            self.v4_only.forget(port);
            self.recent = None;
        }
        let header = header(guest.port(), shown.port(), error.data.len());
        let quote = Quote { src: guest.ip(), dst: shown.ip(), protocol: IpProtocol::Udp };
        error.relay(net, io, flow.mac, &quote, &header);
    }

    /// Nobody at `::1`: the same datagram to 127.0.0.1, if the error has all of it.
    fn again_over_v4(&mut self, net: &mut Net, io: &mut Io<'_>, index: u32, error: &HostError) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let Some(peer) = flow.peers.find(error.to) else { return };
        if flow.last_len != error.data.len() {
            return;
        }
        let (shown, mac, port) = (peer.shown(), flow.mac, flow.port);
        let key = Key { guest: flow.key.guest, v4: true };
        let host = SocketAddr::from((Ipv4Addr::LOCALHOST, error.to.port()));
        // Nobody is evicted for it: a datagram may be on its way out of any flow just now.
        let other = match self.find(key) {
            Some(other) => other,
            None => match self.open(net, io, key, mac, port) {
                Ok(other) => other,
                Err(reason) => return net.stats.drop(reason),
            },
        };
        let sock = self.sent(other, host, shown, mac, error.data.len(), io.now);
        let Some(sock) = sock else { return };
        let options = DatagramOptions { ttl: 64, tos: 0, dont_fragment: false };
        let to = Destination { owner: Owner::Flow(other), sock, addr: host, options };
        // What 127.0.0.1 has to say about it comes as an event.
        let _ = gather::send(io.host, &to, &[&error.data], &mut net.stats);
    }
}
