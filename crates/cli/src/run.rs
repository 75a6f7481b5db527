//! `vmlan run`: a command in a namespace guest on the default user-mode network.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use vmlan_config::raw::RawEntry;
use vmlan_engine::config::{HostLoopback, Ipv4Net};
use vmlan_engine::{Config, Forward};

use crate::Failure;
use crate::names::NameArgs;

mod joined;

/// Run a command on a network of its own.
///
/// The command runs as you, in your directory and on your terminal, and sees the host's files. Its
/// network is vmlan's: eth0 with 192.168.5.15, everything outside by way of the host, the name
/// server 192.168.5.3, and the host's own loopback as host.lima.internal. Whatever it leaves
/// running ends with it. The exit code is the command's; 127 if there is no such command, 126 if it
/// cannot be executed, 125 if vmlan fails.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Lead a port of the host to the command: [HOSTIP:]HOSTPORT:GUESTPORT[/udp].
    ///
    /// HOSTIP is 127.0.0.1 unless given, an IPv6 address in brackets. Ranges of the same length
    /// may stand for the ports: 8000-8010:8000-8010.
    #[arg(short, long, value_name = "PUBLISH")]
    publish: Vec<Publish>,

    /// Join a configured network of mode user-v2 instead of having one alone: lima:NAME.
    ///
    /// The guests of a network reach each other by address and by name. It is served by a daemon
    /// that comes with the first guest and goes with the last.
    #[arg(long, value_name = "lima:NAME", value_parser = RawEntry::from_flag,
          conflicts_with_all = ["mtu", "no_host_loopback", "capture", "dns_host", "dns", "dns_ipv6"])]
    network: Option<RawEntry>,

    /// What other guests call this one: lima-NAME.internal. Its addresses stay the same.
    #[arg(long, requires = "network")]
    name: Option<String>,

    /// Run the command as root of the guest, with every right over the guest's own network.
    #[arg(long)]
    root: bool,

    /// Largest IP packet on the network.
    #[arg(long, value_name = "BYTES", default_value_t = 65520,
          value_parser = clap::value_parser!(u16).range(576..=65520))]
    mtu: u16,

    /// Keep the command away from the host's loopback and its own addresses.
    #[arg(long)]
    no_host_loopback: bool,

    #[command(flatten)]
    names: NameArgs,

    /// Write every frame to FILE, for Wireshark or tcpdump.
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,

    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// One `-p`: as many forwards as its ranges are long.
#[derive(Clone, Debug)]
struct Publish(Vec<Forward>);

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        vmlan_engine::parse_publish(text, GUEST.into()).map(Self)
    }
}

const SUBNET: Ipv4Net = Ipv4Net { network: Ipv4Addr::new(192, 168, 5, 0), prefix: 24 };
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 15);

/// What the network's process is to do.
#[derive(Debug)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no such process"))]
struct Network {
    config: Config,
    dns: vmlan_dns::Options,
    forwards: Vec<Forward>,
    capture: Option<PathBuf>,
}

/// The exit code that tells a failure of vmlan's from one of the command's, as env(1) has it.
const FAILED: u8 = 125;

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    if let Some(network) = args.network {
        let forwards = args.publish.into_iter().flat_map(|publish| publish.0).collect();
        let guest = joined::Guest { name: args.name, forwards };
        let result = joined::run(args.command, args.root, network, guest);
        return result.or_else(|why| {
            crate::tell(&why);
            Ok(ExitCode::from(FAILED))
        });
    }
    let network = vmlan_netd::network(SUBNET, None);
    let mut config = network.map_err(|e| Failure::Usage(e.to_string()))?;
    config.mtu = args.mtu;
    if args.no_host_loopback {
        config.host_loopback = HostLoopback::None;
    }
    let dns = args.names.options()?;
    let forwards = args.publish.into_iter().flat_map(|publish| publish.0).collect();
    let network = Network { config, dns, forwards, capture: args.capture };
    match imp::run(args.command, args.root, &network) {
        Ok(code) => Ok(code),
        Err(why) => {
            crate::tell(&why);
            Ok(ExitCode::from(FAILED))
        }
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use std::ffi::CString;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::ffi::OsStringExt;

    use vmlan_config::LimaHome;
    use vmlan_link::tap::{InterfaceConfig, TapLink};
    use vmlan_netd::{Daemon, Next};
    use vmlan_vm::netns::{self, Guest, Supervisor};

    use super::{ExitCode, Network, OsString, PathBuf};

    pub(super) fn run(
        command: Vec<OsString>,
        root: bool,
        network: &Network,
    ) -> Result<ExitCode, String> {
        let config = &network.config;
        let command = command.into_iter().map(|arg| CString::new(arg.into_vec()));
        let guest = Guest {
            command: command.collect::<Result<_, _>>().map_err(|e| e.to_string())?,
            root,
            card: InterfaceConfig {
                name: "eth0".into(),
                mtu: Some(config.mtu),
                mac: None,
                addresses: vec![
                    (super::GUEST.into(), config.ipv4.prefix),
                    (config.ipv6.nth(0x15).into(), 64),
                ],
                gateways: vec![config.gateway.into(), config.ipv6.gateway().into()],
            },
            resolver: config.dns.into(),
            hidden: control_sockets(),
        };
        let serve = |card: OwnedFd, supervisor: &Supervisor| {
            serve(card, supervisor, network).map_err(|e| e.to_string())
        };
        match netns::run(&guest, &serve) {
            Ok(ending) => ending.pass_on(),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Where vmlan's daemons keep their control sockets: a guest is not to command its own network.
    pub(super) fn control_sockets() -> Vec<PathBuf> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
        let runtime = runtime.map(PathBuf::from).into_iter().chain([PathBuf::from("/run")]);
        // Without a home there is nothing below it.
        let networks = LimaHome::from_env().map(|home| home.networks());
        runtime.map(|runtime| runtime.join("vmlan")).chain(networks).collect()
    }

    /// What the network's own process does.
    fn serve(
        card: OwnedFd,
        supervisor: &Supervisor,
        network: &Network,
    ) -> Result<(), Box<dyn std::error::Error>> {
        // Without the right to more files, the network serves fewer flows.
        vmlan_host::raise_fd_limit();
        let mut daemon = Daemon::new(network.config.clone(), network.dns.clone())?;
        for forward in &network.forwards {
            daemon.add_forward(forward.clone())?;
        }
        if let Some(path) = &network.capture {
            daemon.capture(path).map_err(|e| format!("--capture {e}"))?;
        }
        daemon.add_link(Box::new(TapLink::new(card)?))?;
        daemon.watch(supervisor.as_fd().try_clone_to_owned()?, |_| Next::Finish)?;
        supervisor.ready()?;
        Ok(daemon.run()?)
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::{ExitCode, Network, OsString};

    pub(super) fn run(
        _command: Vec<OsString>,
        _root: bool,
        _network: &Network,
    ) -> Result<ExitCode, String> {
        Err("run needs Linux, whose namespaces it is made of; on this system, attach a virtual \
             machine to: vmlan netd"
            .into())
    }
}
