//! Guests that are there with a lease, for whoever gives them names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vmlan_wire::Mac;

use super::lease::State;
use crate::Engine;
use crate::io::PortId;

/// A guest that is there with a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresentLease<'a> {
    pub mac: Mac,
    pub port: PortId,
    pub address: Ipv4Addr,
    /// What it has by DHCPv6, else one of the network's prefix that it uses.
    pub address6: Option<Ipv6Addr>,
    /// What it called itself (RFC 2132 section 3.14). It can be anything.
    pub host_name: Option<&'a str>,
}

impl Engine {
    /// The guests that are there with a lease. They change with [`Engine::lease_changes`], their
    /// IPv6 addresses with [`Engine::address_changes`] as well.
    pub fn present_leases(&self) -> impl Iterator<Item = PresentLease<'_>> {
        let (dhcp, dhcp6) = (&self.gateway.dhcp, &self.gateway.dhcp6);
        let (ipv4, ipv6) = (self.net.config.ipv4, self.net.config.ipv6);
        dhcp.pool().iter().filter(|l| l.state == State::Bound).filter_map(move |lease| {
            let six = dhcp6.pool().of(lease.mac).filter(|l| l.state == State::Bound);
            Some(PresentLease {
                mac: lease.mac,
                port: lease.port?,
                address: ipv4.nth(lease.number),
                address6: six
                    .map(|l| ipv6.nth(l.number.into()))
                    .or_else(|| self.own_address6(lease.mac, lease.port?)),
                host_name: dhcp.host_name(lease.mac),
            })
        })
    }

    /// Counts whenever the addresses that guests use have changed.
    pub fn address_changes(&self) -> u32 {
        self.net.neighbors.changes
    }

    /// What a guest has made of the network's prefix (RFC 4862): of several the one that shows its
    /// card, else the first. Temporary addresses (RFC 8981) come after that.
    fn own_address6(&self, mac: Mac, port: PortId) -> Option<Ipv6Addr> {
        let config = &self.net.config;
        let mut own = self.net.neighbors.of(mac, port).filter_map(|ip| match ip {
            IpAddr::V6(ip) if config.is_guest(ip.into()) => Some(ip),
            _ => None,
        });
        let first = own.next()?;
        let [a, b, c, d, e, f] = mac.0;
        let card = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        let shows_card = |ip: &Ipv6Addr| ip.octets().ends_with(&card);
        Some([first].into_iter().chain(own).find(shows_card).unwrap_or(first))
    }
}
