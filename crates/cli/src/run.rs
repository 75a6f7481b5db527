//! `vmlan run`: a command in a namespace guest on the default user-mode network.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use vmlan_config::raw::RawEntry;
use vmlan_engine::Forward;

use crate::Failure;
use crate::names::NameArgs;

#[cfg(target_os = "linux")]
mod guest;
#[cfg(target_os = "linux")]
mod managed;
#[cfg(target_os = "linux")]
mod own;
#[cfg(target_os = "linux")]
mod unmanaged;

const AFTER: &str = "\
Examples:
  vmlan run -p 8080:80 --root -- busybox httpd -f -p 80
  vmlan run --network lima:user-v2 --name web -- python3 -m http.server
  vmlan run --network lima:user-v2 -- curl http://lima-web.internal:8000/
  vmlan run --dns-host db.test=10.1.2.3 -- getent hosts db.test";

/// Run a command on a network of its own.
///
/// The command runs as you, in your directory and on your terminal, and sees the host's files. Its
/// network is vmlan's: eth0 with 192.168.5.15, everything outside by way of the host, the name
/// server 192.168.5.3, and the host's own loopback as host.lima.internal. Whatever it leaves
/// running ends with it. The exit code is the command's; 127 if there is no such command, 126 if it
/// cannot be executed, 125 if vmlan fails, 2 if the command line is wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER)]
pub(crate) struct Args {
    /// Lead a port of the host to the command: [HOSTIP:]HOSTPORT:GUESTPORT[/udp].
    ///
    /// HOSTIP is 127.0.0.1 unless given, an IPv6 address in brackets. Ranges of the same length
    /// may stand for the ports: 8000-8010:8000-8010.
    #[arg(short, long, value_name = "PUBLISH")]
    publish: Vec<Publish>,

    /// Join this network, once or several times: lima:NAME for one of networks.yaml, or socket:PATH
    /// for the socket of a daemon that somebody else runs, which speaks QEMU's framing.
    ///
    /// The guests of a network reach each other. A user-v2 network that is given first takes the
    /// place of the default one as eth0; the others are lima0, lima1 and so on, by their position
    /// from 0. Each is served by a daemon that comes with its first guest and goes with the last.
    /// Networks of mode shared, host and bridged need root once: see vmlan sudoers.
    #[arg(long, value_name = "NETWORK", value_parser = RawEntry::from_flag, value_delimiter = ',')]
    network: Vec<RawEntry>,

    /// What other guests call this one: lima-NAME.internal. It has the same addresses each time.
    #[arg(long, requires = "network")]
    name: Option<String>,

    /// Run the command as root of the guest, with every right over the guest's own network.
    #[arg(long)]
    root: bool,

    /// Largest IP packet on the default network [default: 65520].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(576..=65520))]
    mtu: Option<u16>,

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
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no such guest"))]
struct Publish(Vec<Forward>);

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        vmlan_engine::parse_publish(text, GUEST.into()).map(Self)
    }
}

/// The guest on the default network.
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 15);

/// The exit code that tells a failure of vmlan's from one of the command's, as env(1) has it.
const FAILED: u8 = 125;

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    match imp::run(args) {
        Err(Failure::Failed(why)) => {
            crate::tell(&why);
            Ok(ExitCode::from(FAILED))
        }
        result => result,
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use super::{Args, ExitCode, Failure, guest};

    pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
        let cards =
            if args.network.is_empty() { guest::alone(&args) } else { guest::joined(&args) };
        guest::run(args.command, args.root, cards?)
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::{Args, ExitCode, Failure};

    pub(super) fn run(_args: Args) -> Result<ExitCode, Failure> {
        Err(Failure::Failed(
            "run needs Linux, whose namespaces it is made of; on this system, attach a virtual \
             machine to: vmlan netd"
                .into(),
        ))
    }
}
