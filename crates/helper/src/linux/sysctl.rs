//! The kernel's settings: forwarding for networks that lead outside, put back when nobody needs it
//! any more.
//!
//! Switching forwarding changes other settings by itself: each interface's own, whether redirects
//! are accepted, and, for IPv6, whether router advertisements are heard at all. All of them are
//! written down before, and put back after.

use std::fs;
use std::path::{Path, PathBuf};

use super::state::Store;

/// Where what was is written down.
const FILE: &str = "vmlan-forwarding";

const IPV4: &str = "net/ipv4/ip_forward";
const IPV6: &str = "net/ipv6/conf/all/forwarding";

/// Another network or program that leads packets through this host was there before.
const OTHERS: &str = "others";

/// Sets a setting of one interface, where the kernel has IPv6.
pub(super) fn set_ipv6(interface: &str, key: &str, value: &str) {
    let _ = fs::write(path(&format!("net/ipv6/conf/{interface}/{key}")), value);
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

fn get(name: &str) -> Option<String> {
    fs::read_to_string(path(name)).ok().map(|text| text.trim().to_owned())
}

fn set(name: &str, value: &str) -> Result<(), String> {
    if get(name).as_deref() == Some(value) {
        return Ok(());
    }
    let name_shown = name.replace('/', ".");
    fs::write(path(name), value).map_err(|e| format!("cannot set {name_shown} to {value}: {e}"))
}

/// The interfaces that have settings of their own, `all` and `default` among them.
fn interfaces(family: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path(&format!("net/{family}/conf"))) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Lets packets through this host. `others` says whether somebody else leads packets through it.
pub(super) fn forward(store: &Store, others: bool) -> Result<(), String> {
    let mut noted = store.text(FILE)?.unwrap_or_default();
    let mut note = |name: &str| {
        if let Some(value) = get(name) {
            noted.push_str(&format!("{name} {value}\n"));
        }
    };
    let four = get(IPV4).as_deref() == Some("0");
    let six = get(IPV6).as_deref() == Some("0");
    if four {
        note(IPV4);
        note("net/ipv4/conf/all/accept_redirects");
        for name in interfaces("ipv4") {
            note(&format!("net/ipv4/conf/{name}/forwarding"));
        }
    }
    let mut deaf = Vec::new();
    if six {
        note(IPV6);
        for name in interfaces("ipv6") {
            note(&format!("net/ipv6/conf/{name}/forwarding"));
            let accept = format!("net/ipv6/conf/{name}/accept_ra");
            if get(&accept).as_deref() == Some("1") {
                note(&accept);
                deaf.push(accept);
            }
        }
    }
    if !four && !six {
        return Ok(());
    }
    if others && !noted.contains(OTHERS) {
        noted.push_str(&format!("{OTHERS} 1\n"));
    }
    store.write_text(FILE, &noted)?;
    // First: between the two, the host would forget its own router.
    for name in deaf {
        set(&name, "2")?;
    }
    if six {
        set(IPV6, "1")?;
    }
    if four {
        set(IPV4, "1")?;
    }
    Ok(())
}

/// Puts back what [`forward`] has changed, unless somebody else has come to need it since. To be
/// called when no network of ours is left that leads outside.
pub(super) fn put_back(store: &Store, others: bool) -> Result<(), String> {
    let Some(noted) = store.text(FILE)? else { return Ok(()) };
    let lines: Vec<_> = noted.lines().filter_map(|line| line.split_once(' ')).collect();
    let had_others = lines.iter().any(|(name, _)| *name == OTHERS);
    if !others || had_others {
        for (at, (name, value)) in lines.iter().enumerate() {
            // What has been noted twice is older where it comes first. Interfaces may be gone.
            let first = !lines[..at].iter().any(|(other, _)| other == name);
            if first && *name != OTHERS && path(name).exists() {
                set(name, value)?;
            }
        }
    }
    store.remove_text(FILE)
}
