//! Ports and sockets of the host that lead to servers in a machine, as they come and go.
//!
//! The agent in the machine tells what listens there (`channel`); the rules of `portForwards`
//! decide what of it is to be reached, and where (`plan`); the network's daemon opens the ports
//! (`forwards`). What the network cannot reach by itself, the agent lifts to a port of the guest's
//! own address. All of this is one thread (`manager`), and one more that reads the channel. Where
//! there is no agent, or no daemon, `ssh` does what it can: TCP and sockets, but no datagrams.
//!
//! The machine is hostile: what it says is bounded in size, number and pace, and decides about no
//! address of the host.

mod channel;
mod forwards;
mod manager;
mod plan;
mod reverse;
mod ssh;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub use vmlan_agent::message::{Card, MAX_NOTE, MAX_NOTES, Target};
use vmlan_api::Client;
use vmlan_config::instance::forwards::Forwards;

use channel::Channel;
use manager::{Input, Manager};

/// Whose ports, and by which rules.
#[derive(Clone, Debug)]
pub struct Config {
    /// The UNIX socket where the machine's virtio port is to be found, now or soon.
    pub channel: PathBuf,
    /// The table in force.
    pub forwards: Forwards,
    /// The machine's own address on the network that forwards lead through.
    pub guest: Ipv4Addr,
    /// The addresses that forwarded connections come from.
    pub gateways: Vec<IpAddr>,
    /// The network's daemon, if the network is vmlan's.
    pub control: Option<Client>,
    /// What stands in for the agent and for the daemon.
    pub ssh: Option<Ssh>,
    /// The name that the machine has joined the network with: its forwards go when it leaves.
    pub name: Option<String>,
    /// Whose sockets those are in the machine that lead to the host.
    pub uid: u32,
}

/// How ssh(1) reaches the machine.
#[derive(Clone, Debug)]
pub struct Ssh {
    /// The file of its configuration, and what the machine is called there.
    pub config: PathBuf,
    pub host: String,
    /// How long an agent is waited for.
    pub after: Duration,
}

/// A place of the host where somebody listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Local {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
}

/// A place of the host, and the one in the guest that it leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub local: Local,
    pub guest: Target,
    /// It is the guest's that leads to the host's.
    pub reverse: bool,
}

/// What has become of a port or of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortEvent {
    Opened(Port),
    Closed(Port),
    /// It cannot be had, and why; it is tried again. Said once for each reason.
    Conflict {
        port: Port,
        why: String,
    },
    /// The machine's cards, as its agent has seen them last.
    Cards(Vec<Card>),
    /// What is not as it should be in the machine, as it says.
    Notes(Vec<String>),
    /// The machine's agent answers.
    AgentUp,
    /// It does not any more.
    AgentDown,
    /// There is none, or not in time: ssh does what it can.
    SshStandsIn,
}

/// A port that is wanted: open, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortState {
    pub port: Port,
    pub problem: Option<String>,
}

/// The forwards of one machine, for as long as the value lives.
#[derive(Debug)]
pub struct Ports {
    input: SyncSender<Input>,
    shared: Arc<Mutex<Vec<PortState>>>,
    channel: Channel,
    thread: Option<JoinHandle<()>>,
}

impl Ports {
    /// Opens what is there from the start, waits for the agent, and follows what it tells.
    pub fn start(
        config: Config,
        events: impl FnMut(PortEvent) + Send + 'static,
    ) -> io::Result<Self> {
        let (input, inputs) = sync_channel(4);
        let shared = Arc::new(Mutex::new(Vec::new()));
        let channel = Channel::start(config.channel.clone(), input.clone())?;
        let events = Box::new(events);
        let manager = Manager::new(config, events, Arc::clone(&shared), input.clone());
        let thread =
            thread::Builder::new().name("ports".into()).spawn(move || manager.run(&inputs))?;
        Ok(Self { input, shared, channel, thread: Some(thread) })
    }

    /// The ports that are wanted now.
    pub fn list(&self) -> Vec<PortState> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The machine lets its user in: ssh may stand in from now on.
    pub fn machine_is_ready(&self) {
        let _ = self.input.send(Input::Ready);
    }

    /// The network has a new daemon, which knows of no forwards.
    pub fn network_is_new(&self) {
        let _ = self.input.send(Input::NewNetwork);
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.channel.stop();
        let _ = self.input.send(Input::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Udp(addr) => write!(f, "{addr}/udp"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Port {
    /// The guest's end.
    pub fn guest_text(&self) -> String {
        match &self.guest {
            Target::Tcp(addr) => addr.to_string(),
            Target::Udp(addr) => format!("{addr}/udp"),
            Target::Unix(path) => path.escape_default().to_string(),
        }
    }
}
