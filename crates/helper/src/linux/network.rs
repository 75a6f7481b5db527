//! What it takes to start and stop a network and to attach a guest to it.

use std::os::fd::{AsFd, OwnedFd};

use super::caller::{Caller, check_namespace};
use super::firewall::{self, Through};
use super::interfaces::{Interfaces, Link};
use super::lan::{self, Place};
use super::state::{State, Store};
use super::sysctl;
use crate::args::{Bridge, Gateway, Interface, Network};

/// The card that a guest is to have.
#[derive(Debug)]
pub(super) enum Card {
    /// An interface in the guest's network namespace.
    Veth { name: Interface, mac: [u8; 6], namespace: OwnedFd },
    /// A TAP device for a virtual machine whose card has this MAC address.
    Tap { mac: [u8; 6] },
}

/// What is asked for on a network that is there.
#[derive(Debug)]
pub(super) enum Request {
    Attach(Card),
    /// The machine with this MAC address is gone. Its card may not have gone with it.
    Gone {
        mac: [u8; 6],
    },
}

impl Request {
    /// Reads a request, and the descriptor that came with it.
    pub(super) fn parse(text: &str, fd: Option<OwnedFd>) -> Result<Self, String> {
        let mac = |text| parse_mac(text).ok_or("the card's MAC address is none of a guest's");
        match (text.split(' ').collect::<Vec<_>>()[..].as_ref(), fd) {
            (["tap", address], None) => Ok(Self::Attach(Card::Tap { mac: mac(address)? })),
            (["veth", name, address], Some(namespace)) => {
                let name = Interface::parse(name).map_err(|e| format!("the card's name: {e}"))?;
                Ok(Self::Attach(Card::Veth { name, mac: mac(address)?, namespace }))
            }
            (["gone", address], None) => Ok(Self::Gone { mac: mac(address)? }),
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

/// What whoever serves a network is told.
#[derive(Debug)]
pub(super) enum Ready {
    /// Addresses and names are served on this TAP.
    Serve(OwnedFd),
    /// Addresses and names are those of the network that the host is on.
    Lan,
    /// The same, and host and guests do not see each other.
    Beside,
}

/// Makes a network, or takes over what a daemon that died has left of the same one.
pub(super) fn start(
    store: &Store,
    caller: Caller,
    bridge: &Bridge,
    network: &Network,
) -> Result<Ready, String> {
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
    // What cannot be is refused before anything is written.
    let place = match network {
        Network::Bridged(interface) => Some(lan::find(&mut interfaces, bridge, interface)?),
        Network::Shared(_) | Network::Host(_) => None,
    };
    let (owner, network) = (caller.uid, network.clone());
    let before = store.read(bridge)?;
    let was_down = match (&before, &place) {
        (Some(before), _) => before.was_down,
        (None, Some(Place::Bridge(link) | Place::Beside(link))) => {
            link.kind != "bridge" && !link.is_up
        }
        (None, None) => false,
    };
    let chains = before.map(|before| before.chains).unwrap_or_default();
    let mut state = State { owner, network, chains, was_down };
    // Written before anything is made, so that nothing is made that nobody knows of.
    store.write(bridge, &state)?;
    let made = make(store, &mut interfaces, bridge, &mut state, place);
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
    if !interfaces.ports_of(bridge.as_str())?.is_empty() {
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
    place: Option<Place>,
) -> Result<Ready, String> {
    match (state.network.clone(), place) {
        (Network::Shared(gateway) | Network::Host(gateway), _) => {
            let link = own_bridge(interfaces, bridge, &gateway)?;
            pass_firewalls(store, bridge, bridge.as_str(), state)?;
            if matches!(state.network, Network::Shared(_)) {
                sysctl::forward(store, firewall::others_translate())?;
            }
            interfaces.add_tap(bridge.as_str(), &link).map(Ready::Serve)
        }
        (Network::Bridged(_), None) => Err("there is no interface".into()),
        (Network::Bridged(_), Some(place)) => {
            lan::make(interfaces, bridge, &place)?;
            let Place::Bridge(link) = place else { return Ok(Ready::Beside) };
            pass_firewalls(store, bridge, carrier(bridge, &link), state)?;
            Ok(Ready::Lan)
        }
    }
}

/// The bridge of a network on which the host has addresses.
fn own_bridge(
    interfaces: &mut Interfaces,
    bridge: &Bridge,
    gateway: &Gateway,
) -> Result<Link, String> {
    let link = match interfaces.find(bridge.as_str())? {
        Some(link) if link.kind == "bridge" => link,
        Some(link) => return Err(format!("{} is no bridge, but a {}", link.name, link.kind)),
        None => interfaces.add_bridge(bridge.as_str(), &gateway.mac())?,
    };
    interfaces.add_address(&link, gateway.v4.into(), gateway.prefix)?;
    interfaces.add_address(&link, gateway.v6.into(), 64)?;
    interfaces.add_address(&link, gateway.link_local().into(), 64)?;
    Ok(link)
}

/// The bridge that a network's guests are on, which may be one that was there before.
fn carrier<'a>(bridge: &'a Bridge, link: &'a Link) -> &'a str {
    if link.kind == "bridge" { &link.name } else { bridge.as_str() }
}

/// Makes the network's own table, and ways through the chains of others as they are now.
fn pass_firewalls(
    store: &Store,
    bridge: &Bridge,
    interface: &str,
    state: &mut State,
) -> Result<(), String> {
    firewall::set_table(bridge, &state.network)?;
    let through = match state.network {
        Network::Shared(_) => Through::All,
        Network::Host(_) | Network::Bridged(_) => Through::Between,
    };
    if !firewall::concerns(&state.network) {
        return Ok(());
    }
    for chain in &state.chains {
        firewall::close_chain(bridge, chain)?;
    }
    state.chains = firewall::foreign_chains()?;
    store.write(bridge, state)?;
    for chain in &state.chains {
        firewall::open_chain(bridge, interface, through, chain)?;
    }
    Ok(())
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
    for port in interfaces.ports_of(bridge.as_str())? {
        interfaces.remove(&port)?;
    }
    if let Some(link) = interfaces.find(bridge.as_str())? {
        interfaces.remove(&link)?;
    }
    if let Network::Bridged(interface) = &state.network
        && state.was_down
        && let Some(link) = interfaces.find(interface.as_str())?
    {
        interfaces.set_up(&link, false)?;
    }
    for chain in &state.chains {
        firewall::close_chain(bridge, chain)?;
    }
    if state.network.gateway().is_some() {
        firewall::remove_table(bridge)?;
    }
    store.remove(bridge)?;
    if store.networks()?.iter().any(|network| matches!(network, Network::Shared(_))) {
        return Ok(());
    }
    sysctl::put_back(store, firewall::others_translate())
}

/// The state of a network that is there and the caller's.
fn own_network(store: &Store, caller: Caller, bridge: &Bridge) -> Result<State, String> {
    let name = bridge.as_str();
    let state = store.read(bridge)?.ok_or_else(|| is_not_there(bridge))?;
    if state.owner != caller.uid {
        return Err(format!("the network {name} is the user {}'s", state.owner));
    }
    Ok(state)
}

fn is_not_there(bridge: &Bridge) -> String {
    format!("the network {} is not there", bridge.as_str())
}

/// Takes away the card of a machine that is gone, where it does not go by itself.
pub(super) fn detach(
    store: &Store,
    caller: Caller,
    bridge: &Bridge,
    mac: [u8; 6],
) -> Result<(), String> {
    own_network(store, caller, bridge)?;
    Interfaces::open()?.remove_macvtap(bridge.as_str(), mac)
}

/// Gives a guest its card. Returns what to tell it, and the card of a virtual machine.
pub(super) fn attach(
    store: &Store,
    caller: Caller,
    bridge: &Bridge,
    card: &Card,
) -> Result<(&'static str, Option<OwnedFd>), String> {
    let name = bridge.as_str();
    let none = || is_not_there(bridge);
    let mut state = own_network(store, caller, bridge)?;
    let mut interfaces = Interfaces::open()?;
    let place = match &state.network {
        Network::Bridged(interface) => lan::find(&mut interfaces, bridge, interface)?,
        Network::Shared(_) | Network::Host(_) => {
            Place::Bridge(interfaces.find(name)?.ok_or_else(none)?)
        }
    };
    let (Card::Veth { mac, .. } | Card::Tap { mac }) = card;
    if state.network.gateway().is_some_and(|gateway| gateway.mac() == *mac) {
        return Err("the card's MAC address is the host's".into());
    }
    if let Card::Veth { namespace, .. } = card {
        check_namespace(caller, namespace.as_fd())?;
    }
    if let Place::Bridge(link) = &place {
        if link.kind != "bridge" {
            return Err(none());
        }
        if !firewall::is_passed(bridge, &state.network, &state.chains)? {
            pass_firewalls(store, bridge, carrier(bridge, link), &mut state)?;
        }
    }
    let (new, tap) = match (card, &place) {
        (Card::Veth { name: guest, mac, namespace }, Place::Bridge(link)) => {
            let (guest, namespace) = (guest.as_str(), namespace.as_fd());
            (interfaces.add_veth(name, link, guest, *mac, namespace)?, None)
        }
        (Card::Veth { name: guest, mac, namespace }, Place::Beside(link)) => {
            (interfaces.add_macvlan(link, guest.as_str(), *mac, namespace.as_fd())?, None)
        }
        (Card::Tap { .. }, Place::Bridge(link)) => (true, Some(interfaces.add_tap(name, link)?)),
        (Card::Tap { mac }, Place::Beside(link)) => {
            (true, Some(interfaces.add_macvtap(name, link, *mac)?))
        }
    };
    Ok((if new { "attached" } else { "there" }, tap))
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
        const MAC: [u8; 6] = [0x52, 0x55, 0x55, 1, 2, 3];
        let tap = Request::parse("tap 52:55:55:01:02:03", None);
        assert!(matches!(tap, Ok(Request::Attach(Card::Tap { mac: MAC }))));
        let gone = Request::parse("gone 52:55:55:01:02:03", None);
        assert!(matches!(gone, Ok(Request::Gone { mac: MAC })));
        let fd = || Some(tempfile::tempfile().unwrap().into());
        assert!(Request::parse("veth eth0 52:55:55:01:02:03", fd()).is_ok());
        for (text, fd) in [
            ("", None),
            ("tap", None),
            ("tap ", None),
            ("tap 52:55:55:01:02:03", fd()),
            ("tap ff:ff:ff:ff:ff:ff", None),
            ("gone", None),
            ("gone vmlp00000000", None),
            ("gone 52:55:55:01:02:03", fd()),
            ("veth eth0 52:55:55:01:02:03", None),
            ("veth eth0 52:55:55:01:02:03 x", fd()),
            ("veth  eth0 52:55:55:01:02:03", fd()),
            ("veth ../x 52:55:55:01:02:03", fd()),
            ("veth eth%d 52:55:55:01:02:03", fd()),
            ("veth eth0\n 52:55:55:01:02:03", fd()),
            ("veth eth0 ff:ff:ff:ff:ff:ff", fd()),
        ] {
            assert!(Request::parse(text, fd).is_err(), "{text}");
        }
    }
}
