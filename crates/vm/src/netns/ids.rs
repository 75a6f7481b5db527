//! Who the command is: the caller, in a user namespace of its own.

use std::fs;
use std::io;

use rustix::thread::CapabilitiesSecureBits;

/// Maps the caller's user and group into the user namespace of `child`, as themselves or as root.
///
/// Root, who may, maps everything that it sees itself, so that a command, which has no capabilities
/// (see [`give_up_capabilities`]), sees whose each file is. Root of the guest has capabilities, which
/// count for all files of mapped users: there it maps itself alone. Everybody else may map only
/// themselves: supplementary groups keep their rights but show as nobody's. newgidmap(1) would not
/// change that, as it maps ids of /etc/subgid, not groups that one is in.
pub(super) fn map(child: i32, root: bool) -> io::Result<()> {
    let write = |file: &str, text: &str| fs::write(format!("/proc/{child}/{file}"), text);
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root()
        && !root
        && let (Ok(users), Ok(groups)) = (everyone("uid_map"), everyone("gid_map"))
        && write("uid_map", &users).is_ok()
    {
        return write("gid_map", &groups);
    }
    let inside = |id: u32| if root { 0 } else { id };
    write("setgroups", "deny")?;
    write("uid_map", &format!("{} {} 1", inside(uid.as_raw()), uid.as_raw()))?;
    write("gid_map", &format!("{} {} 1", inside(gid.as_raw()), gid.as_raw()))
}

/// Lets no command of the calling process have capabilities for being user 0. Those of other users
/// lose theirs anyway, and binaries may bring some of their own, such as ping's.
pub(super) fn give_up_capabilities() -> io::Result<()> {
    let bits = CapabilitiesSecureBits::NO_ROOT | CapabilitiesSecureBits::NO_ROOT_LOCKED;
    Ok(rustix::thread::set_capabilities_secure_bits(bits)?)
}

/// The identity map of all ids of this process's own user namespace.
fn everyone(file: &str) -> io::Result<String> {
    Ok(identity(&fs::read_to_string(format!("/proc/self/{file}"))?))
}

/// Lines of "first, first outside, count" with each id mapped to itself.
fn identity(map: &str) -> String {
    let mut text = String::new();
    for line in map.lines() {
        if let [first, _, count] = line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            text.push_str(&format!("{first} {first} {count}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_keeps_ranges() {
        assert_eq!(identity("         0          0 4294967295\n"), "0 0 4294967295\n");
        assert_eq!(identity("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65536\n");
    }
}
