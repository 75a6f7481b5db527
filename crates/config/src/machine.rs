//! The identity of the machine, which MAC addresses are made of.

use std::fs;
use std::path::Path;

/// The machine's identity as the system keeps it, else its host name.
pub fn id() -> String {
    imp::id().unwrap_or_else(host_name)
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The first of these files that says something.
#[cfg_attr(target_os = "macos", expect(dead_code, reason = "macOS keeps it elsewhere"))]
fn first_of(files: &[&Path]) -> Option<String> {
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.map(|text| text.trim().to_owned()).find(|text| !text.is_empty())
}

#[cfg(not(target_os = "macos"))]
mod imp {
    use super::Path;

    pub(super) fn id() -> Option<String> {
        super::first_of(&["/etc/machine-id", "/var/lib/dbus/machine-id"].map(Path::new))
    }
}

#[cfg(target_os = "macos")]
mod imp {
    use std::process::Command;

    /// The value after the key in ioreg's property list.
    pub(super) fn id() -> Option<String> {
        let mut command = Command::new("/usr/sbin/ioreg");
        let output = command.args(["-a", "-d2", "-c", "IOPlatformExpertDevice"]).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let (_, rest) = text.split_once("<key>IOPlatformUUID</key>")?;
        let (_, rest) = rest.split_once("<string>")?;
        rest.split_once("</string>").map(|(id, _)| id.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_says_something_counts() {
        let dir = tempfile::tempdir().unwrap();
        let [missing, empty, full] = ["missing", "empty", "full"].map(|name| dir.path().join(name));
        fs::write(&empty, " \n").unwrap();
        fs::write(&full, "0123\n").unwrap();
        assert_eq!(first_of(&[&missing, &empty, &full]), Some("0123".into()));
        assert_eq!(first_of(&[&missing, &empty]), None);
    }

    #[test]
    fn there_is_always_one() {
        assert!(!id().is_empty());
    }
}
