//! What a network is doing, as vmlan's own part of the API tells it. Times are Unix times in
//! seconds, counters begin with the daemon or with the guest.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A network at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Network {
    /// In CIDR notation, as `ipv6`.
    pub subnet: String,
    pub ipv6: String,
    pub gateway: Ipv4Addr,
    pub host: Ipv4Addr,
    pub dns: Ipv4Addr,
    pub mtu: u16,
    pub daemon: Daemon,
    pub guests: Vec<Guest>,
    pub leases: Vec<Lease>,
    pub forwards: Vec<Forward>,
    pub flows: Flows,
    pub counters: Counters,
}

/// The process behind a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Daemon {
    pub pid: u32,
    pub version: String,
    pub since: u64,
    /// The network stays without a guest.
    pub held: bool,
    /// Times that the loop has gone round.
    pub passes: u64,
    /// Microseconds that it has worked rather than waited.
    pub busy_micros: u64,
    /// The longest that everybody had to wait for one pass in the last 10 to 20 seconds.
    pub longest_pass_micros: u64,
    /// Open descriptors, where the system tells without counting them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_limit: Option<u64>,
    /// What is not as it should be.
    pub warnings: Vec<String>,
}

/// A guest's attachment to the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Guest {
    /// Its port of the switch, as in `/cam`.
    pub port: u16,
    /// The name that it joined with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The addresses of the cards behind the port.
    pub macs: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// How it is attached: `tap`, `stream`, `datagram` or `packet`.
    pub link: String,
    pub since: u64,
    pub from_guest: Traffic,
    pub to_guest: Traffic,
    /// What was dropped of what it sent, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Connections and the like that it has now.
    pub flows: u64,
}

/// Frames, before trains are cut into segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Traffic {
    pub frames: u64,
    pub bytes: u64,
}

/// An address that is kept for a card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    pub address: IpAddr,
    pub mac: String,
    pub until: u64,
}

/// A port or socket of the host that leads to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Forward {
    /// `tcp`, `udp` or `unix`.
    pub protocol: String,
    /// `ADDRESS:PORT`, or a path.
    pub listen: String,
    /// `ADDRESS:PORT`.
    pub target: String,
    /// The guest sees the client's own address.
    #[serde(default)]
    pub keep_source: bool,
    /// The guest that the forward goes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
}

/// Forwards to be opened: all of them, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Forwards {
    pub forwards: Vec<Forward>,
}

/// Where forwards that are to be closed listen: all of them, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listens {
    pub forwards: Vec<Listen>,
}

/// Where a forward listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listen {
    pub protocol: String,
    pub listen: String,
}

/// How many there are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flows {
    pub tcp: u64,
    pub udp: u64,
    pub ping: u64,
}

/// How many there were of the whole network's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    pub from_guests: Traffic,
    pub to_guests: Traffic,
    pub tcp_opened: u64,
    pub tcp_closed: u64,
    pub tcp_retransmits: u64,
    pub udp_opened: u64,
    pub ping_opened: u64,
    pub dns_queries: u64,
    /// By reason.
    pub dropped: BTreeMap<String, u64>,
}
