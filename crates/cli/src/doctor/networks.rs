//! The configured networks: their file, their addresses, their daemons.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::Pid;
use vmlan_api::Client;
use vmlan_api::network::Network as State;
use vmlan_config::routes::{self, Route};
use vmlan_config::{NetworkPaths, Networks, overlap, vmnet};
use vmlan_netd::PidFile;

use super::{Finding, Machine};

/// Whether networks.yaml makes sense.
pub(super) fn configured(machine: &Machine) -> Vec<Finding> {
    const CHECK: &str = "networks";
    match (&machine.networks, &machine.home) {
        (Some(Ok(file)), _) => {
            let names: Vec<_> = file.networks.names().collect();
            let text = format!("{} are in {}", names.join(", "), file.path().display());
            let finding = match &file.warnings {
                Some(report) => Finding::warning(CHECK, text).why(report.to_string()),
                None => Finding::ok(CHECK, text),
            };
            vec![finding]
        }
        (Some(Err(why)), Ok(home)) => {
            let path = home.networks_yaml();
            let text = format!("{} makes no sense: no network works", path.display());
            vec![
                Finding::warning(CHECK, text)
                    .why(why)
                    .mend(format!("\"$EDITOR\" '{}'", path.display())),
            ]
        }
        (None, Ok(home)) => {
            let path = home.networks_yaml();
            vec![Finding::ok(CHECK, format!("{} is made at its first use", path.display()))]
        }
        (_, Err(_)) => Vec::new(),
    }
}

/// Whether somebody else has a network's addresses: guests would not reach him.
pub(super) fn addresses(machine: &Machine) -> Vec<Finding> {
    const CHECK: &str = "addresses";
    let routes = match routes::read() {
        Ok(routes) => routes,
        Err(e) => {
            return vec![
                Finding::warning(CHECK, "the routes of this machine are not known")
                    .why(e.to_string()),
            ];
        }
    };
    let mut findings = Vec::new();
    for route in routes.iter().filter(|route| overlap::with_default(route)) {
        let text = "what is there is not reached by commands of `vmlan run` without a network";
        let why = format!("this machine has a route to {} on {}", route.net, route.interface);
        let mend = "vmlan run --network lima:user-v2 -- COMMAND";
        findings.push(Finding::warning(CHECK, text).why(why).mend(mend));
    }
    if let Some(file) = machine.file() {
        findings.extend(conflicts(&file.networks, &routes));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no network has addresses of somebody else's"));
    }
    findings
}

fn conflicts(networks: &Networks, routes: &[Route]) -> Vec<Finding> {
    let free = overlap::free(networks, routes);
    let free = free.map_or_else(|| "ADDRESS/24".into(), |net| net.to_string());
    let mut findings = Vec::new();
    for (network, subnet) in networks.iter().filter_map(|n| Some((n, n.subnet()?))) {
        for found in overlap::find(subnet.net(), &network.name, networks, routes) {
            let (name, mode, old) = (&network.name, network.mode, subnet.gateway);
            let text = format!("network `{name}` has addresses of somebody else's");
            let mend = format!(
                "vmlan network delete {name} && vmlan network create {name} --mode {mode} \
                 --gateway {free}\nor another one in place of `gateway: {old}` in networks.yaml"
            );
            findings.push(Finding::warning("addresses", text).why(found.to_string()).mend(mend));
        }
    }
    findings
}

/// Whether daemons run that should, and none has left anything behind.
pub(super) fn daemons(machine: &Machine) -> Vec<Finding> {
    let (Ok(home), Some(file)) = (&machine.home, machine.file()) else { return Vec::new() };
    let mut findings = Vec::new();
    for network in file.networks.iter().filter(|network| network.subnet().is_some()) {
        findings.extend(daemon(&network.name, &home.network(&network.name)));
    }
    findings
}

/// Whether networks that need root for a moment may have it.
pub(super) fn root(machine: &Machine) -> Vec<Finding> {
    const CHECK: &str = "root";
    let Some(file) = machine.file() else { return Vec::new() };
    let names = file.networks.iter().filter(|n| vmnet::start(n).is_some()).map(|n| &*n.name);
    let names = names.collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        return Vec::new();
    }
    match crate::sudoers::verify(file, None) {
        Ok(path) => {
            vec![Finding::ok(CHECK, format!("{names} may be started, by {}", path.display()))]
        }
        Err(why) => {
            let text = format!("{names} cannot be started: it needs root for a moment");
            let why = why.lines().next().unwrap_or_default();
            let mend = "vmlan sudoers --check says what is missing, and the command that mends it";
            vec![Finding::warning(CHECK, text).why(why).mend(mend)]
        }
    }
}

fn daemon(name: &str, paths: &NetworkPaths) -> Vec<Finding> {
    const CHECK: &str = "daemons";
    if let Err(e) = paths.check() {
        let text = format!("network `{name}` cannot have a daemon");
        let mend = "export LIMA_HOME=SHORTER-PATH, or give the network a shorter name";
        return vec![Finding::warning(CHECK, text).why(e.to_string()).mend(mend)];
    }
    let holder = PidFile::holder(&paths.pidfile);
    let alive = holder.ok().flatten().map(Pid::as_raw_nonzero);
    match (Client::new(&paths.endpoint).get::<State>("/v1/network"), alive) {
        (Ok(state), _) => {
            let (guests, pid) = (state.guests.len(), state.daemon.pid);
            let text = format!("network `{name}` runs as process {pid} with {guests} guests");
            let warnings = state.daemon.warnings.join("; ");
            if warnings.is_empty() {
                return vec![Finding::ok(CHECK, text)];
            }
            vec![Finding::warning(CHECK, text).why(warnings)]
        }
        (Err(e), Some(pid)) => {
            let text = format!("network `{name}` runs as process {pid} and does not answer");
            let mend = format!(
                "kill -9 {pid}; its guests start another one, as does: vmlan network start {name}"
            );
            vec![Finding::warning(CHECK, text).why(e.to_string()).mend(mend)]
        }
        (Err(_), None) => down(name, paths),
    }
}

/// A network without a daemon: what the last one has left and said.
fn down(name: &str, paths: &NetworkPaths) -> Vec<Finding> {
    const CHECK: &str = "daemons";
    let sockets = [&paths.endpoint, &paths.qemu, &paths.fd];
    let stale = sockets.into_iter().chain([&paths.pidfile]).filter(|path| is_stale(path));
    let stale: Vec<_> = stale.map(|path| format!("'{}'", path.display())).collect();
    if stale.is_empty() {
        return vec![Finding::ok(CHECK, format!("network `{name}` does not run: nobody uses it"))];
    }
    let log = fs::read_to_string(&paths.stderr).unwrap_or_default();
    let last = vmlan_netd::last_line(&log).unwrap_or("nothing");
    let why = format!(
        "its daemon was killed; what it said last in {} is: {last}",
        paths.stderr.display()
    );
    let text = format!("network `{name}` does not run, and its last daemon has left files behind");
    let mend = format!("rm {}; the next guest does that by itself", stale.join(" "));
    vec![Finding::warning(CHECK, text).why(why).mend(mend)]
}

/// A file of a daemon that is not there; a socket, if nobody listens.
fn is_stale(path: &Path) -> bool {
    match UnixStream::connect(path) {
        Ok(_) => false,
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}
