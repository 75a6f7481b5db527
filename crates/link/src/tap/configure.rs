//! Gives a network interface what a guest would otherwise get by DHCP and RA: addresses, default
//! routes, MTU. In the caller's own network namespace, by netlink, within a millisecond.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::netlink::{Netlink, Request};

/// How an interface has to be set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceConfig {
    pub name: String,
    pub mtu: Option<u16>,
    pub mac: Option<[u8; 6]>,
    /// Addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Next hops of default routes, one for each family at most.
    pub gateways: Vec<IpAddr>,
    /// The metric of the default routes, where the system is not to choose it.
    pub metric: Option<u32>,
    /// There are others on the network: IPv6 addresses and routes come from its routers, and are
    /// looked for before they are used.
    pub accept_ra: bool,
}

/// What could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct ConfigureError {
    what: String,
    source: io::Error,
}

impl ConfigureError {
    pub(super) fn new(what: impl Into<String>, source: io::Error) -> Self {
        Self { what: what.into(), source }
    }

    pub(super) fn what(&self) -> &str {
        &self.what
    }

    pub(super) fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(libc::EIO)
    }
}

/// Brings up the loopback and the interface with all that `config` says. IPv6 addresses are used
/// at once, without duplicate address detection, for nobody else is on the network who could have
/// them. Where the system has no IPv6, or the MTU is too small for it, its part is left out.
pub fn configure_interface(config: &InterfaceConfig) -> Result<(), ConfigureError> {
    let name = &config.name;
    let doing = |what: String| move |source| ConfigureError::new(what, source);
    let mut netlink = Netlink::open().map_err(doing("open a netlink socket".into()))?;
    let up = Request::new(libc::RTM_NEWLINK, 0, &interface(LOOPBACK, true));
    netlink.ask(up).map_err(doing("bring up lo".into()))?;
    let index = index_of(name).map_err(doing(format!("find the interface {name}")))?;

    // The address that the kernel makes by itself when the interface comes up is tentative for a
    // second unless this is off. There is no netlink request for it; without /proc it stays so.
    let set = |key: &str, value: &str| {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{key}"), value);
    };
    set("accept_dad", if config.accept_ra { "1" } else { "0" });
    if config.accept_ra {
        set("accept_ra", "1");
        if let Some(metric) = config.metric {
            set("ra_defrtr_metric", &metric.to_string());
        }
    }

    let mut request = Request::new(libc::RTM_NEWLINK, 0, &interface(index, true));
    let mut what = format!("bring up {name}");
    if let Some(mtu) = config.mtu {
        let _ = write!(what, " with MTU {mtu}");
        request = request.attribute(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes());
    }
    if let Some(mac) = config.mac {
        request = request.attribute(libc::IFLA_ADDRESS, &mac);
    }
    netlink.ask(request).map_err(doing(what))?;

    let mut has_v6 = config.mtu.is_none_or(|mtu| mtu >= IPV6_MIN_MTU);
    for (address, prefix) in &config.addresses {
        if address.is_ipv6() && !has_v6 {
            continue;
        }
        let result = netlink.ask(address_request(index, *address, *prefix));
        if address.is_ipv6() && result.as_ref().is_err_and(is_without_ipv6) {
            has_v6 = false;
            continue;
        }
        result.map_err(doing(format!("give {name} the address {address}/{prefix}")))?;
    }
    for gateway in &config.gateways {
        if gateway.is_ipv4() || has_v6 {
            let result = netlink.ask(route_request(index, *gateway, config.metric));
            result.map_err(doing(format!("set the default route by {gateway} on {name}")))?;
        }
    }
    Ok(())
}

/// Takes an address from an interface, and the routes that need it with it. It may be gone already.
pub fn remove_address(name: &str, address: IpAddr, prefix: u8) -> Result<(), ConfigureError> {
    let doing = |source| ConfigureError::new(format!("take {address} from {name}"), source);
    let mut netlink = Netlink::open().map_err(doing)?;
    let index = index_of(name).map_err(doing)?;
    let mut body = vec![family(address), prefix, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    let request =
        Request::new(libc::RTM_DELADDR, 0, &body).attribute(libc::IFA_LOCAL, &octets(address));
    match netlink.ask(request) {
        Err(e) if e.raw_os_error() != Some(libc::EADDRNOTAVAIL) => Err(doing(e)),
        _ => Ok(()),
    }
}

const LOOPBACK: u32 = 1;

/// RFC 8200 section 5. The kernel gives no IPv6 address to an interface with less.
const IPV6_MIN_MTU: u16 = 1280;

fn index_of(name: &str) -> io::Result<u32> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    Ok(netdevice::name_to_index(socket, name)?)
}

/// IPv6 is compiled out, or switched off for the interface.
fn is_without_ipv6(error: &io::Error) -> bool {
    let codes = [libc::EAFNOSUPPORT, libc::EOPNOTSUPP, libc::EACCES];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// `struct ifinfomsg`.
fn interface(index: u32, up: bool) -> [u8; 16] {
    let flag = u32::from(up).to_ne_bytes();
    let ([i0, i1, i2, i3], [f0, f1, f2, f3]) = (index.to_ne_bytes(), flag);
    [0, 0, 0, 0, i0, i1, i2, i3, f0, f1, f2, f3, f0, f1, f2, f3]
}

fn address_request(index: u32, address: IpAddr, prefix: u8) -> Request {
    // `struct ifaddrmsg`
    let mut body = vec![family(address), prefix, 0, 0];
    if address.is_ipv6() {
        body[2] = IFA_F_NODAD;
    }
    body.extend_from_slice(&index.to_ne_bytes());
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let bytes = octets(address);
    let mut request = Request::new(libc::RTM_NEWADDR, flags, &body)
        .attribute(libc::IFA_LOCAL, &bytes)
        .attribute(libc::IFA_ADDRESS, &bytes);
    if let IpAddr::V4(v4) = address
        && prefix < 31
    {
        let broadcast = v4.to_bits() | u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        request = request.attribute(libc::IFA_BROADCAST, &broadcast.to_be_bytes());
    }
    request
}

fn route_request(index: u32, gateway: IpAddr, metric: Option<u32>) -> Request {
    // `struct rtmsg`: no destination, so everything; by the administrator, as `ip route` says.
    let (table, protocol, scope, kind) =
        (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST);
    let body = [family(gateway), 0, 0, 0, table, protocol, scope, kind, 0, 0, 0, 0];
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let request = Request::new(libc::RTM_NEWROUTE, flags, &body)
        .attribute(libc::RTA_GATEWAY, &octets(gateway))
        .attribute(libc::RTA_OIF, &index.to_ne_bytes());
    match metric {
        Some(metric) => request.attribute(libc::RTA_PRIORITY, &metric.to_ne_bytes()),
        None => request,
    }
}

/// `IFA_F_NODAD`, which libc has for Android only.
const IFA_F_NODAD: u8 = 0x02;

fn family(address: IpAddr) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "2 and 10")]
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}
