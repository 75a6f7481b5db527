//! The daemon of a configured network: what it is started with, and `vmlan network start|stop`.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use vmlan_api::network::Network as Running;
use vmlan_api::{Client, ClientError, Tunnel};
use vmlan_config::{LimaHome, Mode, Network, NetworkPaths, NetworksFile, Platform, Reservation};
use vmlan_netd::managed::{self, EnsureError};

use super::watch;
use crate::Failure;

/// How long a network is there without a guest, so that one that restarts finds it.
const GRACE: &str = "5";

/// A log that is longer is begun anew with the next daemon.
const MAX_LOG: u64 = 1024 * 1024;

/// Start a network's daemon, and keep it without a guest until it is stopped.
///
/// Should the daemon die, another takes its place.
#[derive(Debug, clap::Args)]
pub(super) struct StartArgs {
    /// The network.
    name: String,
}

/// Let a network's daemon end with its last guest.
#[derive(Debug, clap::Args)]
pub(super) struct StopArgs {
    /// The network.
    name: String,
}

pub(super) fn start(args: &StartArgs) -> Result<String, Failure> {
    let (home, file) = super::load()?;
    let daemon = Daemon::of(&home, super::find(&file, &args.name)?).map_err(Failure::Failed)?;
    daemon.hold().map_err(Failure::Failed)?;
    watch::start(&daemon, &args.name).map_err(Failure::Failed)?;
    Ok(String::new())
}

pub(super) fn stop(args: &StopArgs) -> Result<String, Failure> {
    let (home, file) = super::load()?;
    let network = super::find(&file, &args.name)?;
    let paths = home.network(&network.name);
    let client = Client::new(&paths.endpoint);
    match client.post("/v1/release", &()) {
        Ok(()) | Err(ClientError::NoDaemon) => {}
        Err(e) => return Err(failed(e)),
    }
    if client.get::<Vec<Tunnel>>("/v1/tunnels").is_ok_and(|tunnels| !tunnels.is_empty()) {
        let name = &network.name;
        eprintln!(
            "vmlan: network `{name}` stays for its tunnel; end that with: vmlan tunnel stop {name}"
        );
    }
    unwatch(&paths).map(|()| String::new())
}

/// Ends the process that watches a daemon, unless the network is still there for something else
/// than its guests.
pub(crate) fn unwatch(paths: &NetworkPaths) -> Result<(), Failure> {
    let client = Client::new(&paths.endpoint);
    let held = client.get::<Running>("/v1/network").map(|running| running.daemon.held);
    let tunnels = client.get::<Vec<Tunnel>>("/v1/tunnels").map(|tunnels| !tunnels.is_empty());
    match (held, tunnels) {
        (Ok(true), _) | (_, Ok(true)) => Ok(()),
        _ => watch::end(paths).map_err(Failure::Failed),
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// What it takes to reach or start a network's daemon.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    pub(crate) name: String,
    pub(crate) paths: NetworkPaths,
    /// What `vmlan netd` is told of the network itself.
    network: Vec<String>,
    reservations: Vec<Reservation>,
}

impl Daemon {
    pub(crate) fn of(home: &LimaHome, network: &Network) -> Result<Self, String> {
        let name = &network.name;
        let words = match (network.mode, network.subnet()) {
            (Mode::UserV2, Some(subnet)) => {
                let (net, gateway) = (subnet.net().to_string(), subnet.gateway.to_string());
                vec!["--subnet".into(), net, "--gateway".into(), gateway]
            }
            (Mode::Shared | Mode::Host | Mode::Bridged, _) if cfg!(target_os = "linux") => {
                vec!["--vmnet".into(), name.clone()]
            }
            (mode, _) => {
                return Err(format!(
                    "network `{name}` has mode {mode}: on this system it comes and goes with the \
                     machines that are on it"
                ));
            }
        };
        let paths = home.network(name);
        paths.check().map_err(|e| e.to_string())?;
        let reservations = network.reservations.clone();
        Ok(Self { name: name.clone(), paths, network: words, reservations })
    }

    /// The default network of one machine, with its files.
    pub(crate) fn own(paths: NetworkPaths) -> Self {
        let network = vec!["--subnet".into(), "192.168.5.0/24".into()];
        Self { name: "default".into(), paths, network, reservations: Vec::new() }
    }

    /// Brings the daemon up if it is not there, and has it stay without a guest.
    pub(super) fn hold(&self) -> Result<(), String> {
        // Between the two, it may end because nobody is there.
        for last in [false, true] {
            drop(self.ensure().map_err(|e| e.to_string())?);
            match Client::new(&self.paths.endpoint).post("/v1/hold", &()) {
                Ok(()) => break,
                // It takes guests before it has found that it cannot go on.
                Err(ClientError::NoDaemon) if last => {
                    return Err(managed::why_ended(&self.paths, 0).to_string());
                }
                Err(e) if last => return Err(e.to_string()),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Whether `networks.yaml` still has the network. A file that cannot be read at the moment
    /// says nothing.
    pub(crate) fn is_configured(&self) -> bool {
        let Ok(home) = LimaHome::from_env() else { return false };
        if !home.networks_yaml().exists() {
            return false;
        }
        let Ok(file) = NetworksFile::load(&home, &Platform::detect()) else { return true };
        file.networks.get(&self.name).is_some()
    }

    /// A connection to where guests join.
    pub(crate) fn ensure(&self) -> Result<UnixStream, EnsureError> {
        managed::ensure(&self.paths, || self.command())
    }

    fn command(&self) -> io::Result<Command> {
        let paths = &self.paths;
        let mut command = self.background()?;
        command
            .args(["netd", "--background", "--exit-idle", GRACE])
            .args(&self.network)
            .arg("--listen-qemu")
            .arg(&paths.qemu)
            .arg("--listen-fd")
            .arg(&paths.fd)
            .arg("--control")
            .arg(&paths.endpoint)
            .arg("--leases")
            .arg(&paths.leases)
            .arg("--guests")
            .arg(&paths.guests)
            .arg("--wishes")
            .arg(&paths.wishes)
            .arg("--additions")
            .arg(&paths.additions)
            .arg("--pidfile")
            .arg(&paths.pidfile);
        for reservation in &self.reservations {
            command.arg("--reserve").arg(reservation.to_string());
        }
        Ok(command)
    }

    /// This program again, with the network's logs.
    pub(super) fn background(&self) -> io::Result<Command> {
        // What daemons say as they come and go is little, but it adds up.
        let log = |path| {
            let long = fs::metadata(path).is_ok_and(|log| log.len() > MAX_LOG);
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            if long { file.set_len(0).map(|()| file) } else { Ok(file) }
        };
        let mut command = Command::new(std::env::current_exe()?);
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log(&self.paths.stdout)?)
            .stderr(log(&self.paths.stderr)?);
        Ok(command)
    }
}
