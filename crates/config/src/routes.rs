//! The host's IPv4 routes, as far as a network's addresses could collide with them.

use std::io;

use ipnet::Ipv4Net;

/// A route of the host. The default route is 0.0.0.0/0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub net: Ipv4Net,
    pub interface: String,
}

/// The routes of all tables but the host's own addresses, those of the main table first: a VPN's may
/// be in another.
pub fn read() -> io::Result<Vec<Route>> {
    imp::read()
}

/// The interface that leads outside.
pub fn default_interface(routes: &[Route]) -> Option<String> {
    routes.iter().find(|route| route.net.prefix_len() == 0).map(|route| route.interface.clone())
}

/// Whether the host has such an interface, as far as that can be told.
pub fn has_interface(name: &str) -> bool {
    imp::has_interface(name)
}

#[cfg(target_os = "linux")]
mod imp {
    use std::net::Ipv4Addr;

    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice};

    use super::{Ipv4Net, Route, io};

    // From linux/netlink.h and linux/rtnetlink.h.
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    const RTM_NEWROUTE: u16 = 24;
    const RTM_GETROUTE: u16 = 26;
    const NLM_F_REQUEST_DUMP: u16 = 0x301;
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_TABLE: u16 = 15;
    const RTN_UNICAST: u8 = 1;
    const RT_TABLE_MAIN: u32 = 254;
    const AF_INET: u8 = 2;

    /// Of `struct nlmsghdr`, `struct rtmsg` and `struct rtattr`.
    const HEADER: usize = 16;
    const RTMSG: usize = 12;
    const ATTRIBUTE: usize = 4;

    pub(super) fn read() -> io::Result<Vec<Route>> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        // The protocol is `NETLINK_ROUTE`, which is 0.
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        rustix::net::send(&socket, &request(), SendFlags::empty())?;
        let name = |index| netdevice::index_to_name(&socket, index).ok();
        let mut found = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let (len, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
            if !messages(buffer.get(..len).unwrap_or_default(), &name, &mut found)? {
                break;
            }
        }
        found.sort_by_key(|(table, _)| *table != RT_TABLE_MAIN);
        Ok(found.into_iter().map(|(_, route)| route).collect())
    }

    pub(super) fn has_interface(name: &str) -> bool {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
        let index = socket.and_then(|socket| netdevice::name_to_index(&socket, name));
        !matches!(index, Err(rustix::io::Errno::NODEV))
    }

    fn request() -> Vec<u8> {
        let mut request = Vec::new();
        // Of this length, with sequence number and sender left to the kernel.
        request.extend(28u32.to_ne_bytes());
        request.extend(RTM_GETROUTE.to_ne_bytes());
        request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
        request.extend([0; 8]);
        request.push(AF_INET);
        request.resize(HEADER + RTMSG, 0);
        request
    }

    /// Takes the routes of one answer, with their tables. False after the last one.
    fn messages(
        mut data: &[u8],
        name: &impl Fn(u32) -> Option<String>,
        found: &mut Vec<(u32, Route)>,
    ) -> io::Result<bool> {
        while let (Some(len), Some(kind)) = (number(data, 0), short(data, 4)) {
            let len = len as usize;
            let body = data.get(HEADER..len).unwrap_or_default();
            match kind {
                NLMSG_DONE => return Ok(false),
                NLMSG_ERROR => return Err(io::Error::other("the kernel does not tell its routes")),
                RTM_NEWROUTE => found.extend(route(body, name)),
                _ => {}
            }
            data = data.get(len.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(true)
    }

    fn route(body: &[u8], name: &impl Fn(u32) -> Option<String>) -> Option<(u32, Route)> {
        let (prefix, table) = (*body.get(1)?, *body.get(4)?);
        if *body.get(7)? != RTN_UNICAST {
            return None;
        }
        let (mut net, mut interface, mut table) = (Ipv4Addr::UNSPECIFIED, None, u32::from(table));
        let mut rest = body.get(RTMSG..)?;
        while let (Some(len), Some(kind)) = (short(rest, 0), short(rest, 2)) {
            let len = usize::from(len);
            let value = rest.get(ATTRIBUTE..len)?;
            match kind {
                RTA_DST => net = <[u8; 4]>::try_from(value).ok()?.into(),
                RTA_OIF => interface = number(value, 0).and_then(name),
                RTA_TABLE => table = number(value, 0)?,
                _ => {}
            }
            rest = rest.get(len.max(ATTRIBUTE).next_multiple_of(4)..).unwrap_or_default();
        }
        // One by several hops has an interface for each of them.
        let interface = interface.unwrap_or_else(|| "several interfaces".into());
        let net = Ipv4Net::new(net, prefix).ok()?.trunc();
        Some((table, Route { net, interface }))
    }

    fn number(data: &[u8], at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
    }

    fn short(data: &[u8], at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// A route to 10.0.0.0/8 by interface 7, in table 51820.
        fn answer() -> Vec<u8> {
            let mut body = vec![AF_INET, 8, 0, 0, 0, 0, 0, RTN_UNICAST, 0, 0, 0, 0];
            let attributes = [(RTA_DST, [10, 0, 0, 0]), (RTA_OIF, 7u32.to_ne_bytes())];
            for (kind, value) in attributes.into_iter().chain([(RTA_TABLE, 51820u32.to_ne_bytes())])
            {
                body.extend(8u16.to_ne_bytes());
                body.extend(kind.to_ne_bytes());
                body.extend(value);
            }
            let len = u32::try_from(HEADER + body.len()).unwrap();
            let mut message =
                [&len.to_ne_bytes()[..], &RTM_NEWROUTE.to_ne_bytes(), &[0; 10]].concat();
            message.extend(body);
            message
        }

        #[test]
        fn the_kernels_answer() {
            let name = |index| Some(format!("tun{index}"));
            let mut found = Vec::new();
            let twice = [answer(), answer()].concat();
            assert!(messages(&twice, &name, &mut found).unwrap());
            let route = Route { net: "10.0.0.0/8".parse().unwrap(), interface: "tun7".into() };
            assert_eq!(found, [(51820, route.clone()), (51820, route)]);
            for len in 0..twice.len() {
                let _ = messages(&twice[..len], &name, &mut Vec::new());
            }
            let done = [&16u32.to_ne_bytes()[..], &NLMSG_DONE.to_ne_bytes(), &[0; 10]].concat();
            assert!(!messages(&done, &name, &mut found).unwrap());
        }

        #[test]
        fn this_machines_routes_can_be_read() {
            let listed = std::fs::read_to_string("/proc/net/route").unwrap();
            let main = listed.lines().skip(1).count();
            assert!(read().unwrap().len() >= main);
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

    pub(super) fn has_interface(_name: &str) -> bool {
        true
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
