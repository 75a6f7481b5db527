//! `vmlan dns`: the resolver without a network.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Instant;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use serde::Serialize;
use vmlan_dns::Origin;
use vmlan_engine::config::Ipv4Net;
use vmlan_netd::DnsServer;

use crate::Failure;
use crate::names::NameArgs;

/// Resolve names as guests see them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Serve(Serve),
    Query(Question),
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
/// The exit code is 0 if the name exists, 1 if it does not or nobody knows.
#[derive(Debug, clap::Args)]
struct Question {
    /// A name, or an address whose name is wanted.
    name: String,

    /// The type of record: A, AAAA, CNAME, MX, TXT, ..., or TYPE and a number.
    #[arg(value_name = "TYPE")]
    kind: Option<String>,

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

#[derive(Serialize)]
struct Shown {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    rcode: String,
    flags: Vec<&'static str>,
    /// static, hosts file, native, upstream, cache or resolver.
    from: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    milliseconds: u128,
    answer: Vec<ShownRecord>,
    authority: Vec<ShownRecord>,
    additional: Vec<ShownRecord>,
}

#[derive(Serialize)]
struct ShownRecord {
    name: String,
    ttl: u32,
    class: String,
    #[serde(rename = "type")]
    kind: String,
    data: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    match &args.command {
        Command::Serve(args) => serve(args),
        Command::Query(args) => query(args),
    }
}

fn serve(args: &Serve) -> Result<ExitCode, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Failed(e.to_string());
    let mut options = args.names.options()?;
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
    print(&text)?;
    if let Some(fd) = ready_fd {
        let written = File::from(fd).write_all(b"ready\n");
        written.map_err(|e| Failure::Failed(format!("--ready-fd: {e}")))?;
    }
    server.run().map_err(|e| failed(&e))?;
    Ok(ExitCode::SUCCESS)
}

fn query(args: &Question) -> Result<ExitCode, Failure> {
    let question = question(args)?;
    let mut options = args.names.options()?;
    add_names(&mut options)?;
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message.add_query(question.clone());
    let asked = message.to_vec().map_err(|e| Failure::Usage(format!("{}: {e}", args.name)))?;
    let start = Instant::now();
    let answer = vmlan_host::resolve(options, &asked);
    let answer = answer.map_err(|e| Failure::Failed(format!("cannot resolve: {e}")))?;
    let Some((origin, answer)) = answer else {
        return Err(Failure::Failed(format!("{}: no answer", args.name)));
    };
    let milliseconds = start.elapsed().as_millis();
    let unreadable =
        |e| Failure::Failed(format!("{}: an answer that makes no sense: {e}", args.name));
    let answer = Message::from_vec(&answer).map_err(unreadable)?;
    let shown = Shown::new(&question, &answer, origin, milliseconds);
    let text = if args.json {
        serde_json::to_string(&shown).map_err(|e| Failure::Failed(e.to_string()))?
    } else {
        shown.text(origin)
    };
    print(&text)?;
    let found = answer.metadata.response_code == ResponseCode::NoError;
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An address is asked for its name.
fn question(args: &Question) -> Result<Query, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::Usage(format!("{}: {e}", args.name));
    let address = args.name.parse::<IpAddr>().ok().filter(|_| args.kind.is_none());
    let kind = match &args.kind {
        Some(text) => kind(text)?,
        None if address.is_some() => RecordType::PTR,
        None => RecordType::A,
    };
    if address.is_none() && args.name != "." {
        vmlan_dns::check_name(&args.name).map_err(|e| Failure::Usage(e.to_string()))?;
    }
    let mut name = match address {
        Some(address) => Name::from(address),
        None => Name::from_ascii(&args.name).map_err(|e| wrong(&e))?,
    };
    name.set_fqdn(true);
    Ok(Query::query(name, kind))
}

fn kind(text: &str) -> Result<RecordType, Failure> {
    let upper = text.to_ascii_uppercase();
    let number = upper.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok());
    match number {
        Some(number) => Ok(RecordType::from(number)),
        None => upper.parse().map_err(|_| {
            Failure::Usage(format!("{text} is no type of record; TYPE65 is number 65"))
        }),
    }
}

/// The names that the default network has.
fn add_names(options: &mut vmlan_dns::Options) -> Result<(), Failure> {
    const SUBNET: Ipv4Net = Ipv4Net { network: Ipv4Addr::new(192, 168, 5, 0), prefix: 24 };
    let network = vmlan_netd::network(SUBNET, None);
    let config = network.map_err(|e| Failure::Failed(e.to_string()))?;
    vmlan_netd::add_names(&mut options.names, &config);
    Ok(())
}

/// A line or some on standard output, at once.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| Failure::Failed(format!("standard output: {e}")))
}

impl Shown {
    fn new(question: &Query, answer: &Message, origin: Origin, milliseconds: u128) -> Self {
        let (from, server) = match origin {
            Origin::Static => ("static", None),
            Origin::HostsFile => ("hosts file", None),
            Origin::Native => ("native", None),
            Origin::Upstream(server) => ("upstream", Some(server.to_string())),
            Origin::Cache => ("cache", None),
            Origin::Resolver => ("resolver", None),
        };
        let meta = &answer.metadata;
        let flags = [
            ("aa", meta.authoritative),
            ("tc", meta.truncation),
            ("rd", meta.recursion_desired),
            ("ra", meta.recursion_available),
            ("ad", meta.authentic_data),
            ("cd", meta.checking_disabled),
        ];
        let records = |records: &[Record]| records.iter().map(ShownRecord::new).collect();
        Self {
            name: question.name().to_string(),
            kind: question.query_type().to_string(),
            rcode: rcode(meta.response_code),
            flags: flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect(),
            from,
            server,
            milliseconds,
            answer: records(&answer.answers),
            authority: records(&answer.authorities),
            additional: records(&answer.additionals),
        }
    }

    fn text(&self, origin: Origin) -> String {
        let mut lines: Vec<String> = self.answer.iter().map(ShownRecord::text).collect();
        if lines.is_empty() {
            lines.extend(self.authority.iter().map(ShownRecord::text));
        }
        let none = if self.answer.is_empty() { ", no such record" } else { "" };
        let none = if self.rcode == "NOERROR" { none } else { "" };
        lines.push(format!("; {}{none}, from {origin}, {} ms", self.rcode, self.milliseconds));
        lines.join("\n")
    }
}

impl ShownRecord {
    fn new(record: &Record) -> Self {
        Self {
            name: record.name.to_string(),
            ttl: record.ttl,
            class: record.dns_class.to_string(),
            kind: record.record_type().to_string(),
            data: record.data.to_string(),
        }
    }

    fn text(&self) -> String {
        format!("{}\t{}\t{}\t{}\t{}", self.name, self.ttl, self.class, self.kind, self.data)
    }
}

/// As everybody writes it.
fn rcode(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".into(),
        ResponseCode::FormErr => "FORMERR".into(),
        ResponseCode::ServFail => "SERVFAIL".into(),
        ResponseCode::NXDomain => "NXDOMAIN".into(),
        ResponseCode::NotImp => "NOTIMP".into(),
        ResponseCode::Refused => "REFUSED".into(),
        other => format!("RCODE{}", u16::from(other)),
    }
}
