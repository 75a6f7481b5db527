//! The networks of `networks.yaml`: from what was written to what is meant, with every rule checked
//! and every default filled in.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Serialize;

use crate::identifier;
use crate::platform::Platform;
use crate::raw::{At, RawNetwork, RawNetworks, RawPaths};
use crate::reservation::{self, Reservation};
use crate::source::{Diagnostic, Report, Source, Span, printable};
use crate::subnet::{self, Subnet, SubnetError};
use crate::yaml;

/// The network that is there even if `networks.yaml` does not name it.
pub const BUILT_IN: &str = "user-v2";

/// How the guests of a network are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// In user mode: guests reach each other and the outside, no root is needed.
    UserV2,
    /// Guests and host reach each other, and nobody else.
    Host,
    /// Guests and host reach each other, and guests the outside.
    Shared,
    /// Guests are on the host's own network, with addresses from there.
    Bridged,
}

impl Mode {
    pub const ALL: [Self; 4] = [Self::UserV2, Self::Host, Self::Shared, Self::Bridged];

    pub fn name(self) -> &'static str {
        match self {
            Self::UserV2 => "user-v2",
            Self::Host => "host",
            Self::Shared => "shared",
            Self::Bridged => "bridged",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| format!("there is no mode `{text}`: {}", modes()))
    }
}

fn modes() -> String {
    let [a, b, c, d] = Mode::ALL;
    format!("a network's mode is {a}, {b}, {c} or {d}")
}

/// Where a network's addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// From the network's own gateway.
    Subnet(Subnet),
    /// From outside, by this interface of the host.
    Interface(String),
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    pub mode: Mode,
    pub link: Link,
    /// What is kept for guests.
    pub reservations: Vec<Reservation>,
    /// Where `networks.yaml` names it; `None` for the built-in network.
    pub span: Option<Span>,
}

impl Network {
    pub fn subnet(&self) -> Option<&Subnet> {
        match &self.link {
            Link::Subnet(subnet) => Some(subnet),
            Link::Interface(_) => None,
        }
    }

    pub fn interface(&self) -> Option<&str> {
        match &self.link {
            Link::Subnet(_) => None,
            Link::Interface(name) => Some(name),
        }
    }

    /// Builds a network from what a command line says.
    pub fn new(
        name: &str,
        mode: Mode,
        gateway: Option<(Ipv4Addr, u8)>,
        interface: Option<&str>,
    ) -> Result<Self, String> {
        let check = |what, value: &str| {
            identifier::check(value)
                .map_err(|e| printable(&format!("invalid {what} `{value}`: {e}")))
        };
        check("network name", name)?;
        let link = match (mode, gateway, interface) {
            (Mode::Bridged, Some(_), _) => {
                return Err(format!("network mode `{mode}` does not support specifying gateway"));
            }
            (Mode::Bridged, None, None) => {
                return Err(format!("network mode `{mode}` requires specifying interface"));
            }
            (Mode::Bridged, None, Some(interface)) => {
                check_interface(interface)?;
                Link::Interface(interface.into())
            }
            (_, None, _) => {
                return Err(format!("network mode `{mode}` requires specifying gateway"));
            }
            (_, _, Some(_)) => {
                return Err(format!("network mode `{mode}` does not support specifying interface"));
            }
            (_, Some((gateway, prefix)), None) => {
                let subnet = Subnet::new(mode, gateway, prefix, None);
                Link::Subnet(subnet.map_err(|e| e.to_string())?)
            }
        };
        Ok(Self { name: name.into(), mode, link, reservations: Vec::new(), span: None })
    }
}

/// Programs and files of the networks that need root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    pub socket_vmnet: Option<At<PathBuf>>,
    pub var_run: Option<At<PathBuf>>,
    pub sudoers: Option<At<PathBuf>>,
}

impl<T: Eq> Eq for At<T> {}

/// `networks.yaml` as the program works with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks {
    pub paths: Paths,
    pub group: String,
    networks: BTreeMap<String, Network>,
}

/// Networks, and what is to be said about the file although it can be used.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub networks: Networks,
    pub warnings: Option<Report>,
}

impl Networks {
    /// Reads the text of a `networks.yaml`.
    pub fn parse(source: &Source, platform: &Platform) -> Result<Resolved, Report> {
        let report = |diagnostics| Report { file: source.clone(), diagnostics };
        let raw: RawNetworks = yaml::parse(source.text()).map_err(|e| report(vec![e]))?;
        let mut resolve = Resolve::default();
        let networks = resolve.all(raw, platform);
        let report = report(resolve.found);
        if report.has_errors() {
            return Err(report);
        }
        let warnings = (!report.diagnostics.is_empty()).then_some(report);
        Ok(Resolved { networks, warnings })
    }

    pub fn get(&self, name: &str) -> Option<&Network> {
        self.networks.get(name)
    }

    /// All networks, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Network> {
        self.networks.values()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.networks.keys().map(String::as_str)
    }
}

/// Collects everything that is wrong on the way, so that one run tells it all.
#[derive(Default)]
struct Resolve {
    found: Vec<Diagnostic>,
}

impl Resolve {
    fn all(&mut self, raw: RawNetworks, platform: &Platform) -> Networks {
        self.unknown(&raw.unknown, RawNetworks::KEYS, "");
        let paths = raw.paths.unwrap_or_default();
        self.unknown(&paths.unknown, RawPaths::KEYS, " of `paths`");
        let path = |at: Option<At<String>>| at.map(|at| at.map(PathBuf::from));
        let paths = Paths {
            socket_vmnet: path(paths.socket_vmnet),
            var_run: path(paths.var_run),
            sudoers: path(paths.sudoers),
        };
        if let Some(group) = &raw.group {
            self.identifier("group", group);
        }
        let mut networks = BTreeMap::new();
        for (name, raw) in raw.networks.unwrap_or_default().0 {
            if let Some(network) = self.network(&name, &raw) {
                networks.insert(name.value, network);
            }
        }
        let group = raw.group.map_or_else(|| platform.group.clone(), |group| group.value);
        add_built_in(&mut networks);
        Networks { paths, group, networks }
    }

    fn network(&mut self, name: &At<String>, raw: &RawNetwork) -> Option<Network> {
        self.identifier("network name", name);
        self.unknown(&raw.unknown, RawNetwork::KEYS, &format!(" of network `{}`", name.value));
        let Some(mode) = &raw.mode else {
            let message = format!("network `{}` has no mode", name.value);
            self.found.push(Diagnostic::error(message, name.span).help(modes()));
            return None;
        };
        let Ok(mode) = mode.value.parse::<Mode>() else {
            let message = format!("invalid mode `{}` for network `{}`", mode.value, name.value);
            self.found.push(Diagnostic::error(message, mode.span).help(modes()));
            return None;
        };
        let link = match mode {
            Mode::Bridged => self.bridged(name, raw)?,
            Mode::UserV2 | Mode::Host | Mode::Shared => {
                if let Some(interface) = &raw.interface {
                    let message = format!("`interface` means nothing in mode {mode}");
                    let help = "only a network of mode bridged has an interface";
                    self.found.push(Diagnostic::warning(message, interface.span).help(help));
                }
                Link::Subnet(self.subnet(name, mode, raw)?)
            }
        };
        let reservations = self.reservations(raw, mode, &link);
        Some(Network { name: name.value.clone(), mode, link, reservations, span: name.span })
    }

    fn reservations(&mut self, raw: &RawNetwork, mode: Mode, link: &Link) -> Vec<Reservation> {
        let list = raw.reservations.as_deref().unwrap_or_default();
        match link {
            Link::Subnet(subnet) if mode == Mode::UserV2 => {
                reservation::resolve(list, subnet, &mut self.found)
            }
            _ => {
                if let Some(first) = list.first() {
                    let message = format!("`reservations` means nothing in mode {mode}");
                    let help = "only a network of mode user-v2 has them";
                    self.found.push(Diagnostic::warning(message, first.span).help(help));
                }
                Vec::new()
            }
        }
    }

    fn bridged(&mut self, name: &At<String>, raw: &RawNetwork) -> Option<Link> {
        let addresses =
            [("gateway", &raw.gateway), ("dhcpEnd", &raw.dhcp_end), ("netmask", &raw.netmask)];
        for (field, value) in addresses {
            if let Some(value) = value {
                let message = format!("`{field}` means nothing in mode bridged");
                let help = "addresses come from the network that `interface` is on";
                self.found.push(Diagnostic::warning(message, value.span).help(help));
            }
        }
        let Some(interface) = raw.interface.as_ref().filter(|i| !i.value.is_empty()) else {
            let message = format!("network `{}` has no interface", name.value);
            let help = "a network of mode bridged needs `interface`, the host's interface to join";
            self.found.push(Diagnostic::error(message, name.span).help(help));
            return None;
        };
        if let Err(why) = check_interface(&interface.value) {
            let message = format!("{why} for network `{}`", name.value);
            self.found.push(Diagnostic::error(message, interface.span));
            return None;
        }
        Some(Link::Interface(interface.value.clone()))
    }

    fn subnet(&mut self, name: &At<String>, mode: Mode, raw: &RawNetwork) -> Option<Subnet> {
        let Some(gateway) = &raw.gateway else {
            if name.value == BUILT_IN && mode == Mode::UserV2 {
                return Some(Subnet::built_in());
            }
            let message = format!("network `{}` has no gateway", name.value);
            let help = format!("a network of mode {mode} needs `gateway`, such as 192.168.42.1");
            self.found.push(Diagnostic::error(message, name.span).help(help));
            return None;
        };
        let address = self.address(gateway);
        let prefix = raw.netmask.as_ref().map_or(Some(Subnet::DEFAULT_PREFIX), |mask| {
            let prefix = subnet::prefix_of(self.address(mask)?);
            let help = "for example 255.255.255.0";
            prefix.map_err(|e| self.found.push(wrong(&e, mask.span).help(help))).ok()
        });
        let end = match &raw.dhcp_end {
            Some(end) if mode == Mode::UserV2 => {
                let message = "`dhcpEnd` means nothing in mode user-v2";
                let help = "DHCP gives all of the subnet's addresses there";
                self.found.push(Diagnostic::warning(message, end.span).help(help));
                None
            }
            Some(end) => Some(self.address(end)?),
            None => None,
        };
        let subnet = Subnet::new(mode, address?, prefix?, end);
        let end = raw.dhcp_end.as_ref().and_then(|end| end.span);
        subnet.map_err(|e| self.found.push(unfit(&e, gateway.span, end))).ok()
    }

    fn address(&mut self, text: &At<String>) -> Option<Ipv4Addr> {
        let Ok(address) = text.value.parse() else {
            let error = SubnetError::NotAnAddress(text.value.clone());
            let help = "four numbers from 0 to 255, such as 192.168.42.1";
            self.found.push(wrong(&error, text.span).help(help));
            return None;
        };
        Some(address)
    }

    fn identifier(&mut self, what: &str, name: &At<String>) {
        if let Err(e) = identifier::check(&name.value) {
            let message = format!("invalid {what} `{}`: {e}", name.value);
            let help = "letters and digits, and between them single `.`, `_` or `-`";
            self.found.push(Diagnostic::error(message, name.span).help(help));
        }
    }

    fn unknown(&mut self, keys: &[At<String>], known: &[&str], of: &str) {
        self.found.extend(keys.iter().map(|key| unknown_field(key, known, of)));
    }
}

/// Files of other versions have fields that mean nothing here.
pub(crate) fn unknown_field(key: &At<String>, known: &[&str], of: &str) -> Diagnostic {
    let old = match key.value.as_str() {
        "vdeSwitch" | "vdeVMNet" => ": vde_vmnet is no longer supported",
        _ => "",
    };
    let message = format!("unknown field `{}`{of} is ignored{old}", key.value);
    let help = format!("the fields are {}", known.join(", "));
    Diagnostic::warning(message, key.span).help(help)
}

fn wrong(error: &SubnetError, span: Option<Span>) -> Diagnostic {
    Diagnostic::error(error.to_string(), span)
}

fn unfit(error: &SubnetError, gateway: Option<Span>, end: Option<Span>) -> Diagnostic {
    let host = |bits: u32| format!("for example {}", Ipv4Addr::from_bits(bits));
    match error {
        SubnetError::NoHost { subnet, .. } | SubnetError::NameServer { subnet, .. } => {
            wrong(error, gateway).help(host(subnet.network().to_bits() + 1))
        }
        SubnetError::EndOutside { subnet, .. } => {
            wrong(error, end).help(host(subnet.broadcast().to_bits() - 1))
        }
        SubnetError::EndTooEarly { .. } => wrong(error, end.or(gateway)),
        SubnetError::NotUsable(_) => wrong(error, gateway).help("for example 192.168.42.1"),
        _ => wrong(error, gateway).help("the netmask is 255.255.255.0 unless given"),
    }
}

fn check_interface(name: &str) -> Result<(), String> {
    identifier::check(name).map_err(|e| printable(&format!("invalid interface `{name}`: {e}")))
}

/// Users' own networks come first: the built-in one must neither take a name nor addresses that
/// one of theirs has.
fn add_built_in(networks: &mut BTreeMap<String, Network>) {
    let subnet = Subnet::built_in();
    let taken = networks.values().filter_map(Network::subnet);
    let mut taken = taken.map(Subnet::net);
    if networks.contains_key(BUILT_IN) || taken.any(|net| overlap(net, subnet.net())) {
        return;
    }
    let link = Link::Subnet(subnet);
    let network = Network {
        name: BUILT_IN.into(),
        mode: Mode::UserV2,
        link,
        reservations: Vec::new(),
        span: None,
    };
    networks.insert(BUILT_IN.into(), network);
}

fn overlap(a: ipnet::Ipv4Net, b: ipnet::Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

#[cfg(test)]
#[path = "networks_tests.rs"]
mod tests;
