//! What one user-mode network is: its addresses and its rules, resolved and checked.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vmlan_wire::Mac;

/// A user-mode network. Build it with [`Config::new`], then change fields.
#[derive(Clone, Debug)]
pub struct Config {
    pub ipv4: Ipv4Net,
    /// The router that guests see.
    pub gateway: Ipv4Addr,
    /// `host.lima.internal`: leads to the host's loopback.
    pub host: Ipv4Addr,
    pub dns: Ipv4Addr,
    /// First address of the DHCP pool.
    pub first_guest: Ipv4Addr,
    /// Last address of the DHCP pool, if it is not that of the subnet.
    pub last_guest: Option<Ipv4Addr>,
    /// Somebody else who routes the guests' packets. The engine then serves addresses and names,
    /// and leads nowhere.
    pub router: Option<Router>,
    /// Nothing but the switch: addresses, routes and names are somebody else's on this network, and
    /// so is every rule about them.
    pub switch_only: bool,
    pub ipv6: Ipv6Net,
    pub gateway_mac: Mac,
    /// Bytes of an IP packet, header included; 576 to 65520.
    pub mtu: u16,
    /// Search domains for DHCP and RA.
    pub search: Vec<String>,
    /// Addresses that DHCP keeps for one guest; they need not be in the pool.
    pub reservations: Vec<(Mac, Ipv4Addr)>,
    pub host_loopback: HostLoopback,
    /// The host's own addresses, which are its loopback by other names.
    pub host_addresses: Vec<IpAddr>,
    /// Seed of every hash, sequence number and choice; random in production.
    pub seed: [u8; 16],
    /// Flows that one guest may hold at once, of each protocol.
    pub max_flows: usize,
    /// Pings (addresses and identifiers) that one guest may have under way at once.
    pub max_pings: usize,
    /// Unix time at engine time zero, for lease files and captures; 0 if unknown.
    pub epoch: u64,
}

/// A router beside the engine, such as the host's kernel on a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Router {
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    pub mac: Mac,
    /// Whether guests are told to send by it what is for elsewhere.
    pub leads_out: bool,
}

/// An IPv4 subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Net {
    pub network: Ipv4Addr,
    pub prefix: u8,
}

/// The network's ULA prefix (RFC 4193), always /64, with the addresses the engine answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Net {
    pub prefix: Ipv6Addr,
}

/// Which ports of the host's loopback a guest may reach through the host alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostLoopback {
    All,
    Ports(BTreeSet<u16>),
    None,
}

/// Why a network cannot be as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("subnet {0} is too small: gateway, host, DNS and one guest need a /29 or larger")]
    TooSmall(Ipv4Net),
    #[error("subnet {0} is not a private or shared range that guests could use")]
    NotUsable(Ipv4Net),
    #[error("gateway {gateway} leaves no address for guests in {subnet}")]
    NoRoom { gateway: Ipv4Addr, subnet: Ipv4Net },
    #[error("gateway {gateway} is not a host address of {subnet}")]
    GatewayOutside { gateway: Ipv4Addr, subnet: Ipv4Net },
    #[error("MTU {0} is outside 576 to 65520")]
    Mtu(u32),
}

impl Config {
    /// The network `subnet` with vmlan's addressing: host `.2`, DNS `.3`, gateway as given or
    /// `.2`. On the default network (gateway and host both `.2`) the first guest is `.15`;
    /// elsewhere the pool starts after the reserved addresses.
    pub fn new(
        subnet: Ipv4Net,
        gateway: Option<Ipv4Addr>,
        seed: [u8; 16],
    ) -> Result<Self, ConfigError> {
        if subnet.prefix > 29 {
            return Err(ConfigError::TooSmall(subnet));
        }
        let first = subnet.network.octets()[0];
        if subnet.prefix < 8 || first == 0 || first == 127 || first >= 224 {
            return Err(ConfigError::NotUsable(subnet));
        }
        let host = subnet.nth(2);
        let dns = subnet.nth(3);
        let gateway = gateway.unwrap_or(host);
        if !subnet.is_host(gateway) || gateway == dns {
            return Err(ConfigError::GatewayOutside { gateway, subnet });
        }
        let first_guest = if gateway == host && subnet.prefix <= 27 { 15 } else { 4 };
        let [a, b, c, d] = gateway.octets();
        Ok(Self {
            ipv4: subnet,
            gateway,
            host,
            dns,
            first_guest: subnet.nth(first_guest),
            last_guest: None,
            router: None,
            switch_only: false,
            ipv6: Ipv6Net::for_subnet(subnet),
            gateway_mac: Mac([0x52, 0x55, a, b, c, d]),
            mtu: 65520,
            search: Vec::new(),
            reservations: Vec::new(),
            host_loopback: HostLoopback::All,
            host_addresses: Vec::new(),
            seed,
            max_flows: 16_384,
            max_pings: 1024,
            epoch: 0,
        })
    }

    /// The network `subnet` of the host's own router at `gateway`, whose guests have addresses from
    /// there to `last_guest`. The engine has the third address, the second where the router has it.
    pub fn beside(
        subnet: Ipv4Net,
        gateway: Ipv4Addr,
        mac: Mac,
        last_guest: Ipv4Addr,
        seed: [u8; 16],
    ) -> Result<Self, ConfigError> {
        let own = if gateway == subnet.nth(3) { subnet.nth(2) } else { subnet.nth(3) };
        if !subnet.is_host(gateway) {
            return Err(ConfigError::GatewayOutside { gateway, subnet });
        }
        let mut config = Self::new(subnet, Some(subnet.nth(1)), seed)?;
        let first = gateway.to_bits().wrapping_add(1).max(subnet.nth(4).to_bits());
        if first > last_guest.to_bits() || !subnet.is_host(last_guest) {
            return Err(ConfigError::NoRoom { gateway, subnet });
        }
        (config.first_guest, config.last_guest) = (first.into(), Some(last_guest));
        (config.gateway, config.host, config.dns) = (own, own, own);
        let [a, b, c, d] = own.octets();
        config.gateway_mac = Mac([0x52, 0x55, a, b, c, d]);
        config.router =
            Some(Router { ipv4: gateway, ipv6: config.ipv6.gateway(), mac, leads_out: true });
        config.mtu = 1500;
        Ok(config)
    }

    /// Nothing but a switch.
    pub fn switch(mtu: u16, seed: [u8; 16]) -> Result<Self, ConfigError> {
        // Of no consequence: nobody is told.
        let subnet = Ipv4Net { network: Ipv4Addr::new(192, 168, 5, 0), prefix: 24 };
        Ok(Self { switch_only: true, mtu, ..Self::new(subnet, None, seed)? })
    }

    /// The router that guests are told of: the engine itself, or who is beside it.
    pub fn router(&self) -> Router {
        self.router.unwrap_or_else(|| Router {
            ipv4: self.gateway,
            ipv6: self.ipv6.gateway(),
            mac: self.gateway_mac,
            leads_out: true,
        })
    }

    /// The address that the engine itself speaks from.
    pub fn own_v6(&self) -> Ipv6Addr {
        if self.router.is_some() { self.ipv6.dns() } else { self.ipv6.gateway() }
    }

    /// Whether the engine itself owns this address.
    pub fn is_own(&self, addr: IpAddr) -> bool {
        if self.router.is_some() {
            return match addr {
                IpAddr::V4(a) => a == self.dns,
                IpAddr::V6(a) => a == self.ipv6.dns() || a == self.link_local(),
            };
        }
        match addr {
            IpAddr::V4(a) => a == self.gateway || a == self.host || a == self.dns,
            IpAddr::V6(a) => {
                let v6 = &self.ipv6;
                a == v6.gateway() || a == v6.host() || a == v6.dns() || a == self.link_local()
            }
        }
    }

    /// Whether this is an address that a guest may have.
    pub fn is_guest(&self, addr: IpAddr) -> bool {
        let inside = match addr {
            IpAddr::V4(a) => self.ipv4.is_host(a),
            IpAddr::V6(a) => self.ipv6.contains(a),
        };
        inside && !self.is_own(addr)
    }

    /// Whether this is an address of the host alias: the gateway's answer for it as well.
    pub fn is_host_alias(&self, addr: IpAddr) -> bool {
        if self.router.is_some() {
            return false;
        }
        match addr {
            IpAddr::V4(a) => a == self.host || a == self.gateway,
            IpAddr::V6(a) => a == self.ipv6.host() || a == self.ipv6.gateway(),
        }
    }

    /// Whether DNS is answered at this address: `.3`, and the gateway and host as well.
    pub fn is_dns(&self, addr: IpAddr) -> bool {
        self.is_own(addr)
    }

    /// Whether an address belongs to this network.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) => self.ipv4.contains(a),
            IpAddr::V6(a) => self.ipv6.contains(a) || a.is_unicast_link_local(),
        }
    }

    /// Whether a guest may have this address: a host's of the subnet, and none of the gateway's.
    pub fn is_guests(&self, addr: IpAddr) -> bool {
        let host = match addr {
            IpAddr::V4(a) => self.ipv4.is_host(a),
            IpAddr::V6(a) => self.contains(addr) && !a.is_multicast() && !a.is_unspecified(),
        };
        host && !self.is_own(addr)
    }

    /// The gateway's link-local address, EUI-64 of its MAC (RFC 4291 appendix A).
    pub fn link_local(&self) -> Ipv6Addr {
        eui64([0xfe80, 0, 0, 0], self.gateway_mac)
    }
}

/// `prefix` completed with the interface identifier made from a MAC.
pub fn eui64(prefix: [u16; 4], mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let [p0, p1, p2, p3] = prefix;
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(p0, p1, p2, p3, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

impl Ipv4Net {
    /// `None` when the prefix is longer than 32.
    pub fn new(addr: Ipv4Addr, prefix: u8) -> Option<Self> {
        let mut net = Self { network: addr, prefix };
        if prefix > 32 {
            return None;
        }
        net.network = Ipv4Addr::from_bits(addr.to_bits() & net.mask().to_bits());
        Some(net)
    }

    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }

    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !self.mask().to_bits())
    }

    pub fn contains(&self, addr: Ipv4Addr) -> bool {
        addr.to_bits() & self.mask().to_bits() == self.network.to_bits()
    }

    /// Inside, and neither the network nor the broadcast address.
    pub fn is_host(&self, addr: Ipv4Addr) -> bool {
        self.contains(addr) && addr != self.network && addr != self.broadcast()
    }

    /// The address `n` above the network address.
    pub fn nth(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits().wrapping_add(n))
    }
}

impl std::fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl std::str::FromStr for Ipv4Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a subnet such as 192.168.5.0/24");
        let (addr, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let (addr, prefix) =
            (addr.parse().map_err(|_| wrong())?, prefix.parse().map_err(|_| wrong())?);
        Self::new(addr, prefix).ok_or_else(wrong)
    }
}

impl Ipv6Net {
    /// A prefix that is the same each time for the same IPv4 subnet. It never leaves the host, so
    /// it needs no randomness.
    pub fn for_subnet(subnet: Ipv4Net) -> Self {
        let [a, b, c, d] = subnet.network.octets();
        let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
        let prefix = Ipv6Addr::new(0xfd76, 0x6d6c, word(a, b), word(c, d), 0, 0, 0, 0);
        Self { prefix }
    }

    pub fn contains(&self, addr: Ipv6Addr) -> bool {
        addr.segments()[..4] == self.prefix.segments()[..4]
    }

    pub fn gateway(&self) -> Ipv6Addr {
        self.nth(1)
    }

    pub fn host(&self) -> Ipv6Addr {
        self.nth(2)
    }

    pub fn dns(&self) -> Ipv6Addr {
        self.nth(3)
    }

    /// The address `n` above the prefix.
    pub fn nth(&self, n: u64) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.prefix.to_bits() | u128::from(n))
    }
}
