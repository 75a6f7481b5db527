//! Linux: a bridge of the kernel, made by root's helper, and a TAP on it that is the uplink.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};
use vmlan_config::vmnet;
use vmlan_engine::Config;
use vmlan_engine::config::{Ipv4Net, Ipv6Net};
use vmlan_link::Link;
use vmlan_link::tap::TapLink;
use vmlan_netd::vmnet::{Helper, Kind, Started};
use vmlan_wire::Mac;

use super::settings::{Mode, Range, Settings, Subnet};

/// The keeper hands the uplink over.
pub(super) const NEEDS_DESCRIPTOR: bool = true;

/// Who the server is: nobody (`overflowuid`).
const NOBODY: u32 = 65534;

/// What the helper has to be able to; it gives up all else, and could not if it had to.
const HELPERS: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);

/// Of a network that leads outside by an interface.
const MTU: u16 = 1500;

/// Stands for the uplink where the helper wants to know a card's MAC address.
const UPLINK: Mac = Mac([0x52, 0x55, 0, 0, 0, 1]);

/// The bridge. It is undone when this is dropped.
pub(super) struct Network {
    _started: Started,
    uplink: Option<OwnedFd>,
}

impl Network {
    pub(super) fn make(settings: &Settings) -> Result<Self, String> {
        let helper = Helper::for_bridge(&bridge(settings)?, &arguments(&settings.mode));
        let mut started = helper.start().map_err(|e| e.to_string())?;
        let uplink = match (started.take_card(), &started.kind, &settings.mode) {
            (Some(card), ..) => card,
            (None, Kind::Lan { beside: true }, Mode::Bridged { interface }) => {
                return Err(format!(
                    "{interface} has addresses of the host's, and lets no guests behind it; make it \
                     a port of a bridge that has them, and give that one"
                ));
            }
            // Many guests are behind it: it has no MAC address of its own.
            _ => helper.tap(UPLINK).map_err(|e| e.to_string())?,
        };
        Ok(Self { _started: started, uplink: Some(uplink) })
    }

    /// The uplink, once.
    pub(super) fn take(&mut self) -> Option<OwnedFd> {
        self.uplink.take()
    }
}

/// The name of the bridge, which is the same each time.
fn bridge(settings: &Settings) -> Result<String, String> {
    if let Mode::Host { identifier: Some(id), .. } = &settings.mode {
        return Ok(vmnet::bridge(&format!("vmnet {}", id.as_str())));
    }
    let path = std::path::absolute(&settings.socket);
    let path = path.map_err(|e| format!("{}: {e}", settings.socket.display()))?;
    Ok(vmnet::bridge(&format!("socket_vmnet {}", path.display())))
}

/// What the helper is told of the network.
fn arguments(mode: &Mode) -> Vec<String> {
    let (name, subnet) = match mode {
        Mode::Shared(subnet) => ("shared", addresses(mode, subnet)),
        Mode::Host { subnet, .. } => ("host", addresses(mode, subnet)),
        Mode::Bridged { interface } => {
            return vec!["--mode=bridged".into(), format!("--interface={interface}")];
        }
    };
    let (range, prefix6) = subnet;
    vec![
        format!("--mode={name}"),
        format!("--gateway={}/{}", range.gateway, range.prefix()),
        format!("--gateway6={}/64", prefix6.gateway()),
    ]
}

/// A network's addresses, made up where they are not given.
fn addresses(mode: &Mode, subnet: &Subnet) -> (Range, Ipv6Net) {
    let third = if matches!(mode, Mode::Shared(_)) { 105 } else { 106 };
    let default = Range {
        gateway: Ipv4Addr::new(192, 168, third, 1),
        last: Ipv4Addr::new(192, 168, third, 254),
        mask: Ipv4Addr::new(255, 255, 255, 0),
    };
    let range = subnet.range.unwrap_or(default);
    let prefix6 = subnet.nat66_prefix.map(|prefix| Ipv6Net { prefix });
    (range, prefix6.unwrap_or_else(|| Ipv6Net::for_subnet(net(&range))))
}

fn net(range: &Range) -> Ipv4Net {
    let network = Ipv4Addr::from_bits(range.gateway.to_bits() & range.mask.to_bits());
    Ipv4Net { network, prefix: range.prefix() }
}

/// What the server has: the uplink, and what is to be done on the network.
pub(super) fn open(
    settings: &Settings,
    uplink: Option<OwnedFd>,
) -> Result<(Box<dyn Link>, Config), String> {
    let uplink = uplink.ok_or("there is no uplink")?;
    let uplink = TapLink::new(uplink).map_err(|e| format!("the uplink: {e}"))?;
    Ok((Box::new(uplink), config(settings)?))
}

fn config(settings: &Settings) -> Result<Config, String> {
    let subnet = match &settings.mode {
        Mode::Shared(subnet) | Mode::Host { subnet, .. } if settings.dhcp => subnet,
        _ => return vmlan_netd::switch_network(MTU).map_err(|e| e.to_string()),
    };
    let (range, prefix6) = addresses(&settings.mode, subnet);
    let [a, b, c, d] = range.gateway.octets();
    let mac = Mac([0x52, 0x55, a, b, c, d]);
    let config = vmlan_netd::bridge_network(net(&range), range.gateway, mac, range.last);
    let mut config = config.map_err(|e| e.to_string())?;
    config.ipv6 = prefix6;
    if let Some(router) = &mut config.router {
        router.ipv6 = prefix6.gateway();
        router.leads_out = matches!(settings.mode, Mode::Shared(_));
    }
    Ok(config)
}

/// This program, wherever it is and whatever has become of its name.
#[expect(clippy::unnecessary_wraps, reason = "elsewhere it has to be looked for")]
pub(super) fn program() -> io::Result<PathBuf> {
    Ok("/proc/self/exe".into())
}

/// Makes the server nobody's.
pub(super) fn confine(command: &mut Command) {
    command.uid(NOBODY).gid(NOBODY);
}

/// Nothing is left to give up but what could be got back.
pub(super) fn give_up_rights() -> Result<(), String> {
    let failed = |e| format!("cannot give up rights: {e}");
    rustix::thread::set_no_new_privs(true).map_err(failed)?;
    // Others are nobody too.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed)
}

/// Leaves the keeper what it takes to undo everything: to start the helper, to end the server, and
/// to remove these files.
pub(super) fn keep_least(files: &[Option<&PathBuf>]) {
    let mut kept = CapabilitySet::KILL;
    let of_root = |path: &Path| std::fs::metadata(path).is_ok_and(|meta| meta.uid() == 0);
    let mut dirs = files.iter().flatten().filter_map(|path| path.parent());
    if !dirs.all(|dir| of_root(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })) {
        kept |= CapabilitySet::DAC_OVERRIDE;
    }
    for capability in CapabilitySet::all().difference(HELPERS).iter() {
        // Kernels know fewer than there are names for, and a root of few rights has none to lose.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let empty = CapabilitySet::empty();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: empty };
    let _ = rustix::thread::set_capabilities(None, sets);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mode: Mode, dhcp: bool) -> Settings {
        Settings { socket: "/run/s".into(), mode, interface_id: None, dhcp }
    }

    #[test]
    fn networks_are_what_was_asked_for() {
        let none = Subnet { range: None, nat66_prefix: None };
        let prefix: std::net::Ipv6Addr = "fd00:1:2:3::".parse().unwrap();
        let own = Subnet {
            range: Some(Range {
                gateway: [10, 9, 0, 1].into(),
                last: [10, 9, 7, 254].into(),
                mask: [255, 255, 248, 0].into(),
            }),
            nat66_prefix: Some(prefix),
        };
        assert_eq!(
            arguments(&Mode::Shared(none)).join(" "),
            "--mode=shared --gateway=192.168.105.1/24 --gateway6=fd76:6d6c:c0a8:6900::1/64"
        );
        let host = Mode::Host { subnet: own, identifier: None };
        assert_eq!(
            arguments(&host).join(" "),
            "--mode=host --gateway=10.9.0.1/21 --gateway6=fd00:1:2:3::1/64"
        );
        let config = config(&settings(host, true)).unwrap();
        let router = config.router.unwrap();
        assert_eq!((router.leads_out, router.ipv6), (false, "fd00:1:2:3::1".parse().unwrap()));
        assert_eq!((config.last_guest, config.ipv6.prefix), (Some([10, 9, 7, 254].into()), prefix));
    }

    #[test]
    fn without_dhcp_there_is_only_the_switch() {
        let none = Subnet { range: None, nat66_prefix: None };
        assert!(config(&settings(Mode::Shared(none), false)).unwrap().switch_only);
        let bridged = Mode::Bridged { interface: "eth0".into() };
        assert!(config(&settings(bridged, true)).unwrap().switch_only);
    }

    #[test]
    fn each_socket_has_a_bridge() {
        let none = Subnet { range: None, nat66_prefix: None };
        let one = bridge(&settings(Mode::Shared(none), true)).unwrap();
        let other = Settings { socket: "/run/t".into(), ..settings(Mode::Shared(none), true) };
        assert_ne!(one, bridge(&other).unwrap());
        assert!(one.starts_with("vmlan-") && one.len() == 15, "{one}");
    }
}
