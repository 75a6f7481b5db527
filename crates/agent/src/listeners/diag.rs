//! Listeners as the kernel's sock_diag lists them (linux/inet_diag.h): it passes over everything
//! else by itself, so that asking often costs little.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use vmlan_agent::message::{Listener, Proto};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;
const INET_DIAG_SKV6ONLY: u16 = 11;

/// Of `struct nlmsghdr`, `inet_diag_req_v2`, `inet_diag_msg` and `rtattr`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;
const ATTRIBUTE: usize = 4;

/// The loopback's, in every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// A socket to ask on.
#[derive(Debug)]
pub(super) struct Diag {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(SOCK_DIAG),
        )?;
        Ok(Self { socket, buffer: vec![0; 32 * 1024] })
    }

    /// All of them.
    pub(super) fn list(&mut self) -> io::Result<Vec<Listener>> {
        let mut found = Vec::new();
        for (proto, protocol, state) in
            [(Proto::Tcp, IPPROTO_TCP, TCP_LISTEN), (Proto::Udp, IPPROTO_UDP, TCP_CLOSE)]
        {
            for family in [AF_INET, AF_INET6] {
                self.dump(&request(family, protocol, state), proto, &mut found)?;
            }
        }
        Ok(found)
    }

    fn dump(&mut self, request: &[u8], proto: Proto, found: &mut Vec<Listener>) -> io::Result<()> {
        rustix::net::send(&self.socket, request, SendFlags::empty())?;
        loop {
            let (len, _) =
                rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())?;
            if !messages(self.buffer.get(..len).unwrap_or_default(), proto, found)? {
                return Ok(());
            }
        }
    }
}

fn request(family: u8, protocol: u8, state: u32) -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(72u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, protocol, 0, 0]);
    request.extend((1u32 << state).to_ne_bytes());
    request.resize(HEADER + REQUEST, 0);
    request
}

/// Adds the listeners in a buffer of messages; whether more follow.
fn messages(mut buffer: &[u8], proto: Proto, found: &mut Vec<Listener>) -> io::Result<bool> {
    while let Some((head, _)) = buffer.split_at_checked(HEADER) {
        let len = u32_at(head, 0).unwrap_or_default() as usize;
        let Some(body) = buffer.get(HEADER..len) else { return Ok(false) };
        match u16_at(head, 4).unwrap_or_default() {
            NLMSG_DONE => {
                // Negative where the protocol's part of the kernel could not be loaded.
                let errno = u32_at(body, 0).unwrap_or_default().cast_signed();
                return if errno < 0 { Err(error(errno)) } else { Ok(false) };
            }
            NLMSG_ERROR => return Err(error(u32_at(body, 0).unwrap_or_default().cast_signed())),
            SOCK_DIAG_BY_FAMILY => found.extend(listener(body, proto)),
            _ => {}
        }
        buffer = buffer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno.wrapping_neg())
}

fn listener(body: &[u8], proto: Proto) -> Option<Listener> {
    let family = *body.first()?;
    let port = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    let (source, peer) = (port(4)?, port(6)?);
    let octets: [u8; 16] = body.get(8..24)?.try_into().ok()?;
    let ip = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])),
        AF_INET6 => Ipv6Addr::from(octets).to_canonical(),
        _ => return None,
    };
    let ip = match (ip, u32_at(body, 40)?) {
        // For the loopback's card alone, which is the same as its address.
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), LOOPBACK_INDEX) => Ipv4Addr::LOCALHOST.into(),
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), LOOPBACK_INDEX) => Ipv6Addr::LOCALHOST.into(),
        (ip, _) => ip,
    };
    let dual = ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        && attribute(body.get(MESSAGE..)?, INET_DIAG_SKV6ONLY) == Some(0);
    (source != 0 && peer == 0).then_some(Listener { proto, at: SocketAddr::new(ip, source), dual })
}

/// The first byte of an attribute.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<u8> {
    while let (Some(len), Some(is)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        if is == kind {
            return attributes.get(ATTRIBUTE).copied();
        }
        let len = usize::from(len).max(ATTRIBUTE).next_multiple_of(4);
        attributes = attributes.get(len..)?;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
