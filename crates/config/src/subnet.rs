//! A network's IPv4 addresses: the gateway, how large the subnet is, and where DHCP ends.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::networks::Mode;

/// The addresses of a network with a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    pub gateway: Ipv4Addr,
    pub prefix: u8,
    /// The last address that DHCP gives; `None` in user mode, where it gives all.
    pub dhcp_end: Option<Ipv4Addr>,
}

/// Why addresses make no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    #[error("`{0}` is not an IPv4 address")]
    NotAnAddress(String),
    #[error("`{0}` is not a netmask: its ones must come before its zeros")]
    NotAMask(Ipv4Addr),
    #[error("subnet {0} is too small: gateway, host, DNS and one guest need a /29 or larger")]
    TooSmall(Ipv4Net),
    #[error("subnet {0} is too large: at most a /8")]
    TooLarge(Ipv4Net),
    #[error("invalid IP address: {0} is not one that guests could use")]
    NotUsable(Ipv4Addr),
    #[error("gateway {gateway} is the {what} address of {subnet}")]
    NoHost { gateway: Ipv4Addr, what: &'static str, subnet: Ipv4Net },
    #[error("gateway {gateway} is the address of the name server in {subnet}")]
    NameServer { gateway: Ipv4Addr, subnet: Ipv4Net },
    #[error("dhcpEnd {end} is outside of {subnet}")]
    EndOutside { end: Ipv4Addr, subnet: Ipv4Net },
    #[error("dhcpEnd {end} leaves no guest an address: theirs come after the gateway {gateway}")]
    EndTooEarly { end: Ipv4Addr, gateway: Ipv4Addr },
}

/// How many addresses after the network address a user-mode network keeps for itself.
const RESERVED: u32 = 3;

impl Subnet {
    /// The default of `netmask`.
    pub const DEFAULT_PREFIX: u8 = 24;

    /// Checks everything that a gateway and a netmask must be, and fills in the end of DHCP where
    /// none is given.
    pub fn new(
        mode: Mode,
        gateway: Ipv4Addr,
        prefix: u8,
        dhcp_end: Option<Ipv4Addr>,
    ) -> Result<Self, SubnetError> {
        let first = gateway.octets()[0];
        if first == 0 || first == 127 || first >= 224 || gateway.is_link_local() {
            return Err(SubnetError::NotUsable(gateway));
        }
        let subnet = Ipv4Net::new_assert(gateway, prefix.min(32)).trunc();
        if prefix > 29 {
            return Err(SubnetError::TooSmall(subnet));
        }
        if prefix < 8 {
            return Err(SubnetError::TooLarge(subnet));
        }
        let not = |what| Err(SubnetError::NoHost { gateway, what, subnet });
        if gateway == subnet.network() {
            return not("network");
        }
        if gateway == subnet.broadcast() {
            return not("broadcast");
        }
        if mode == Mode::UserV2 {
            if gateway.to_bits() - subnet.network().to_bits() == RESERVED {
                return Err(SubnetError::NameServer { gateway, subnet });
            }
            return Ok(Self { gateway, prefix, dhcp_end: None });
        }
        let end = dhcp_end.unwrap_or_else(|| default_end(gateway, subnet));
        if !subnet.contains(&end) || end == subnet.broadcast() || end == subnet.network() {
            return Err(SubnetError::EndOutside { end, subnet });
        }
        if end <= gateway {
            return Err(SubnetError::EndTooEarly { end, gateway });
        }
        Ok(Self { gateway, prefix, dhcp_end: Some(end) })
    }

    /// The built-in network's addresses.
    pub(crate) fn built_in() -> Self {
        Self {
            gateway: Ipv4Addr::new(192, 168, 104, 1),
            prefix: Self::DEFAULT_PREFIX,
            dhcp_end: None,
        }
    }

    pub fn net(&self) -> Ipv4Net {
        Ipv4Net::new_assert(self.gateway, self.prefix.min(32)).trunc()
    }

    pub fn netmask(&self) -> Ipv4Addr {
        self.net().netmask()
    }

    /// The gateway with the length of the prefix, as listings show it.
    pub fn gateway_cidr(&self) -> String {
        format!("{}/{}", self.gateway, self.prefix)
    }

    /// The host's address on a user-mode network.
    pub fn host(&self) -> Ipv4Addr {
        self.nth(RESERVED - 1)
    }

    /// The name server's address on a user-mode network.
    pub fn dns(&self) -> Ipv4Addr {
        self.nth(RESERVED)
    }

    fn nth(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.net().network().to_bits().saturating_add(n))
    }
}

/// Reads `gateway` of the command line: an address, and after a slash how long the prefix is, 24
/// where nothing is said.
pub fn parse_gateway(text: &str) -> Result<(Ipv4Addr, u8), SubnetError> {
    let wrong = || SubnetError::NotAnAddress(text.into());
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, prefix.parse().map_err(|_| wrong())?),
        None => (text, Subnet::DEFAULT_PREFIX),
    };
    if prefix > 32 {
        return Err(wrong());
    }
    Ok((address.parse().map_err(|_| wrong())?, prefix))
}

/// The length of a netmask's prefix.
pub(crate) fn prefix_of(mask: Ipv4Addr) -> Result<u8, SubnetError> {
    ipnet::ipv4_mask_to_prefix(mask).map_err(|_| SubnetError::NotAMask(mask))
}

/// The gateway's address with 254 at its end; in a subnet where that is no guest's address, the
/// subnet's last.
fn default_end(gateway: Ipv4Addr, subnet: Ipv4Net) -> Ipv4Addr {
    let [a, b, c, _] = gateway.octets();
    let end = Ipv4Addr::new(a, b, c, 254);
    if subnet.contains(&end) && end != subnet.broadcast() && end > gateway {
        return end;
    }
    Ipv4Addr::from_bits(subnet.broadcast().to_bits() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(mode: Mode, text: &str) -> Result<Subnet, SubnetError> {
        let (gateway, prefix) = parse_gateway(text)?;
        Subnet::new(mode, gateway, prefix, None)
    }

    fn end(text: &str) -> String {
        subnet(Mode::Shared, text).unwrap().dhcp_end.unwrap().to_string()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let shared = subnet(Mode::Shared, "192.168.42.1").unwrap();
        assert_eq!(shared.gateway_cidr(), "192.168.42.1/24");
        assert_eq!(shared.netmask().to_string(), "255.255.255.0");
        assert_eq!(end("192.168.42.1"), "192.168.42.254");
        assert_eq!(end("10.1.0.1/16"), "10.1.0.254");
        assert_eq!(end("10.1.0.1/25"), "10.1.0.126");
        assert_eq!(subnet(Mode::UserV2, "10.1.0.254").unwrap().dhcp_end, None);
        assert_eq!(end("10.1.0.129/29"), "10.1.0.134");
    }

    #[test]
    fn what_makes_no_network_is_said() {
        let cases = [
            ("x", "`x` is not an IPv4 address"),
            ("10.0.0.1/33", "`10.0.0.1/33` is not an IPv4 address"),
            ("10.0.0.1/x", "`10.0.0.1/x` is not an IPv4 address"),
            ("10.0.0.256", "`10.0.0.256` is not an IPv4 address"),
            ("fd00::1/64", "`fd00::1/64` is not an IPv4 address"),
            ("0.0.0.0", "invalid IP address: 0.0.0.0 is not one that guests could use"),
            ("127.0.0.1", "invalid IP address: 127.0.0.1 is not one that guests could use"),
            ("169.254.1.1", "invalid IP address: 169.254.1.1 is not one that guests could use"),
            ("239.0.0.1", "invalid IP address: 239.0.0.1 is not one that guests could use"),
            (
                "10.0.0.1/30",
                "subnet 10.0.0.0/30 is too small: gateway, host, DNS and one guest need a /29 or \
                 larger",
            ),
            ("10.0.0.1/7", "subnet 10.0.0.0/7 is too large: at most a /8"),
            ("10.0.0.0/24", "gateway 10.0.0.0 is the network address of 10.0.0.0/24"),
            ("10.0.0.255/24", "gateway 10.0.0.255 is the broadcast address of 10.0.0.0/24"),
            ("10.0.0.3/24", "gateway 10.0.0.3 is the address of the name server in 10.0.0.0/24"),
        ];
        for (text, want) in cases {
            assert_eq!(subnet(Mode::UserV2, text).unwrap_err().to_string(), want);
        }
        let mask = prefix_of(Ipv4Addr::new(255, 0, 255, 0)).unwrap_err().to_string();
        assert_eq!(mask, "`255.0.255.0` is not a netmask: its ones must come before its zeros");
        let ending = |mode, end: [u8; 4]| {
            Subnet::new(mode, Ipv4Addr::new(10, 0, 0, 9), 24, Some(end.into()))
        };
        let wrong = |mode, end| ending(mode, end).unwrap_err().to_string();
        let outside = "dhcpEnd 10.0.0.255 is outside of 10.0.0.0/24";
        assert_eq!(wrong(Mode::Shared, [10, 0, 0, 255]), outside);
        assert_eq!(wrong(Mode::Host, [10, 0, 1, 5]), "dhcpEnd 10.0.1.5 is outside of 10.0.0.0/24");
        assert_eq!(
            wrong(Mode::Shared, [10, 0, 0, 9]),
            "dhcpEnd 10.0.0.9 leaves no guest an address: theirs come after the gateway 10.0.0.9"
        );
        ending(Mode::Shared, [10, 0, 0, 10]).unwrap();
        subnet(Mode::Host, "10.0.0.3").unwrap();
    }
}
