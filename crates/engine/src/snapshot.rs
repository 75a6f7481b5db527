//! The state of a network at one moment, for listings and the control API.

use std::net::{IpAddr, SocketAddr};

use vmlan_wire::Mac;

use crate::Engine;
use crate::io::PortId;

/// A guest's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub ip: IpAddr,
    pub mac: Mac,
    pub port: PortId,
    /// Given by DHCP rather than configured by the guest.
    pub leased: bool,
}

/// A TCP connection, a UDP endpoint or a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    pub protocol: &'static str,
    pub guest: SocketAddr,
    /// `None` for UDP endpoints, which may talk to many.
    pub remote: Option<SocketAddr>,
    pub state: &'static str,
}

impl Engine {
    pub fn leases(&self) -> Vec<Lease> {
        let known = self.net.neighbors.iter();
        known.map(|(ip, n)| Lease { ip, mac: n.mac, port: n.port, leased: n.leased }).collect()
    }

    /// The switch's table: which MAC address is behind which port.
    pub fn mac_table(&self) -> Vec<(Mac, PortId)> {
        self.net.switch.table().collect()
    }

    pub fn ports(&self) -> Vec<PortId> {
        self.net.switch.ports().collect()
    }

    pub fn flows(&self) -> Vec<FlowInfo> {
        self.flows.snapshot()
    }
}
