//! Keeps the guest's own files in their places. A program of the host's that replaces
//! /etc/resolv.conf by renaming another over it, as they do when the machine changes networks,
//! takes away the mount that hides it, in every mount namespace. Init puts it back.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// The mounts to keep, and a descriptor whose `POLLPRI` tells that mounts have changed.
#[derive(Debug)]
pub(super) struct Keeper {
    changes: File,
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    target: PathBuf,
    /// The file system that is to be seen there.
    device: u64,
    /// A copy of the mount, attached nowhere.
    spare: OwnedFd,
}

impl Keeper {
    /// Keeps what is mounted at `targets` now. The error of a kernel before 5.2 is that it cannot.
    pub(super) fn new(targets: Vec<PathBuf>) -> io::Result<Self> {
        let place = |target: PathBuf| {
            let device = fs::metadata(&target)?.dev();
            Ok(Place { spare: copy(&target)?, device, target })
        };
        Ok(Self {
            changes: File::open("/proc/self/mountinfo")?,
            places: targets.into_iter().map(place).collect::<io::Result<_>>()?,
        })
    }

    /// The descriptors that this needs.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.places.iter().map(|place| place.spare.as_fd()).chain([self.changes.as_fd()])
    }

    /// Mounts again what is gone. False if something has no place at the moment, because the host
    /// has removed it and maybe not yet put another there.
    pub(super) fn restore(&mut self) -> bool {
        self.places.iter_mut().all(|place| place.restore().is_ok())
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

impl Place {
    fn restore(&mut self) -> io::Result<()> {
        if fs::metadata(&self.target)?.dev() == self.device {
            return Ok(());
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&self.spare, "", CWD, &self.target, flags)?;
        self.spare = copy(&self.target)?;
        Ok(())
    }
}

fn copy(target: &PathBuf) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, target, flags)?)
}
