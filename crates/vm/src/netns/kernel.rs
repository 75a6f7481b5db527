//! The kernel's own file systems as the guest's namespaces see them. The kernel refuses them where
//! the caller's own are partly hidden, as in many containers: what is there then stays.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::mount::{MountFlags, mount, mount_bind_recursive};

const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// A /proc that shows the guest's processes and no others.
pub(super) fn fresh_proc() -> io::Result<()> {
    Ok(mount("proc", "/proc", "proc", FLAGS, c"")?)
}

/// A /sys that shows the guest's network interfaces, with all that is mounted in the caller's.
pub(super) fn fresh_sys() -> io::Result<()> {
    let info = fs::read_to_string("/proc/self/mountinfo")?;
    let mut inside: Vec<(&str, OwnedFd)> = Vec::new();
    // Field 5 of proc_pid_mountinfo(5). The children of a mount come with it.
    for place in info.lines().filter_map(|line| line.split(' ').nth(4)) {
        if place.starts_with("/sys/") && !inside.iter().any(|(p, _)| is_below(place, p)) {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            inside.push((place, rustix::fs::open(place, flags, Mode::empty())?));
        }
    }
    let mut flags = FLAGS;
    if rustix::fs::statvfs("/sys")?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        flags |= MountFlags::RDONLY;
    }
    mount("sysfs", "/sys", "sysfs", flags, c"")?;
    for (place, fd) in inside {
        let _ = mount_bind_recursive(format!("/proc/self/fd/{}", fd.as_raw_fd()), place);
    }
    Ok(())
}

fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
