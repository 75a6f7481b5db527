//! Guests that are there with a lease, for whoever gives them names.

use std::net::{Ipv4Addr, Ipv6Addr};

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
    /// What it has by DHCPv6.
    pub address6: Option<Ipv6Addr>,
    /// What it called itself (RFC 2132 section 3.14). It can be anything.
    pub host_name: Option<&'a str>,
}

impl Engine {
    /// The guests that are there with a lease. They change with [`Engine::lease_changes`].
    pub fn present_leases(&self) -> impl Iterator<Item = PresentLease<'_>> {
        let (dhcp, dhcp6) = (&self.gateway.dhcp, &self.gateway.dhcp6);
        let (ipv4, ipv6) = (self.net.config.ipv4, self.net.config.ipv6);
        dhcp.pool().iter().filter(|l| l.state == State::Bound).filter_map(move |lease| {
            let six = dhcp6.pool().of(lease.mac).filter(|l| l.state == State::Bound);
            Some(PresentLease {
                mac: lease.mac,
                port: lease.port?,
                address: ipv4.nth(lease.number),
                address6: six.map(|l| ipv6.nth(l.number.into())),
                host_name: dhcp.host_name(lease.mac),
            })
        })
    }
}
