//! `vmlan network list`

use serde::Serialize;
use vmlan_config::{Mode, Network, Subnet};

use crate::{Failure, tell};

/// List the networks.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these networks.
    name: Vec<String>,

    /// One line of JSON for each network.
    #[arg(long)]
    json: bool,
}

/// A network as scripts see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    pub(super) mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) interface: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gateway: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dhcp_end: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) netmask: Option<String>,
}

impl<'a> Line<'a> {
    pub(super) fn new(network: &'a Network) -> Self {
        let subnet = network.subnet();
        Self {
            name: &network.name,
            mode: network.mode,
            interface: network.interface(),
            gateway: subnet.map(|subnet| subnet.gateway.to_string()),
            dhcp_end: subnet.and_then(|subnet| subnet.dhcp_end).map(|end| end.to_string()),
            netmask: subnet.map(|subnet| subnet.netmask().to_string()),
        }
    }
}

pub(super) fn run(args: &Args) -> Result<String, Failure> {
    let (_, file) = super::load()?;
    for name in args.name.iter().filter(|name| file.networks.get(name).is_none()) {
        tell(&format!("No network matching {name} found."));
    }
    let wanted = |n: &&Network| args.name.is_empty() || args.name.contains(&n.name);
    let networks: Vec<_> = file.networks.iter().filter(wanted).collect();
    if args.json {
        let lines = networks.into_iter().map(|network| serde_json::to_string(&Line::new(network)));
        let lines: Result<Vec<_>, _> = lines.collect();
        let lines = lines.map_err(|e| Failure::Failed(e.to_string()))?;
        return Ok(lines.into_iter().fold(String::new(), |text, line| text + &line + "\n"));
    }
    Ok(table(&networks))
}

fn table(networks: &[&Network]) -> String {
    let rows = networks.iter().map(|network| {
        [
            network.name.clone(),
            network.mode.to_string(),
            network.subnet().map_or_else(|| "-".into(), Subnet::gateway_cidr),
            network.interface().unwrap_or("-").into(),
        ]
    });
    crate::table::table(["NAME", "MODE", "GATEWAY", "INTERFACE"], rows)
}
