//! What a network needs from the machine it runs on: chance, and the date.

use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use vmlan_engine::Config;
use vmlan_engine::config::{ConfigError, Ipv4Net};
use vmlan_wire::Mac;

/// The network `subnet`, with a seed of its own and counting time from now.
pub fn network(subnet: Ipv4Net, gateway: Option<Ipv4Addr>) -> Result<Config, ConfigError> {
    let mut config = Config::new(subnet, gateway, seed())?;
    config.epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(config)
}

/// The network of the host's own bridge, which has this MAC address.
pub fn bridge_network(
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    mac: Mac,
    last_guest: Ipv4Addr,
) -> Result<Config, ConfigError> {
    let mut config = Config::beside(subnet, gateway, mac, last_guest, seed())?;
    config.epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(config)
}

/// A network of somebody else's, of which this is a switch.
pub fn switch_network(mtu: u16) -> Result<Config, ConfigError> {
    Config::switch(mtu, seed())
}

fn seed() -> [u8; 16] {
    let mut seed = [0; 16];
    // Nothing else in the process makes up for a system without randomness: guests could then
    // foretell sequence numbers and make every hash collide.
    getrandom::fill(&mut seed).expect("the system has randomness");
    seed
}
