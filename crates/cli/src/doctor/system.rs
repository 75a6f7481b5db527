//! The machine and the user's home on it.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Finding, Machine};

/// Open files that a busy network needs: each connection is one.
const ENOUGH_FILES: u64 = 4096;

/// How many connections a network can have.
pub(super) fn open_files(_: &Machine) -> Vec<Finding> {
    let finding = match vmlan_host::raise_fd_limit() {
        None => Finding::ok("open files", "a network has as many connections as it likes"),
        Some(limit) if limit >= ENOUGH_FILES => {
            Finding::ok("open files", format!("a network has up to {limit} connections"))
        }
        Some(limit) => {
            let text = format!("a network has only up to {limit} connections");
            Finding::warning("open files", text)
                .why("the hard limit of open files is low (ulimit -Hn)")
                .mend("echo \"$USER hard nofile 1048576\" | sudo tee /etc/security/limits.d/vmlan.conf, \
                       then log in again")
        }
    };
    vec![finding]
}

/// Whether the machine has a global IPv6 address. A connected datagram socket sends nothing, and
/// has the address that would be used.
pub(super) fn ipv6(_: &Machine) -> Vec<Finding> {
    let global = || {
        let socket = UdpSocket::bind("[::]:0").ok()?;
        socket.connect("[2000::1]:53").ok()?;
        match socket.local_addr().ok()?.ip() {
            IpAddr::V6(ip) => (ip.segments()[0] & 0xe000 == 0x2000).then_some(ip),
            IpAddr::V4(_) => None,
        }
    };
    vec![match global() {
        Some(ip) => Finding::ok("ipv6", format!("guests reach outside by it, as {ip}")),
        None => Finding::ok("ipv6", "guests reach each other by it, and nothing outside")
            .why("this machine has no global address"),
    }]
}

/// Whether `$LIMA_HOME` can be used: networks and instances are there.
pub(super) fn home(machine: &Machine) -> Vec<Finding> {
    const CHECK: &str = "home";
    let home = match &machine.home {
        Ok(home) => home.path(),
        Err(why) => {
            let text = "there is no home for networks and instances";
            return vec![Finding::warning(CHECK, text).why(why).mend("export LIMA_HOME=~/.lima")];
        }
    };
    let shown = home.display();
    let Ok(meta) = fs::metadata(home) else {
        let parent = home.ancestors().skip(1).find(|dir| dir.exists());
        return vec![match writable(parent.unwrap_or(home)) {
            Ok(()) => Finding::ok(CHECK, format!("{shown} is made at its first use")),
            Err(why) => Finding::warning(CHECK, format!("{shown} cannot be made"))
                .why(why)
                .mend(format!("sudo install -d -m 700 -o \"$USER\" '{shown}'")),
        }];
    };
    if !meta.is_dir() {
        let text = format!("{shown} is no directory");
        return vec![Finding::warning(CHECK, text).mend(format!("mv '{shown}' '{shown}.old'"))];
    }
    if let Err(why) = writable(home) {
        let text = format!("{shown} cannot be written to: no network or instance works");
        let mend = format!("sudo chown -R \"$USER\" '{shown}' && chmod -R u+rwX '{shown}'");
        return vec![Finding::warning(CHECK, text).why(why).mend(mend)];
    }
    let mode = meta.permissions().mode();
    if mode & 0o022 != 0 {
        let text = format!("{shown} may be changed by others, and with it your networks");
        let why = format!("its mode is {:o}", mode & 0o7777);
        let mend = format!("chmod go-w '{shown}'");
        return vec![Finding::warning(CHECK, text).why(why).mend(mend)];
    }
    vec![Finding::ok(CHECK, format!("{shown} can be written to"))]
}

/// Whether a file can be made in a directory, by making one.
fn writable(dir: &Path) -> Result<(), String> {
    let path = dir.join(format!(".vmlan-doctor-{}", std::process::id()));
    match fs::File::create_new(&path) {
        Ok(_) => fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display())),
        Err(e) => Err(format!("{}: {e}", dir.display())),
    }
}
