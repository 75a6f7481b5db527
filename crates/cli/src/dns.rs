//! `vmlan dns`: the resolver without a network, and questions to that of a network.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use vmlan_api::dns::{Answer, Question, Record};
use vmlan_engine::config::Ipv4Net;
use vmlan_netd::DnsServer;

use crate::Failure;
use crate::names::NameArgs;
use crate::place::{self, Running};

/// More than the daemon takes to say that nobody knows.
const PATIENCE: Duration = Duration::from_secs(25);

/// Resolve names as guests see them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Serve(Serve),
    Query(Asked),
}

/// Serve the resolver on ports of 127.0.0.1.
///
/// Each port is a random free one unless given. Both are told when they are open. SIGTERM and
/// SIGINT end it.
#[derive(Debug, clap::Args)]
struct Serve {
    /// The port for DNS over UDP.
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    udp_port: u16,

    /// The port for DNS over TCP.
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    tcp_port: u16,

    #[command(flatten)]
    names: NameArgs,

    /// Tell the ports as JSON.
    #[arg(long)]
    json: bool,

    /// Write "ready" to this descriptor as soon as both ports are open.
    #[arg(long, value_name = "FD")]
    ready_fd: Option<i32>,
}

/// Show what a guest would be answered, and where the answer came from.
///
/// Without --network it is a guest of the default network. The exit code is 0 if the name exists, 1
/// if it does not or nobody knows.
#[derive(Debug, clap::Args)]
struct Asked {
    /// A name, or an address whose name is wanted.
    name: String,

    /// The type of record: A, AAAA, CNAME, MX, TXT, ..., or TYPE and a number [default: A, or PTR of an
    /// address].
    #[arg(value_name = "TYPE")]
    kind: Option<String>,

    /// Ask the resolver of a running network: its name, or the path of its control socket.
    #[arg(long, value_name = "NETWORK", conflicts_with_all = NameArgs::FLAGS)]
    network: Option<String>,

    #[command(flatten)]
    names: NameArgs,

    /// Show it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Ports {
    udp: String,
    tcp: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    match &args.command {
        Command::Serve(args) => serve(args),
        Command::Query(args) => query(args),
    }
}

fn serve(args: &Serve) -> Result<ExitCode, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Failed(e.to_string());
    let mut options = args.names.of_default_network()?;
    let ready_fd = args.ready_fd.map(|fd| {
        vmlan_netd::inherited(fd).map_err(|e| Failure::Usage(format!("--ready-fd {fd}: {e}")))
    });
    let ready_fd = ready_fd.transpose()?;
    add_names(&mut options)?;
    // Without the right to more files, fewer clients are served.
    vmlan_host::raise_fd_limit();
    let opened = DnsServer::open(args.udp_port, args.tcp_port, options);
    let mut server = opened.map_err(|e| failed(&e))?;
    let (udp, tcp) = (server.udp_addr().to_string(), server.tcp_addr().to_string());
    let text = if args.json {
        serde_json::to_string(&Ports { udp, tcp }).map_err(|e| failed(&e))?
    } else {
        format!("udp {udp}\ntcp {tcp}")
    };
    crate::print(&(text + "\n"))?;
    if let Some(fd) = ready_fd {
        let written = File::from(fd).write_all(b"ready\n");
        written.map_err(|e| Failure::Failed(format!("--ready-fd: {e}")))?;
    }
    server.run().map_err(|e| failed(&e))?;
    Ok(ExitCode::SUCCESS)
}

fn query(args: &Asked) -> Result<ExitCode, Failure> {
    let question = Question::new(&args.name, args.kind.as_deref());
    let question = question.map_err(|e| Failure::Usage(e.to_string()))?;
    let answer = match &args.network {
        Some(network) => ask(network, args)?,
        None => resolve(&question, args)?,
    };
    let text = if args.json {
        serde_json::to_string(&answer).map_err(|e| Failure::Failed(e.to_string()))?
    } else {
        text(&answer)
    };
    crate::print(&(text + "\n"))?;
    Ok(if answer.is_found() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Has a running network's resolver asked.
fn ask(network: &str, args: &Asked) -> Result<Answer, Failure> {
    let Running { name, client } = place::running_network(network)?;
    let mut target = format!("/v1/dns?name={}", vmlan_api::escape(&args.name));
    if let Some(kind) = &args.kind {
        target = format!("{target}&type={}", vmlan_api::escape(kind));
    }
    client.patient(PATIENCE).get(&target).map_err(place::failed(&name))
}

/// Asks a resolver that is there for this question only.
fn resolve(question: &Question, args: &Asked) -> Result<Answer, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Failed(e.to_string());
    let mut options = args.names.of_default_network()?;
    add_names(&mut options)?;
    let asked = question.message().map_err(|e| Failure::Usage(e.to_string()))?;
    let start = Instant::now();
    let answer = vmlan_host::resolve(options, &asked);
    let answer = answer.map_err(|e| Failure::Failed(format!("cannot resolve: {e}")))?;
    let Some((origin, answer)) = answer else {
        return Err(Failure::Failed(format!("{}: no answer", args.name)));
    };
    let milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    question.answer(&answer, origin, milliseconds).map_err(|e| failed(&e))
}

/// The names that the default network has.
fn add_names(options: &mut vmlan_dns::Options) -> Result<(), Failure> {
    const SUBNET: Ipv4Net = Ipv4Net { network: Ipv4Addr::new(192, 168, 5, 0), prefix: 24 };
    let network = vmlan_netd::network(SUBNET, None);
    let config = network.map_err(|e| Failure::Failed(e.to_string()))?;
    vmlan_netd::add_names(&mut options.names, &config);
    Ok(())
}

/// Records as a zone has them, and a line about the whole.
fn text(answer: &Answer) -> String {
    let mut lines: Vec<String> = answer.answer.iter().map(line).collect();
    if lines.is_empty() {
        lines.extend(answer.authority.iter().map(line));
    }
    let none = answer.is_found() && answer.answer.is_empty();
    let none = if none { ", no such record" } else { "" };
    let server =
        answer.server.as_deref().map(|server| server.strip_suffix(":53").unwrap_or(server));
    let server = server.map(|server| format!(" {server}")).unwrap_or_default();
    let Answer { rcode, from, milliseconds, .. } = answer;
    lines.push(format!("; {rcode}{none}, from {from}{server}, {milliseconds} ms"));
    lines.join("\n")
}

fn line(record: &Record) -> String {
    let Record { name, ttl, class, kind, data } = record;
    format!("{name}\t{ttl}\t{class}\t{kind}\t{data}")
}
