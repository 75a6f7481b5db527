//! An interface is started by root and then needs it no more.

use std::io;

/// The user and the group `nobody`, -2.
const NOBODY: u32 = u32::MAX - 1;

/// Gives up root's rights for good, for the whole process.
pub fn become_nobody() -> io::Result<()> {
    let groups = [NOBODY];
    // SAFETY: plain system calls; the list of groups has one entry.
    let done = unsafe {
        libc::setgroups(1, groups.as_ptr()) == 0
            && libc::setgid(NOBODY) == 0
            && libc::setuid(NOBODY) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
