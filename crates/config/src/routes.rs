//! The host's IPv4 routes, as far as a network's addresses could collide with them.

use std::io;

use ipnet::Ipv4Net;

/// A route of the host. The default route is 0.0.0.0/0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub net: Ipv4Net,
    pub interface: String,
}

/// The routes of the main table.
pub fn read() -> io::Result<Vec<Route>> {
    imp::read()
}

/// The interface that leads outside.
pub fn default_interface(routes: &[Route]) -> Option<String> {
    routes.iter().find(|route| route.net.prefix_len() == 0).map(|route| route.interface.clone())
}

#[cfg(target_os = "linux")]
mod imp {
    use std::net::Ipv4Addr;

    use super::{Ipv4Net, Route, io};

    pub(super) fn read() -> io::Result<Vec<Route>> {
        Ok(parse(&std::fs::read_to_string("/proc/net/route")?))
    }

    /// `/proc/net/route`: interface, destination, gateway, flags, three counters, mask; addresses
    /// are hexadecimal in the machine's own order of bytes.
    fn parse(text: &str) -> Vec<Route> {
        text.lines().skip(1).filter_map(line).collect()
    }

    fn line(line: &str) -> Option<Route> {
        /// `RTF_UP`.
        const UP: u32 = 1;
        let fields: Vec<_> = line.split_whitespace().collect();
        let hex = |i: usize| u32::from_str_radix(fields.get(i)?, 16).ok();
        let address = |bits: u32| Ipv4Addr::from(bits.to_ne_bytes());
        if hex(3)? & UP == 0 {
            return None;
        }
        let net = Ipv4Net::with_netmask(address(hex(1)?), address(hex(7)?)).ok()?;
        Some(Route { net: net.trunc(), interface: (*fields.first()?).into() })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        #[cfg(target_endian = "little")]
        fn the_kernels_table() {
            let text = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
tun0\t0000000A\t00000000\t0000\t0\t0\t0\t000000FF\t0\t0\t0
broken
";
            let route = |net: &str| Route { net: net.parse().unwrap(), interface: "eth0".into() };
            assert_eq!(parse(text), [route("0.0.0.0/0"), route("172.17.0.0/16")]);
        }

        #[test]
        fn this_machines_routes_can_be_read() {
            read().unwrap();
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::net::Ipv4Addr;
    use std::process::Command;

    use super::{Ipv4Net, Route, io};

    pub(super) fn read() -> io::Result<Vec<Route>> {
        let output = Command::new("/usr/sbin/netstat").args(["-rn", "-f", "inet"]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(line).collect())
    }

    /// `Destination Gateway Flags Netif Expire`, where a destination leaves out what is zero at its
    /// end, and a prefix that goes without saying.
    fn line(line: &str) -> Option<Route> {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (destination, interface) = (*fields.first()?, *fields.get(3)?);
        let (address, prefix) = match destination.split_once('/') {
            _ if destination == "default" => ("0", Some(0)),
            Some((address, prefix)) => (address, Some(prefix.parse().ok()?)),
            None => (destination, None),
        };
        let mut octets = [0; 4];
        let mut given = 0;
        for part in address.split('.') {
            *octets.get_mut(usize::from(given))? = part.parse().ok()?;
            given += 1;
        }
        let net = Ipv4Net::new(Ipv4Addr::from(octets), prefix.unwrap_or(8 * given)).ok()?;
        Some(Route { net: net.trunc(), interface: interface.into() })
    }
}
