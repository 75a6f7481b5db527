//! Where vmlan makes no such networks yet.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;

use vmlan_engine::Config;
use vmlan_link::Link;

use super::settings::Settings;

pub(super) const NEEDS_DESCRIPTOR: bool = false;

pub(super) struct Network;

impl Network {
    pub(super) fn make(_settings: &Settings) -> Result<Self, String> {
        Err("networks of this system cannot be made yet".into())
    }

    pub(super) fn take(&mut self) -> Option<OwnedFd> {
        None
    }
}

pub(super) fn open(
    _settings: &Settings,
    _uplink: Option<OwnedFd>,
) -> Result<(Box<dyn Link>, Config), String> {
    Err("networks of this system cannot be made yet".into())
}

pub(super) fn program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

pub(super) fn confine(_command: &mut Command) {}

pub(super) fn give_up_rights() -> Result<(), String> {
    Ok(())
}

pub(super) fn keep_least(_files: &[Option<&PathBuf>]) {}
