//! `vmlan network show`

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;
use vmlan_api::{Client, ClientError};
use vmlan_config::{LimaHome, Mode, Network, NetworksFile, overlap, routes, users_of};
use vmlan_engine::config::{Ipv4Net, Ipv6Net};

use crate::Failure;
use crate::network::list::Line;
use crate::network::live;
use crate::place;

/// Show everything about a network.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The network.
    name: String,

    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    #[serde(flatten)]
    line: Line<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet: Option<String>,
    /// The addresses of a user-mode network that are not guests'.
    #[serde(flatten)]
    services: Option<Services>,
    /// The file that names the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line_number: Option<usize>,
    /// The instances that name it.
    instances: Vec<String>,
    /// Who has its addresses too.
    overlaps: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<Daemon>,
    /// What the daemon tells, while there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<vmlan_api::network::Network>,
}

#[derive(Debug, Serialize)]
struct Services {
    host: String,
    dns: String,
    ipv6: String,
}

/// Files of the network's daemon.
#[derive(Debug, Serialize)]
struct Daemon {
    endpoint: PathBuf,
    qemu: PathBuf,
    fd: PathBuf,
    pidfile: PathBuf,
    logs: [PathBuf; 2],
    leases: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<String, Failure> {
    let (home, file) = super::load()?;
    let shown = shown(&home, &file, super::find(&file, &args.name)?)?;
    if args.json {
        let text = serde_json::to_string_pretty(&shown);
        return text.map(|text| text + "\n").map_err(|e| Failure::Failed(e.to_string()));
    }
    Ok(text(&shown))
}

fn shown<'a>(
    home: &LimaHome,
    file: &NetworksFile,
    network: &'a Network,
) -> Result<Shown<'a>, Failure> {
    let users = users_of(home, &network.name);
    let users = users.map_err(|e| Failure::Failed(format!("{}: {e}", home.path().display())))?;
    let user_mode = network.mode == Mode::UserV2;
    let line_number = file.line_of(network);
    let overlaps = network.subnet().map(|subnet| {
        let routes = routes::read().unwrap_or_default();
        overlap::find(subnet.net(), &network.name, &file.networks, &routes)
    });
    let live = match Client::new(&home.network(&network.name).endpoint).get("/v1/network") {
        _ if !user_mode => None,
        Ok(live) => Some(live),
        Err(ClientError::NoDaemon) => None,
        Err(error) => return Err(place::failed(&network.name)(error)),
    };
    Ok(Shown {
        live,
        line: Line::new(network),
        subnet: network.subnet().map(|subnet| subnet.net().to_string()),
        services: network.subnet().filter(|_| user_mode).map(|subnet| {
            let net = Ipv4Net { network: subnet.net().network(), prefix: subnet.prefix };
            Services {
                host: subnet.host().to_string(),
                dns: subnet.dns().to_string(),
                ipv6: format!("{}/64", Ipv6Net::for_subnet(net).prefix),
            }
        }),
        file: line_number.map(|_| file.path().to_owned()),
        line_number,
        instances: users.instances,
        overlaps: overlaps.unwrap_or_default().iter().map(ToString::to_string).collect(),
        daemon: user_mode.then(|| {
            let paths = home.network(&network.name);
            Daemon {
                endpoint: paths.endpoint,
                qemu: paths.qemu,
                fd: paths.fd,
                pidfile: paths.pidfile,
                logs: [paths.stdout, paths.stderr],
                leases: paths.leases,
            }
        }),
    })
}

fn text(shown: &Shown<'_>) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<12}{value}");
    };
    let line = &shown.line;
    row("name", line.name);
    row("mode", line.mode.name());
    let services = shown.services.as_ref();
    let addresses = [
        ("interface", line.interface),
        ("subnet", shown.subnet.as_deref()),
        ("gateway", line.gateway.as_deref()),
        ("netmask", line.netmask.as_deref()),
        ("dhcpEnd", line.dhcp_end.as_deref()),
        ("host", services.map(|s| s.host.as_str())),
        ("dns", services.map(|s| s.dns.as_str())),
        ("ipv6", services.map(|s| s.ipv6.as_str())),
    ];
    for (name, value) in addresses {
        if let Some(value) = value {
            row(name, value);
        }
    }
    match (&shown.file, shown.line_number) {
        (Some(file), Some(line)) => row("defined in", &format!("{}:{line}", file.display())),
        _ => row("defined in", "vmlan itself: it is built in"),
    }
    for overlap in &shown.overlaps {
        row("conflict", overlap);
    }
    if !shown.instances.is_empty() {
        row("instances", &shown.instances.join(" "));
    }
    if let Some(daemon) = &shown.daemon {
        let files = [
            ("control", &daemon.endpoint),
            ("qemu", &daemon.qemu),
            ("fd", &daemon.fd),
            ("pid file", &daemon.pidfile),
            ("stdout", &daemon.logs[0]),
            ("stderr", &daemon.logs[1]),
            ("leases", &daemon.leases),
        ];
        for (name, path) in files {
            row(name, &path.display().to_string());
        }
        if shown.live.is_none() {
            row("daemon", "none now: one comes with the first guest");
        }
    }
    if let Some(live) = &shown.live {
        out.push_str(&live::text(live));
    }
    out
}
