//! What the gateway answers itself: ARP, neighbour discovery, DHCP, router advertisements, echo to
//! its own addresses, DNS. Each service is a file: a packet in, an answer out.

mod arp;
mod assign;
mod dhcp;
mod dhcp6;
mod dns;
pub(crate) mod guard;
pub(crate) mod icmp;
mod lease;
pub(crate) mod limit;
mod nd;
mod present;
mod ra;
mod saved;
#[cfg(test)]
mod tests;
mod udp;

use std::net::IpAddr;

use smoltcp::wire::{EthernetFrame, IpProtocol};
use vmlan_wire::Mac;

use crate::config::Config;
use crate::io::{Io, PortId, Token};
use crate::neighbor::{Neighbor, Used};
use crate::net::Net;
use crate::packet::Packet;
use crate::stats::Drop;
use crate::time::Instant;
use dhcp::Dhcp;
use dhcp6::Dhcp6;
use dns::Dns;
use nd::Heard;
pub use present::PresentLease;
use ra::Ra;
pub use saved::SavedLease;

#[derive(Debug)]
pub(crate) struct Gateway {
    ra: Ra,
    dns: Dns,
    dhcp: Dhcp,
    dhcp6: Dhcp6,
}

/// Who a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Echo,
    Neighbors,
    Dns,
    Dhcp,
    Dhcp6,
}

/// Asks the guests who has `ip`, an address of this network. The answer is learned and flows that
/// wait for it are told.
pub(crate) fn solicit(net: &mut Net, io: &mut Io<'_>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => arp::request(net, io, ip),
        IpAddr::V6(ip) => nd::solicit(net, io, ip),
    }
}

/// Asks the guest that has `mac` to show itself. The answer does not matter: a link whose peer is
/// gone says so when it is sent to.
pub(crate) fn ask_owner(net: &mut Net, io: &mut Io<'_>, mac: Mac) {
    arp::ask(net, io, mac);
}

impl Gateway {
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        Self {
            ra: Ra::new(config, now),
            dns: Dns::new(now),
            dhcp: Dhcp::new(config, now),
            dhcp6: Dhcp6::new(config, now),
        }
    }

    pub(crate) fn arp(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        port: PortId,
        eth: &EthernetFrame<&[u8]>,
    ) -> Result<(), Drop> {
        arp::handle(net, io, port, eth)
    }

    /// An address has been learned. Whoever is there again with its lease has what was known of it.
    pub(crate) fn guest_found(&mut self, net: &mut Net, ip: IpAddr, now: Instant) {
        let known = net.neighbors.get(ip);
        let Some(Neighbor { mac, port, .. }) = known.filter(|n| n.leased && n.used == Used::Yes)
        else {
            return;
        };
        self.dhcp.pool_mut().come_back(mac, port);
        self.dhcp6.pool_mut().come_back(mac, port);
        net.come_back(mac, port, now);
    }

    /// The configuration has other search domains than those of before.
    pub(crate) fn set_search(&mut self, config: &Config, before: &[String], now: Instant) {
        self.ra.set_search(config, before, now);
        self.dhcp.set_search(config);
        self.dhcp6.set_search(config);
    }

    /// A port is gone.
    pub(crate) fn forget_port(&mut self, port: PortId) {
        self.dhcp.forget_port(port);
        self.dhcp6.forget_port(port);
    }

    /// Whether a packet is for a service of the gateway's own rather than for a flow.
    pub(crate) fn wants(&self, net: &Net, packet: &Packet<'_>) -> bool {
        service(net, packet).is_some()
    }

    pub(crate) fn handle(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), Drop> {
        match service(net, packet) {
            Some(Service::Echo) => icmp::echo(net, io, packet),
            Some(Service::Neighbors) => match nd::handle(net, io, packet)? {
                Heard::RouterSolicitation => self.ra.solicited(net, io, packet),
                Heard::Done => Ok(()),
            },
            Some(Service::Dns) => self.dns.query(net, io, packet),
            Some(Service::Dhcp) => self.dhcp.handle(net, io, packet),
            Some(Service::Dhcp6) => {
                let hint = self.dhcp.number_of(packet.src_mac);
                self.dhcp6.handle(net, io, packet, hint)
            }
            None => Ok(()),
        }
    }

    pub(crate) fn dns_answers<'a>(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        answers: impl IntoIterator<Item = (Token, &'a [u8])>,
    ) {
        self.dns.answer(net, io, answers);
    }

    pub(crate) fn handle_timeout(&mut self, net: &mut Net, io: &mut Io<'_>) {
        self.ra.handle_timeout(net, io);
        self.dns.handle_timeout(io.now, net);
        self.dhcp.handle_timeout(net, io);
        self.dhcp6.handle_timeout(net, io.now);
    }

    pub(crate) fn next_timeout(&self, net: &Net) -> Option<Instant> {
        // Without guests there is nobody to advertise to.
        let ra = net.switch.ports().next().map(|_| self.ra.next_timeout());
        let times =
            [ra, self.dns.next_timeout(), self.dhcp.next_timeout(), self.dhcp6.next_timeout()];
        times.into_iter().flatten().min()
    }
}

/// Whether a packet is for the DHCP server, which knows guests by their MAC addresses.
pub(crate) fn is_for_dhcp(net: &Net, packet: &Packet<'_>) -> bool {
    packet.fragment.is_none() && service(net, packet) == Some(Service::Dhcp)
}

/// Looked at for every packet that is not in a flow's fast path: cheap comparisons only.
fn service(net: &Net, packet: &Packet<'_>) -> Option<Service> {
    match packet.protocol {
        IpProtocol::Udp => udp_service(net, packet),
        IpProtocol::Icmp | IpProtocol::Icmpv6 if icmp::is_own_echo(net, packet) => {
            Some(Service::Echo)
        }
        IpProtocol::Icmpv6 if matches!(packet.payload.first(), Some(133..=137)) => {
            Some(Service::Neighbors)
        }
        _ => None,
    }
}

fn udp_service(net: &Net, packet: &Packet<'_>) -> Option<Service> {
    let [_, _, a, b, ..] = *packet.payload else { return None };
    match u16::from_be_bytes([a, b]) {
        dns::PORT if net.config.is_dns(packet.dst) && packet.dst_mac.is_unicast() => {
            Some(Service::Dns)
        }
        dhcp::SERVER_PORT if is_broadcast(net, packet.dst) || net.config.is_own(packet.dst) => {
            (!packet.is_v6()).then_some(Service::Dhcp)
        }
        dhcp6::SERVER_PORT
            if packet.dst == IpAddr::V6(dhcp6::ALL_SERVERS) || net.config.is_own(packet.dst) =>
        {
            packet.is_v6().then_some(Service::Dhcp6)
        }
        _ => None,
    }
}

fn is_broadcast(net: &Net, dst: IpAddr) -> bool {
    matches!(dst, IpAddr::V4(a) if a.is_broadcast() || a == net.config.ipv4.broadcast())
}
