//! Which file of an instance is where.

use std::fs;
use std::path::{Path, PathBuf};

use vmlan_config::{NetworkPaths, SocketPathError, socket_path};

/// The files of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub dir: PathBuf,
}

impl Files {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn lima_yaml(&self) -> PathBuf {
        self.file("lima.yaml")
    }

    /// The image that the disk is an overlay of.
    pub fn base_disk(&self) -> PathBuf {
        self.file("basedisk")
    }

    pub fn disk(&self) -> PathBuf {
        self.file("diffdisk")
    }

    pub fn kernel(&self) -> PathBuf {
        self.file("kernel")
    }

    pub fn kernel_cmdline(&self) -> PathBuf {
        self.file("kernel.cmdline")
    }

    pub fn initrd(&self) -> PathBuf {
        self.file("initrd")
    }

    pub fn seed(&self) -> PathBuf {
        self.file("cidata.iso")
    }

    pub fn ssh_config(&self) -> PathBuf {
        self.file("ssh.config")
    }

    /// The host agent's, locked as long as it lives.
    pub fn host_pid(&self) -> PathBuf {
        self.file("ha.pid")
    }

    pub fn host_socket(&self) -> PathBuf {
        self.file("ha.sock")
    }

    /// Events, a line of JSON for each.
    pub fn host_events(&self) -> PathBuf {
        self.file("ha.stdout.log")
    }

    pub fn host_log(&self) -> PathBuf {
        self.file("ha.stderr.log")
    }

    pub fn qemu_pid(&self) -> PathBuf {
        self.file("qemu.pid")
    }

    pub fn qmp(&self) -> PathBuf {
        self.file("qmp.sock")
    }

    /// What Virtualization.framework keeps of EFI's variables.
    pub fn vz_efi(&self) -> PathBuf {
        self.file("vz-efi")
    }

    /// By which the guest of Virtualization.framework knows its machine again.
    pub fn vz_identifier(&self) -> PathBuf {
        self.file("vz-identifier")
    }

    pub fn agent(&self) -> PathBuf {
        self.file("agent.sock")
    }

    pub fn serial(&self) -> PathBuf {
        self.file("serial.sock")
    }

    pub fn serial_log(&self) -> PathBuf {
        self.file("serial.log")
    }

    /// Held by whoever starts, stops, changes or deletes the instance.
    pub fn lock(&self) -> PathBuf {
        self.file("lock")
    }

    /// The daemon of the network that is this instance's alone.
    pub fn network(&self) -> NetworkPaths {
        NetworkPaths {
            dir: self.dir.clone(),
            endpoint: self.file("default_ep.sock"),
            qemu: self.file("default_qemu.sock"),
            fd: self.file("default_fd.sock"),
            pidfile: self.file("default.pid"),
            watcher: self.file("default_watch.pid"),
            stdout: self.file("default.stdout.log"),
            stderr: self.file("default.stderr.log"),
            leases: self.file("leases.json"),
            guests: self.file("guests.json"),
            wishes: self.file("wishes.json"),
            additions: self.file("additions.json"),
        }
    }

    /// Refuses a directory in which no socket could be made.
    pub fn check(&self) -> Result<(), SocketPathError> {
        let sockets = [self.host_socket(), self.qmp(), self.agent(), self.serial()];
        sockets.iter().try_for_each(|path| socket_path(path))?;
        self.network().check()
    }

    /// Removes what a machine that did not end well has left, apart from its disk and logs.
    pub fn clean(&self) {
        for path in [self.host_socket(), self.qemu_pid(), self.qmp(), self.agent(), self.serial()] {
            // Most often there is none.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_limas() {
        let files = Files::new(Path::new("/h/web"));
        assert_eq!(files.host_events(), Path::new("/h/web/ha.stdout.log"));
        assert_eq!(files.network().endpoint, Path::new("/h/web/default_ep.sock"));
        assert_eq!(files.check(), Ok(()));
        let long = Files::new(&Path::new("/h").join("x".repeat(95)));
        assert!(long.check().unwrap_err().to_string().contains("too long"));
    }
}
