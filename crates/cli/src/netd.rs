//! `vmlan netd`: a network in the foreground, for machines that are started by hand.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use vmlan_engine::config::{HostLoopback, Ipv4Net};
use vmlan_engine::{Config, Forward};
use vmlan_netd::{Daemon, PidFile};

use crate::Failure;

/// Serve a network in the foreground.
///
/// Guests get addresses by DHCP or configure themselves. From inside, the host is the second
/// address of the subnet and the name server the third. SIGTERM and SIGINT end the network.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The guests' subnet.
    #[arg(long, value_name = "CIDR", default_value = "192.168.5.0/24")]
    subnet: Ipv4Net,

    /// The router that guests see [default: the subnet's second address].
    #[arg(long, value_name = "IP")]
    gateway: Option<Ipv4Addr>,

    /// Let guests with QEMU's stream framing connect at PATH, any number of them.
    ///
    /// In QEMU: -netdev stream,id=n,server=off,addr.type=unix,addr.path=PATH
    #[arg(long, value_name = "PATH", value_parser = socket_path)]
    listen_qemu: Vec<PathBuf>,

    /// Largest IP packet on the network, which guests are told.
    #[arg(long, value_name = "BYTES", default_value_t = 65520,
          value_parser = clap::value_parser!(u16).range(576..=65520))]
    mtu: u16,

    /// Lead a port or socket of the host to a guest: LISTEN=TARGET[/udp][,source=keep].
    ///
    /// LISTEN is ADDRESS:PORT, a PORT of 127.0.0.1, or the path of a UNIX socket; TARGET is a
    /// guest's ADDRESS:PORT. With source=keep the guest sees the client's own address.
    #[arg(long, value_name = "LISTEN=TARGET")]
    forward: Vec<ForwardArg>,

    /// Keep guests away from the host's loopback and its own addresses.
    #[arg(long, conflicts_with = "host_loopback")]
    no_host_loopback: bool,

    /// Let guests reach these ports of the host's loopback only.
    #[arg(long, value_name = "PORT", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    host_loopback: Vec<u16>,

    /// Serve the control API (HTTP) on a UNIX socket at PATH.
    #[arg(long, value_name = "PATH", value_parser = socket_path)]
    control: Option<PathBuf>,

    /// Write "ready" to this descriptor as soon as guests can connect.
    #[arg(long, value_name = "FD")]
    ready_fd: Option<i32>,

    /// Write the process number to FILE as soon as guests can connect.
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
}

/// A forward, and how the user wrote it.
#[derive(Clone, Debug)]
struct ForwardArg {
    text: String,
    forward: Forward,
}

impl FromStr for ForwardArg {
    type Err = vmlan_netd::ForwardError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self { text: text.into(), forward: vmlan_netd::parse_forward(text)? })
    }
}

fn socket_path(text: &str) -> Result<PathBuf, vmlan_netd::BindError> {
    let path = PathBuf::from(text);
    vmlan_netd::check_socket_path(&path)?;
    Ok(path)
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    // Descriptors come first: their numbers must not be taken by anything opened here.
    let ready_fd = args.ready_fd.map(inherited("--ready-fd")).transpose()?;
    let config = config(&args)?;
    check_paths(&args)?;
    if let Some(path) = &args.pidfile {
        PidFile::check(path).map_err(|e| Failure::Failed(format!("--pidfile {e}")))?;
    }
    // Without the right to more files, the network serves fewer flows.
    vmlan_host::raise_fd_limit();

    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: vmlan_netd::Error| Failure::Failed(format!("{what} {e}"))
    };
    let mut daemon = Daemon::new(config).map_err(|e| Failure::Failed(e.to_string()))?;
    daemon.stop_on_signals().map_err(|e| Failure::Failed(e.to_string()))?;
    for path in &args.listen_qemu {
        daemon.listen_qemu(path).map_err(failed("--listen-qemu"))?;
    }
    for arg in &args.forward {
        let added = daemon.add_forward(arg.forward.clone());
        added.map_err(failed(&format!("--forward {}:", arg.text)))?;
    }
    if let Some(path) = &args.control {
        daemon.listen_control(path).map_err(failed("--control"))?;
    }
    let _pidfile = announce(&args, ready_fd, daemon.engine().config())?;
    daemon.run().map_err(|e| Failure::Failed(e.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

fn config(args: &Args) -> Result<Config, Failure> {
    let config = vmlan_netd::network(args.subnet, args.gateway);
    let mut config = config.map_err(|e| Failure::Usage(e.to_string()))?;
    config.mtu = args.mtu;
    config.host_loopback = match (args.no_host_loopback, args.host_loopback.as_slice()) {
        (true, _) => HostLoopback::None,
        (false, []) => HostLoopback::All,
        (false, ports) => HostLoopback::Ports(ports.iter().copied().collect()),
    };
    Ok(config)
}

/// Refuses a path that two flags name, and a network that no guest could join.
fn check_paths(args: &Args) -> Result<(), Failure> {
    let mut paths: Vec<&Path> = Vec::new();
    let qemu = args.listen_qemu.iter().map(|p| ("--listen-qemu", p));
    let control = args.control.iter().map(|p| ("--control", p));
    for (flag, path) in qemu.chain(control) {
        if paths.contains(&path.as_path()) {
            return Err(Failure::Usage(format!("{flag} {}: given twice", path.display())));
        }
        paths.push(path);
    }
    if args.listen_qemu.is_empty() {
        return Err(Failure::Usage("no guest could join: give --listen-qemu PATH".into()));
    }
    Ok(())
}

fn inherited(flag: &'static str) -> impl Fn(i32) -> Result<OwnedFd, Failure> {
    move |fd| vmlan_netd::inherited(fd).map_err(|e| Failure::Usage(format!("{flag} {fd}: {e}")))
}

/// Tells everybody who waits that guests can connect.
fn announce(
    args: &Args,
    ready_fd: Option<OwnedFd>,
    config: &Config,
) -> Result<Option<PidFile>, Failure> {
    let pidfile = args.pidfile.as_deref().map(PidFile::write).transpose();
    let pidfile = pidfile.map_err(|e| Failure::Failed(format!("--pidfile {e}")))?;
    if let Some(fd) = ready_fd {
        let written = File::from(fd).write_all(b"ready\n");
        written.map_err(|e| Failure::Failed(format!("--ready-fd: {e}")))?;
    }
    eprintln!("vmlan: ready, {} with gateway {}", config.ipv4, config.gateway);
    Ok(pidfile)
}
