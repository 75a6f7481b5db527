//! macOS: an interface of vmnet.framework. The process that has the frames starts it, as root, and is
//! nobody afterwards; addresses, routes and names are the system's.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;

use vmlan_engine::Config;
use vmlan_link::Link;
use vmlan_vmnet::{Interface, Options, VmnetLink};

use super::settings::{Mode, Settings, Uuid};

/// An interface cannot be handed over.
pub(super) const NEEDS_DESCRIPTOR: bool = false;

/// The network comes and goes with the server's interface.
pub(super) struct Network;

impl Network {
    #[expect(clippy::unnecessary_wraps, reason = "elsewhere it can fail")]
    pub(super) fn make(_settings: &Settings) -> Result<Self, String> {
        Ok(Self)
    }

    #[expect(clippy::unused_self, reason = "elsewhere it has one")]
    pub(super) fn take(&mut self) -> Option<OwnedFd> {
        None
    }
}

/// What the server has: the interface, and a switch.
pub(super) fn open(
    settings: &Settings,
    _uplink: Option<OwnedFd>,
) -> Result<(Box<dyn Link>, Config), String> {
    let interface = Interface::start(&options(settings)).map_err(|e| e.to_string())?;
    let config = vmlan_netd::switch_network(interface.mtu).map_err(|e| e.to_string())?;
    let link = VmnetLink::new(interface).map_err(|e| format!("the interface: {e}"))?;
    Ok((Box::new(link), config))
}

fn options(settings: &Settings) -> Options {
    let (mode, subnet) = match &settings.mode {
        Mode::Shared(subnet) => (vmlan_vmnet::Mode::Shared, Some(subnet)),
        Mode::Host { subnet, identifier } => {
            let identifier = identifier.as_ref().map(Uuid::bytes);
            (vmlan_vmnet::Mode::Host { identifier }, Some(subnet))
        }
        Mode::Bridged { interface } => (vmlan_vmnet::Mode::Bridged(interface.clone()), None),
    };
    let range = subnet.and_then(|subnet| subnet.range);
    Options {
        mode,
        range: range.map(|range| (range.gateway, range.last, range.mask)),
        nat66_prefix: subnet.and_then(|subnet| subnet.nat66_prefix),
        interface_id: settings.interface_id.as_ref().map(Uuid::bytes),
        dhcp: settings.dhcp,
    }
}

pub(super) fn program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// The server starts as what its keeper is: only root may start interfaces.
pub(super) fn confine(_command: &mut Command) {}

pub(super) fn give_up_rights() -> Result<(), String> {
    vmlan_vmnet::become_nobody().map_err(|e| format!("cannot give up rights: {e}"))
}

/// Root's rights cannot be divided here.
pub(super) fn keep_least(_files: &[Option<&PathBuf>]) {}
