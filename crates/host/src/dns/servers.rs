//! Which nameservers are asked, in which order: those of resolv.conf(5), which is read again when
//! it changes.

use std::ffi::CString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// As many as libc's resolver takes.
const MOST: usize = 3;

const PORT: u16 = 53;

/// Asked when the machine has no nameservers at all.
const PUBLIC: [Ipv4Addr; 2] = [Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(1, 1, 1, 1)];

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// After this time the first nameserver gets another chance.
const DEMOTED: Duration = Duration::from_secs(60);

/// Which nameservers are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsSource {
    /// Those of a resolv.conf(5), read again when it changes.
    ResolvConf(PathBuf),
    /// These; with none, the public ones.
    Servers(Vec<SocketAddr>),
}

impl Default for DnsSource {
    fn default() -> Self {
        Self::ResolvConf(PathBuf::from("/etc/resolv.conf"))
    }
}

#[derive(Debug)]
pub(super) struct Servers {
    source: DnsSource,
    list: Vec<SocketAddr>,
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    /// The one that answers while those before it do not, and since when.
    preferred: Option<(usize, Instant)>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    seconds: i64,
    nanos: i64,
    size: u64,
}

impl Servers {
    pub(super) fn new(source: DnsSource) -> Self {
        let list = match &source {
            DnsSource::ResolvConf(_) => Vec::new(),
            DnsSource::Servers(servers) => or_public(servers.clone()),
        };
        Self { source, list, looked: None, stamp: None, preferred: None }
    }

    /// Looks whether the list has changed.
    pub(super) fn refresh(&mut self, now: Instant) {
        let DnsSource::ResolvConf(path) = &self.source else { return };
        if self.looked.is_some_and(|looked| now.duration_since(looked) < LOOK) {
            return;
        }
        let first = self.looked.replace(now).is_none();
        let stamp = Stamp::of(path);
        if first || stamp != self.stamp {
            self.stamp = stamp;
            self.list = or_public(read(&fs::read_to_string(path).unwrap_or_default()));
            self.preferred = None;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn contains(&self, server: SocketAddr) -> bool {
        self.list.contains(&server)
    }

    /// Where to begin, as a position in the list.
    pub(super) fn first(&mut self, now: Instant) -> usize {
        match self.preferred {
            Some((at, since)) if now.duration_since(since) < DEMOTED => at,
            _ => {
                self.preferred = None;
                0
            }
        }
    }

    /// The server at a position, which counts on round the list. `None` when there is none.
    pub(super) fn at(&self, position: usize) -> Option<SocketAddr> {
        self.list.get(position % self.list.len().max(1)).copied()
    }

    /// A server has answered a query that another had failed.
    pub(super) fn prefer(&mut self, server: SocketAddr, now: Instant) {
        if let Some(at) = self.list.iter().position(|&known| known == server) {
            let since = self.preferred.map_or(now, |(_, since)| since);
            self.preferred = (at > 0).then_some((at, since));
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            seconds: found.mtime(),
            nanos: found.mtime_nsec(),
            size: found.size(),
        })
    }
}

fn or_public(list: Vec<SocketAddr>) -> Vec<SocketAddr> {
    if list.is_empty() { PUBLIC.map(|ip| (ip, PORT).into()).to_vec() } else { list }
}

/// The nameservers of a resolv.conf(5).
fn read(text: &str) -> Vec<SocketAddr> {
    let mut list = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(server) = words.next().and_then(address)
            && !list.contains(&server)
        {
            list.push(server);
        }
        if list.len() == MOST {
            break;
        }
    }
    list
}

fn address(text: &str) -> Option<SocketAddr> {
    if let Some((ip, zone)) = text.split_once('%') {
        return Some(SocketAddrV6::new(ip.parse().ok()?, PORT, 0, scope(zone)?).into());
    }
    Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, PORT))
}

/// The number of an interface that is named, or numbered already.
fn scope(zone: &str) -> Option<u32> {
    if let Ok(number) = zone.parse() {
        return Some(number);
    }
    let name = CString::new(zone).ok()?;
    // SAFETY: a C string that lives through the call.
    let number = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (number != 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn resolv_conf_is_read_as_libc_does() {
        let text = "# nameserver 9.9.9.9\nsearch lan\nnameserver 127.0.0.53\n nameserver\t10.0.0.1 x\n\
                    nameserver wrong\nnameserver fe80::1%lo\nnameserver 10.0.0.2\n";
        let expected = servers(&["127.0.0.53:53", "10.0.0.1:53", "[fe80::1%1]:53"]);
        assert_eq!(read(text), expected);
        assert_eq!(or_public(read("")), servers(&["8.8.8.8:53", "1.1.1.1:53"]));
    }

    #[test]
    fn a_changed_file_is_seen_and_looked_at_once_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let start = Instant::now();
        let mut servers = Servers::new(DnsSource::ResolvConf(path.clone()));
        servers.refresh(start);
        assert_eq!(servers.at(0), Some("8.8.8.8:53".parse().unwrap()));
        fs::write(&path, "nameserver 10.1.1.1\n").unwrap();
        servers.refresh(start + Duration::from_millis(999));
        assert_eq!(servers.at(0), Some("8.8.8.8:53".parse().unwrap()));
        servers.refresh(start + Duration::from_millis(1001));
        assert_eq!(servers.at(0), Some("10.1.1.1:53".parse().unwrap()));
        let new = dir.path().join("new");
        fs::write(&new, "nameserver 10.2.2.2\n").unwrap();
        fs::rename(&new, &path).unwrap();
        servers.refresh(start + Duration::from_secs(3));
        assert_eq!(servers.at(0), Some("10.2.2.2:53".parse().unwrap()));
    }

    #[test]
    fn a_server_that_stands_in_is_preferred_for_a_while() {
        let list = servers(&["10.0.0.1:53", "10.0.0.2:53"]);
        let mut servers = Servers::new(DnsSource::Servers(list.clone()));
        let start = Instant::now();
        assert_eq!(servers.first(start), 0);
        servers.prefer(list[1], start);
        assert_eq!(servers.first(start + Duration::from_secs(59)), 1);
        servers.prefer(list[1], start + Duration::from_secs(59));
        assert_eq!(servers.first(start + Duration::from_secs(61)), 0);
        assert_eq!((servers.at(1), servers.at(2)), (Some(list[1]), Some(list[0])));
    }
}
