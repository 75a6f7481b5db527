//! `vmlan tunnel`: a port of this machine by which its programs reach the guests of a network.

use std::process::ExitCode;

use serde::Serialize;
use vmlan_api::network::Guest;
use vmlan_api::{Client, ClientError, Tunnel, TunnelRequest};

use crate::network::daemon::{Daemon, unwatch};
use crate::network::watch;
use crate::place::{self, Place, Running};
use crate::{Failure, network};

/// Reach the guests of a network from this machine, by a SOCKS5 and HTTP CONNECT proxy.
///
/// The proxy is a port of 127.0.0.1 and ::1. Through it, programs reach guests by IP address and
/// by name, as guests reach each other; nothing else is reached. It is there until it is
/// stopped, and keeps the network's daemon running.
///
/// A name stands for what a guest would find: lima-NAME.internal is the guest NAME.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// A network of mode user-v2, or a running guest on one.
    #[arg(required = true, value_name = "NETWORK|GUEST")]
    name: Option<String>,

    /// The port, 1024 to 65535, or 0 for a random free one [default: that of a tunnel that is open
    /// already, else a random one].
    #[arg(long, value_name = "PORT", value_parser = socks_port)]
    socks_port: Option<u16>,

    /// What kind of proxy; there is one.
    #[arg(long = "type", value_name = "TYPE", default_value = "socks", hide = true, value_parser = kind)]
    _kind: String,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(visible_alias = "ls")]
    List(ListArgs),
    Stop(StopArgs),
}

/// List the tunnels of all networks.
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// One line of JSON for each tunnel.
    #[arg(long)]
    json: bool,
}

/// Close tunnels; connections that run through them go on.
#[derive(Debug, clap::Args)]
struct StopArgs {
    /// A network, whose tunnels are all meant, or one tunnel's port.
    #[arg(value_name = "NETWORK|PORT", required_unless_present = "all", conflicts_with = "all")]
    which: Option<String>,

    /// Every tunnel of every network.
    #[arg(long)]
    all: bool,
}

/// A tunnel as scripts see it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    network: &'a str,
    port: u16,
    proxy: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let text = match (&args.command, &args.name) {
        (Some(Command::List(args)), _) => list(args),
        (Some(Command::Stop(args)), _) => stop(args),
        (None, name) => open(name.as_deref().unwrap_or_default(), args.socks_port),
    }?;
    crate::print(&text)
}

fn socks_port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| matches!(port, 0 | 1024..));
    port.ok_or_else(|| format!("invalid socks port {text}"))
}

fn kind(text: &str) -> Result<String, String> {
    if text == "socks" { Ok(text.into()) } else { Err(format!("unknown tunnel type: `{text}`")) }
}

fn open(name: &str, port: Option<u16>) -> Result<String, Failure> {
    // A network that is named has a daemon from now on; it waits a while for what follows.
    if let Some(daemon) = daemon(name.strip_prefix("lima:").unwrap_or(name))? {
        daemon.ensure().map_err(|e| Failure::Failed(e.to_string()))?;
    }
    let Place { network, client, guest } = place::find(name)?;
    let proxy = proxy(open_at(&client, port).map_err(place::failed(&network))?);
    if let Some(daemon) = daemon(&network)? {
        watch::start(&daemon, &network).map_err(Failure::Failed)?;
    }
    let guest = match guest {
        Some(guest) => guest.name,
        None => {
            let guests = client.get::<Vec<Guest>>("/v1/guests").map_err(place::failed(&network))?;
            guests.into_iter().find_map(|guest| guest.name)
        }
    };
    let host = guest.and_then(|guest| vmlan_config::host_name(&guest).ok());
    let host = host.unwrap_or_else(|| "lima-NAME".into());
    Ok(format!(
        "Set `ALL_PROXY={proxy}`, etc., for instance:\n\
         ALL_PROXY={proxy} curl http://{host}.internal\n"
    ))
}

/// What it takes to start a network's daemon, if one is configured under that name.
fn daemon(network: &str) -> Result<Option<Daemon>, Failure> {
    let (home, file) = network::load()?;
    let daemon = file.networks.get(network).map(|network| Daemon::of(&home, network));
    daemon.transpose().map_err(Failure::Failed)
}

fn open_at(client: &Client, port: Option<u16>) -> Result<u16, ClientError> {
    if port.is_none()
        && let Some(tunnel) = client.get::<Vec<Tunnel>>("/v1/tunnels")?.first()
    {
        return Ok(tunnel.port);
    }
    let request = TunnelRequest { port: port.unwrap_or(0) };
    client.call::<Tunnel>("POST", "/v1/tunnels", &request).map(|tunnel| tunnel.port)
}

fn list(args: &ListArgs) -> Result<String, Failure> {
    let running = place::running()?;
    let mut lines = Vec::new();
    for running in &running {
        let tunnels = running.get::<Vec<Tunnel>>("/v1/tunnels")?.unwrap_or_default();
        let network = &running.name;
        lines.extend(tunnels.iter().map(|t| Line { network, port: t.port, proxy: proxy(t.port) }));
    }
    if args.json {
        let lines = lines.iter().map(|line| serde_json::to_string(line).map(|line| line + "\n"));
        return lines.collect::<Result<_, _>>().map_err(|e| Failure::Failed(e.to_string()));
    }
    let rows = lines.into_iter().map(|line| [line.network.to_owned(), line.proxy]);
    Ok(crate::table::table(["NETWORK", "PROXY"], rows))
}

fn stop(args: &StopArgs) -> Result<String, Failure> {
    let Some(which) = &args.which else {
        for running in place::running()? {
            close(&running, None)?;
        }
        return Ok(String::new());
    };
    let Ok(port) = which.parse() else {
        return close(&place::running_network(which)?, None).map(|_| String::new());
    };
    for running in place::running()? {
        if close(&running, Some(port))? {
            return Ok(String::new());
        }
    }
    Err(Failure::Failed(format!("no tunnel has port {port}")))
}

/// Closes one tunnel of a network, or all; false if it has none with that port.
fn close(running: &Running, port: Option<u16>) -> Result<bool, Failure> {
    let target = match port {
        Some(port) => format!("/v1/tunnels?port={port}"),
        None => "/v1/tunnels".into(),
    };
    match running.client.call::<Vec<Tunnel>>("DELETE", &target, &()) {
        Ok(_) => {
            if let Some(daemon) = daemon(&running.name)? {
                unwatch(&daemon.paths)?;
            }
            Ok(true)
        }
        Err(ClientError::NoDaemon | ClientError::Refused { status: 404, .. }) => Ok(false),
        Err(error) => Err(place::failed(&running.name)(error)),
    }
}

fn proxy(port: u16) -> String {
    format!("socks5h://127.0.0.1:{port}")
}
