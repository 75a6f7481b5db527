//! The interfaces of a network: the bridge, the ports of its guests, and what there is already.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::doing;
use super::netlink::{self, Entry, Netlink, Request};
use super::sysctl;

/// The names of guests' ports begin so. The rest is random: nobody needs to know it.
pub(super) const PORT: &str = "vmlp";

/// `struct ifinfomsg`.
const LINK: usize = 16;

/// `struct ifaddrmsg`.
const ADDRESS: usize = 8;

/// `IFLA_MACVLAN_MODE`, and `MACVLAN_MODE_BRIDGE`: the guests of an interface see each other.
const MACVLAN_MODE: u16 = 1;
const MACVLAN_BRIDGE: u32 = 4;

/// `VETH_INFO_PEER`.
const PEER: u16 = 1;
/// `IFLA_BR_MCAST_SNOOPING`.
const SNOOPING: u16 = 23;

/// An interface that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// What made it, such as `bridge` or `veth`; empty for hardware.
    pub(super) kind: String,
    /// The bridge that it is a port of.
    pub(super) master: Option<u32>,
    /// The interface that it is made on, such as that of a VLAN or a macvlan.
    pub(super) lower: Option<u32>,
    pub(super) mac: Vec<u8>,
    pub(super) mtu: u32,
    pub(super) is_up: bool,
    /// Frames are Ethernet's.
    pub(super) is_ethernet: bool,
    /// The network that has made it, if it is one of ours.
    pub(super) alias: String,
}

/// The interfaces of this network namespace.
#[derive(Debug)]
pub(super) struct Interfaces(Netlink);

impl Interfaces {
    pub(super) fn open() -> Result<Self, String> {
        Netlink::open().map(Self).map_err(doing("open a netlink socket"))
    }

    pub(super) fn all(&mut self) -> Result<Vec<Link>, String> {
        let request = Request::new(libc::RTM_GETLINK, 0, &[0; LINK]);
        let entries = self.0.list(request).map_err(doing("list the interfaces"))?;
        Ok(entries.iter().filter(|e| e.kind == libc::RTM_NEWLINK).filter_map(link).collect())
    }

    pub(super) fn find(&mut self, name: &str) -> Result<Option<Link>, String> {
        Ok(self.all()?.into_iter().find(|link| link.name == name))
    }

    /// What there is of the guests of a network, and what nobody's is because its maker was killed.
    pub(super) fn ports_of(&mut self, network: &str) -> Result<Vec<Link>, String> {
        let is_its = |alias: &str| alias == network || alias.is_empty();
        let ours = |link: &Link| link.name.starts_with(PORT) && is_its(&link.alias);
        Ok(self.all()?.into_iter().filter(ours).collect())
    }

    /// Whether an interface has addresses by which others than its neighbours reach the host.
    pub(super) fn has_address(&mut self, link: &Link) -> Result<bool, String> {
        let request = Request::new(libc::RTM_GETADDR, 0, &[0; ADDRESS]);
        let entries = self.0.list(request).map_err(doing("list the addresses"))?;
        Ok(entries.iter().any(|entry| {
            let is_local = i32::from(entry.u8_at(3)) == i32::from(libc::RT_SCOPE_LINK);
            let is_six = i32::from(entry.u8_at(0)) == libc::AF_INET6;
            entry.u32_at(4) == link.index && !(is_local && is_six)
        }))
    }

    /// Makes a bridge that is up. `mac` stays whatever ports come and go.
    pub(super) fn add_bridge(&mut self, name: &str, mac: &[u8]) -> Result<Link, String> {
        let request = create().text(libc::IFLA_IFNAME, name).attribute(libc::IFLA_ADDRESS, mac);
        let request = request.nest(libc::IFLA_LINKINFO, &[], |info| {
            let info = info.text(libc::IFLA_INFO_KIND, "bridge");
            // Snooping without a querier loses neighbour solicitations in time.
            info.nest(libc::IFLA_INFO_DATA, &[], |data| data.attribute(SNOOPING, &[0]))
        });
        self.0.ask(request).map_err(doing(format!("make the bridge {name}")))?;
        let link = self.find(name)?.ok_or_else(|| format!("the bridge {name} is gone again"))?;
        // Addresses are given by us, the link-local one too, and routes by nobody.
        sysctl::set_ipv6(name, "accept_ra", "0");
        sysctl::set_ipv6(name, "addr_gen_mode", "1");
        self.set_up(&link, true)?;
        Ok(link)
    }

    pub(super) fn add_address(
        &mut self,
        link: &Link,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), String> {
        let (family, bytes) = match address {
            IpAddr::V4(a) => (libc::AF_INET, a.octets().to_vec()),
            IpAddr::V6(a) => (libc::AF_INET6, a.octets().to_vec()),
        };
        let mut body = vec![u8::try_from(family).unwrap_or(0), prefix, IFA_F_NODAD, 0];
        body.extend_from_slice(&link.index.to_ne_bytes());
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let request = Request::new(libc::RTM_NEWADDR, flags, &body)
            .attribute(libc::IFA_LOCAL, &bytes)
            .attribute(libc::IFA_ADDRESS, &bytes);
        let result = self.0.ask(request);
        if address.is_ipv6() && result.as_ref().is_err_and(is_without_ipv6) {
            return Ok(());
        }
        result.map_err(doing(format!("give {} the address {address}/{prefix}", link.name)))
    }

    /// Makes a pair of interfaces: a port of `bridge`, and the guest's end in its namespace. False if
    /// there is one of that name.
    pub(super) fn add_veth(
        &mut self,
        network: &str,
        bridge: &Link,
        guest: &str,
        mac: [u8; 6],
        namespace: BorrowedFd<'_>,
    ) -> Result<bool, String> {
        let name = port_name()?;
        let there = u32::try_from(namespace.as_raw_fd()).unwrap_or(0);
        // A bridge has the smallest MTU of its ports: it is to stay as it is.
        let request = create().text(libc::IFLA_IFNAME, &name).number(libc::IFLA_MTU, bridge.mtu);
        let request = request.nest(libc::IFLA_LINKINFO, &[], |info| {
            let info = info.text(libc::IFLA_INFO_KIND, "veth");
            info.nest(libc::IFLA_INFO_DATA, &[], |data| {
                data.nest(PEER, &[0; LINK], |peer| {
                    peer.text(libc::IFLA_IFNAME, guest)
                        .attribute(libc::IFLA_ADDRESS, &mac)
                        .number(libc::IFLA_MTU, bridge.mtu)
                        .number(libc::IFLA_NET_NS_FD, there)
                })
            })
        });
        match self.0.ask(request) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => return Ok(false),
            made => made.map_err(doing(format!("make {guest} in the guest's namespace")))?,
        }
        self.add_port(network, bridge, &name).map(|()| true)
    }

    /// Makes a TAP that is a port of `bridge` and lives as long as its descriptor.
    pub(super) fn add_tap(&mut self, network: &str, bridge: &Link) -> Result<OwnedFd, String> {
        let name = port_name()?;
        let device = tap(&name).map_err(doing("make a TAP device"))?;
        self.add_port(network, bridge, &name)?;
        Ok(device)
    }

    /// Makes an interface on another one, in the guest's namespace. False if there is one of that
    /// name.
    pub(super) fn add_macvlan(
        &mut self,
        lower: &Link,
        guest: &str,
        mac: [u8; 6],
        namespace: BorrowedFd<'_>,
    ) -> Result<bool, String> {
        let there = u32::try_from(namespace.as_raw_fd()).unwrap_or(0);
        let request = on_another("macvlan", 0, lower, guest, mac);
        match self.0.ask(request.number(libc::IFLA_NET_NS_FD, there)) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            made => made.map(|()| true).map_err(doing(format!("make {guest} on {}", lower.name))),
        }
    }

    /// Makes a device on an interface for a machine. It does not go with its descriptor, but by
    /// [`Self::remove_macvtap`], or with the network.
    pub(super) fn add_macvtap(
        &mut self,
        network: &str,
        lower: &Link,
        mac: [u8; 6],
    ) -> Result<OwnedFd, String> {
        self.remove_macvtap(network, mac)?;
        let name = port_name()?;
        // Devices are called after the number in all namespaces alike.
        let index = random()? >> 2 | 1 << 29;
        let what = || doing(format!("make a device on {}", lower.name));
        self.0.ask(on_another("macvtap", index, lower, &name, mac)).map_err(what())?;
        let port = self.find(&name)?.ok_or_else(|| format!("the port {name} is gone again"))?;
        sysctl::set_ipv6(&name, "disable_ipv6", "1");
        let opened = self.set_alias(&port, network).and_then(|()| self.set_up(&port, true));
        opened.and_then(|()| open_macvtap(index, &name)).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = self.remove(&port);
        })
    }

    /// Removes what a machine of this MAC address has left.
    pub(super) fn remove_macvtap(&mut self, network: &str, mac: [u8; 6]) -> Result<(), String> {
        let ports = self.ports_of(network)?;
        for port in ports.iter().filter(|port| port.kind == "macvtap" && port.mac == mac) {
            self.remove(port)?;
        }
        Ok(())
    }

    fn add_port(&mut self, network: &str, bridge: &Link, name: &str) -> Result<(), String> {
        let port = self.find(name)?.ok_or_else(|| format!("the port {name} is gone again"))?;
        // It is the bridge that the host has addresses on.
        sysctl::set_ipv6(name, "disable_ipv6", "1");
        let enslaved = self.set_alias(&port, network);
        let enslaved = enslaved.and_then(|()| self.set_master(&port, bridge));
        enslaved.and_then(|()| self.set_up(&port, true)).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = self.remove(&port);
        })
    }

    /// Says whose a port is.
    fn set_alias(&mut self, port: &Link, network: &str) -> Result<(), String> {
        let request = Request::new(libc::RTM_NEWLINK, 0, &header(port.index));
        let request = request.attribute(libc::IFLA_IFALIAS, network.as_bytes());
        self.0.ask(request).map_err(doing(format!("mark {}", port.name)))
    }

    /// Makes an interface a port of a bridge, which keeps the MTU and the MAC address that it has:
    /// it takes the smallest of its ports'.
    pub(super) fn set_master(&mut self, port: &Link, bridge: &Link) -> Result<(), String> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &header(port.index));
        if port.name.starts_with(PORT) {
            let [a, b, c, d] = random()?.to_ne_bytes();
            request = request.attribute(libc::IFLA_ADDRESS, &[0xfe, 0xff, a, b, c, d]);
            if port.mtu != bridge.mtu {
                request = request.number(libc::IFLA_MTU, bridge.mtu);
            }
        }
        let request = request.number(libc::IFLA_MASTER, bridge.index);
        self.0.ask(request).map_err(doing(format!("make {} a port of {}", port.name, bridge.name)))
    }

    pub(super) fn set_up(&mut self, link: &Link, up: bool) -> Result<(), String> {
        let mut body = header(link.index);
        let flag = u32::try_from(libc::IFF_UP).unwrap_or(0);
        body[8..12].copy_from_slice(&(if up { flag } else { 0 }).to_ne_bytes());
        body[12..16].copy_from_slice(&flag.to_ne_bytes());
        let request = Request::new(libc::RTM_NEWLINK, 0, &body);
        let what = if up { "bring up" } else { "take down" };
        self.0.ask(request).map_err(doing(format!("{what} {}", link.name)))
    }

    /// Removes an interface; it may be gone already.
    pub(super) fn remove(&mut self, link: &Link) -> Result<(), String> {
        let request = Request::new(libc::RTM_DELLINK, 0, &header(link.index));
        match self.0.ask(request) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result.map_err(doing(format!("remove {}", link.name))),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "bit 1")]
const IFA_F_NODAD: u8 = libc::IFA_F_NODAD as u8;

fn create() -> Request {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    Request::new(libc::RTM_NEWLINK, flags, &[0; LINK])
}

/// A request for an interface on another one: in its namespace with a number, if that is not zero.
fn on_another(kind: &str, index: u32, lower: &Link, name: &str, mac: [u8; 6]) -> Request {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    Request::new(libc::RTM_NEWLINK, flags, &header(index))
        .text(libc::IFLA_IFNAME, name)
        .number(libc::IFLA_LINK, lower.index)
        .attribute(libc::IFLA_ADDRESS, &mac)
        .number(libc::IFLA_MTU, lower.mtu)
        .nest(libc::IFLA_LINKINFO, &[], |info| {
            let info = info.text(libc::IFLA_INFO_KIND, kind);
            info.nest(libc::IFLA_INFO_DATA, &[], |data| data.number(MACVLAN_MODE, MACVLAN_BRIDGE))
        })
}

/// `struct ifinfomsg`.
fn header(index: u32) -> [u8; LINK] {
    let mut bytes = [0; LINK];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes
}

fn link(entry: &Entry) -> Option<Link> {
    let text = |bytes: &[u8]| {
        let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        String::from_utf8_lossy(bytes).into_owned()
    };
    let name = entry.attribute(LINK, libc::IFLA_IFNAME.into()).map(text)?;
    let info = entry.attribute(LINK, libc::IFLA_LINKINFO.into()).unwrap_or_default();
    let kind = netlink::attribute(info, libc::IFLA_INFO_KIND.into()).map(text);
    let number = |attribute: u16| {
        let bytes = entry.attribute(LINK, attribute.into())?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let up = u32::try_from(libc::IFF_UP).unwrap_or(0);
    Some(Link {
        index: entry.u32_at(4),
        name,
        kind: kind.unwrap_or_default(),
        master: number(libc::IFLA_MASTER),
        lower: number(libc::IFLA_LINK),
        mac: entry.attribute(LINK, libc::IFLA_ADDRESS.into()).unwrap_or_default().to_vec(),
        mtu: number(libc::IFLA_MTU).unwrap_or_default(),
        is_up: entry.u32_at(8) & up != 0,
        is_ethernet: entry.u16_at(2) == libc::ARPHRD_ETHER,
        alias: entry.attribute(LINK, libc::IFLA_IFALIAS.into()).map(text).unwrap_or_default(),
    })
}

fn port_name() -> Result<String, String> {
    Ok(format!("{PORT}{:08x}", random()?))
}

fn random() -> Result<u32, String> {
    let mut random = [0; 4];
    let flags = rustix::rand::GetRandomFlags::empty();
    rustix::rand::getrandom(&mut random[..], flags).map_err(doing("get random numbers"))?;
    Ok(u32::from_ne_bytes(random))
}

/// Opens the device of a macvtap interface, which gives and takes frames as a TAP's does.
fn open_macvtap(index: u32, name: &str) -> Result<OwnedFd, String> {
    let path = format!("/dev/tap{index}");
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let device = rustix::fs::open(&path, flags, Mode::empty());
    let device = device.map_err(doing(format!("open {path}")))?;
    let mut request = [0_u8; 40];
    // SAFETY: the operation writes a `struct ifreq`, which is what `request` is, and keeps no
    // pointer.
    let result =
        unsafe { libc::ioctl(device.as_fd().as_raw_fd(), libc::TUNGETIFF, request.as_mut_ptr()) };
    let told = request.split(|byte| *byte == 0).next();
    if result < 0 || told != Some(name.as_bytes()) {
        return Err(format!("{path} is not the device of {name}"));
    }
    Ok(device)
}

/// Makes a TAP device whose frames leave checksums and cuts to whoever reads them.
fn tap(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // `struct ifreq`: a name with its zero, and a union of which the flags are used.
    let mut request = [0_u8; 40];
    for (to, from) in request.iter_mut().take(15).zip(name.as_bytes()) {
        *to = *from;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the field has 16 bits")]
    let mode = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    request[16..18].copy_from_slice(&mode.to_ne_bytes());
    // SAFETY: the operation reads and writes a `struct ifreq`, which is what `request` is, and keeps
    // no pointer.
    let result =
        unsafe { libc::ioctl(device.as_fd().as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(device) }
}

/// IPv6 is compiled out, or switched off for the interface.
fn is_without_ipv6(error: &io::Error) -> bool {
    let codes = [libc::EAFNOSUPPORT, libc::EOPNOTSUPP, libc::EACCES];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}
