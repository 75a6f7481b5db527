//! Who holds a port: the socket's inode from `/proc/net`, then the process that has it open.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use vmlan_engine::io::ListenAddr;

/// The process that holds a TCP or UDP port, in words.
pub(crate) fn holder(at: &ListenAddr) -> Option<String> {
    let (addr, tables, listening) = match at {
        ListenAddr::Tcp(addr) => (*addr, ["tcp", "tcp6"], Some("0A")),
        ListenAddr::Udp(addr) => (*addr, ["udp", "udp6"], None),
        ListenAddr::Unix(_) => return None,
    };
    let mut uid = None;
    for table in tables {
        // Of this thread, which may be in a network namespace of its own.
        let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        for row in text.lines().skip(1).filter_map(Row::parse) {
            if listening.is_some_and(|state| row.state != state) || !overlap(row.local, addr) {
                continue;
            }
            if let Some(pid) = process_with_socket(row.inode) {
                return Some(process(pid));
            }
            uid = Some(row.uid);
        }
    }
    uid.map(|uid| format!("a process of user id {uid}"))
}

/// `nginx (pid 1234)`, as far as the system tells.
pub(crate) fn process(pid: i32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{} (pid {pid})", name.trim_end()),
        Err(_) => format!("pid {pid}"),
    }
}

/// A line of `/proc/net/{tcp,udp}{,6}`.
struct Row<'a> {
    local: SocketAddr,
    state: &'a str,
    uid: u32,
    inode: u64,
}

impl<'a> Row<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let local = address(fields.nth(1)?)?;
        let state = fields.nth(1)?;
        let uid = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        Some(Self { local, state, uid, inode })
    }
}

/// `0100007F:1F90`: the address as 32-bit words of the machine's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(word(0)?.into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, bytes) in bytes.chunks_exact_mut(4).enumerate() {
                bytes.copy_from_slice(&word(index * 8)?);
            }
            IpAddr::V6(bytes.into())
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Whether a socket at `held` can be in the way of one at `wanted`.
fn overlap(held: SocketAddr, wanted: SocketAddr) -> bool {
    let held_ip = held.ip().to_canonical();
    held.port() == wanted.port()
        && (held_ip == wanted.ip()
            || held_ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
            || (held_ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED) && wanted.is_ipv4())
            || (wanted.ip().is_unspecified() && (wanted.is_ipv6() || held_ip.is_ipv4())))
}

fn process_with_socket(inode: u64) -> Option<i32> {
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(open) = fs::read_dir(entry.path().join("fd")) else { continue };
        let holds = open
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == Path::new(&wanted)));
        if holds {
            return Some(pid);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn rows_of_the_kernel_are_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  \
                    1000        0 12345 1 0000000000000000 100 0 0 10 0";
        let row = Row::parse(line).unwrap();
        assert_eq!(row.local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!((row.state, row.uid, row.inode), ("0A", 1000, 12345));
        assert_eq!(
            address("00000000000000000000000001000000:0035"),
            Some("[::1]:53".parse().unwrap())
        );
    }

    #[test]
    fn wildcards_overlap_with_every_address() {
        let cases = [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::1]:80", "0.0.0.0:80", false),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
        ];
        for (held, wanted, expected) in cases {
            let found = overlap(held.parse().unwrap(), wanted.parse().unwrap());
            assert_eq!(found, expected, "{held} and {wanted}");
        }
    }
}
