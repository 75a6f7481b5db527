//! What networks with a bridge of the kernel's need of the host: interfaces that guests can be behind,
//! and ways through other firewalls. Everything is looked at below a root directory, which is `/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vmlan_config::routes::{self, Route};
use vmlan_config::{Mode, vmnet};

use super::{Finding, Machine};

/// Where the helper looks for it.
const NFT: [&str; 2] = ["usr/sbin/nft", "sbin/nft"];

/// `ARPHRD_ETHER`.
const ETHERNET: &str = "1";

/// Whether there are guests' networks behind the interfaces that networks.yaml names.
pub(super) fn interfaces(machine: &Machine) -> Vec<Finding> {
    let Some(file) = machine.file() else { return Vec::new() };
    // Without routes, nothing is known of the host's own addresses.
    let routes = routes::read().unwrap_or_default();
    let bridged = file.networks.iter().filter_map(|network| Some((network, network.interface()?)));
    bridged.map(|(network, name)| interface(Path::new("/"), &network.name, name, &routes)).collect()
}

fn interface(root: &Path, network: &str, name: &str, routes: &[Route]) -> Finding {
    const CHECK: &str = "interfaces";
    let dir = root.join("sys/class/net");
    let guests = format!("guests of `{network}`");
    let text = format!("{guests} cannot be on the network of {name}");
    let warning = |why: String, mend: String| Finding::warning(CHECK, text).why(why).mend(mend);
    let link = dir.join(name);
    if !link.exists() {
        let others = fit(&dir);
        let mend = match others.as_slice() {
            [] => "connect one that is wired, or use a network of mode shared".into(),
            others => format!("interface: {} in networks.yaml", others.join(", or ")),
        };
        return warning(format!("there is no interface {name}"), mend);
    }
    if is_wireless(&link) {
        let why = format!(
            "{name} is wireless: an access point takes frames from its own stations only, not from \
             guests behind one"
        );
        let mend = "a wired interface in networks.yaml, or vmlan run --network lima:shared";
        return warning(why, mend.into());
    }
    if !is_ethernet(&link) {
        let why = format!("{name} is not Ethernet: no guest can have an address of its own there");
        return warning(why, "another interface in networks.yaml".into());
    }
    if let Some(master) = master(&link).filter(|master| *master != vmnet::bridge(network)) {
        let why = format!("{name} is a part of {master}");
        return warning(why, format!("interface: {master} in networks.yaml"));
    }
    let is_the_hosts = routes.iter().any(|route| route.interface == name);
    if is_the_hosts && !link.join("bridge").exists() {
        let text = format!(
            "{guests} are beside the host on {name}: they and the host do not see each other"
        );
        return Finding::ok(CHECK, text);
    }
    Finding::ok(CHECK, format!("{guests} are on the network of {name}"))
}

/// Interfaces of hardware's that guests could be behind, and bridges.
fn fit(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let is_one = |link: &PathBuf| link.join("device").exists() || link.join("bridge").exists();
    let links = entries.map(|entry| entry.path()).filter(is_one);
    let links = links.filter(|link| is_ethernet(link) && !is_wireless(link));
    let free = links.filter(|link| master(link).is_none());
    let names = free.filter_map(|link| Some(link.file_name()?.to_str()?.to_owned()));
    let mut names: Vec<_> = names.filter(|name| !name.starts_with("vmlan-")).collect();
    names.sort();
    names
}

fn is_wireless(link: &Path) -> bool {
    ["wireless", "phy80211"].iter().any(|entry| link.join(entry).exists())
}

fn is_ethernet(link: &Path) -> bool {
    fs::read_to_string(link.join("type")).is_ok_and(|kind| kind.trim() == ETHERNET)
}

fn master(link: &Path) -> Option<String> {
    let master = fs::read_link(link.join("master")).ok()?;
    Some(master.file_name()?.to_str()?.to_owned())
}

/// Whether another firewall keeps guests of networks that lead outside from getting there.
pub(super) fn firewalls(machine: &Machine) -> Vec<Finding> {
    let Some(file) = machine.file() else { return Vec::new() };
    let networks: Vec<_> = file.networks.iter().filter(|n| vmnet::start(n).is_some()).collect();
    if networks.is_empty() {
        return Vec::new();
    }
    let shared: Vec<_> = networks.into_iter().filter(|n| n.mode == Mode::Shared).collect();
    let names: Vec<_> = shared.iter().map(|network| network.name.as_str()).collect();
    firewall(Path::new("/"), &names, rules)
}

const CHECK: &str = "firewall";

/// `rules` lists a chain, if it is there and may be seen.
fn firewall(root: &Path, shared: &[&str], rules: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    if !NFT.iter().any(|path| root.join(path).exists()) {
        let text = "networks that need root cannot be started";
        let mend = "install nftables, on Debian and Ubuntu with: sudo apt-get install nftables";
        return vec![Finding::warning(CHECK, text).why("nftables is missing").mend(mend)];
    }
    let mut findings = Vec::new();
    for name in shared {
        let bridge = vmnet::bridge(name);
        if has_old_rules(root) {
            let text = format!("guests of `{name}` may be kept from going out");
            let why = "the kernel has rules of iptables' old kind, in which vmlan opens no way";
            let rule = |way| format!("sudo iptables-legacy -I FORWARD {way} {bridge} -j ACCEPT");
            let mend = format!("{} && {}", rule("-i"), rule("-o"));
            findings.push(Finding::warning(CHECK, text).why(why).mend(mend));
        }
        let state = root.join("run/lima").join(format!("{bridge}.state"));
        let state = fs::read_to_string(state).unwrap_or_default();
        let chains: Vec<_> = state.lines().filter_map(|line| line.strip_prefix("chain ")).collect();
        let mark = format!("comment \"{bridge}\"");
        let lost = |chain: &&&str| rules(chain).is_some_and(|text| !text.contains(&mark));
        let lost: Vec<_> = chains.iter().filter(lost).copied().collect();
        if !lost.is_empty() {
            let text = format!("guests of `{name}` do not get through another firewall");
            let why = format!("what let them through is gone from: {}", lost.join(", "));
            let mend = format!("vmlan run --network lima:{name} -- true");
            findings.push(Finding::warning(CHECK, text).why(why).mend(mend));
        } else if !chains.is_empty() {
            let text = format!(
                "guests of `{name}` have a way through {}, which the next guest opens again where a \
                 firewall has been started anew",
                chains.join(", ")
            );
            findings.push(Finding::ok(CHECK, text));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "ways through other firewalls are opened for guests"));
    }
    findings
}

/// Tables of the old kind are modules of their own.
fn has_old_rules(root: &Path) -> bool {
    let modules = fs::read_to_string(root.join("proc/modules")).unwrap_or_default();
    modules
        .lines()
        .any(|line| ["iptable_filter ", "ip6table_filter "].iter().any(|m| line.starts_with(m)))
}

fn rules(chain: &str) -> Option<String> {
    let program = NFT.iter().map(|path| Path::new("/").join(path)).find(|path| path.exists())?;
    let mut command = Command::new(program);
    command.args(["list", "chain"]).args(chain.split(' ')).stdin(Stdio::null());
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::super::Verdict;
    use super::*;

    fn root(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn interfaces_are_there_and_fit() {
        let root = root(&[
            ("sys/class/net/eth0/type", "1\n"),
            ("sys/class/net/eth0/device/vendor", ""),
            ("sys/class/net/wlan0/type", "1\n"),
            ("sys/class/net/wlan0/device/vendor", ""),
            ("sys/class/net/wlan0/phy80211/name", ""),
            ("sys/class/net/tun0/type", "65534\n"),
            ("sys/class/net/eth1/type", "1\n"),
            ("sys/class/net/eth1/device/vendor", ""),
            ("sys/class/net/br0/type", "1\n"),
            ("sys/class/net/br0/bridge/stp_state", ""),
        ]);
        symlink("../br0", root.path().join("sys/class/net/eth1/master")).unwrap();
        let route = |interface: &str| Route {
            net: "10.9.0.0/24".parse().unwrap(),
            interface: interface.into(),
        };
        let routes = [route("eth0"), route("br0")];
        for (name, why, mend) in [
            ("eth9", "there is no interface eth9", "interface: br0, or eth0 in networks.yaml"),
            ("wlan0", "wlan0 is wireless", "a wired interface in networks.yaml"),
            ("tun0", "tun0 is not Ethernet", "another interface"),
            ("eth1", "eth1 is a part of br0", "interface: br0 in networks.yaml"),
        ] {
            let found = interface(root.path(), "lan", name, &routes);
            assert_eq!(found.verdict, Verdict::Warning, "{found:?}");
            assert!(found.why.as_ref().unwrap().contains(why), "{found:?}");
            assert!(found.mend.as_ref().unwrap().contains(mend), "{found:?}");
        }
        for (name, routes, beside) in
            [("br0", &routes[..], false), ("eth0", &routes, true), ("eth0", &[], false)]
        {
            let found = interface(root.path(), "lan", name, routes);
            assert_eq!(found.verdict, Verdict::Ok, "{found:?}");
            assert_eq!(found.text.contains("do not see each other"), beside, "{found:?}");
        }
    }

    #[test]
    fn firewalls_in_the_way() {
        let missing = root(&[]);
        let found = firewall(missing.path(), &["shared"], |_| None);
        assert!(found[0].mend.as_ref().unwrap().contains("apt-get install nftables"), "{found:?}");
        let there = root(&[
            ("usr/sbin/nft", ""),
            (
                "run/lima/vmlan-shared.state",
                "owner 1\nchain ip filter FORWARD\nchain ip6 filter FORWARD\n",
            ),
        ]);
        let open = |chain: &str| Some(format!("chain {chain} accept comment \"vmlan-shared\""));
        for rules in [&open as &dyn Fn(&str) -> Option<String>, &|_: &str| None] {
            let found = firewall(there.path(), &["shared"], rules);
            assert_eq!(found[0].verdict, Verdict::Ok, "{found:?}");
            assert!(found[0].text.contains("ip filter FORWARD, ip6 filter FORWARD"), "{found:?}");
        }
        let half =
            |chain: &str| if chain.starts_with("ip6") { Some("{}".into()) } else { open(chain) };
        let found = firewall(there.path(), &["shared"], half);
        assert_eq!(
            found[0].why.as_deref(),
            Some("what let them through is gone from: ip6 filter FORWARD")
        );
        assert_eq!(found[0].mend.as_deref(), Some("vmlan run --network lima:shared -- true"));
        let old =
            root(&[("usr/sbin/nft", ""), ("proc/modules", "iptable_filter 12288 1 - Live 0x0\n")]);
        let found = firewall(old.path(), &["shared"], |_| None);
        assert!(found[0].mend.as_ref().unwrap().contains("-i vmlan-shared -j ACCEPT"), "{found:?}");
        let none = firewall(old.path(), &[], |_| None);
        assert!(none.len() == 1 && none[0].verdict == Verdict::Ok, "{none:?}");
    }
}
