//! `vmlan netd`: a network in the foreground, for machines that are started by hand.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use vmlan_config::Reservation;
use vmlan_engine::config::{HostLoopback, Ipv4Net};
use vmlan_engine::{Config, Forward};
use vmlan_link::Link;
use vmlan_link::fault::Faults;
#[cfg(target_os = "linux")]
use vmlan_netd::Netns;
use vmlan_netd::{Daemon, DaemonError, PidFile};

use crate::Failure;
use crate::names::NameArgs;

#[cfg(target_os = "linux")]
mod vmnet;

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

    /// Let guests with one frame for each datagram use the UNIX datagram socket at PATH.
    ///
    /// Each guest has a socket of its own with a path. In QEMU: -netdev
    /// dgram,id=n,local.type=unix,local.path=ITS-PATH,remote.type=unix,remote.path=PATH
    #[arg(long, value_name = "PATH", value_parser = socket_path)]
    listen_dgram: Vec<PathBuf>,

    /// Let machines with a vhost-user network card connect at PATH, any number of them.
    ///
    /// In QEMU: -object memory-backend-memfd,id=m,share=on,size=SIZE -machine q35,memory-backend=m
    /// -chardev socket,id=c,path=PATH,reconnect=1 -netdev vhost-user,id=n,chardev=c
    /// -device virtio-net-pci,netdev=n
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "PATH", value_parser = socket_path)]
    listen_vhost_user: Vec<PathBuf>,

    /// Let guests hand over their descriptors on the UNIX socket at PATH, as --fd takes them.
    #[arg(long, value_name = "PATH", value_parser = socket_path)]
    listen_fd: Option<PathBuf>,

    /// Use an inherited descriptor: a UNIX stream, datagram or seqpacket socket, or a TAP device.
    #[arg(long, value_name = "FD")]
    fd: Vec<i32>,

    /// Serve the bridge of this network of mode shared or host in networks.yaml.
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "NAME", hide = true, conflicts_with_all = ["subnet", "gateway"])]
    vmnet: Option<String>,

    /// Make a TAP device in a network namespace: PATH[,ifname=NAME][,config=off].
    ///
    /// The interface gets the next guest address, routes and MTU, and comes up, unless config=off.
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "PATH,ifname=NAME")]
    netns: Vec<Netns>,

    /// Largest IP packet on the network, which guests are told.
    #[arg(long, value_name = "BYTES", default_value_t = 65520,
          value_parser = clap::value_parser!(u16).range(576..=65520))]
    mtu: u16,

    /// Lead a port or socket of the host to a guest: LISTEN=TARGET[/udp][,source=keep].
    ///
    /// LISTEN is ADDRESS:PORT, a PORT of 127.0.0.1, :PORT for every address, or the path of a UNIX
    /// socket; TARGET is a guest's ADDRESS:PORT, or a PORT of the first guest. Ports may be ranges
    /// of one length. With source=keep the guest sees the client's own address.
    #[arg(long, value_name = "LISTEN=TARGET")]
    forward: Vec<ForwardArg>,

    /// Keep guests away from the host's loopback and its own addresses.
    #[arg(long, conflicts_with = "host_loopback")]
    no_host_loopback: bool,

    /// Let guests reach these ports of the host's loopback only.
    #[arg(long, value_name = "PORT", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    host_loopback: Vec<u16>,

    #[command(flatten)]
    names: NameArgs,

    /// Write every frame to a new file, in pcapng.
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,

    /// Make every link a bad one: loss=PERCENT, reorder=, duplicate=, corrupt=, delay=MILLISECONDS.
    #[arg(long, value_name = "FAULTS", hide = true)]
    fault: Option<Faults>,

    /// Keep an address or a name for a guest: mac=MAC,ip=IP, name=NAME,ip=IP or mac=MAC,name=NAME.
    #[arg(long, value_name = "RESERVATION")]
    reserve: Vec<Reservation>,

    /// Keep the guests' leases in FILE, so that they outlive the daemon.
    #[arg(long, value_name = "FILE")]
    leases: Option<PathBuf>,

    /// Keep in FILE what is known of the guests that are there, for the daemon that follows this one if
    /// it is killed.
    #[arg(long, value_name = "FILE", requires = "leases")]
    guests: Option<PathBuf>,

    /// Keep in FILE what the network is there for without a guest: tunnels, and whether somebody
    /// holds it.
    #[arg(long, value_name = "FILE")]
    wishes: Option<PathBuf>,

    /// Keep in FILE the forwards and zones that clients of the control API add, for the daemon that
    /// follows this one if it is killed.
    #[arg(long, value_name = "FILE")]
    additions: Option<PathBuf>,

    /// Serve the control API (HTTP) on a UNIX socket at PATH.
    #[arg(long, value_name = "PATH", value_parser = socket_path)]
    control: Option<PathBuf>,

    /// End when there has been no guest for this long.
    #[arg(long, value_name = "SECONDS")]
    exit_idle: Option<u64>,

    /// Leave the caller's session.
    #[arg(long, hide = true)]
    background: bool,

    /// Write "ready" to this descriptor as soon as guests can connect.
    #[arg(long, value_name = "FD")]
    ready_fd: Option<i32>,

    /// Write the process number to FILE as soon as guests can connect.
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
}

/// Forwards, and how the user wrote them.
#[derive(Clone, Debug)]
struct ForwardArg {
    text: String,
    /// Where only a port was given, the guest is not known yet.
    forwards: Vec<Forward>,
}

impl ForwardArg {
    /// A port alone is one of the first guest's.
    fn forwards(&self, config: &Config) -> impl Iterator<Item = Forward> {
        let first = config.first_guest;
        self.forwards.iter().cloned().map(move |mut forward| {
            if forward.guest.ip().is_unspecified() {
                forward.guest.set_ip(first.into());
            }
            forward
        })
    }
}

impl FromStr for ForwardArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let forwards = vmlan_engine::parse_forward(text, Ipv4Addr::UNSPECIFIED.into())?;
        Ok(Self { text: text.into(), forwards })
    }
}

fn socket_path(text: &str) -> Result<PathBuf, vmlan_netd::BindError> {
    let path = PathBuf::from(text);
    vmlan_netd::check_socket_path(&path)?;
    Ok(path)
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    #[cfg(target_os = "linux")]
    if let Some(name) = &args.vmnet {
        return vmnet::run(args, name);
    }
    let config = config(args)?;
    check(args, &config)?;
    if args.background {
        vmlan_netd::leave_caller();
    }
    // Descriptors come first: their numbers must not be taken by anything opened here.
    let ready_fd = args.ready_fd.map(|fd| inherited("--ready-fd", fd)).transpose()?;
    let links = passed_links(args)?;
    if let Some(path) = &args.pidfile {
        PidFile::check(path).map_err(|e| Failure::Failed(format!("--pidfile {e}")))?;
    }
    #[cfg(target_os = "linux")]
    let links = links.into_iter().chain(namespace_links(args, &config)?).collect();
    // Without the right to more files, the network serves fewer flows.
    vmlan_host::raise_fd_limit();

    let dns = args.names.options()?;
    let mut daemon = Daemon::new(config, dns).map_err(|e| Failure::Failed(e.to_string()))?;
    build(&mut daemon, args, links)?;
    let _pidfile = announce(args, ready_fd, daemon.engine().config())?;
    daemon.run().map_err(|e| Failure::Failed(e.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

/// Everything that guests can connect to, and what leads to them.
fn build(daemon: &mut Daemon, args: &Args, links: Vec<Box<dyn Link>>) -> Result<(), Failure> {
    let flag = |flag: &'static str| move |e: DaemonError| Failure::Failed(format!("{flag} {e}"));
    daemon.stop_on_signals().map_err(flag("signals:"))?;
    daemon.reserve(args.reserve.clone());
    if let Some(path) = &args.wishes {
        daemon.keep_wishes(path).map_err(flag("--wishes"))?;
    }
    if let Some(path) = &args.leases {
        daemon.keep_leases(path).map_err(flag("--leases"))?;
    }
    if let Some(path) = &args.guests {
        daemon.keep_guests(path).map_err(flag("--guests"))?;
    }
    if let Some(path) = &args.capture {
        daemon.capture(path).map_err(flag("--capture"))?;
    }
    if let Some(faults) = args.fault {
        daemon.inject_faults(faults);
    }
    for link in links {
        daemon.add_link(link).map_err(flag("a guest:"))?;
    }
    for path in &args.listen_qemu {
        daemon.listen_qemu(path).map_err(flag("--listen-qemu"))?;
    }
    #[cfg(target_os = "linux")]
    for path in &args.listen_vhost_user {
        daemon.listen_vhost_user(path).map_err(flag("--listen-vhost-user"))?;
    }
    for path in &args.listen_dgram {
        daemon.listen_dgram(path).map_err(flag("--listen-dgram"))?;
    }
    if let Some(path) = &args.listen_fd {
        daemon.listen_join(path).map_err(flag("--listen-fd"))?;
    }
    if let Some(seconds) = args.exit_idle {
        daemon.stop_when_idle(Duration::from_secs(seconds));
    }
    for arg in &args.forward {
        let forwards: Vec<Forward> = arg.forwards(daemon.engine().config()).collect();
        for forward in forwards {
            let added = daemon.add_forward(forward);
            added.map_err(|e| Failure::Failed(format!("--forward {}: {e}", arg.text)))?;
        }
    }
    if let Some(path) = &args.additions {
        daemon.keep_additions(path).map_err(flag("--additions"))?;
    }
    if let Some(path) = &args.control {
        daemon.listen_control(path).map_err(flag("--control"))?;
    }
    Ok(())
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

/// Refuses what two flags cannot both have, and a network that no guest could join.
fn check(args: &Args, config: &Config) -> Result<(), Failure> {
    for arg in &args.forward {
        for forward in arg.forwards(config) {
            let checked = vmlan_api::check_forward(config, &forward);
            checked.map_err(|e| Failure::Usage(format!("--forward {}: {e}", arg.text)))?;
        }
    }
    let twice = |flag: &str, what: &dyn std::fmt::Display| {
        Err(Failure::Usage(format!("{flag} {what}: given twice")))
    };
    let mut paths: Vec<&Path> = Vec::new();
    let qemu = args.listen_qemu.iter().map(|p| ("--listen-qemu", p));
    let dgram = args.listen_dgram.iter().map(|p| ("--listen-dgram", p));
    let vhost_user = vhost_user_paths(args).iter().map(|p| ("--listen-vhost-user", p));
    let fd = args.listen_fd.iter().map(|p| ("--listen-fd", p));
    let control = args.control.iter().map(|p| ("--control", p));
    for (flag, path) in qemu.chain(dgram).chain(vhost_user).chain(fd).chain(control) {
        if paths.contains(&path.as_path()) {
            return twice(flag, &path.display());
        }
        paths.push(path);
    }
    let mut fds = Vec::new();
    let ready = args.ready_fd.iter().map(|fd| ("--ready-fd", fd));
    for (flag, fd) in args.fd.iter().map(|fd| ("--fd", fd)).chain(ready) {
        if fds.contains(fd) {
            return twice(flag, fd);
        }
        fds.push(*fd);
    }
    #[cfg(target_os = "linux")]
    let namespaces = args.netns.len();
    #[cfg(not(target_os = "linux"))]
    let namespaces = 0;
    let listeners = args.listen_qemu.len()
        + args.listen_dgram.len()
        + vhost_user_paths(args).len()
        + args.listen_fd.iter().len();
    if listeners + args.fd.len() + namespaces == 0 {
        let text = "no guest could join: give --listen-qemu, --listen-dgram, --listen-vhost-user, \
                    --listen-fd, --fd or --netns";
        return Err(Failure::Usage(text.into()));
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn vhost_user_paths(args: &Args) -> &[PathBuf] {
    &args.listen_vhost_user
}

#[cfg(not(target_os = "linux"))]
fn vhost_user_paths(_: &Args) -> &[PathBuf] {
    &[]
}

fn inherited(flag: &str, fd: i32) -> Result<OwnedFd, Failure> {
    vmlan_netd::inherited(fd).map_err(|e| Failure::Usage(format!("{flag} {fd}: {e}")))
}

fn passed_links(args: &Args) -> Result<Vec<Box<dyn Link>>, Failure> {
    let link = |fd: &i32| {
        let opened = vmlan_link::fd::open(inherited("--fd", *fd)?, args.mtu);
        opened.map_err(|e| Failure::Usage(format!("--fd {fd}: {e}")))
    };
    args.fd.iter().map(link).collect()
}

#[cfg(target_os = "linux")]
fn namespace_links(args: &Args, config: &Config) -> Result<Vec<Box<dyn Link>>, Failure> {
    let mut configured = 0;
    let mut links = Vec::new();
    for netns in &args.netns {
        let link = netns.open(config, configured);
        let path = netns.path.display();
        links.push(link.map_err(|e| Failure::Failed(format!("--netns {path}: {e}")))?);
        configured += u32::from(netns.configure);
    }
    Ok(links)
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
    crate::tell(&format!("ready, {} with gateway {}", config.ipv4, config.router().ipv4));
    Ok(pidfile)
}
