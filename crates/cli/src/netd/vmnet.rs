//! The daemon of a network with a bridge: root's helper makes it, and this serves addresses and names
//! there, as the ordinary user that it is.

use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use vmlan_config::{Mode, Network, vmnet as named};
use vmlan_engine::Config;
use vmlan_engine::config::Ipv4Net;
use vmlan_link::tap::TapLink;
use vmlan_netd::vmnet::{Helper, Kind};
use vmlan_netd::{Cards, Daemon, PidFile};

use super::{Args, announce, build, check};
use crate::Failure;

pub(super) fn run(args: &Args, name: &str) -> Result<ExitCode, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Failed(e.to_string());
    let (_, file) = crate::network::load()?;
    let network = crate::network::find(&file, name)?;
    let none = || Failure::Usage(format!("--vmnet {name}: no network that needs root's helper"));
    let helper = Helper::of(network).ok_or_else(none)?;
    let config = config(network).ok_or_else(none)??;
    check(args, &config)?;
    if args.background {
        vmlan_netd::leave_caller();
    }
    if let Some(path) = &args.pidfile {
        PidFile::check(path).map_err(|e| failed(&e))?;
    }
    // What another serves must not be undone when this one gives up.
    let taken = |path: &&std::path::PathBuf| UnixStream::connect(path).is_ok();
    if args.listen_fd.iter().chain(&args.control).any(|path| taken(&path)) {
        return Err(Failure::Failed(format!("the network {name} has a daemon already")));
    }
    let dns = args.names.options()?;
    let mut daemon = Daemon::new(config, dns).map_err(|e| failed(&e))?;
    // Undone before the daemon's sockets are gone: until then, nobody starts it anew.
    let mut started = helper.start().map_err(|e| failed(&e))?;
    build(&mut daemon, args, Vec::new())?;
    if let Some(card) = started.take_card() {
        let card = TapLink::new(card).map_err(|e| failed(&e))?;
        daemon.add_bridge(Box::new(card)).map_err(|e| failed(&e))?;
    }
    if let Kind::Lan { beside } = started.kind {
        let cards = beside.then(|| Box::new(helper.clone()) as Box<dyn Cards>);
        daemon.keep_lan(warnings(network, beside), cards);
    }
    let _pidfile = announce(args, None, daemon.engine().config())?;
    daemon.run().map_err(|e| failed(&e))?;
    Ok(ExitCode::SUCCESS)
}

/// What guests of the network that the host is on should know.
fn warnings(network: &Network, beside: bool) -> Vec<String> {
    let interface = network.interface().filter(|_| beside);
    let text = interface.map(|interface| {
        format!(
            "the host has addresses on {interface} itself: it and guests of `{}` do not see each \
             other, only others on that network see both",
            network.name
        )
    });
    text.into_iter().collect()
}

/// `None` if it is not the helper's.
fn config(network: &Network) -> Option<Result<Config, Failure>> {
    let Some(subnet) = network.subnet() else {
        // Nobody is served: addresses that are nobody's (RFC 5737).
        let nobodys = Ipv4Net { network: Ipv4Addr::new(192, 0, 2, 0), prefix: 24 };
        let config = vmlan_netd::network(nobodys, None);
        return Some(config.map_err(|e| Failure::Failed(e.to_string())));
    };
    let net = subnet.net();
    let addresses = Ipv4Net { network: net.network(), prefix: net.prefix_len() };
    let mac = named::bridge_mac(subnet);
    let config = vmlan_netd::bridge_network(addresses, subnet.gateway, mac, subnet.dhcp_end?);
    Some(config.map_err(|e| Failure::Failed(e.to_string())).map(|mut config| {
        if let Some(router) = &mut config.router {
            router.leads_out = network.mode == Mode::Shared;
        }
        config
    }))
}
