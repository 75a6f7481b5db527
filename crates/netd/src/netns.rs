//! Guests that are network namespaces of somebody else's: what `--netns` asks for, and the
//! interface that such a guest is given.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use vmlan_engine::Config;
use vmlan_link::Link;
use vmlan_link::tap::{InterfaceConfig, NetnsError, TapLink, open_in_netns};

/// A TAP to be made in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    pub path: PathBuf,
    pub ifname: String,
    /// Whether to give the interface its addresses and routes and bring it up.
    pub configure: bool,
}

/// Why a text is not a namespace with an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetnsSpecError {
    #[error("there is no path of a network namespace")]
    NoPath,
    #[error("`{0}` is not an option: ifname=NAME, config=on or config=off")]
    Option(String),
    #[error("`{0}` cannot be the name of an interface: 1 to 15 characters without spaces and `/`")]
    Name(String),
}

/// Why a namespace has no guest interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("the subnet {0} has no address left for this guest")]
    NoAddress(String),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("cannot use the interface: {0}")]
    Tap(std::io::Error),
}

impl FromStr for Netns {
    type Err = NetnsSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let path = parts.next().filter(|p| !p.is_empty()).ok_or(NetnsSpecError::NoPath)?;
        let mut spec = Self { path: path.into(), ifname: "tap0".into(), configure: true };
        for part in parts {
            match part.split_once('=') {
                Some(("ifname", name)) => spec.ifname = name.into(),
                Some(("config", "on")) => spec.configure = true,
                Some(("config", "off")) => spec.configure = false,
                _ => return Err(NetnsSpecError::Option(part.into())),
            }
        }
        let name = &spec.ifname;
        let wrong = |c: char| c.is_whitespace() || matches!(c, '/' | ':' | '%');
        if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(wrong)
        {
            return Err(NetnsSpecError::Name(name.clone()));
        }
        Ok(spec)
    }
}

impl Netns {
    /// Makes the interface; one that is configured gets what belongs to guest `number`. To be
    /// called while the process has no other thread.
    pub fn open(&self, config: &Config, number: u32) -> Result<Box<dyn Link>, AttachError> {
        let interface = if self.configure {
            guest_interface(config, number, &self.ifname)
                .ok_or_else(|| AttachError::NoAddress(config.ipv4.to_string()))?
        } else {
            InterfaceConfig { name: self.ifname.clone(), ..InterfaceConfig::default() }
        };
        let device = open_in_netns(&self.path, &interface, self.configure)?;
        Ok(Box::new(TapLink::new(device).map_err(AttachError::Tap)?))
    }
}

/// What the interface of the guest `number` (from 0) has to be: the addresses from the first
/// guest's on, and all that DHCP and RA would say. `None` when the subnet has not so many.
pub fn guest_interface(config: &Config, number: u32, name: &str) -> Option<InterfaceConfig> {
    let first = config.first_guest.to_bits();
    let candidates = (first..=u32::MAX).map(Ipv4Addr::from_bits);
    let mut guests = candidates
        .take_while(|a| config.ipv4.is_host(*a))
        .filter(|a| !config.is_own(IpAddr::V4(*a)));
    let ipv4 = guests.nth(usize::try_from(number).ok()?)?;
    let ipv6 = config.ipv6.nth(u64::from(ipv4.to_bits() - config.ipv4.network.to_bits()));
    Some(InterfaceConfig {
        name: name.into(),
        mtu: Some(config.mtu),
        addresses: vec![(ipv4.into(), config.ipv4.prefix), (ipv6.into(), 64)],
        gateways: vec![config.gateway.into(), config.ipv6.gateway().into()],
        ..InterfaceConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_read() {
        let spec = Netns { path: "/run/netns/a".into(), ifname: "tap0".into(), configure: true };
        assert_eq!("/run/netns/a".parse(), Ok(spec.clone()));
        assert_eq!("/run/netns/a,ifname=tap0".parse(), Ok(spec.clone()));
        let spec = Netns { ifname: "eth0".into(), configure: false, ..spec };
        assert_eq!("/run/netns/a,ifname=eth0,config=off".parse(), Ok(spec));
        for (text, want) in [
            ("", "no path"),
            (",ifname=tap0", "no path"),
            ("/a,tap0", "`tap0` is not an option"),
            ("/a,config=maybe", "`config=maybe` is not an option"),
            ("/a,ifname=", "`` cannot be the name"),
            ("/a,ifname=a/b", "`a/b` cannot be the name"),
            ("/a,ifname=sixteencharacter", "cannot be the name"),
        ] {
            let error = text.parse::<Netns>().unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn each_guest_has_its_own_address() {
        let config = |subnet: &str, gateway: Option<&str>| {
            let gateway = gateway.map(|g| g.parse().unwrap());
            Config::new(subnet.parse().unwrap(), gateway, [0; 16]).unwrap()
        };
        let address = |config: &Config, number| {
            guest_interface(config, number, "tap0").map(|i| i.addresses[0].0.to_string())
        };
        let net = config("192.168.5.0/24", None);
        assert_eq!(address(&net, 0).unwrap(), "192.168.5.15");
        assert_eq!(address(&net, 239).unwrap(), "192.168.5.254");
        assert_eq!(address(&net, 240), None);
        // The gateway is not a guest, wherever it lies.
        let net = config("10.0.0.0/29", Some("10.0.0.5"));
        assert_eq!(address(&net, 0).unwrap(), "10.0.0.4");
        assert_eq!(address(&net, 1).unwrap(), "10.0.0.6");
        assert_eq!(address(&net, 2), None);
        let v6 = guest_interface(&net, 0, "tap0").unwrap().addresses[1].0;
        assert!(net.contains(v6) && !net.is_own(v6));
    }
}
