//! `$LIMA_HOME`, and what is where below it.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no home.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("neither LIMA_HOME nor HOME is set")]
    Unset,
    #[error("LIMA_HOME `{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The directory of all configuration and instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimaHome(PathBuf);

/// The files of one network's daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPaths {
    pub dir: PathBuf,
    /// The control API.
    pub endpoint: PathBuf,
    /// Where QEMU connects.
    pub qemu: PathBuf,
    /// Where descriptors of datagram sockets are handed over.
    pub fd: PathBuf,
    pub pidfile: PathBuf,
    /// The process that brings up the daemon again while it is to be there without a guest.
    pub watcher: PathBuf,
    pub stdout: PathBuf,
    pub stderr: PathBuf,
    pub leases: PathBuf,
    /// What is known of the guests that are there.
    pub guests: PathBuf,
    /// What the network is there for without a guest.
    pub wishes: PathBuf,
    /// Forwards and zones that were added while it is there.
    pub additions: PathBuf,
}

/// A UNIX socket's path is too long for the system.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "socket path `{}` too long: must be less than UNIX_PATH_MAX={UNIX_PATH_MAX} bytes, but is {len}",
    path.display()
)]
pub struct SocketPathError {
    path: PathBuf,
    len: usize,
}

const UNIX_PATH_MAX: usize = if cfg!(target_os = "macos") { 104 } else { 108 };

impl LimaHome {
    /// `$LIMA_HOME`, else `~/.lima`; where it is if it is a symbolic link.
    pub fn from_env() -> Result<Self, HomeError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = match set("LIMA_HOME") {
            Some(home) => home,
            None => set("HOME").ok_or(HomeError::Unset)?.join(".lima"),
        };
        Self::new(&path)
    }

    pub fn new(path: &Path) -> Result<Self, HomeError> {
        match fs::canonicalize(path) {
            Ok(path) => Ok(Self(path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let absolute = std::path::absolute(path);
                absolute.map(Self).map_err(|source| HomeError::Io { path: path.into(), source })
            }
            Err(source) => Err(HomeError::Io { path: path.into(), source }),
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn networks_yaml(&self) -> PathBuf {
        self.0.join("_config").join("networks.yaml")
    }

    /// What every instance has unless its `lima.yaml` says otherwise.
    pub fn default_yaml(&self) -> PathBuf {
        self.0.join("_config").join("default.yaml")
    }

    /// What every instance has whatever its `lima.yaml` says.
    pub fn override_yaml(&self) -> PathBuf {
        self.0.join("_config").join("override.yaml")
    }

    /// The directory of an instance.
    pub fn instance(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where the daemons of networks have their sockets and files.
    pub fn networks(&self) -> PathBuf {
        self.0.join("_networks")
    }

    /// The files of a user-v2 network's daemon.
    pub fn network(&self, name: &str) -> NetworkPaths {
        let dir = self.networks().join(name);
        let file = |name: String| dir.join(name);
        NetworkPaths {
            endpoint: file(format!("{name}_ep.sock")),
            qemu: file(format!("{name}_qemu.sock")),
            fd: file(format!("{name}_fd.sock")),
            pidfile: file(format!("usernet_{name}.pid")),
            watcher: file(format!("watch_{name}.pid")),
            stdout: file(format!("usernet.{name}.stdout.log")),
            stderr: file(format!("usernet.{name}.stderr.log")),
            leases: file("leases.json".into()),
            guests: file("guests.json".into()),
            wishes: file("wishes.json".into()),
            additions: file("additions.json".into()),
            dir,
        }
    }
}

impl NetworkPaths {
    /// Removes what a network leaves when it is no more, once its processes have ended.
    pub fn remove(&self) -> io::Result<()> {
        for path in [
            &self.pidfile,
            &self.watcher,
            &self.stdout,
            &self.stderr,
            &self.leases,
            &self.guests,
            &self.wishes,
            &self.additions,
        ] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        match fs::remove_dir(&self.dir) {
            // What somebody else has put there stays.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Refuses what no socket could be made at.
    pub fn check(&self) -> Result<(), SocketPathError> {
        [&self.endpoint, &self.qemu, &self.fd].into_iter().try_for_each(|path| socket_path(path))
    }
}

/// Refuses a path that no socket could have.
pub fn socket_path(path: &Path) -> Result<(), SocketPathError> {
    let len = path.as_os_str().len();
    if len >= UNIX_PATH_MAX {
        return Err(SocketPathError { path: path.into(), len });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_where_they_are_documented() {
        let home = LimaHome("/home/me/.lima".into());
        assert_eq!(home.networks_yaml(), Path::new("/home/me/.lima/_config/networks.yaml"));
        let paths = home.network("user-v2");
        let dir = Path::new("/home/me/.lima/_networks/user-v2");
        assert_eq!(paths.endpoint, dir.join("user-v2_ep.sock"));
        assert_eq!(paths.qemu, dir.join("user-v2_qemu.sock"));
        assert_eq!(paths.fd, dir.join("user-v2_fd.sock"));
        assert_eq!(paths.pidfile, dir.join("usernet_user-v2.pid"));
        assert_eq!(paths.stdout, dir.join("usernet.user-v2.stdout.log"));
        assert_eq!(paths.stderr, dir.join("usernet.user-v2.stderr.log"));
        assert_eq!(paths.leases, dir.join("leases.json"));
        assert_eq!(paths.check(), Ok(()));
    }

    #[test]
    fn a_path_that_is_no_sockets_is_refused_with_the_limit() {
        let error = LimaHome("/h".into()).network(&"x".repeat(60)).check().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/h/_networks/x") && text.contains("_ep.sock` too long"), "{text}");
        assert!(text.contains(&format!("UNIX_PATH_MAX={UNIX_PATH_MAX} bytes")), "{text}");
    }

    #[test]
    fn symbolic_links_are_followed_and_missing_homes_made_absolute() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        let link = real.join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(LimaHome::new(&link).unwrap().path(), real);
        assert_eq!(LimaHome::new(&real.join("none")).unwrap().path(), real.join("none"));
        assert!(LimaHome::new(Path::new("none")).unwrap().path().is_absolute());
    }
}
