//! What it takes to start and stop a network and to attach a guest to it.

use std::os::fd::{AsFd, OwnedFd};

use super::caller::{Caller, check_namespace};
use super::firewall;
use super::interfaces::{Interfaces, Link, PORT};
use super::state::{State, Store};
use super::sysctl;
use crate::args::{Bridge, Interface, Network};

/// The card that a guest is to have.
#[derive(Debug)]
pub(super) enum Card {
    /// An interface in the guest's network namespace.
    Veth { name: Interface, mac: [u8; 6], namespace: OwnedFd },
    /// A TAP device for a virtual machine whose card has this MAC address.
    Tap { mac: [u8; 6] },
}

impl Card {
    /// Reads a request, and the descriptor that came with it.
    pub(super) fn parse(text: &str, fd: Option<OwnedFd>) -> Result<Self, String> {
        let mac = |text| parse_mac(text).ok_or("the card's MAC address is none of a guest's");
        match (text.split(' ').collect::<Vec<_>>()[..].as_ref(), fd) {
            (["tap", address], None) => Ok(Self::Tap { mac: mac(address)? }),
            (["veth", name, address], Some(namespace)) => {
                let name = Interface::parse(name).map_err(|e| format!("the card's name: {e}"))?;
                Ok(Self::Veth { name, mac: mac(address)?, namespace })
            }
            _ => Err("the request makes no sense".into()),
        }
    }
}

/// Six bytes in hexadecimal, of one interface.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        let digits = part.bytes().all(|b| b.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits)?;
    }
    let is_one = mac[0] & 1 == 0 && mac != [0; 6];
    (parts.next().is_none() && is_one).then_some(mac)
}

/// Makes a network, or takes over what a daemon that died has left of the same one. Returns a TAP on
/// it for who serves there.
pub(super) fn start(
    store: &Store,
    caller: Caller,
    bridge: &Bridge,
    network: &Network,
) -> Result<OwnedFd, String> {
    let mut interfaces = Interfaces::open()?;
    if let Some(state) = store.read(bridge)? {
        let same = state.owner == caller.uid && state.network == *network;
        if !same {
            refuse_if_used(&mut interfaces, bridge, &state)?;
            undo(store, &mut interfaces, bridge, &state)?;
        }
    } else if interfaces.find(bridge.as_str())?.is_some() {
        let name = bridge.as_str();
        return Err(format!(
            "there is an interface {name} that vmlan has not made; remove it with: sudo ip link \
             del {name}"
        ));
    }
    let mut state = State { owner: caller.uid, network: network.clone(), chains: Vec::new() };
    if let Some(before) = store.read(bridge)? {
        state.chains = before.chains;
    }
    // Written before anything is made, so that nothing is made that nobody knows of.
    store.write(bridge, &state)?;
    let made = make(store, &mut interfaces, bridge, &mut state);
    made.inspect_err(|_| {
        // What went wrong first is the thing to tell.
        let _ = undo(store, &mut interfaces, bridge, &state);
    })
}

/// Another user's network, or one with other settings, is left alone while it has guests.
fn refuse_if_used(
    interfaces: &mut Interfaces,
    bridge: &Bridge,
    state: &State,
) -> Result<(), String> {
    let Some(link) = interfaces.find(bridge.as_str())? else { return Ok(()) };
    let ports = interfaces.ports_of(&link)?;
    if ports.iter().any(|port| port.name.starts_with(PORT)) {
        let (name, owner) = (bridge.as_str(), state.owner);
        return Err(format!(
            "the network {name} is in use: the user {owner} has started it with {}",
            state.network
        ));
    }
    Ok(())
}

fn make(
    store: &Store,
    interfaces: &mut Interfaces,
    bridge: &Bridge,
    state: &mut State,
) -> Result<OwnedFd, String> {
    let gateway = *state.network.gateway();
    let link = match interfaces.find(bridge.as_str())? {
        Some(link) if link.kind == "bridge" => link,
        Some(link) => return Err(format!("{} is no bridge, but a {}", link.name, link.kind)),
        None => interfaces.add_bridge(bridge.as_str(), gateway.mac())?,
    };
    interfaces.add_address(&link, gateway.v4.into(), gateway.prefix)?;
    interfaces.add_address(&link, gateway.v6.into(), 64)?;
    interfaces.add_address(&link, gateway.link_local().into(), 64)?;
    firewall::set_table(bridge, &state.network)?;
    if matches!(state.network, Network::Shared(_)) {
        for chain in &state.chains {
            firewall::close_chain(bridge, chain)?;
        }
        state.chains = firewall::foreign_chains()?;
        store.write(bridge, state)?;
        for chain in &state.chains {
            firewall::open_chain(bridge, chain)?;
        }
        sysctl::forward(store, firewall::others_translate())?;
    }
    interfaces.add_tap(&link)
}

/// Undoes all that was done for a network.
pub(super) fn stop(store: &Store, caller: Caller, bridge: &Bridge) -> Result<(), String> {
    let Some(state) = store.read(bridge)? else { return Ok(()) };
    if state.owner != caller.uid && !caller.is_root() {
        return Err(format!("the network {} is the user {}'s", bridge.as_str(), state.owner));
    }
    undo(store, &mut Interfaces::open()?, bridge, &state)
}

fn undo(
    store: &Store,
    interfaces: &mut Interfaces,
    bridge: &Bridge,
    state: &State,
) -> Result<(), String> {
    if let Some(link) = interfaces.find(bridge.as_str())? {
        for port in interfaces.ports_of(&link)? {
            if port.name.starts_with(PORT) {
                interfaces.remove(&port)?;
            }
        }
        interfaces.remove(&link)?;
    }
    for chain in &state.chains {
        firewall::close_chain(bridge, chain)?;
    }
    firewall::remove_table(bridge)?;
    store.remove(bridge)?;
    if store.networks()?.iter().any(|network| matches!(network, Network::Shared(_))) {
        return Ok(());
    }
    sysctl::put_back(store, firewall::others_translate())
}

/// Gives a guest its card. Returns what to tell it, and the card of a virtual machine.
pub(super) fn attach(
    store: &Store,
    caller: Caller,
    bridge: &Bridge,
    card: &Card,
) -> Result<(&'static str, Option<OwnedFd>), String> {
    let name = bridge.as_str();
    let none = || format!("the network {name} is not there");
    let state = store.read(bridge)?.ok_or_else(none)?;
    if state.owner != caller.uid {
        return Err(format!("the network {name} is the user {}'s", state.owner));
    }
    let mut interfaces = Interfaces::open()?;
    let link: Link = interfaces.find(name)?.ok_or_else(none)?;
    let (Card::Veth { mac, .. } | Card::Tap { mac }) = card;
    if state.network.gateway().mac() == *mac {
        return Err("the card's MAC address is the host's".into());
    }
    match card {
        Card::Veth { name, mac, namespace } => {
            check_namespace(caller, namespace.as_fd())?;
            let new = interfaces.add_veth(&link, name.as_str(), *mac, namespace.as_fd())?;
            Ok((if new { "attached" } else { "there" }, None))
        }
        Card::Tap { .. } => Ok(("attached", Some(interfaces.add_tap(&link)?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses() {
        assert_eq!(parse_mac("52:55:55:01:02:fF"), Some([0x52, 0x55, 0x55, 1, 2, 255]));
        for text in [
            "",
            "52:55:55:01:02",
            "52:55:55:01:02:03:04",
            "53:55:55:01:02:03",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "5:255:55:01:02:03",
            "+2:55:55:01:02:03",
            "52-55-55-01-02-03",
        ] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }

    #[test]
    fn requests() {
        let tap = Card::parse("tap 52:55:55:01:02:03", None);
        assert!(matches!(tap, Ok(Card::Tap { mac: [0x52, 0x55, 0x55, 1, 2, 3] })));
        let fd = || Some(tempfile::tempfile().unwrap().into());
        assert!(Card::parse("veth eth0 52:55:55:01:02:03", fd()).is_ok());
        for (text, fd) in [
            ("", None),
            ("tap", None),
            ("tap ", None),
            ("tap 52:55:55:01:02:03", fd()),
            ("tap ff:ff:ff:ff:ff:ff", None),
            ("veth eth0 52:55:55:01:02:03", None),
            ("veth eth0 52:55:55:01:02:03 x", fd()),
            ("veth  eth0 52:55:55:01:02:03", fd()),
            ("veth ../x 52:55:55:01:02:03", fd()),
            ("veth eth%d 52:55:55:01:02:03", fd()),
            ("veth eth0\n 52:55:55:01:02:03", fd()),
            ("veth eth0 ff:ff:ff:ff:ff:ff", fd()),
        ] {
            assert!(Card::parse(text, fd).is_err(), "{text}");
        }
    }
}
