//! Where a guest may go: the one place that turns an address as the guest sees it into an address
//! of the host's network, or refuses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{Config, HostLoopback};
use crate::io::StreamTarget;

/// Where a guest's packet leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// A stream or datagram socket to this address of the host's network.
    To(StreamTarget),
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
            return Route::To(StreamTarget::Dns);
        }
        if !config.is_host_alias(ip) || !loopback_allowed(config, dst.port()) {
            return Route::Forbidden;
        }
        // Over IPv6 the host side tries ::1 and falls back to 127.0.0.1.
        let loopback = match ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        return Route::To(StreamTarget::Tcp(SocketAddr::new(loopback, dst.port())));
    }
    if config.contains(ip) {
        return Route::NoGuest;
    }
    if is_outside(ip) { Route::To(StreamTarget::Tcp(dst)) } else { Route::Forbidden }
}

/// Whether an address is one that a guest may reach on the host's network at all.
pub(crate) fn is_outside(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => {
            let [first, ..] = a.octets();
            !(first == 0
                || a.is_loopback()
                || a.is_link_local()
                || a.is_multicast()
                || first >= 240)
        }
        IpAddr::V6(a) => {
            let mapped = a.to_ipv4_mapped().is_some() || is_v4_compatible(a);
            !(a.is_unspecified()
                || a.is_loopback()
                || mapped
                || a.is_unicast_link_local()
                || a.is_multicast())
        }
    }
}

fn is_v4_compatible(a: Ipv6Addr) -> bool {
    a.segments()[..6] == [0; 6]
}

fn loopback_allowed(config: &Config, port: u16) -> bool {
    match &config.host_loopback {
        HostLoopback::All => true,
        HostLoopback::Ports(ports) => ports.contains(&port),
        HostLoopback::None => false,
    }
}
