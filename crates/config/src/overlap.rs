//! Networks whose addresses somebody else has already.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::networks::{Mode, Networks};
use crate::routes::Route;
use crate::subnet::Subnet;

/// The network that every guest without another one is on.
const DEFAULT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 5, 0), 24);

/// Who has addresses of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overlap {
    #[error("{subnet} overlaps network `{name}` ({net})")]
    Network { subnet: Ipv4Net, name: String, net: Ipv4Net },
    #[error("{subnet} overlaps the default network ({DEFAULT})")]
    Default { subnet: Ipv4Net },
    #[error("{subnet} overlaps the host's route to {net} on {interface}")]
    Route { subnet: Ipv4Net, net: Ipv4Net, interface: String },
}

/// Everybody who has addresses of `subnet`, other than the network called `name`.
pub fn find(subnet: Ipv4Net, name: &str, networks: &Networks, routes: &[Route]) -> Vec<Overlap> {
    let mut found = Vec::new();
    if overlap(subnet, DEFAULT) {
        found.push(Overlap::Default { subnet });
    }
    for network in networks.iter().filter(|network| network.name != name) {
        if let Some(net) = network.subnet().map(Subnet::net).filter(|net| overlap(subnet, *net)) {
            found.push(Overlap::Network { subnet, name: network.name.clone(), net });
        }
    }
    // The host's interface on the network itself is no collision.
    let own = |route: &Route| {
        let host_has_one = networks.get(name).is_some_and(|network| network.mode != Mode::UserV2);
        host_has_one && route.net == subnet
    };
    for route in routes {
        if route.net.prefix_len() > 0 && overlap(subnet, route.net) && !own(route) {
            let (net, interface) = (route.net, route.interface.clone());
            found.push(Overlap::Route { subnet, net, interface });
        }
    }
    found
}

/// Whether a route, other than the default one, leads to addresses of the default network.
pub fn with_default(route: &Route) -> bool {
    route.net.prefix_len() > 0 && overlap(route.net, DEFAULT)
}

/// A gateway whose /24 nobody has, for people who are asked for one.
pub fn free(networks: &Networks, routes: &[Route]) -> Option<Ipv4Net> {
    let candidates = (107..=254).chain(20..=103).map(|c| Ipv4Addr::new(192, 168, c, 1));
    candidates
        .map(|gateway| Ipv4Net::new_assert(gateway, Subnet::DEFAULT_PREFIX))
        .find(|gateway| find(gateway.trunc(), "", networks, routes).is_empty())
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::networks;

    fn route(net: &str) -> Route {
        Route { net: net.parse().unwrap(), interface: "tun0".into() }
    }

    #[test]
    fn who_has_the_addresses_is_named() {
        let networks = networks("networks: {lab: {mode: host, gateway: 10.7.0.1}}");
        let routes = [route("0.0.0.0/0"), route("10.0.0.0/8")];
        let find = |net: &str| {
            let found = find(net.parse().unwrap(), "", &networks, &routes);
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            find("10.7.0.128/25"),
            [
                "10.7.0.128/25 overlaps network `lab` (10.7.0.0/24)",
                "10.7.0.128/25 overlaps the host's route to 10.0.0.0/8 on tun0",
            ]
        );
        assert_eq!(
            find("192.168.0.0/16"),
            [
                "192.168.0.0/16 overlaps the default network (192.168.5.0/24)",
                "192.168.0.0/16 overlaps network `user-v2` (192.168.104.0/24)",
            ]
        );
        assert!(find("172.20.0.0/24").is_empty());
    }

    #[test]
    fn a_network_does_not_collide_with_itself() {
        let networks = networks("networks: {lab: {mode: host, gateway: 10.7.0.1}}");
        let net = "10.7.0.0/24".parse().unwrap();
        assert!(find(net, "lab", &networks, &[route("10.7.0.0/24")]).is_empty());
        assert_eq!(find(net, "lab", &networks, &[route("10.7.0.0/16")]).len(), 1);
    }

    #[test]
    fn free_is_what_nobody_has() {
        let networks = networks("networks: {lab: {mode: host, gateway: 192.168.107.1}}");
        assert_eq!(free(&networks, &[]).unwrap().to_string(), "192.168.108.1/24");
        assert_eq!(free(&networks, &[route("192.168.0.0/16")]), None);
    }
}
