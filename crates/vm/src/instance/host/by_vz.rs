//! A machine by macOS' Virtualization.framework, in this process.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::Sender;

use super::super::size;
use super::card;
use super::driver::{End, Machine};
use super::plan::{Card, Wire};
use super::state::State;
use super::{Message, Spec, spawn};
use crate::disk;
use crate::kernel::Kernel;
use crate::qemu::accel::Accel;
use crate::vz::{self, Boot, console};

/// Of networks of somebody else's, of which nothing is known, and the least that a card has.
const MTU: u16 = 1500;

/// A framework that can run machines.
#[derive(Debug)]
pub(super) struct Driver;

/// A running machine.
#[derive(Debug)]
pub(super) struct Vz(vz::Running);

impl Driver {
    pub(super) fn find() -> Result<Self, String> {
        vz::available().map(|()| Self)
    }

    pub(super) fn start(
        self,
        spec: &Spec,
        cards: Vec<Card>,
        state: &State,
        tell: &Sender<Message>,
    ) -> Result<Vz, String> {
        let machine = machine(spec, cards)?;
        state.set_size(machine.cpus, machine.memory);
        let tell = tell.clone();
        let running = vz::start(machine, move |ending: vz::Ending| {
            let end = match ending {
                Ok(()) => End { how: "by itself".into(), failed: false },
                Err(why) => End { how: format!("by a failure: {why}"), failed: true },
            };
            // The host agent may have ended.
            let _ = tell.send(Message::Ended(end));
        })?;
        state.set_driver(std::process::id(), "vz");
        Ok(Vz(running))
    }
}

impl Machine for Vz {
    fn how(&self) -> String {
        "by Virtualization.framework".into()
    }

    fn power_down(&mut self) -> io::Result<()> {
        self.0.power_down()
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    fn last_words(&self) -> Option<String> {
        None
    }
}

impl Drop for Vz {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// All that the framework is told, with what this process does for the machine begun.
fn machine(spec: &Spec, cards: Vec<Card>) -> Result<vz::Machine, String> {
    let files = &spec.instance.files;
    let failed = |path: &Path, e: io::Error| format!("{}: {e}", path.display());
    let (agent, ours) = UnixStream::pair().map_err(|e| format!("cannot make a socket: {e}"))?;
    console::serve(&files.agent(), ours).map_err(|e| failed(&files.agent(), e))?;
    let log = files.serial_log();
    let cards: Result<Vec<_>, _> = cards.into_iter().map(connected).collect();
    Ok(vz::Machine {
        cpus: size::cpus(&spec.config, Accel::Hvf),
        memory: size::memory(&spec.config),
        boot: match Kernel::of(files) {
            Some(kernel) => Boot::Kernel(kernel),
            None => Boot::Efi(files.vz_efi()),
        },
        identifier: files.vz_identifier(),
        disk: files.disk(),
        seed: files.seed(),
        cards: cards?,
        agent,
        serial_log: File::create(&log).map_err(|e| failed(&log, e))?,
    })
}

fn connected(card: Card) -> Result<vz::Card, String> {
    let wire = match card.wire {
        Wire::Datagram { socket, mtu } => vz::Wire::Socket { socket, mtu: mtu.max(MTU) },
        Wire::Stream(path) => {
            let failed = |e| format!("socket {}: {e}", path.display());
            let (ours, socket) = card::pair()?;
            let to = path.clone();
            spawn("relay", move || drop(vmlan_netd::relay(ours, MTU, &to))).map_err(failed)?;
            vz::Wire::Socket { socket, mtu: MTU }
        }
        Wire::VzNat => vz::Wire::Nat,
        Wire::Slirp { .. } => return Err("vmType vz has no network of QEMU's".into()),
        #[cfg(target_os = "linux")]
        Wire::Tap(_) => return Err("vmType vz has no TAP devices".into()),
    };
    Ok(vz::Card { mac: card.mac, wire })
}

/// The framework reads raw disks only, so that the machine has one of its own.
pub(super) fn make_disk(disk: &Path, base: &Path, size: u64) -> io::Result<()> {
    disk::raw(disk, base, size)
}
