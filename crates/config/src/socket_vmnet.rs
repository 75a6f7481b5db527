//! Networks of socket_vmnet's, which macOS has in place of vmlan's helper: the command lines that run
//! as root, and what is where. `vmlan sudoers` writes the lines down as Lima does, and whoever starts
//! a network says the same.

use std::path::{Path, PathBuf};

use crate::networks::{Link, Mode, Network, Networks};
use crate::platform::Platform;

/// Where sockets and pid files are unless `networks.yaml` says otherwise.
const VAR_RUN: &str = "/private/var/run/lima";

/// A network's part of root's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commands {
    /// Makes the directory of socket and pid file; the same for all networks.
    pub mkdir: Vec<String>,
    pub start: Vec<String>,
    pub stop: Vec<String>,
    pub socket: PathBuf,
    pub pidfile: PathBuf,
    pub var_run: PathBuf,
}

/// The program.
pub fn program(networks: &Networks, platform: &Platform) -> PathBuf {
    let said = networks.paths.socket_vmnet.as_ref();
    said.map_or(&platform.socket_vmnet, |path| &path.value).clone()
}

/// Where sockets and pid files are.
pub fn var_run(networks: &Networks) -> PathBuf {
    networks.paths.var_run.as_ref().map_or_else(|| VAR_RUN.into(), |path| path.value.clone())
}

/// Makes the directory of sockets and pid files.
pub(crate) fn mkdir(var_run: &Path) -> Vec<String> {
    words(&["/bin/mkdir", "-m", "775", "-p", &var_run.display().to_string()])
}

impl Commands {
    /// `None` for a network that needs no root.
    pub fn of(networks: &Networks, platform: &Platform, network: &Network) -> Option<Self> {
        let (program, var_run) = (program(networks, platform), var_run(networks));
        Self::new(network, &networks.group, &program, &var_run)
    }

    pub(crate) fn new(
        network: &Network,
        group: &str,
        program: &Path,
        var_run: &Path,
    ) -> Option<Self> {
        let (name, mode) = (&network.name, network.mode);
        if mode == Mode::UserV2 {
            return None;
        }
        let pidfile = var_run.join(format!("{name}_socket_vmnet.pid"));
        let socket = var_run.join(format!("socket_vmnet.{name}"));
        let mut start = vec![
            program.display().to_string(),
            format!("--pidfile={}", pidfile.display()),
            format!("--socket-group={group}"),
            format!("--vmnet-mode={mode}"),
        ];
        start.extend(flags(network));
        start.push(socket.display().to_string());
        let stop = words(&["/usr/bin/pkill", "-F", &pidfile.display().to_string()]);
        let var_run = var_run.to_owned();
        Some(Self { mkdir: mkdir(&var_run), start, stop, socket, pidfile, var_run })
    }
}

fn flags(network: &Network) -> Vec<String> {
    match &network.link {
        Link::Interface(name) => vec![format!("--vmnet-interface={name}")],
        Link::Subnet(subnet) => vec![
            format!("--vmnet-gateway={}", subnet.gateway),
            format!("--vmnet-dhcp-end={}", subnet.dhcp_end.unwrap_or(subnet.gateway)),
            format!("--vmnet-mask={}", subnet.netmask()),
        ],
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}
