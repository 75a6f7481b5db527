//! Guests that are there with a lease, for whoever gives them names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vmlan_wire::Mac;

use super::lease::State;
use crate::Engine;
use crate::io::PortId;
use crate::neighbor::Used;

/// A guest that is there with a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresentLease<'a> {
    pub mac: Mac,
    pub port: PortId,
    pub address: Ipv4Addr,
    /// See [`Engine::ipv6_in_use`].
    pub address6: Option<Ipv6Addr>,
    /// What it called itself (RFC 2132 section 3.14). It can be anything.
    pub host_name: Option<&'a str>,
}

impl Engine {
    /// The guests that are there with a lease. They change with [`Engine::lease_changes`], their
    /// IPv6 addresses with [`Engine::address_changes`] as well.
    pub fn present_leases(&self) -> impl Iterator<Item = PresentLease<'_>> {
        let dhcp = &self.gateway.dhcp;
        let ipv4 = self.net.config.ipv4;
        dhcp.pool().iter().filter(|l| l.state == State::Bound).filter_map(move |lease| {
            Some(PresentLease {
                mac: lease.mac,
                port: lease.port?,
                address: ipv4.nth(lease.number),
                address6: self.ipv6_in_use(lease.mac, lease.port?),
                host_name: dhcp.host_name(lease.mac),
            })
        })
    }

    /// Counts whenever the addresses that guests use have changed.
    pub fn address_changes(&self) -> u32 {
        self.net.neighbors.changes
    }

    /// The address of the network's prefix that a guest has been seen to use: of several the one
    /// that it has by DHCPv6, else the one that shows its card (RFC 4862), else the first. Temporary
    /// addresses (RFC 8981) come after that, and after all what it was seen with in an earlier run.
    pub fn ipv6_in_use(&self, mac: Mac, port: PortId) -> Option<Ipv6Addr> {
        let config = &self.net.config;
        let [a, b, c, d, e, f] = mac.0;
        let card = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        let own = self.net.neighbors.of(mac, port).filter_map(|(ip, neighbor)| match ip {
            IpAddr::V6(ip) if neighbor.used != Used::Never && config.is_guest(ip.into()) => {
                let rank = (neighbor.used, neighbor.leased, ip.octets().ends_with(&card));
                Some((rank, ip))
            }
            _ => None,
        });
        // The first of the best.
        let best = own.reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.map(|(_, ip)| ip)
    }
}
