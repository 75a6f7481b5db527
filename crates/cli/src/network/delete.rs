//! `vmlan network delete`

use vmlan_api::network::Network as Running;
use vmlan_api::{Client, ClientError, Tunnel};
use vmlan_config::{BUILT_IN, LimaHome, NetworkPaths, NetworksFile, Platform, users_of};
use vmlan_netd::managed;

use crate::{Failure, tell};

/// Remove networks from networks.yaml, with their leases and logs.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The networks to remove: all of them, or none if one cannot be.
    #[arg(required = true)]
    name: Vec<String>,

    /// End the daemon of a network that is in use, and do not mind networks that are not there.
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run(args: &Args) -> Result<String, Failure> {
    let home = LimaHome::from_env()?;
    let mut locked = NetworksFile::lock(&home, &Platform::detect())?;
    super::warn(&locked.file);
    let mut names: Vec<&str> = Vec::new();
    for name in &args.name {
        match super::find(&locked.file, name) {
            Ok(network) if network.span.is_none() => {
                let path = locked.file.path().display();
                let text = format!("network `{name}` is built in and not in {path}");
                return Err(Failure::Failed(text));
            }
            Ok(_) if !names.contains(&name.as_str()) => names.push(name),
            Ok(_) => {}
            Err(Failure::Failed(why)) if args.force => tell(&why),
            Err(failure) => return Err(failure),
        }
        if !args.force {
            refuse_in_use(&home, name)?;
            refuse_running(&home, name)?;
        }
    }
    if !names.is_empty() {
        locked.remove(&names)?;
        for name in &names {
            clear(&home.network(name)).map_err(|e| {
                Failure::Failed(format!("network `{name}` is removed, but not its files: {e}"))
            })?;
        }
    }
    if names.contains(&BUILT_IN) && locked.file.networks.get(BUILT_IN).is_some() {
        tell(&format!("network `{BUILT_IN}` is still there, with its built-in defaults"));
    }
    Ok(String::new())
}

/// Refuses a network that has guests now, or that somebody keeps.
fn refuse_running(home: &LimaHome, name: &str) -> Result<(), Failure> {
    let client = Client::new(&home.network(name).endpoint);
    let running: Running = match client.get("/v1/network") {
        Ok(running) => running,
        Err(ClientError::NoDaemon) => return Ok(()),
        Err(e) => return Err(Failure::Failed(format!("network `{name}`: {e}; see --force"))),
    };
    let guests = running.guests.iter().map(|guest| {
        let mac = || guest.macs.first().cloned().unwrap_or_else(|| "a guest".to_owned());
        guest.name.clone().unwrap_or_else(mac)
    });
    let guests: Vec<_> = guests.collect();
    let why = match (guests.is_empty(), running.daemon.held) {
        (false, _) => format!("is used by {}", guests.join(", ")),
        (true, true) => format!("is kept by `vmlan network start {name}`"),
        (true, false) => match client.get::<Vec<Tunnel>>("/v1/tunnels") {
            Ok(tunnels) if !tunnels.is_empty() => {
                format!("is kept by a tunnel; see `vmlan tunnel stop {name}`")
            }
            _ => return Ok(()),
        },
    };
    Err(Failure::Failed(format!("network `{name}` {why}; see --force")))
}

/// Stops what runs of a network, and removes its files.
fn clear(paths: &NetworkPaths) -> Result<(), String> {
    if !paths.dir.exists() {
        return Ok(());
    }
    super::watch::end(paths)?;
    let _lock = managed::lock(paths).map_err(|e| e.to_string())?;
    managed::end(&paths.pidfile).map_err(|e| e.to_string())?;
    paths.remove().map_err(|e| e.to_string())
}

fn refuse_in_use(home: &LimaHome, name: &str) -> Result<(), Failure> {
    let users = users_of(home, name).map_err(|e| {
        Failure::Failed(format!("{}: who uses `{name}`: {e}", home.path().display()))
    })?;
    let list = |names: &[String]| names.join(", ");
    if !users.instances.is_empty() {
        let users = list(&users.instances);
        return Err(Failure::Failed(format!("network `{name}` is used by {users}; see --force")));
    }
    if !users.unreadable.is_empty() {
        let users = list(&users.unreadable);
        let text =
            format!("network `{name}` may be used by {users}, whose lima.yaml cannot be read");
        return Err(Failure::Failed(text + "; see --force"));
    }
    Ok(())
}
