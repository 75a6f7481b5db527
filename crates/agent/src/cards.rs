//! The machine's network cards, and what addresses they have: on networks of others nobody but the
//! machine knows.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use vmlan_agent::message::{Card, MAX_CARDS};

/// The cards that have addresses now, in order, with those that reach further than the next switch.
pub(crate) fn list() -> Vec<Card> {
    let mut addresses: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    // Without an answer of the kernel's, there are none.
    for interface in if_addrs::get_if_addrs().unwrap_or_default() {
        let ip = interface.ip();
        if !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            addresses.entry(interface.name).or_default().push(ip);
        }
    }
    let cards = addresses.into_iter().filter_map(|(name, addresses)| {
        let directory = Path::new("/sys/class/net").join(name);
        // What the machine makes itself, for containers and the like, is on no network of the host's.
        if !directory.join("device").exists() {
            return None;
        }
        let mac = fs::read_to_string(directory.join("address")).ok()?.trim().to_owned();
        Some(Card { mac, addresses })
    });
    cards.take(MAX_CARDS).collect()
}
