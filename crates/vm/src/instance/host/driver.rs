//! What runs the machine: QEMU, a process of its own, or macOS' framework, by this process. The host
//! agent treats both alike.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use vmlan_config::instance::VmType;

use super::plan::Plan;
use super::state::State;
use super::{Message, Spec, by_qemu, by_vz};
use crate::disk;

/// A driver that can run the machine, while there is none yet.
#[derive(Debug)]
pub(super) enum Driver {
    Qemu(by_qemu::Driver),
    Vz(by_vz::Driver),
}

/// A running machine. It is killed when this is dropped. Its end is a `Message::Ended`.
pub(super) trait Machine: Debug {
    /// What runs the guest's instructions, for people.
    fn how(&self) -> String;
    /// Presses the power button.
    fn power_down(&mut self) -> io::Result<()>;
    fn kill(&mut self);
    /// The last line that the driver has said.
    fn last_words(&self) -> Option<String>;
}

/// How a machine has ended.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// Goes after `has ended`.
    pub(super) how: String,
    pub(super) failed: bool,
}

impl Driver {
    /// Finds what it takes to run the machine.
    pub(super) fn find(spec: &Spec) -> Result<Self, String> {
        match spec.driver {
            VmType::Qemu => by_qemu::Driver::find(spec).map(Self::Qemu),
            VmType::Vz => by_vz::Driver::find().map(Self::Vz),
        }
    }

    /// Whether a card finds a socket that comes, or comes back, later than the machine.
    pub(super) fn connects_again(&self) -> bool {
        match self {
            Self::Qemu(qemu) => qemu.connects_again(),
            Self::Vz(_) => true,
        }
    }

    /// Makes the machine's disk from its image, or if it is there, as large as it is to be.
    pub(super) fn make_disk(&self, spec: &Spec) -> Result<(), String> {
        let (disk, base) = (spec.instance.files.disk(), spec.instance.files.base_disk());
        let made = match self {
            _ if disk.exists() => disk::grow(&disk, spec.config.disk),
            Self::Qemu(_) => by_qemu::make_disk(&disk, &base, spec.config.disk),
            Self::Vz(_) => by_vz::make_disk(&disk, &base, spec.config.disk),
        };
        made.map_err(|e| format!("{}: {e}", disk.display()))
    }

    pub(super) fn start(
        self,
        spec: &Spec,
        plan: Plan,
        state: &Arc<State>,
        tell: &Sender<Message>,
    ) -> Result<Box<dyn Machine>, String> {
        let Plan { cards, joined, .. } = plan;
        let machine: Box<dyn Machine> = match self {
            Self::Qemu(qemu) => Box::new(qemu.start(spec, cards, state, tell)?),
            Self::Vz(vz) => Box::new(vz.start(spec, cards, state, tell)?),
        };
        for (card, joining) in joined {
            joining.keep(card, state, tell.clone())?;
        }
        Ok(machine)
    }
}
