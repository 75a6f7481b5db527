//! What namespace guests need: a command is run as one, and a ping socket opened.

use std::io;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, ipproto};

use super::{Finding, Machine};

/// Whether `vmlan run` works: user namespaces, and a network card in one.
pub(super) fn commands(_: &Machine) -> Vec<Finding> {
    imp::commands()
}

/// Whether guests' pings can leave the machine.
pub(super) fn ping(_: &Machine) -> Vec<Finding> {
    let open =
        |family, protocol| rustix::net::socket(family, SocketType::DGRAM, Some(protocol)).map(drop);
    let finding = match open(AddressFamily::INET, ipproto::ICMP) {
        Ok(()) => match open(AddressFamily::INET6, ipproto::ICMPV6) {
            Ok(()) => Finding::ok("ping", "guests can ping outside"),
            Err(errno) => Finding::ok("ping", "guests can ping outside, over IPv4 alone")
                .why(io::Error::from(errno).to_string()),
        },
        Err(errno) => {
            let finding = Finding::warning("ping", "guests cannot ping outside");
            match imp::ping_groups().filter(|_| errno == Errno::ACCESS || errno == Errno::PERM) {
                Some(groups) => finding
                    .why(format!("net.ipv4.ping_group_range is `{groups}`, without your groups"))
                    .mend("sudo sysctl -w net.ipv4.ping_group_range=\"0 2147483647\""),
                None => finding.why(io::Error::from(errno).to_string()),
            }
        }
    };
    vec![finding]
}

#[cfg(target_os = "linux")]
mod imp {
    use std::fs;
    use std::io::{self, Read};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use vmlan_vm::child::ended_within;

    use super::Finding;

    /// For a command that does nothing.
    const PATIENCE: Duration = Duration::from_secs(20);

    pub(super) fn commands() -> Vec<Finding> {
        const NAMESPACES: &str = "namespaces";
        const CARD: &str = "/dev/net/tun";
        let namespaces = || Finding::ok(NAMESPACES, "commands run in namespaces of their own");
        match try_one() {
            Ok(()) => {
                vec![namespaces(), Finding::ok(CARD, "commands have network cards of their own")]
            }
            // It is asked for within the namespaces.
            Err(why) if why.starts_with(CARD) => {
                let fault = Finding::fault(CARD, "commands have no network cards: run fails");
                vec![namespaces(), fault.told(&why)]
            }
            Err(why) => {
                let fault = Finding::fault(NAMESPACES, "commands cannot be run: run fails");
                vec![fault.told(&why)]
            }
        }
    }

    pub(super) fn ping_groups() -> Option<String> {
        let text = fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").ok()?;
        Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Runs a command that does nothing, on a network of its own.
    fn try_one() -> Result<(), String> {
        let told = |e: io::Error| format!("cannot run vmlan itself: {e}");
        let mut command = Command::new(std::env::current_exe().map_err(told)?);
        command.args(["run", "--", "true"]).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(told)?;
        let Some(status) = ended_within(&mut child, PATIENCE).map_err(told)? else {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("it has not ended within {} s", PATIENCE.as_secs()));
        };
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut said).map_err(told)?;
        }
        let line = vmlan_netd::last_line(&said).unwrap_or_default();
        let line = line.strip_prefix("vmlan: ").unwrap_or(line);
        Err(if line.is_empty() { status.to_string() } else { line.to_owned() })
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::Finding;

    /// Commands are guests on Linux alone.
    pub(super) fn commands() -> Vec<Finding> {
        Vec::new()
    }

    pub(super) fn ping_groups() -> Option<String> {
        None
    }
}
