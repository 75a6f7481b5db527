//! What goes over the wire as JSON, for both ends.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmlan_engine::io::ListenAddr;
use vmlan_wire::Mac;

/// Counters of the whole network; what was sent was sent to guests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    #[serde(rename = "BytesSent")]
    pub bytes_sent: u64,
    #[serde(rename = "BytesReceived")]
    pub bytes_received: u64,
    #[serde(rename = "FramesSent")]
    pub frames_sent: u64,
    #[serde(rename = "FramesReceived")]
    pub frames_received: u64,
    pub tcp_opened: u64,
    pub tcp_closed: u64,
    pub tcp_retransmits: u64,
    pub udp_opened: u64,
    pub ping_opened: u64,
    pub dns_queries: u64,
    /// By reason.
    pub dropped: BTreeMap<String, u64>,
}

/// The switch's table: which MAC address is behind which port.
pub type MacTable = BTreeMap<String, u16>;

/// Which MAC address has an IP address.
pub type Leases = BTreeMap<IpAddr, String>;

/// A TCP connection, a UDP endpoint or a ping of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flow {
    pub protocol: String,
    pub guest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    pub state: String,
}

/// A port or socket of the host that leads to a guest, as gvisor-tap-vsock tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForwardEntry {
    pub local: String,
    pub remote: String,
    pub protocol: String,
}

/// Which forward is to be opened or closed; to close one, `remote` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForwardRequest {
    pub local: String,
    #[serde(default)]
    pub remote: String,
    /// `tcp` if empty, `udp`, or `unix`.
    #[serde(default)]
    pub protocol: String,
}

/// A port of the host's loopback that is a proxy into the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tunnel {
    pub port: u16,
}

/// Which tunnel is to be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TunnelRequest {
    /// A random free one if it is 0.
    #[serde(default)]
    pub port: u16,
}

/// How the API names what a forward listens for.
pub fn protocol_name(listen: &ListenAddr) -> &'static str {
    match listen {
        ListenAddr::Tcp(_) => "tcp",
        ListenAddr::Udp(_) => "udp",
        ListenAddr::Unix(_) => "unix",
    }
}

/// How the API says where a forward listens.
pub fn listen_text(listen: &ListenAddr) -> String {
    match listen {
        ListenAddr::Tcp(addr) | ListenAddr::Udp(addr) => addr.to_string(),
        ListenAddr::Unix(path) => path.display().to_string(),
    }
}

/// A MAC address as the API writes it.
pub fn colons(mac: Mac) -> String {
    mac.0.map(|byte| format!("{byte:02x}")).join(":")
}
