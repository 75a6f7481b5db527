//! A kernel that a machine boots without a boot loader.

use std::fs;
use std::path::PathBuf;

use crate::instance::Files;

/// A kernel, and what it is told.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub file: PathBuf,
    pub initrd: Option<PathBuf>,
    pub cmdline: String,
}

impl Kernel {
    /// An instance's own, if it has one.
    pub fn of(files: &Files) -> Option<Self> {
        let file = Some(files.kernel()).filter(|path| path.exists())?;
        let cmdline = fs::read_to_string(files.kernel_cmdline()).unwrap_or_default();
        let initrd = Some(files.initrd()).filter(|path| path.exists());
        Some(Self { file, initrd, cmdline })
    }
}
