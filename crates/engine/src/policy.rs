//! Where a guest may go: the one place that turns an address as the guest sees it into an address
//! of the host's network, or refuses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{Config, HostLoopback};

/// Where a guest's packet leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// A stream or datagram socket to this address of the host's network.
    To(SocketAddr),
    /// The name service.
    Dns,
    /// No guest may go there: answered with "administratively prohibited".
    Forbidden,
    /// An address of this network that nobody has: "host unreachable".
    NoGuest,
}

/// Routes a TCP or UDP destination.
pub(crate) fn route(config: &Config, dst: SocketAddr) -> Route {
    let ip = dst.ip();
    if config.is_own(ip) {
        if dst.port() == 53 {
            return Route::Dns;
        }
        if !config.is_host_alias(ip) || !loopback_allowed(config, dst.port()) {
            return Route::Forbidden;
        }
        // Over IPv6 the host side tries ::1 and falls back to 127.0.0.1.
        let loopback = match ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        return Route::To(SocketAddr::new(loopback, dst.port()));
    }
    if config.contains(ip) {
        return Route::NoGuest;
    }
    if config.router.is_some() {
        return Route::Forbidden;
    }
    let allowed =
        is_outside(ip) && (!is_host_address(config, ip) || loopback_allowed(config, dst.port()));
    if allowed { Route::To(dst) } else { Route::Forbidden }
}

/// Routes an echo request, which has no port.
pub(crate) fn route_ping(config: &Config, ip: IpAddr) -> Route {
    if config.contains(ip) {
        return Route::NoGuest;
    }
    if config.router.is_some() {
        return Route::Forbidden;
    }
    let hidden = config.host_loopback != HostLoopback::All && is_host_address(config, ip);
    if is_outside(ip) && !hidden {
        return Route::To(SocketAddr::new(ip, 0));
    }
    Route::Forbidden
}

/// Whether an address is one that a guest may reach on the host's network at all.
pub(crate) fn is_outside(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => is_outside_v4(a),
        IpAddr::V6(a) => {
            !(a.is_unicast_link_local() || a.is_multicast())
                && match embedded_v4(a) {
                    Embedded::Never => false,
                    Embedded::In(v4) => is_outside_v4(v4),
                    Embedded::None => true,
                }
        }
    }
}

/// RFC 6890: "this network", loopback, link-local with the metadata address, multicast, reserved
/// and broadcast are nobody's business outside.
fn is_outside_v4(a: Ipv4Addr) -> bool {
    let [first, ..] = a.octets();
    !(first == 0 || a.is_loopback() || a.is_link_local() || a.is_multicast() || first >= 240)
}

/// An IPv4 address within an IPv6 one, by which a translator or tunnel could be talked into going
/// where the guest may not.
enum Embedded {
    None,
    In(Ipv4Addr),
    /// A form that only makes sense within a host.
    Never,
}

fn embedded_v4(a: Ipv6Addr) -> Embedded {
    let bits = a.to_bits();
    #[expect(clippy::cast_possible_truncation, reason = "32 of 128 bits are meant")]
    let v4 = |shift: u32| Ipv4Addr::from_bits((bits >> shift) as u32);
    match a.segments() {
        // ::, ::1 and IPv4-compatible; IPv4-mapped; IPv4-translated (RFC 4291, 2765).
        [0, 0, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => {
            Embedded::Never
        }
        // NAT64 (RFC 6052, 8215).
        [0x64, 0xff9b, ..] => Embedded::In(v4(0)),
        // 6to4 (RFC 3056).
        [0x2002, ..] => Embedded::In(v4(80)),
        // Teredo, which inverts the client's address (RFC 4380).
        [0x2001, 0, ..] => Embedded::In(Ipv4Addr::from_bits(!v4(0).to_bits())),
        // ISATAP (RFC 5214).
        [_, _, _, _, 0 | 0x0200, 0x5efe, ..] => Embedded::In(v4(0)),
        _ => Embedded::None,
    }
}

/// Whether an address is one of the host's own interfaces: its loopback by another name.
fn is_host_address(config: &Config, ip: IpAddr) -> bool {
    let is = |ip: IpAddr| config.host_addresses.contains(&ip);
    match ip {
        IpAddr::V4(_) => is(ip),
        IpAddr::V6(a) => match embedded_v4(a) {
            Embedded::In(v4) => is(ip) || is(v4.into()),
            _ => is(ip),
        },
    }
}

fn loopback_allowed(config: &Config, port: u16) -> bool {
    match &config.host_loopback {
        HostLoopback::All => true,
        HostLoopback::Ports(ports) => ports.contains(&port),
        HostLoopback::None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new("192.168.5.0/24".parse().unwrap(), None, [0; 16]).unwrap();
        config.host_addresses = vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        config
    }

    fn to(config: &Config, dst: &str) -> Route {
        route(config, dst.parse().unwrap())
    }

    fn socket(addr: &str) -> Route {
        Route::To(addr.parse().unwrap())
    }

    #[test]
    fn own_addresses() {
        let config = config();
        assert_eq!(to(&config, "192.168.5.2:80"), socket("127.0.0.1:80"));
        assert_eq!(to(&config, "[fd76:6d6c:c0a8:500::2]:80"), socket("[::1]:80"));
        assert_eq!(to(&config, "[fd76:6d6c:c0a8:500::1]:80"), socket("[::1]:80"));
        assert_eq!(to(&config, "192.168.5.3:53"), Route::Dns);
        assert_eq!(to(&config, "192.168.5.2:53"), Route::Dns);
        assert_eq!(to(&config, "192.168.5.3:80"), Route::Forbidden);
        assert_eq!(to(&config, "192.168.5.15:80"), Route::NoGuest);
        assert_eq!(to(&config, "[fd76:6d6c:c0a8:500::15]:80"), Route::NoGuest);
    }

    #[test]
    fn beside_a_router_nobody_is_led_anywhere() {
        let subnet = "192.168.105.0/24".parse().unwrap();
        let [gateway, last] = ["192.168.105.1", "192.168.105.254"].map(|a| a.parse().unwrap());
        let mac = vmlan_wire::Mac([2, 0, 0, 0, 0, 1]);
        let config = Config::beside(subnet, gateway, mac, last, [0; 16]).unwrap();
        assert_eq!(to(&config, "192.168.105.3:53"), Route::Dns);
        assert_eq!(to(&config, "[fd76:6d6c:c0a8:6900::3]:53"), Route::Dns);
        assert_eq!(to(&config, "192.168.105.3:80"), Route::Forbidden);
        assert_eq!(to(&config, "192.168.105.1:53"), Route::NoGuest);
        assert_eq!(to(&config, "[fd76:6d6c:c0a8:6900::1]:80"), Route::NoGuest);
        for dst in ["1.1.1.1:53", "10.0.0.1:80", "[2606:4700::1111]:443"] {
            assert_eq!(to(&config, dst), Route::Forbidden, "{dst}");
        }
        assert_eq!(route_ping(&config, "1.1.1.1".parse().unwrap()), Route::Forbidden);
    }

    #[test]
    fn outside() {
        let config = config();
        for dst in [
            "1.1.1.1:443",
            "10.0.0.1:22",
            "192.0.2.7:80",
            "192.168.6.2:80",
            "[2001:db8::7]:80",
            "[2606:4700::1111]:443",
            "[fd00::1]:80",
            "[64:ff9b::1.1.1.1]:80",
            "[2002:101:101::1]:80",
            "[2001:0:101:101::fefe:fefe]:80",
        ] {
            assert_eq!(to(&config, dst), socket(dst), "{dst}");
        }
    }

    #[test]
    fn where_nobody_may_go() {
        let config = config();
        for dst in [
            "0.0.0.0:80",
            "0.1.2.3:80",
            "127.0.0.1:80",
            "127.255.0.1:80",
            "169.254.169.254:80",
            "169.254.0.1:80",
            "224.0.0.251:5353",
            "239.255.255.250:1900",
            "240.0.0.1:80",
            "255.255.255.255:67",
            "[::]:80",
            "[::1]:80",
            "[::7f00:1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:1.1.1.1]:80",
            "[::ffff:0:127.0.0.1]:80",
            "[ff02::1]:80",
            "[ff0e::1]:80",
            "[64:ff9b::127.0.0.1]:80",
            "[64:ff9b::169.254.169.254]:80",
            "[64:ff9b:1::127.0.0.1]:80",
            "[2002:7f00:1::1]:80",
            "[2002:a9fe:a9fe::1]:80",
            "[2001:0:101:101::80ff:fffe]:80",
            "[2001:db8::5efe:127.0.0.1]:80",
        ] {
            assert_eq!(to(&config, dst), Route::Forbidden, "{dst}");
        }
        // Link-local belongs to the guests' own link.
        assert_eq!(to(&config, "[fe80::1]:80"), Route::NoGuest);
    }

    #[test]
    fn with_loopback_off_the_host_is_gone_under_every_name() {
        let mut config = config();
        config.host_loopback = HostLoopback::None;
        for dst in [
            "192.168.5.2:80",
            "[fd76:6d6c:c0a8:500::2]:80",
            "192.0.2.7:80",
            "[2001:db8::7]:80",
            "[64:ff9b::192.0.2.7]:80",
            "[2002:c000:207::1]:80",
        ] {
            assert_eq!(to(&config, dst), Route::Forbidden, "{dst}");
        }
        assert_eq!(to(&config, "192.168.5.2:53"), Route::Dns);
        assert_eq!(to(&config, "192.0.2.8:80"), socket("192.0.2.8:80"));
        assert_eq!(route_ping(&config, "192.0.2.7".parse().unwrap()), Route::Forbidden);
        assert_eq!(route_ping(&config, "192.0.2.8".parse().unwrap()), socket("192.0.2.8:0"));
    }

    #[test]
    fn a_list_of_ports_counts_for_every_name_too() {
        let mut config = config();
        config.host_loopback = HostLoopback::Ports([8080].into());
        assert_eq!(to(&config, "192.168.5.2:8080"), socket("127.0.0.1:8080"));
        assert_eq!(to(&config, "192.168.5.2:8081"), Route::Forbidden);
        assert_eq!(to(&config, "192.0.2.7:8080"), socket("192.0.2.7:8080"));
        assert_eq!(to(&config, "192.0.2.7:8081"), Route::Forbidden);
    }
}
