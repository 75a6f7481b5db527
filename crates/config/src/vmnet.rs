//! The networks that root makes on Linux: what each is called there, and the command lines of the
//! helper. `vmlan sudoers` writes them down and the daemon runs them: they must be the same.

use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use vmlan_wire::Mac;

use crate::networks::{Mode, Network};
use crate::subnet::Subnet;

/// The helper's name.
pub const HELPER: &str = "vmlan-helper";

/// Where the helper keeps its state; it takes no other place.
pub const VAR_RUN: &str = "/run/lima";

/// Where the helper is looked for, the place where it is to be installed last.
const PLACES: [&str; 2] = ["/usr/libexec", "/usr/local/libexec"];

/// Longest name of an interface.
const MAX_NAME: usize = 15;

const PREFIX: &str = "vmlan-";

/// Where the helper is, or should be.
pub fn helper() -> PathBuf {
    let mut places = PLACES.map(|dir| Path::new(dir).join(HELPER)).into_iter();
    let found = places.clone().find_map(|path| fs::canonicalize(path).ok());
    found.or_else(|| places.next_back()).unwrap_or_else(|| HELPER.into())
}

/// The bridge of a network: its name where that is short enough for an interface, else a number
/// made of it.
pub fn bridge(network: &str) -> String {
    if PREFIX.len() + network.len() <= MAX_NAME {
        return format!("{PREFIX}{network}");
    }
    let digest = hex(&Sha256::digest(network));
    format!("{PREFIX}{}", digest.get(..MAX_NAME - PREFIX.len()).unwrap_or_default())
}

/// The host's IPv6 address on a network, which is made of the IPv4 subnet.
pub fn gateway6(subnet: &Subnet) -> Ipv6Addr {
    let [a, b, c, d] = subnet.net().network().octets();
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfd76, 0x6d6c, word(a, b), word(c, d), 0, 0, 0, 1)
}

/// The MAC address of a network's bridge, which the helper makes of the gateway's address.
pub fn bridge_mac(subnet: &Subnet) -> Mac {
    let [a, b, c, d] = subnet.gateway.octets();
    Mac([0x52, 0x55, a, b, c, d])
}

/// What the helper is told to start a network; nothing for one that it does not make.
pub fn start(network: &Network) -> Option<Vec<String>> {
    let mode = network.mode;
    let mut args = on("start", network);
    args.push(format!("--mode={mode}"));
    if let Some(interface) = network.interface() {
        args.push(format!("--interface={interface}"));
        return Some(args);
    }
    let subnet = network.subnet().filter(|_| mode != Mode::UserV2)?;
    args.push(format!("--gateway={}", subnet.gateway_cidr()));
    args.push(format!("--gateway6={}/64", gateway6(subnet)));
    Some(args)
}

/// What the helper is told to give a guest a card.
pub fn attach(network: &Network) -> Vec<String> {
    on("attach", network)
}

/// What the helper is told to undo a network.
pub fn stop(network: &Network) -> Vec<String> {
    on("stop", network)
}

fn on(verb: &str, network: &Network) -> Vec<String> {
    vec![verb.into(), format!("--bridge={}", bridge(&network.name))]
}

/// The SHA-256 digest of a file, in hexadecimal.
pub fn digest(path: &Path) -> std::io::Result<String> {
    Ok(hex(&Sha256::digest(fs::read(path)?)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::networks;

    #[test]
    fn bridges_fit_into_names_of_interfaces() {
        assert_eq!(bridge("shared"), "vmlan-shared");
        assert_eq!(bridge("123456789"), "vmlan-123456789");
        // From `printf %s bridged-wired | sha256sum`.
        assert_eq!(bridge("bridged-wired"), "vmlan-3302d344c");
        assert_eq!(bridge(&"x".repeat(76)).len(), 15);
    }

    #[test]
    fn command_lines() {
        let networks = networks(
            "networks:\n  a: {mode: shared, gateway: 192.168.105.1}\n  \
             b: {mode: bridged, interface: eth0}\n  c: {mode: user-v2, gateway: 10.0.0.1}\n",
        );
        let line = |name| start(networks.get(name).unwrap()).map(|args| args.join(" "));
        let want = "start --bridge=vmlan-a --mode=shared --gateway=192.168.105.1/24 \
                    --gateway6=fd76:6d6c:c0a8:6900::1/64";
        assert_eq!(line("a").as_deref(), Some(want));
        let want = "start --bridge=vmlan-b --mode=bridged --interface=eth0";
        assert_eq!(line("b").as_deref(), Some(want));
        assert_eq!(line("c"), None);
        assert_eq!(stop(networks.get("a").unwrap()), ["stop", "--bridge=vmlan-a"]);
    }
}
