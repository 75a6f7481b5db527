//! How names outside are found: the nameservers are asked, and the sources beside them looked at.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use vmlan_dns::{Options, Origin, Source};

use super::{Finding, Machine};

/// For nameservers to answer.
const PATIENCE: Duration = Duration::from_secs(6);

/// Servers that are asked; systems look at three.
const MAX_SERVERS: usize = 8;

/// A question that every nameserver can answer: who serves the root (RFC 1035).
const QUESTION: &[u8] = b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01";

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Whether the nameservers of the machine answer.
pub(super) fn nameservers(_: &Machine) -> Vec<Finding> {
    const CHECK: &str = "nameservers";
    let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let servers = servers(&text);
    if servers.is_empty() {
        let text = "names outside are asked of 8.8.8.8 and 1.1.1.1";
        return vec![
            Finding::warning(CHECK, text)
                .why(format!("{RESOLV_CONF} names no nameserver"))
                .mend(format!("echo nameserver ADDRESS | sudo tee -a {RESOLV_CONF}")),
        ];
    }
    let answers = ask(&servers);
    let shown = |wanted: bool| -> String {
        let some = servers.iter().filter(|server| answers.contains(server) == wanted);
        some.map(|server| server.ip().to_string()).collect::<Vec<_>>().join(", ")
    };
    if answers.len() == servers.len() {
        return vec![Finding::ok(CHECK, format!("{} answers", shown(true)))];
    }
    let text = match answers.len() {
        0 => "names outside are not found".to_owned(),
        _ => format!(
            "names outside are found late: of the nameservers, only {} answers",
            shown(true)
        ),
    };
    vec![
        Finding::warning(CHECK, text)
            .why(format!("{} of {RESOLV_CONF} does not answer", shown(false)))
            .mend(format!("sudoedit {RESOLV_CONF}, or say the nameserver: vmlan run --dns IP")),
    ]
}

/// Whether the sources of names in nsswitch.conf(5) are there.
pub(super) fn sources(_: &Machine) -> Vec<Finding> {
    const CHECK: &str = "name sources";
    const NSSWITCH: &str = "/etc/nsswitch.conf";
    let text = fs::read_to_string(NSSWITCH).unwrap_or_default();
    let Some(hosts) = text.lines().find_map(|line| line.trim().strip_prefix("hosts:")) else {
        return vec![Finding::ok(CHECK, "/etc/hosts, then the nameservers")];
    };
    let hosts = hosts.split('#').next().unwrap_or_default();
    let mut outside = false;
    let modules = hosts.split_whitespace().filter(|word| {
        // Actions are in brackets, with spaces maybe.
        let action = outside || word.starts_with('[');
        outside = action && !word.ends_with(']');
        !action
    });
    let modules: Vec<&str> = modules.collect();
    let missing: Vec<&str> = modules.iter().copied().filter(|name| !is_there(name)).collect();
    if missing.is_empty() {
        return vec![Finding::ok(CHECK, format!("{}, as in {NSSWITCH}", modules.join(" ")))];
    }
    let names = missing.join(", ");
    let libraries: Vec<_> = missing.iter().map(|name| format!("libnss_{name}.so.2")).collect();
    vec![
        Finding::warning(CHECK, format!("names that only {names} knows are not found"))
            .why(format!("{NSSWITCH} names it, and there is no {}", libraries.join(", ")))
            .mend(format!("install what has it, or take {names} out of the line `hosts:`")),
    ]
}

fn servers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    let servers = lines.filter_map(|address| {
        // A zone is an interface's, which is this machine's business.
        let address = address.split('%').next()?;
        Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, 53))
    });
    servers.take(MAX_SERVERS).collect()
}

/// Asks all at once; returns those that have answered, whatever they said.
fn ask(servers: &[SocketAddr]) -> Vec<SocketAddr> {
    let (sender, receiver) = mpsc::channel();
    for server in servers.iter().copied() {
        let sender = sender.clone();
        // Those that are not heard in time end with this process.
        thread::spawn(move || {
            let options = Options { source: Source::Servers(vec![server]), ..Options::default() };
            let answer = vmlan_host::resolve(options, QUESTION);
            if matches!(answer, Ok(Some((Origin::Upstream(_), _)))) {
                // Nobody may be waiting any more.
                let _ = sender.send(server);
            }
        });
    }
    drop(sender);
    let end = Instant::now() + PATIENCE;
    let mut answers = Vec::new();
    while let Ok(server) = receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
        answers.push(server);
    }
    answers
}

/// Whether the C library has a source: some are its own.
fn is_there(module: &str) -> bool {
    const OWN: &[&str] = &["files", "dns", "db", "compat", "hesiod", "nis", "nisplus"];
    let file = format!("libnss_{module}.so.2");
    let arch = std::env::consts::ARCH;
    let dirs = ["/lib", "/usr/lib", "/lib64", "/usr/lib64"].map(str::to_owned);
    let multi = [format!("/lib/{arch}-linux-gnu"), format!("/usr/lib/{arch}-linux-gnu")];
    // Without the C library that has such sources, nobody looks at the file.
    let unknown =
        || !multi.iter().chain(&dirs).any(|dir| Path::new(dir).join("libc.so.6").exists());
    OWN.contains(&module)
        || multi.iter().chain(&dirs).any(|dir| Path::new(dir).join(&file).exists())
        || unknown()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 10.0.0.1\nnameserver\t fe80::1%eth0\n\
                    nameserver x\nnameserver\n";
        let expected = ["10.0.0.1:53", "[fe80::1]:53"].map(|s| s.parse().unwrap());
        assert_eq!(servers(text), expected);
    }
}
