//! What a host agent says of its machine when it is asked, on `ha.sock`: HTTP with the paths of
//! Lima's, and vmlan's own fields beside theirs.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use vmlan_api::{Client, ClientError};

use super::files::Files;

/// The answer to `GET /v1/info`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    #[serde(default)]
    pub auto_started_identifier: String,
    pub ssh_local_port: u16,
    #[serde(default)]
    pub health: Health,
    /// What runs the guest's instructions.
    #[serde(default)]
    pub accel: String,
    #[serde(default)]
    pub cpus: u32,
    /// In bytes.
    #[serde(default)]
    pub memory: u64,
    #[serde(default)]
    pub driver_pid: u32,
    #[serde(default)]
    pub networks: Vec<Network>,
    /// Ports of the host that lead to the guest, or should.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// What is not as it should be.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// How far a machine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It does not answer by ssh yet.
    #[default]
    Booting,
    Ready,
    /// It answers, and something is missing.
    Degraded,
    Stopping,
}

/// A network card of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// As `--network` says it, or `default`.
    pub network: String,
    pub interface: String,
    pub mac: String,
    /// As vmlan gives them, else as the machine tells.
    pub addresses: Vec<IpAddr>,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A port or a socket of the host, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub host: String,
    pub guest: String,
    /// It is the guest's that leads to the host's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reverse: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Health {
    pub fn name(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Stopping => "stopping",
        }
    }
}

impl Info {
    /// Asks an instance's host agent.
    pub fn ask(files: &Files) -> Result<Self, ClientError> {
        Client::new(&files.host_socket()).get("/v1/info")
    }
}
