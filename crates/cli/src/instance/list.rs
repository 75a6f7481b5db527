//! `vmlan list`: machines, and other guests of networks by name.

use std::fs;
use std::net::IpAddr;
use std::process::ExitCode;

use serde::Serialize;
use vmlan_api::network::Guest;
use vmlan_api::{Client, Leases};
use vmlan_config::instance::{InstanceConfig, VmType};
use vmlan_config::layers::Layers;
use vmlan_config::{LimaHome, Source};
use vmlan_vm::driver::{self, Wants};
use vmlan_vm::instance::info::{Network, Port};
use vmlan_vm::instance::{Files, Instance, Status, Store, inspect, size, ssh};
use vmlan_vm::qemu::accel;
use vmlan_vm::vz;

use super::resolved::networks_of;
use crate::Failure;
use crate::place;
use crate::table::table;

/// List machines, and other guests of running networks that have names.
///
/// These are commands of `vmlan run --name`, and machines that somebody has connected by hand.
///
/// The exit code is 1 if one that is named is not there.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these [default: all].
    names: Vec<String>,

    /// One line of JSON for each, with everything about it: sizes in bytes.
    #[arg(long)]
    json: bool,

    /// Show only names.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

/// A machine or another guest, with the fields that `limactl list --json` has, and vmlan's own.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    hostname: String,
    status: &'static str,
    /// How a running machine is.
    health: &'static str,
    dir: String,
    vm_type: &'static str,
    arch: &'static str,
    cpus: u32,
    memory: u64,
    disk: u64,
    /// As `networks:` has them.
    network: Vec<serde_json::Value>,
    ssh_local_port: u16,
    ssh_config_file: String,
    ssh_address: &'static str,
    #[serde(rename = "hostAgentPID", skip_serializing_if = "Option::is_none")]
    host_agent_pid: Option<u32>,
    #[serde(rename = "driverPID", skip_serializing_if = "Option::is_none")]
    driver_pid: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
    /// What it is connected to, and its addresses there.
    networks: Vec<Network>,
    ports: Vec<Port>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let store = super::store()?;
    let layers = Layers::load(store.home()).unwrap_or_else(|e| {
        crate::tell(&e.to_string());
        Layers::default()
    });
    let mut rows: Vec<Row> =
        store.all()?.iter().map(|instance| machine(&store, &layers, instance)).collect();
    rows.extend(others(&rows));
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let missing = |name: &&String| !rows.iter().any(|row| row.name == **name);
    let missing: Vec<_> = args.names.iter().filter(missing).cloned().collect();
    for name in &missing {
        crate::tell(&format!("no instance matching {name} found"));
    }
    rows.retain(|row| args.names.is_empty() || args.names.contains(&row.name));
    let text = if args.json {
        let lines: Result<Vec<_>, _> = rows.iter().map(serde_json::to_string).collect();
        let lines = lines.map_err(|e| Failure::Failed(e.to_string()))?;
        lines.iter().map(|line| format!("{line}\n")).collect()
    } else if args.quiet {
        rows.iter().map(|row| format!("{}\n", row.name)).collect()
    } else {
        shown(&rows)
    };
    let printed = crate::print(&text)?;
    Ok(if missing.is_empty() { printed } else { ExitCode::FAILURE })
}

fn machine(store: &Store, layers: &Layers, instance: &Instance) -> Row {
    let files = &instance.files;
    let is = inspect(instance);
    let mut info = is.info.unwrap_or_default();
    for network in &mut info.networks {
        add_seen(store.home(), files, network);
    }
    let text = fs::read_to_string(files.lima_yaml()).unwrap_or_default();
    let source = Source::new(files.lima_yaml(), text);
    let read = layers.machine(&source, &files.dir);
    let mut errors = is.errors;
    errors.extend(info.problems.iter().cloned());
    let mut status = is.status;
    if let Err(report) = &read {
        status = Status::Broken;
        errors.push(crate::network::shown(report));
    }
    let config = read.ok().map(|read| read.config);
    let running = is.status == Status::Running;
    Row {
        name: instance.name.clone(),
        hostname: ssh::host(&instance.name),
        status: status.name(),
        health: if running { info.health.name() } else { "" },
        dir: files.dir.display().to_string(),
        vm_type: config.as_ref().map_or("", |config| vm_type(config, instance)),
        arch: config.as_ref().map_or("", |config| config.arch.name()),
        // A host agent that has just begun does not know yet.
        cpus: if info.cpus != 0 { info.cpus } else { config.as_ref().map_or(0, cpus) },
        memory: if info.memory != 0 {
            info.memory
        } else {
            config.as_ref().map_or(0, size::memory)
        },
        disk: config.as_ref().map_or(0, |config| config.disk),
        network: networks_of(&source),
        ssh_local_port: info.ssh_local_port,
        ssh_config_file: files.ssh_config().display().to_string(),
        ssh_address: "127.0.0.1",
        host_agent_pid: is.host_agent,
        driver_pid: is.driver,
        errors,
        networks: info.networks,
        ports: info.ports,
    }
}

/// As many as the machine would have if it was started now.
fn cpus(config: &InstanceConfig) -> u32 {
    let wanted = super::resolved::accel(config).unwrap_or_default();
    size::cpus(config, accel::guess(config.arch, wanted))
}

/// Adds the addresses of a machine's that its network has seen it use: it makes those of IPv6 itself.
fn add_seen(home: &LimaHome, files: &Files, network: &mut Network) {
    let paths = match network.network.strip_prefix("lima:") {
        Some(name) => home.network(name),
        None if network.network == "default" => files.network(),
        None => return,
    };
    let leases: Leases = Client::new(&paths.endpoint).get("/leases").unwrap_or_default();
    let own = leases.into_iter().filter(|(_, mac)| *mac == network.mac).map(|(ip, _)| ip);
    network.addresses.extend(own.filter(|ip| !is_link_local(*ip)));
    network.addresses.sort();
    network.addresses.dedup();
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// What runs the machine, or would.
fn vm_type(config: &InstanceConfig, instance: &Instance) -> &'static str {
    let wants = Wants::of(config, &instance.files);
    // One that cannot be run is what it asks to be.
    let chosen = driver::choose(&wants, vz::available()).ok().or(config.vm_type);
    chosen.unwrap_or(VmType::Qemu).name()
}

/// Whether another guest of a network is called so.
pub(super) fn is_guest(name: &str) -> bool {
    others(&[]).iter().any(|row| row.name == name)
}

/// Guests with a name that is no machine's.
fn others(machines: &[Row]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for network in place::running().unwrap_or_default() {
        let guests: Vec<Guest> = network.client.get("/v1/guests").unwrap_or_default();
        for guest in guests {
            let Some(name) = guest.name else { continue };
            if machines.iter().any(|row| row.name == name) {
                continue;
            }
            // A machine that somebody has connected by hand is on a socket.
            let is_ours = guest.link == "tap";
            let joined = Network {
                network: format!("lima:{}", network.name),
                interface: String::new(),
                mac: guest.macs.first().cloned().unwrap_or_default(),
                addresses: guest.addresses.into_iter().filter(|ip| !is_link_local(*ip)).collect(),
                problem: None,
            };
            match rows.iter_mut().find(|row| row.name == name) {
                Some(row) => row.networks.push(joined),
                None => rows.push(Row {
                    hostname: ssh::host(&name),
                    name,
                    status: Status::Running.name(),
                    health: "ready",
                    dir: String::new(),
                    vm_type: if is_ours { "netns" } else { "" },
                    arch: if is_ours { std::env::consts::ARCH } else { "" },
                    cpus: 0,
                    memory: 0,
                    disk: 0,
                    network: Vec::new(),
                    ssh_local_port: 0,
                    ssh_config_file: String::new(),
                    ssh_address: "",
                    host_agent_pid: None,
                    driver_pid: None,
                    errors: Vec::new(),
                    networks: vec![joined],
                    ports: Vec::new(),
                }),
            }
        }
    }
    rows
}

fn shown(rows: &[Row]) -> String {
    let head = ["NAME", "STATUS", "SSH", "VMTYPE", "ARCH", "NETWORK", "ADDRESSES"];
    let mut lines = Vec::new();
    let mut notes = Vec::new();
    for row in rows {
        let status = match row.health {
            "" | "ready" => row.status.to_owned(),
            health => format!("{} ({health})", row.status),
        };
        let port = match row.ssh_local_port {
            0 => "-".into(),
            port => format!("{}:{port}", row.ssh_address),
        };
        let networks: Vec<_> =
            row.networks.iter().map(|network| network.network.as_str()).collect();
        let addresses: Vec<_> =
            row.networks.iter().flat_map(|n| &n.addresses).map(ToString::to_string).collect();
        let or_none = |words: String| if words.is_empty() { "-".into() } else { words };
        lines.push([
            row.name.clone(),
            status,
            port,
            or_none(row.vm_type.into()),
            or_none(row.arch.into()),
            or_none(networks.join(",")),
            or_none(addresses.join(",")),
        ]);
        let of_networks = row.networks.iter().filter_map(|network| network.problem.clone());
        let of_ports = row.ports.iter().filter_map(|port| {
            port.problem.as_ref().map(|why| format!("{} is not forwarded: {why}", port.guest))
        });
        let all = row.errors.iter().cloned().chain(of_networks).chain(of_ports);
        notes.extend(all.map(|note| format!("{}: {note}", row.name)));
    }
    let mut text = table(head, lines);
    for note in notes {
        text += &format!("{note}\n");
    }
    text
}
