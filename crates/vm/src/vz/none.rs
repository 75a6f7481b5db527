//! Where there is no Virtualization.framework.

use std::convert::Infallible;
use std::io;

use super::{Ending, Machine};

/// There is none.
#[derive(Debug)]
pub struct Running(Infallible);

pub(super) fn available() -> Result<(), String> {
    Err("vmType vz is Apple's Virtualization.framework, and needs macOS; use vmType: qemu".into())
}

impl Running {
    pub(super) fn start(_: Machine, _: Box<dyn Fn(Ending) + Send + Sync>) -> Result<Self, String> {
        available().map(|()| unreachable!("it is not available"))
    }

    /// Presses the power button.
    pub fn power_down(&self) -> io::Result<()> {
        match self.0 {}
    }

    /// Ends the machine at once.
    pub fn kill(&self) {
        match self.0 {}
    }
}
