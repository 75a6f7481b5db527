//! The usual scene: a host, an outside world that it reaches, and guests on the host's vmlan
//! network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netd::Netd;
use crate::netns::{Netns, veth};

/// The default network's host alias and gateway, its nameserver, and its first guest.
pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 5, 2));
pub const DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 5, 3));
pub const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 5, 15));

/// The next machine beyond the host.
pub const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));

/// The same machine over IPv6.
pub const OUTSIDE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2));

/// A host with the daemon under test, a namespace guest with `tap0`, and the outside.
#[derive(Debug)]
pub struct World {
    pub guest: Netns,
    pub netd: Netd,
    pub host: Netns,
    pub outside: Netns,
}

impl World {
    /// One guest on the default network, with nothing said besides.
    #[track_caller]
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// One guest on the default network, with more arguments for `vmlan netd`.
    #[track_caller]
    pub fn with(arguments: &[&str]) -> Self {
        Self::with_guest("ifname=tap0", arguments)
    }

    /// As `with`, with these options of the guest's `--netns`.
    #[track_caller]
    pub fn with_guest(options: &str, arguments: &[&str]) -> Self {
        let (host, outside) = host_and_outside();
        Self::on(host, outside, options, arguments)
    }

    /// The daemon and a guest on a host that the test has prepared.
    #[track_caller]
    pub fn on(host: Netns, outside: Netns, options: &str, arguments: &[&str]) -> Self {
        let guest = Netns::new();
        let mut all = vec!["--netns".to_owned(), format!("{},{options}", guest.path().display())];
        if !arguments.contains(&"--subnet") {
            all.extend(["--subnet".to_owned(), "192.168.5.0/24".to_owned()]);
        }
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let netd = Netd::start(&host, &all);
        Self { guest, netd, host, outside }
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// A host with a way to another machine, over IPv4 and IPv6.
///
/// The outside routes for the documentation prefix 203.0.113.0/24: its lower half is unreachable
/// and said to be so, its upper half swallows everything.
pub fn host_and_outside() -> (Netns, Netns) {
    let (host, outside) = (Netns::new(), Netns::new());
    veth(&host, "up0", &outside, "down0");
    host.ip("address add 198.51.100.1/24 dev up0");
    host.ip("address add 2001:db8:1::1/64 dev up0 nodad");
    host.ip("route add default via 198.51.100.2");
    host.ip("-6 route add default via 2001:db8:1::2");
    outside.ip("address add 198.51.100.2/24 dev down0");
    outside.ip("address add 2001:db8:1::2/64 dev down0 nodad");
    outside.sysctl("net/ipv4/ip_forward", "1");
    outside.ip("route add unreachable 203.0.113.0/25");
    outside.ip("route add blackhole 203.0.113.128/25");
    // As on any machine of today; a new namespace starts with nobody allowed.
    host.sysctl("net/ipv4/ping_group_range", "0 2147483647");
    host.set_resolv_conf("nameserver 198.51.100.2\n");
    (host, outside)
}
