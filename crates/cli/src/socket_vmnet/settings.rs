//! What the flags come to: a network that can be made, or why it cannot. The words of refusals are
//! `socket_vmnet`'s where it has some.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use super::Args;

/// The network and its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) socket: PathBuf,
    pub(super) mode: Mode,
    /// Only macOS makes something of it.
    pub(super) interface_id: Option<Uuid>,
    /// Whether guests are given addresses.
    pub(super) dhcp: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Shared(Subnet),
    Host { subnet: Subnet, identifier: Option<Uuid> },
    Bridged { interface: String },
}

/// A network's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subnet {
    /// `None` leaves all of it to the system.
    pub(super) range: Option<Range>,
    pub(super) nat66_prefix: Option<Ipv6Addr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) gateway: Ipv4Addr,
    pub(super) last: Ipv4Addr,
    pub(super) mask: Ipv4Addr,
}

/// A UUID, in lower case (RFC 9562).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Uuid(String);

impl Settings {
    pub(super) fn of(args: &Args) -> Result<Self, String> {
        let (mut mode, mut dhcp) = (mode(args)?, !args.vmnet_disable_dhcp);
        if let Some(wanted) = &args.vmnet_network_identifier {
            match &mut mode {
                Mode::Host { identifier, .. } => *identifier = Some(wanted.clone()),
                _ => {
                    return Err("--vmnet-network-identifier=UUID requires --vmnet-mode=host".into());
                }
            }
            dhcp = false;
        }
        let (socket, interface_id) = (args.socket.clone(), args.vmnet_interface_id.clone());
        Ok(Self { socket, mode, interface_id, dhcp })
    }
}

fn mode(args: &Args) -> Result<Mode, String> {
    let subnet = || subnet(args);
    match (args.vmnet_mode.as_str(), &args.vmnet_interface) {
        ("shared", None) => Ok(Mode::Shared(subnet()?)),
        ("host", None) => Ok(Mode::Host { subnet: subnet()?, identifier: None }),
        ("bridged", Some(_)) if args.vmnet_gateway.is_some() => {
            Err("vmnet mode \"bridged\" conflicts with --vmnet-gateway".into())
        }
        ("bridged", Some(interface)) => {
            subnet()?;
            Ok(Mode::Bridged { interface: interface.clone() })
        }
        ("bridged", None) => {
            Err("vmnet mode \"bridged\" require --vmnet-interface to be specified".into())
        }
        (mode @ ("shared" | "host"), Some(_)) => {
            Err(format!("vmnet mode \"{mode}\" conflicts with --vmnet-interface"))
        }
        (mode, _) => Err(format!("Unknown vmnet mode \"{mode}\"")),
    }
}

fn subnet(args: &Args) -> Result<Subnet, String> {
    let nat66_prefix = args.vmnet_nat66_prefix;
    if let Some(prefix) =
        nat66_prefix.filter(|p| p.octets()[0] != 0xfd || p.segments()[4..] != [0; 4])
    {
        return Err(format!(
            "--vmnet-nat66-prefix={prefix} is no unique local /64 such as fd00:1:2:3::"
        ));
    }
    let range = match (args.vmnet_gateway, args.vmnet_dhcp_end) {
        (Some(gateway), end) => Some(range(gateway, end, args.vmnet_mask)?),
        (None, Some(_)) => return Err("--vmnet-dhcp-end=IP requires --vmnet-gateway=IP".into()),
        (None, None) => None,
    };
    Ok(Subnet { range, nat66_prefix })
}

fn range(gateway: Ipv4Addr, end: Option<Ipv4Addr>, mask: Ipv4Addr) -> Result<Range, String> {
    let bits = mask.to_bits();
    if bits.leading_ones() + bits.trailing_zeros() < 32 || !(8..=29).contains(&bits.leading_ones())
    {
        return Err(format!("--vmnet-mask={mask} is no mask of 8 to 29 bits"));
    }
    let [a, b, c, _] = gateway.octets();
    let last = end.unwrap_or_else(|| Ipv4Addr::new(a, b, c, 254));
    let inside = (gateway.to_bits() ^ last.to_bits()) & bits == 0;
    if !inside || last <= gateway {
        return Err(format!(
            "--vmnet-dhcp-end={last} does not follow the gateway {gateway} in its network"
        ));
    }
    Ok(Range { gateway, last, mask })
}

impl Range {
    #[cfg(any(target_os = "linux", test))]
    pub(super) fn prefix(&self) -> u8 {
        u8::try_from(self.mask.to_bits().leading_ones()).unwrap_or(32)
    }
}

impl Uuid {
    #[cfg(any(target_os = "linux", test))]
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn bytes(&self) -> [u8; 16] {
        let digits: String = self.0.split('-').collect();
        u128::from_str_radix(&digits, 16).unwrap_or(0).to_be_bytes()
    }
}

impl FromStr for Uuid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lengths = text.split('-').map(str::len);
        let digits = text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        if digits && lengths.eq([8, 4, 4, 4, 12]) {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        Err("not a UUID such as 8ceb3b1a-2a0e-4d6c-9a57-d1f1ff1c07a3".into())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn settings(line: &str) -> Result<Settings, String> {
        let words = ["socket_vmnet"].into_iter().chain(line.split_whitespace());
        let line = Line::try_parse_from(words.chain(["/run/s"])).map_err(|e| e.to_string())?;
        Settings::of(&line.args)
    }

    #[test]
    fn lines_of_lima_s() {
        let line = "--pidfile=/private/var/run/lima/shared_socket_vmnet.pid --socket-group=admin \
                    --vmnet-mode=shared --vmnet-gateway=192.168.105.1 \
                    --vmnet-dhcp-end=192.168.105.254 --vmnet-mask=255.255.255.0";
        let Ok(Settings { mode: Mode::Shared(subnet), dhcp: true, .. }) = settings(line) else {
            panic!()
        };
        let range = subnet.range.unwrap();
        assert_eq!((range.prefix(), range.last), (24, [192, 168, 105, 254].into()));
        let bridged = settings("--vmnet-mode=bridged --vmnet-interface=en0").unwrap();
        assert_eq!(bridged.mode, Mode::Bridged { interface: "en0".into() });
        let short = settings("--vmnet-gateway=10.1.2.3 --vmnet-mask 255.255.0.0").unwrap();
        let Mode::Shared(Subnet { range: Some(range), .. }) = short.mode else { panic!() };
        assert_eq!((range.prefix(), range.last), (16, [10, 1, 2, 254].into()));
    }

    #[test]
    fn isolated_networks_have_no_dhcp() {
        let id = "8CEB3B1A-2a0e-4d6c-9a57-d1f1ff1c07a3";
        let made = settings(&format!("--vmnet-mode=host --vmnet-network-identifier={id}")).unwrap();
        let Mode::Host { identifier, .. } = made.mode else { panic!() };
        assert_eq!((identifier.unwrap().as_str(), made.dhcp), (&*id.to_lowercase(), false));
        assert!(!settings("--vmnet-disable-dhcp").unwrap().dhcp);
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_known_words() {
        for (line, want) in [
            ("--vmnet-mode=x", "Unknown vmnet mode \"x\""),
            (
                "--vmnet-mode=bridged",
                "vmnet mode \"bridged\" require --vmnet-interface to be specified",
            ),
            ("--vmnet-dhcp-end=10.0.0.9", "--vmnet-dhcp-end=IP requires --vmnet-gateway=IP"),
            (
                "--vmnet-mode=bridged --vmnet-interface=en0 --vmnet-gateway=10.0.0.1",
                "vmnet mode \"bridged\" conflicts with --vmnet-gateway",
            ),
            ("--vmnet-interface=en0", "conflicts with --vmnet-interface"),
            ("--vmnet-gateway=10.0.0.1 --vmnet-mask=255.0.255.0", "is no mask"),
            ("--vmnet-gateway=10.0.0.1 --vmnet-dhcp-end=10.0.1.9", "does not follow"),
            ("--vmnet-gateway=10.0.0.254", "does not follow"),
            ("--vmnet-nat66-prefix=2001:db8::", "no unique local /64"),
            ("--vmnet-nat66-prefix=fd00::1", "no unique local /64"),
            ("--vmnet-interface-id=x", "not a UUID"),
            ("--vmnet-network-identifier=8ceb3b1a-2a0e-4d6c-9a57-d1f1ff1c07a3", "requires"),
        ] {
            let error = settings(line).expect_err(line);
            assert!(error.contains(want), "{line}: {error}");
        }
    }
}
