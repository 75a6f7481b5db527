//! The state of a network at one moment, for listings and the control API.

use std::net::{IpAddr, SocketAddr};

use vmlan_wire::Mac;

use crate::Engine;
use crate::io::PortId;
use crate::neighbor::{Neighbor, Used};

/// A guest's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub ip: IpAddr,
    pub mac: Mac,
    pub port: PortId,
    /// Given by DHCP rather than configured by the guest.
    pub leased: bool,
    /// The guest has been seen with it, if in an earlier run.
    pub used: bool,
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
        let lease = |(ip, n): (IpAddr, Neighbor)| Lease {
            ip,
            mac: n.mac,
            port: n.port,
            leased: n.leased,
            used: n.used != Used::Never,
        };
        known.map(lease).collect()
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
