//! The command line, read as if an attacker had written it: sudo lets only whole lines pass that an
//! administrator has installed, and this is the second look. Every value becomes a type that cannot
//! hold anything else; nothing is a path.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Make the network, or take over what a daemon that died has left of it.
    Start { bridge: Bridge, network: Network },
    /// Undo everything.
    Stop { bridge: Bridge },
    /// Give a guest a card on the network, or take one away. Which one is said on standard input.
    Attach { bridge: Bridge },
}

/// What a network is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Shared(Gateway),
    Host(Gateway),
    /// The network that an interface of the host is on.
    Bridged(Interface),
}

/// The host's addresses on a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gateway {
    pub(crate) v4: Ipv4Addr,
    pub(crate) prefix: u8,
    /// Always in a /64.
    pub(crate) v6: Ipv6Addr,
}

/// The name of a network's bridge, after which everything else of it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bridge(String);

/// The name of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface(String);

/// Why a command line is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    #[error("usage: vmlan-helper start|stop|attach --bridge=vmlan-NAME ...")]
    Usage,
    #[error("an argument is not UTF-8")]
    Encoding,
    #[error("`{0}` is not an option here")]
    Unknown(String),
    #[error("--{0} is given twice")]
    Twice(&'static str),
    #[error("--{0} is missing")]
    Missing(&'static str),
    #[error("--{flag}={value}: {why}")]
    Value { flag: &'static str, value: String, why: &'static str },
}

/// Begins the name of everything that the helper makes.
pub(crate) const PREFIX: &str = "vmlan-";

/// Longest name of an interface (`IFNAMSIZ` less its zero).
const MAX_NAME: usize = 15;

impl Command {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(args: &[String]) -> Result<Self, ArgsError> {
        let (verb, rest) = args.split_first().ok_or(ArgsError::Usage)?;
        let mut flags = Flags::read(rest)?;
        let command = match verb.as_str() {
            "start" => {
                let bridge = flags.bridge()?;
                let mode = flags.take("mode")?;
                let network = match mode.as_str() {
                    "shared" => Network::Shared(flags.gateway()?),
                    "host" => Network::Host(flags.gateway()?),
                    "bridged" => Network::Bridged(flags.interface()?),
                    _ => return Err(wrong("mode", mode)("shared, host or bridged")),
                };
                Self::Start { bridge, network }
            }
            "stop" => Self::Stop { bridge: flags.bridge()? },
            "attach" => Self::Attach { bridge: flags.bridge()? },
            _ => return Err(ArgsError::Usage),
        };
        flags.end()?;
        Ok(command)
    }
}

const FLAGS: [&str; 5] = ["bridge", "mode", "gateway", "gateway6", "interface"];

struct Flags(Vec<(&'static str, String)>);

impl Flags {
    fn read(args: &[String]) -> Result<Self, ArgsError> {
        let mut flags = Vec::new();
        for arg in args {
            let unknown = || ArgsError::Unknown(shown(arg));
            let (name, value) =
                arg.strip_prefix("--").and_then(|a| a.split_once('=')).ok_or_else(unknown)?;
            let name = FLAGS.into_iter().find(|flag| *flag == name).ok_or_else(unknown)?;
            if flags.iter().any(|(known, _)| *known == name) {
                return Err(ArgsError::Twice(name));
            }
            flags.push((name, value.to_owned()));
        }
        Ok(Self(flags))
    }

    fn take(&mut self, name: &'static str) -> Result<String, ArgsError> {
        let at = self.0.iter().position(|(flag, _)| *flag == name);
        at.map(|at| self.0.swap_remove(at).1).ok_or(ArgsError::Missing(name))
    }

    fn bridge(&mut self) -> Result<Bridge, ArgsError> {
        let name = self.take("bridge")?;
        Bridge::parse(&name).map_err(wrong("bridge", name))
    }

    fn interface(&mut self) -> Result<Interface, ArgsError> {
        let name = self.take("interface")?;
        Interface::parse(&name).map_err(wrong("interface", name))
    }

    fn gateway(&mut self) -> Result<Gateway, ArgsError> {
        let (four, six) = (self.take("gateway")?, self.take("gateway6")?);
        let (v4, prefix) = ipv4(&four).map_err(wrong("gateway", four))?;
        let v6 = ipv6(&six).map_err(wrong("gateway6", six))?;
        Ok(Gateway { v4, prefix, v6 })
    }

    fn end(self) -> Result<(), ArgsError> {
        match self.0.into_iter().next() {
            Some((name, _)) => Err(ArgsError::Unknown(format!("--{name}"))),
            None => Ok(()),
        }
    }
}

fn wrong(flag: &'static str, value: String) -> impl FnOnce(&'static str) -> ArgsError {
    move |why| ArgsError::Value { flag, value: shown(&value), why }
}

/// What is repeated on a terminal or in a log.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

/// A host's address with the length of its prefix.
fn ipv4(text: &str) -> Result<(Ipv4Addr, u8), &'static str> {
    const SHAPE: &str = "not an address with a prefix such as 192.168.105.1/24";
    let (address, prefix) = text.split_once('/').ok_or(SHAPE)?;
    let address: Ipv4Addr = address.parse().map_err(|_| SHAPE)?;
    let prefix = number(prefix).ok_or(SHAPE)?;
    if !(8..=29).contains(&prefix) {
        return Err("the prefix is 8 to 29");
    }
    let first = address.octets()[0];
    if first == 0 || first == 127 || first >= 224 || address.is_link_local() {
        return Err("not an address that a network could have");
    }
    let hosts = u32::MAX >> prefix;
    let host = address.to_bits() & hosts;
    if host == 0 || host == hosts {
        return Err("the network's own or its broadcast address");
    }
    Ok((address, prefix))
}

/// A unique local address (RFC 4193) in a /64.
fn ipv6(text: &str) -> Result<Ipv6Addr, &'static str> {
    const SHAPE: &str = "not an address such as fd76:6d6c:c0a8:6900::1/64";
    let address: Ipv6Addr = text.strip_suffix("/64").ok_or(SHAPE)?.parse().map_err(|_| SHAPE)?;
    if address.octets()[0] != 0xfd {
        return Err("not in fd00::/8");
    }
    if address.segments()[4..] == [0; 4] {
        return Err("the network's own address");
    }
    Ok(address)
}

fn number(text: &str) -> Option<u8> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl Bridge {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = text.strip_prefix(PREFIX).ok_or("the name does not begin with vmlan-")?;
        Interface::parse(text)?;
        match rest.bytes().next() {
            Some(first) if first.is_ascii_alphanumeric() => Ok(Self(text.into())),
            _ => Err("no name after vmlan-"),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Interface {
    /// Less than what the kernel takes: nothing that is special in a path, a format or a rule.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if text.len() > MAX_NAME {
            return Err("longer than 15 characters");
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.bytes().all(fits) {
            return Err("not a name of letters, digits, `.`, `_` and `-`");
        }
        if text == "lo" || text == "all" || text == "default" {
            return Err("not an interface of a network");
        }
        Ok(Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Gateway {
    /// The subnet as rules have it.
    pub(crate) fn net4(&self) -> String {
        let mask = !(u32::MAX >> self.prefix);
        format!("{}/{}", Ipv4Addr::from_bits(self.v4.to_bits() & mask), self.prefix)
    }

    pub(crate) fn net6(&self) -> String {
        let [a, b, c, d, ..] = self.v6.segments();
        format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
    }

    /// The bridge's MAC address: the same each time, so that guests find their router again.
    pub(crate) fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.v4.octets();
        [0x52, 0x55, a, b, c, d]
    }

    /// The bridge's link-local address, made of the MAC address (RFC 4291 appendix A).
    pub(crate) fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac();
        let bytes = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(u64::from_be_bytes(bytes)))
    }
}

impl Network {
    /// Where the host has addresses; on a bridged network it has none of its own.
    pub(crate) fn gateway(&self) -> Option<&Gateway> {
        match self {
            Self::Shared(gateway) | Self::Host(gateway) => Some(gateway),
            Self::Bridged(_) => None,
        }
    }
}

/// As the command line has it, and the file of a network's state.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mode, Gateway { v4, prefix, v6 }) = match self {
            Self::Shared(gateway) => ("shared", gateway),
            Self::Host(gateway) => ("host", gateway),
            Self::Bridged(interface) => {
                return write!(f, "--mode=bridged --interface={}", interface.as_str());
            }
        };
        write!(f, "--mode={mode} --gateway={v4}/{prefix} --gateway6={v6}/64")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, ArgsError> {
        Command::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn commands() {
        let line = "start --bridge=vmlan-shared --mode=shared --gateway=192.168.105.1/24 \
                    --gateway6=fd76:6d6c:c0a8:6900::1/64";
        let Ok(Command::Start { bridge, network }) = parse(line) else { panic!() };
        assert_eq!(line, format!("start --bridge={} {network}", bridge.as_str()));
        let gateway = network.gateway().unwrap();
        assert_eq!(gateway.net4(), "192.168.105.0/24");
        assert_eq!(gateway.net6(), "fd76:6d6c:c0a8:6900::/64");
        assert_eq!(gateway.link_local().to_string(), "fe80::5055:c0ff:fea8:6901");
        let line = "start --bridge=vmlan-lan --mode=bridged --interface=enp0s31f6.7";
        let Ok(Command::Start { bridge, network }) = parse(line) else { panic!() };
        assert_eq!(line, format!("start --bridge={} {network}", bridge.as_str()));
        assert_eq!(network.gateway(), None);
        assert!(matches!(parse("stop --bridge=vmlan-a"), Ok(Command::Stop { .. })));
        assert!(matches!(parse("attach --bridge=vmlan-a.b-c_d"), Ok(Command::Attach { .. })));
    }

    #[test]
    fn what_is_none_is_refused() {
        let shared = "start --bridge=vmlan-s --mode=shared --gateway6=fd00::1/64";
        let long = format!("stop --bridge=vmlan-{}", "x".repeat(10));
        for (line, want) in [
            ("", "usage"),
            ("run", "usage"),
            ("stop", "--bridge is missing"),
            ("stop --bridge=eth0", "does not begin with vmlan-"),
            ("stop --bridge=vmlan-", "no name after"),
            ("stop --bridge=vmlan--x", "no name after"),
            ("stop --bridge=vmlan-a/b", "not a name"),
            ("stop --bridge=vmlan-../..", "not a name"),
            ("stop --bridge=vmlan-%d", "not a name"),
            ("stop --bridge=vmlan-a;b", "not a name"),
            ("stop --bridge=vmlan-\"", "not a name"),
            ("stop --bridge=vmlan-a\n", "not a name"),
            ("stop --bridge=vmlan-ü", "not a name"),
            (&long, "longer than 15"),
            ("stop --bridge=vmlan-a --bridge=vmlan-b", "twice"),
            ("stop --bridge=vmlan-a --mode=host", "`--mode` is not an option"),
            ("stop --bridge vmlan-a", "`--bridge` is not an option"),
            ("stop -b=vmlan-a", "`-b=vmlan-a` is not an option"),
            ("stop --bridge=vmlan-a --pidfile=/etc/passwd", "is not an option"),
            ("start --bridge=vmlan-a --mode=user-v2", "shared, host or bridged"),
            ("start --bridge=vmlan-a --mode=host --interface=eth0", "--gateway is missing"),
            (&format!("{shared} --gateway=10.0.0.1/24 --interface=eth0"), "is not an option"),
            ("start --bridge=vmlan-a --mode=bridged", "--interface is missing"),
            ("start --bridge=vmlan-a --mode=bridged --interface=lo", "not an interface"),
            ("start --bridge=vmlan-a --mode=bridged --interface=../x", "not a name"),
            ("start --bridge=vmlan-a --mode=bridged --interface=", "not a name"),
            (&format!("{shared} --gateway=10.0.0.1"), "not an address"),
            (&format!("{shared} --gateway=10.0.0.1/33"), "8 to 29"),
            (&format!("{shared} --gateway=10.0.0.1/+24"), "not an address"),
            (&format!("{shared} --gateway=10.0.0.0/24"), "the network's own"),
            (&format!("{shared} --gateway=10.0.0.255/24"), "broadcast"),
            (&format!("{shared} --gateway=127.0.0.1/24"), "could have"),
            (&format!("{shared} --gateway=169.254.169.254/24"), "could have"),
            (&format!("{shared} --gateway=10.0.0.1/24;x"), "not an address"),
        ] {
            let error = parse(line).expect_err(line).to_string();
            assert!(error.contains(want), "{line}: {error}");
        }
        let six = "start --bridge=vmlan-s --mode=host --gateway=10.0.0.1/24 --gateway6=";
        for (value, want) in [
            ("2001:db8::1/64", "not in fd00::/8"),
            ("fd00::/64", "the network's own"),
            ("fd00::1/63", "not an address"),
            ("fd00::1", "not an address"),
        ] {
            let error = parse(&format!("{six}{value}")).unwrap_err().to_string();
            assert!(error.contains(want), "{value}: {error}");
        }
    }
}
