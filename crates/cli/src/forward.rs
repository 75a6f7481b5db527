//! `vmlan forward`: ports and sockets of the host that lead to guests of a running network.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use serde::Serialize;
use vmlan_api::network::{self, Guest, Listen, Listens};
use vmlan_api::protocol_name;
use vmlan_engine::Forward;
use vmlan_engine::io::ListenAddr;

use crate::Failure;
use crate::place::{self, Place};

/// Lead ports of the host to guests of a running network.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Add(AddArgs),
    #[command(visible_alias = "ls")]
    List(ListArgs),
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
}

/// Open ports of the host that lead to a guest.
///
/// All of them are opened, or none. Those of a guest that has a name go with it; those of a network
/// go with its last guest.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vmlan forward add web 8080:80 5353:53/udp")]
struct AddArgs {
    /// A guest's name, as NETWORK/GUEST where several have it, or a network.
    #[arg(value_name = "NETWORK|GUEST")]
    place: String,

    /// For a guest, [HOSTIP:]HOSTPORT:GUESTPORT[/udp] or PATH:GUESTPORT, as run -p has it; for a
    /// network, LISTEN=ADDRESS:PORT[/udp][,source=keep], as netd --forward has it.
    ///
    /// HOSTIP is 127.0.0.1 unless given, an IPv6 address in brackets. Ranges of one length may
    /// stand for the ports: 8000-8010:8000-8010. PATH starts with / or ./ and is a UNIX socket's.
    #[arg(required = true, value_name = "FORWARD")]
    forwards: Vec<String>,
}

/// List the forwards of running networks.
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only this network's.
    network: Option<String>,

    /// One line of JSON for each forward.
    #[arg(long)]
    json: bool,
}

/// Close ports of the host that lead to a guest. Connections that are open go on.
///
/// All of them are closed, or none.
#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// The guest that they lead to, or its network.
    #[arg(value_name = "NETWORK|GUEST")]
    place: String,

    /// Where they listen: [HOSTIP:]HOSTPORT[/udp], a range of ports, or a PATH.
    #[arg(required = true, value_name = "LISTEN")]
    listens: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    match &args.command {
        Command::Add(args) => add(args)?,
        Command::List(args) => return crate::print(&list(args)?),
        Command::Remove(args) => remove(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn add(args: &AddArgs) -> Result<(), Failure> {
    let place = place::find(&args.place)?;
    let guest = place.guest.as_ref().map(|guest| address(guest, &args.place)).transpose()?;
    let mut forwards = Vec::new();
    for text in &args.forwards {
        let wrong = |why: String| Failure::Usage(format!("`{text}`: {why}"));
        for forward in parse(text, guest).map_err(wrong)? {
            if let Some(guest) = &place.guest
                && !guest.addresses.contains(&forward.guest.ip())
            {
                let (ip, name) = (forward.guest.ip(), &args.place);
                return Err(wrong(format!("{ip} is not an address of {name}'s")));
            }
            let Listen { protocol, listen } = listen(&forward.listen)?;
            forwards.push(network::Forward {
                protocol,
                listen,
                target: forward.guest.to_string(),
                keep_source: forward.keep_source,
                guest: place.guest.as_ref().and_then(|guest| guest.name.clone()),
            });
        }
    }
    let Place { network, client, .. } = place;
    let added = client.post("/v1/forwards", &network::Forwards { forwards });
    added.map_err(place::failed(&network))
}

/// A port alone is one of the guest's, where one is named.
fn parse(text: &str, guest: Option<IpAddr>) -> Result<Vec<Forward>, String> {
    match guest {
        Some(guest) if !text.contains('=') => vmlan_engine::parse_publish(text, guest),
        Some(guest) => vmlan_engine::parse_forward(text, guest),
        None => {
            let forwards = vmlan_engine::parse_forward(text, Ipv4Addr::UNSPECIFIED.into())?;
            if forwards.iter().any(|forward| forward.guest.ip().is_unspecified()) {
                return Err("which guest's port? Say LISTEN=ADDRESS:PORT, or name the guest \
                            instead of the network"
                    .into());
            }
            Ok(forwards)
        }
    }
}

fn address(guest: &Guest, name: &str) -> Result<IpAddr, Failure> {
    let first = guest.addresses.iter().min_by_key(|ip| ip.is_ipv6());
    first.copied().ok_or_else(|| Failure::Failed(format!("guest `{name}` has no address yet")))
}

/// The daemon has a directory of its own.
fn listen(listen: &ListenAddr) -> Result<Listen, Failure> {
    let protocol = protocol_name(listen).into();
    let listen = match listen {
        ListenAddr::Tcp(addr) | ListenAddr::Udp(addr) => addr.to_string(),
        ListenAddr::Unix(path) => {
            let whole = std::path::absolute(path);
            let wrong = |e| Failure::Failed(format!("{}: {e}", path.display()));
            whole.map_err(wrong)?.display().to_string()
        }
    };
    Ok(Listen { protocol, listen })
}

fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    let Place { network, client, guest } = place::find(&args.place)?;
    let mut forwards = Vec::new();
    for text in &args.listens {
        let parsed = vmlan_engine::parse_listen(text);
        let parsed = parsed.map_err(|why| Failure::Usage(format!("`{text}`: {why}")))?;
        for one in &parsed {
            forwards.push(listen(one)?);
        }
    }
    if let Some(guest) = guest {
        let there: Vec<network::Forward> =
            client.get("/v1/forwards").map_err(place::failed(&network))?;
        let others = there.iter().find(|f| {
            let wanted = |l: &Listen| l.listen == f.listen && l.protocol == f.protocol;
            let target = f.target.parse::<std::net::SocketAddr>().map(|target| target.ip());
            forwards.iter().any(wanted) && !target.is_ok_and(|ip| guest.addresses.contains(&ip))
        });
        if let Some(other) = others {
            let (listen, target) = (&other.listen, &other.target);
            let text = format!("{listen}: leads to {target}, not to {}", args.place);
            return Err(Failure::Failed(text));
        }
    }
    let removed = client.post("/v1/forwards/remove", &Listens { forwards });
    removed.map_err(place::failed(&network))
}

/// A forward as scripts see it.
#[derive(Serialize)]
struct Line<'a> {
    network: &'a str,
    #[serde(flatten)]
    forward: &'a network::Forward,
}

fn list(args: &ListArgs) -> Result<String, Failure> {
    let networks = match &args.network {
        Some(name) => vec![place::running_network(name)?],
        None => place::running()?,
    };
    let mut all = Vec::new();
    for running in networks {
        let forwards = running.get::<Vec<network::Forward>>("/v1/forwards")?;
        let forwards = forwards.into_iter().flatten();
        all.extend(forwards.map(|forward| (running.name.clone(), forward)));
    }
    if args.json {
        let lines = all.iter().map(|(network, forward)| Line { network, forward });
        let lines = lines.map(|line| serde_json::to_string(&line).map(|line| line + "\n"));
        return lines.collect::<Result<_, _>>().map_err(|e| Failure::Failed(e.to_string()));
    }
    Ok(table(&all))
}

fn table(all: &[(String, network::Forward)]) -> String {
    let rows = all.iter().map(|(network, f)| {
        let keep = if f.keep_source { ",source=keep" } else { "" };
        let target = format!("{}{keep}", f.target);
        let guest = f.guest.clone().unwrap_or_else(|| "-".into());
        [network.clone(), f.protocol.clone(), f.listen.clone(), target, guest]
    });
    crate::table::table(["NETWORK", "PROTOCOL", "LISTEN", "TARGET", "GUEST"], rows)
}
