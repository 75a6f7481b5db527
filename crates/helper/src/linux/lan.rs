//! How guests come to be on the network that an interface of the host is on: as ports of a bridge, or
//! beside the host on the interface itself. The addresses there are somebody else's business.

use std::path::Path;

use super::interfaces::{Interfaces, Link};
use super::sysctl;
use crate::args::{Bridge, Interface, PREFIX};

/// Where guests are attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// To a bridge: one that was there before, or ours with the interface as a port.
    Bridge(Link),
    /// To the interface, which the host uses itself: what passes between it and the guests is lost.
    Beside(Link),
}

/// Finds where guests are attached, or says why they cannot be.
pub(super) fn find(
    interfaces: &mut Interfaces,
    bridge: &Bridge,
    interface: &Interface,
) -> Result<Place, String> {
    let name = interface.as_str();
    let all = interfaces.all()?;
    let Some(link) = all.iter().find(|link| link.name == name) else {
        let fit = all.iter().filter(|link| why_not(link, bridge, &all).is_none());
        let fit: Vec<_> = fit.map(|link| link.name.as_str()).collect();
        return Err(match fit.as_slice() {
            [] => format!("there is no interface {name}, nor another one that would do"),
            fit => format!(
                "there is no interface {name}; set `interface` in networks.yaml to one of: {}",
                fit.join(", ")
            ),
        });
    };
    if let Some(why) = why_not(link, bridge, &all) {
        return Err(why);
    }
    if link.kind == "bridge" {
        return Ok(Place::Bridge(link.clone()));
    }
    if let Some(master) = master(link, &all) {
        return Ok(Place::Bridge(master.clone()));
    }
    if interfaces.has_address(link)? {
        return Ok(Place::Beside(link.clone()));
    }
    Ok(Place::Bridge(link.clone()))
}

/// Why an interface has no network that guests could be on.
fn why_not(link: &Link, bridge: &Bridge, all: &[Link]) -> Option<String> {
    let name = &link.name;
    if !link.is_ethernet {
        return Some(format!(
            "{name} is not Ethernet: no guest can have an address of its own there"
        ));
    }
    if ["wireless", "phy80211"].iter().any(|entry| sysfs(name).join(entry).exists()) {
        return Some(format!(
            "{name} is wireless: an access point takes frames from its own stations only, not from \
             guests behind one; use a wired interface, or a network of mode shared"
        ));
    }
    if name.starts_with(PREFIX) && link.kind == "bridge" {
        return Some(format!("{name} is a network of vmlan's own; give the guest that one"));
    }
    if matches!(link.kind.as_str(), "macvlan" | "macvtap" | "ipvlan") {
        return Some(format!("{name} is made on another interface; use that one"));
    }
    match master(link, all) {
        Some(master) if master.name == bridge.as_str() => None,
        Some(master) => Some(format!(
            "{name} is a part of {}; set `interface` in networks.yaml to that one",
            master.name
        )),
        None => None,
    }
}

fn sysfs(name: &str) -> std::path::PathBuf {
    Path::new("/sys/class/net").join(name)
}

fn master<'a>(link: &Link, all: &'a [Link]) -> Option<&'a Link> {
    all.iter().find(|other| Some(other.index) == link.master)
}

/// Makes what there has to be.
pub(super) fn make(
    interfaces: &mut Interfaces,
    bridge: &Bridge,
    place: &Place,
) -> Result<(), String> {
    let link = match place {
        Place::Bridge(link) if link.kind == "bridge" => return Ok(()),
        Place::Bridge(link) | Place::Beside(link) => link,
    };
    if matches!(place, Place::Bridge(_)) {
        let ours = match interfaces.find(bridge.as_str())? {
            Some(ours) => ours,
            None => interfaces.add_bridge(bridge.as_str(), &link.mac)?,
        };
        // The host has no address there, and is to get none.
        sysctl::set_ipv6(bridge.as_str(), "disable_ipv6", "1");
        interfaces.set_master(link, &ours)?;
    }
    interfaces.set_up(link, true)
}
