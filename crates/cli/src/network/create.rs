//! `vmlan network create`

use std::net::Ipv4Addr;

use vmlan_config::{LimaHome, Mode, Network, Networks, NetworksFile, Platform, overlap, routes};

use crate::{Failure, tell};

/// Add a network to networks.yaml.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vmlan network create lab --gateway 192.168.42.1/24")]
pub(super) struct Args {
    /// What the network is to be called.
    name: String,

    /// How guests are connected: user-v2, host, shared or bridged.
    #[arg(long, default_value = "user-v2")]
    mode: Mode,

    /// The gateway and how large the subnet is, such as 192.168.42.1/24, or /24 if that is not said;
    /// needed by every mode but bridged.
    #[arg(long, value_name = "CIDR", value_parser = vmlan_config::parse_gateway)]
    gateway: Option<(Ipv4Addr, u8)>,

    /// The host's interface whose network a bridged network joins; needed by that mode.
    #[arg(long)]
    interface: Option<String>,

    /// Create it even if the host has a route to its addresses.
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run(args: &Args) -> Result<String, Failure> {
    let home = LimaHome::from_env()?;
    let mut locked = NetworksFile::lock(&home, &Platform::detect())?;
    super::warn(&locked.file);
    if locked.file.networks.get(&args.name).is_some() {
        return Err(Failure::Failed(format!("network `{}` already exists", args.name)));
    }
    // Who cannot know the host's routes can still compare with the other networks.
    let routes = routes::read().unwrap_or_default();
    let network = network(args, &locked.file.networks, &routes)?;
    refuse_overlap(args, &network, &locked.file.networks, &routes)?;
    if network.mode == Mode::UserV2 {
        let paths = home.network(&network.name);
        paths.check().map_err(|e| Failure::Failed(e.to_string()))?;
    }
    locked.add(&network)?;
    if let Some(interface) = network.interface().filter(|name| !routes::has_interface(name)) {
        tell(&format!("there is no interface {interface} now: guests join once it is there"));
    }
    let path = locked.file.path().display();
    tell(&format!("network `{}` is in {path}; use it as lima:{}", network.name, network.name));
    Ok(String::new())
}

fn network(args: &Args, networks: &Networks, routes: &[routes::Route]) -> Result<Network, Failure> {
    let network = Network::new(&args.name, args.mode, args.gateway, args.interface.as_deref());
    network.map_err(|why| {
        let missing = args.gateway.is_none() && args.mode != Mode::Bridged;
        let free = missing.then(|| overlap::free(networks, routes)).flatten();
        let help = free.map(|free| format!("; --gateway {free} is free")).unwrap_or_default();
        Failure::Usage(why + &help)
    })
}

fn refuse_overlap(
    args: &Args,
    network: &Network,
    networks: &Networks,
    routes: &[routes::Route],
) -> Result<(), Failure> {
    let Some(subnet) = network.subnet() else { return Ok(()) };
    let mut found = overlap::find(subnet.net(), &network.name, networks, routes);
    if args.force {
        found.retain(|overlap| !matches!(overlap, overlap::Overlap::Route { .. }));
    }
    if found.is_empty() {
        return Ok(());
    }
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    let free = overlap::free(networks, routes);
    let help = free.map(|free| format!("; --gateway {free} is free")).unwrap_or_default();
    Err(Failure::Failed(found.join("; ") + &help))
}
