//! What the documented defaults need to know about the machine.

use std::fs;
use std::path::{Path, PathBuf};

use crate::routes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Os {
    Linux,
    Macos,
}

/// What differs from machine to machine in the default `networks.yaml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub os: Os,
    /// Whose members are the machine's administrators.
    pub group: String,
    /// The interface of the default route.
    pub interface: String,
    /// Where socket_vmnet is, or should be (macOS).
    pub socket_vmnet: PathBuf,
}

impl Platform {
    /// This machine.
    pub fn detect() -> Self {
        let os = if cfg!(target_os = "macos") { Os::Macos } else { Os::Linux };
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        let (group, interface) = match os {
            Os::Linux => (linux_group(&groups).into(), "eth0"),
            Os::Macos => ("admin".into(), "en0"),
        };
        let interface = match os {
            Os::Linux => routes::read().ok().and_then(|routes| routes::default_interface(&routes)),
            Os::Macos => None,
        }
        .unwrap_or_else(|| interface.into());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut candidates =
            socket_vmnet_candidates(&std::env::split_paths(&path).collect::<Vec<_>>());
        let installed = candidates.iter().find_map(|path| fs::canonicalize(path).ok());
        let socket_vmnet = installed.unwrap_or_else(|| candidates.swap_remove(0));
        Self { os, group, interface, socket_vmnet }
    }
}

/// Debian's name for the group of administrators, or everybody else's.
fn linux_group(groups: &str) -> &'static str {
    if groups.lines().any(|line| line.starts_with("sudo:")) { "sudo" } else { "wheel" }
}

/// Where socket_vmnet may be, the best place first.
fn socket_vmnet_candidates(path: &[PathBuf]) -> Vec<PathBuf> {
    let bin = |prefix: &str| Path::new(prefix).join("socket_vmnet/bin/socket_vmnet");
    let mut candidates = vec![bin("/opt")];
    candidates.extend(path.iter().filter(|dir| dir.is_absolute()).map(|d| d.join("socket_vmnet")));
    candidates.extend([bin("/usr/local/opt"), bin("/opt/homebrew/opt")]);
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn administrators() {
        assert_eq!(linux_group("root:x:0:\nsudo:x:27:me\n"), "sudo");
        assert_eq!(linux_group("root:x:0:\nwheel:x:10:\nsudoers:x:5:\n"), "wheel");
    }

    #[test]
    fn socket_vmnet_is_looked_for_where_it_is_secure_first() {
        let path = ["/usr/bin", "relative"].map(PathBuf::from);
        let want = [
            "/opt/socket_vmnet/bin/socket_vmnet",
            "/usr/bin/socket_vmnet",
            "/usr/local/opt/socket_vmnet/bin/socket_vmnet",
            "/opt/homebrew/opt/socket_vmnet/bin/socket_vmnet",
        ];
        assert_eq!(socket_vmnet_candidates(&path), want.map(PathBuf::from));
    }
}
