//! One network's process: a single thread that owns one [`Engine`](vmlan_engine::Engine), the
//! links of its guests and the host's sockets, and turns their readiness into calls of the
//! engine's doors. `vmlan netd` runs it in the foreground; `vmlan run` builds one of its own
//! around a command.
//!
//! What a frame means is the engine's business, how it is carried the links'; here are the loop,
//! the listeners that guests connect to, the control API, and what a well-behaved process does
//! about pid files, sockets and signals.

mod additions;
mod alarm;
mod captures;
mod clock;
mod control;
mod core;
mod crowd;
mod daemon;
mod dns;
mod error;
mod fd;
mod leases;
mod level;
mod listener;
mod log;
pub mod managed;
mod names;
#[cfg(target_os = "linux")]
mod netns;
mod network;
mod paused;
mod peer;
mod pidfile;
mod ports;
mod pulse;
mod relay;
mod resident;
mod returning;
mod signals;
mod socket_vmnet;
mod state;
mod token;
mod trusted;
mod tunnel;
mod unix_path;
#[cfg(target_os = "linux")]
pub mod unmanaged;
#[cfg(target_os = "linux")]
pub mod vmnet;
mod watch;
mod wrappers;
mod writer;

pub use crate::core::Cards;
pub use daemon::Daemon;
pub use dns::{Server as DnsServer, add_names};
pub use error::DaemonError;
pub use fd::{FdError, exec_with, inherited};
pub use log::last_line;
#[cfg(target_os = "linux")]
pub use netns::{AttachError, Netns, NetnsSpecError, guest_interface};
pub use network::{bridge_network, network, switch_network};
pub use pidfile::{PidFile, PidFileError};
pub use relay::relay;
pub use signals::{leave_caller, termination};
pub use socket_vmnet::{SocketVmnet, SocketVmnetError, User as SocketVmnetUser};
pub use unix_path::{BindError, SocketPath, check as check_socket_path, listen_for_group};
pub use watch::Next;
