//! Machines by macOS' Virtualization.framework: what one is made of, and what goes between it and the
//! rest of vmlan. The calls of the framework are `imp`'s; on other systems there is none, and
//! [`available`] says so.
//!
//! The framework runs a machine in the process that asks for it, which has to be signed with the
//! entitlement `com.apple.security.virtualization`, and ends it with that process. A network card is
//! a datagram socket, as with QEMU; the agent's port is one end of a pair of stream sockets, whose
//! other end [`console`] serves at a path.

pub mod console;

#[cfg(target_os = "macos")]
#[path = "macos/mod.rs"]
mod imp;
#[cfg(not(target_os = "macos"))]
#[path = "none.rs"]
mod imp;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use vmlan_wire::Mac;

use crate::kernel::Kernel;

pub use imp::Running;

/// All that the framework is told of a machine.
#[derive(Debug)]
pub struct Machine {
    pub cpus: u32,
    /// In bytes.
    pub memory: u64,
    pub boot: Boot,
    /// By which the guest knows that it is the same machine; made if it is not there.
    pub identifier: PathBuf,
    /// A raw disk.
    pub disk: PathBuf,
    pub seed: PathBuf,
    pub cards: Vec<Card>,
    /// The machine's end of its agent's port.
    pub agent: UnixStream,
    /// Takes what the machine writes to its first serial port, `hvc0`.
    pub serial_log: File,
}

/// What the machine begins with.
#[derive(Debug)]
pub enum Boot {
    /// The disk's boot loader, by EFI with its variables in this file, which is made if it is not
    /// there.
    Efi(PathBuf),
    Kernel(Kernel),
}

/// A network card.
#[derive(Debug)]
pub struct Card {
    pub mac: Mac,
    pub wire: Wire,
}

/// What a card is connected to.
#[derive(Debug)]
pub enum Wire {
    /// A connected datagram socket, and the longest packet: 1500 bytes or more.
    Socket { socket: OwnedFd, mtu: u16 },
    /// The system's own network.
    Nat,
}

/// How a machine has ended: by itself, or why.
pub type Ending = Result<(), String>;

/// Whether machines can be run here; if not, why, and the way out.
pub fn available() -> Result<(), String> {
    imp::available()
}

/// Starts a machine, which has been found valid before anything of it runs. `ended` is called when it
/// has ended, whoever wanted that.
pub fn start(
    machine: Machine,
    ended: impl Fn(Ending) + Send + Sync + 'static,
) -> Result<Running, String> {
    Running::start(machine, Box::new(ended))
}
