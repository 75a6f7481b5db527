//! QEMU as it is installed: where, how old, and with which firmware.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmlan_config::instance::Arch;

use super::Again;

/// An installed QEMU.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    pub version: (u32, u32),
}

/// Why there is no QEMU that could be used: with the way out.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("`{name}` is not installed: {how}")]
    Missing { name: String, how: String },
    #[error("{}: {source}", path.display())]
    Run { path: PathBuf, source: io::Error },
    #[error("{} is QEMU {}.{}, and vmlan needs {}.{} or later", path.display(), version.0,
            version.1, OLDEST.0, OLDEST.1)]
    Old { path: PathBuf, version: (u32, u32) },
    #[error("`{}` does not say which version of QEMU it is", .0.display())]
    Strange(PathBuf),
    #[error("there is no UEFI firmware for {arch}: {how}")]
    Firmware { arch: &'static str, how: String },
}

/// Has cards over datagram sockets.
const OLDEST: (u32, u32) = (7, 2);

impl Program {
    /// The QEMU for an architecture: as `QEMU_SYSTEM_X86_64` and its like say, or from the path.
    pub fn find(arch: Arch) -> Result<Self, ProgramError> {
        let name = format!("qemu-system-{}", arch.name());
        let said = env::var_os(name.replace('-', "_").to_uppercase()).filter(|p| !p.is_empty());
        let program = said.unwrap_or_else(|| OsString::from(&name));
        let Some(path) = search(Path::new(&program), env::var_os("PATH").as_ref()) else {
            let how = package(arch, &fs::read_to_string("/etc/os-release").unwrap_or_default());
            return Err(ProgramError::Missing { name: program.to_string_lossy().into(), how });
        };
        let output = Command::new(&path).arg("--version").output();
        let output = output.map_err(|source| ProgramError::Run { path: path.clone(), source })?;
        match version(&String::from_utf8_lossy(&output.stdout)) {
            None => Err(ProgramError::Strange(path)),
            Some(version) if version < OLDEST => Err(ProgramError::Old { path, version }),
            Some(version) => Ok(Self { path, version }),
        }
    }

    /// How a card is told to connect again.
    pub fn again(&self) -> Again {
        match self.version {
            version if version >= (9, 2) => Again::Milliseconds,
            version if version >= (8, 0) => Again::Seconds,
            _ => Again::Never,
        }
    }

    /// The firmware that a machine without a kernel of its own boots with; `None` where QEMU's own
    /// does.
    pub fn firmware(&self, arch: Arch) -> Result<Option<PathBuf>, ProgramError> {
        if arch == Arch::X86_64 {
            return Ok(None);
        }
        let beside = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let beside = beside.parent().and_then(Path::parent).map(|dir| dir.join("share/qemu"));
        let beside = beside.map(|dir| dir.join("edk2-aarch64-code.fd"));
        let known = [
            "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
            "/usr/share/edk2/aarch64/QEMU_EFI.fd",
            "/usr/share/qemu/edk2-aarch64-code.fd",
            "/usr/share/edk2-armvirt/aarch64/QEMU_EFI.fd",
        ];
        let found = beside.into_iter().chain(known.map(PathBuf::from)).find(|path| path.exists());
        found.map(Some).ok_or_else(|| ProgramError::Firmware {
            arch: arch.name(),
            how: "install qemu-efi-aarch64 (Debian) or edk2-aarch64 (Fedora)".into(),
        })
    }
}

/// A program by its path, or by its name along `path`.
pub(crate) fn search(program: &Path, path: Option<&OsString>) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return Some(program.to_owned()).filter(is_program);
    }
    env::split_paths(path?).map(|dir| dir.join(program)).find(is_program)
}

/// What to install, by the system's `/etc/os-release`.
fn package(arch: Arch, os_release: &str) -> String {
    let like = os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .flat_map(|ids| ids.trim_matches('"').split(' '))
        .collect::<Vec<_>>();
    let is = |id| like.contains(&id);
    let (x86, arm) = match arch {
        Arch::X86_64 => (true, false),
        Arch::Aarch64 => (false, true),
    };
    let command = if cfg!(target_os = "macos") {
        "brew install qemu"
    } else if is("debian") || is("ubuntu") {
        if x86 {
            "sudo apt-get install qemu-system-x86"
        } else {
            "sudo apt-get install qemu-system-arm qemu-efi-aarch64"
        }
    } else if is("fedora") || is("rhel") {
        if x86 {
            "sudo dnf install qemu-system-x86-core"
        } else {
            "sudo dnf install qemu-system-aarch64-core edk2-aarch64"
        }
    } else if is("arch") {
        if x86 {
            "sudo pacman -S qemu-system-x86"
        } else {
            "sudo pacman -S qemu-system-aarch64 edk2-aarch64"
        }
    } else if is("suse") || is("opensuse") {
        if x86 {
            "sudo zypper install qemu-x86"
        } else {
            "sudo zypper install qemu-arm qemu-uefi-aarch64"
        }
    } else if is("alpine") {
        if arm { "sudo apk add qemu-system-aarch64" } else { "sudo apk add qemu-system-x86_64" }
    } else {
        return format!("install QEMU for {}", arch.name());
    };
    format!("install it with `{command}`")
}

/// Of `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split("version ").nth(1)?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_decide() {
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\n"), Some((7, 2)));
        assert_eq!(version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(version("hello"), None);
        let again = |version| Program { path: "/q".into(), version }.again();
        assert_eq!(again((7, 2)), Again::Never);
        assert_eq!(again((8, 0)), Again::Seconds);
        assert_eq!(again((9, 1)), Again::Seconds);
        assert_eq!(again((9, 2)), Again::Milliseconds);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_missing_is_told_with_the_command() {
        for (os, arch, want) in [
            ("ID=debian\n", Arch::X86_64, "`sudo apt-get install qemu-system-x86`"),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Arch::Aarch64, "qemu-efi-aarch64`"),
            ("ID=fedora\n", Arch::X86_64, "dnf install"),
            ("ID=nixos\n", Arch::X86_64, "install QEMU for x86_64"),
        ] {
            let text = package(arch, os);
            assert!(text.contains(want), "{text}");
        }
    }

    #[test]
    fn programs_are_found() {
        let path = OsString::from("/nonexistent:/bin:/usr/bin");
        assert!(search(Path::new("sh"), Some(&path)).is_some());
        assert_eq!(search(Path::new("no-such-program"), Some(&path)), None);
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(search(file.path(), Some(&path)), None, "it is no program");
    }
}
