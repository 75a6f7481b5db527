//! vmlan in the place of `socket_vmnet`: its flags, and on its socket the same frames. On macOS the
//! guests are on a network of vmnet.framework, on Linux on a bridge of the kernel, where addresses
//! and names are served unless that is switched off.
//!
//! Two processes do it. The [keeper](keeper) is root's: it makes the network and the socket, writes
//! the pid file and takes all of it away again. The [server](server) has the frames, and no rights.

mod client;
mod keeper;
mod server;
mod settings;
#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "macos.rs")]
mod system;

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ArgAction;

use crate::Failure;
pub(crate) use client::Args as ClientArgs;
pub(crate) use client::run as run_client;
use settings::{Settings, Uuid};

/// Serve guests of vmnet networks on a UNIX socket, in the place of socket_vmnet.
///
/// Guests speak QEMU's stream framing on SOCKET. It has to be run as root; what serves them is not.
#[derive(Clone, Debug, clap::Args)]
#[command(version, display_name = "socket_vmnet", disable_version_flag = true)]
pub(crate) struct Args {
    /// The group whose members may connect.
    #[arg(long, value_name = "GROUP", default_value = "staff")]
    socket_group: String,

    /// shared: guests reach outside by the host; host: they do not; bridged: they are on the network
    /// of an interface.
    #[arg(long, value_name = "host|shared|bridged", default_value = "shared")]
    vmnet_mode: String,

    /// The interface of mode bridged.
    #[arg(long, value_name = "INTERFACE")]
    vmnet_interface: Option<String>,

    /// The host's address on the network [default: the system's choice on macOS, 192.168.105.1 on
    /// Linux or 192.168.106.1 with mode host].
    #[arg(long, value_name = "IP")]
    vmnet_gateway: Option<Ipv4Addr>,

    /// The last address that guests get [default: the gateway's with 254 at the end].
    #[arg(long, value_name = "IP")]
    vmnet_dhcp_end: Option<Ipv4Addr>,

    /// The network's mask.
    #[arg(long, value_name = "MASK", default_value = "255.255.255.0")]
    vmnet_mask: Ipv4Addr,

    /// The interface's identity, by which macOS gives it the same MAC address again [default:
    /// random].
    #[arg(long, value_name = "UUID")]
    vmnet_interface_id: Option<Uuid>,

    /// Make a network of mode host of its own, without addresses by DHCP, that those with the same
    /// identifier share.
    #[arg(long, value_name = "UUID")]
    vmnet_network_identifier: Option<Uuid>,

    /// The network's IPv6 prefix, a unique local /64 such as fd00:1:2:3:: [default: made up].
    #[arg(long, value_name = "PREFIX")]
    vmnet_nat66_prefix: Option<Ipv6Addr>,

    /// Leave it to somebody else to give guests addresses.
    #[arg(long)]
    vmnet_disable_dhcp: bool,

    /// Write the process number to FILE as soon as guests can connect.
    #[arg(short, long, value_name = "FILE")]
    pidfile: Option<PathBuf>,

    /// Print the version.
    #[arg(short, long, action = ArgAction::Version)]
    version: Option<bool>,

    /// This process is the server of another one, which is at its standard input.
    #[arg(long, hide = true)]
    serve: bool,

    /// Where guests connect.
    #[arg(value_name = "SOCKET", value_parser = socket_path)]
    socket: PathBuf,
}

/// The command line that a program's name makes of its arguments: called as one that vmlan stands
/// in for, it is that one's.
pub(crate) fn arguments(mut args: Vec<OsString>) -> Vec<OsString> {
    let name = args.first().map(Path::new).and_then(Path::file_name).map(OsStr::to_owned);
    if let Some(name) = name.filter(|name| name == "socket_vmnet" || name == "socket_vmnet_client")
    {
        args.insert(1, name);
    }
    args
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    vmlan_netd::check_socket_path(&path).map_err(|e| e.to_string())?;
    Ok(path)
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let settings = Settings::of(args).map_err(Failure::Usage)?;
    let done = match args.serve {
        true => server::run(&settings),
        false => keeper::run(args, &settings),
    };
    done.map(|()| ExitCode::SUCCESS).map_err(Failure::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_name_says_what_it_is() {
        let line = |words: &[&str]| {
            let args = words.iter().map(OsString::from).collect();
            let made = arguments(args);
            made.iter().skip(1).map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(line(&["/opt/x/socket_vmnet", "-v"]), ["socket_vmnet", "-v"]);
        assert_eq!(
            line(&["socket_vmnet_client", "s", "qemu"]),
            ["socket_vmnet_client", "s", "qemu"]
        );
        assert_eq!(line(&["/usr/bin/vmlan", "run"]), ["run"]);
        assert_eq!(line(&[]), [""; 0]);
    }
}
