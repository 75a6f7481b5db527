//! resolv.conf(5): which nameservers are asked, in which order and with what patience, and in which
//! domains the machine looks for short names. On macOS configd(8) keeps the file, with the nameservers
//! of the first network service that is up.

use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

/// As many as libc's resolver takes.
const MOST: usize = 3;

/// As many as libc's resolver of today takes for search domains would be any; these fit the options
/// that guests are told them in.
const MOST_DOMAINS: usize = 32;

const PORT: u16 = 53;

/// Asked when the machine has no nameservers at all.
const PUBLIC: [Ipv4Addr; 2] = [Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(1, 1, 1, 1)];

/// After this time the first nameserver gets another chance.
const DEMOTED: Duration = Duration::from_secs(60);

/// A nameserver that is silent for so long gets company.
const RETRY: Duration = Duration::from_secs(1);

/// How often each one is asked, unless the file says otherwise.
const ATTEMPTS: usize = 2;

/// What a resolv.conf(5) says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) search: Vec<String>,
    rotate: bool,
    retry: Duration,
    attempts: usize,
    /// `options no-aaaa`: the machine does not ask for IPv6 addresses.
    pub(crate) no_aaaa: bool,
}

/// The nameservers to ask.
#[derive(Debug)]
pub(crate) struct Servers {
    conf: ResolvConf,
    /// The one that answers while those before it do not, and since when.
    preferred: Option<(usize, Instant)>,
    turn: usize,
}

impl Servers {
    pub(crate) fn new(conf: ResolvConf) -> Self {
        Self { conf: conf.or_public(), preferred: None, turn: 0 }
    }

    pub(crate) fn given(servers: Vec<SocketAddr>) -> Self {
        Self::new(ResolvConf { servers, ..ResolvConf::parse("") })
    }

    pub(crate) fn search(&self) -> &[String] {
        &self.conf.search
    }

    pub(crate) fn no_aaaa(&self) -> bool {
        self.conf.no_aaaa
    }

    /// The nameserver is systemd-resolved's stub.
    pub(crate) fn is_resolved(&self) -> bool {
        let stub = |server: &SocketAddr| {
            let ip = server.ip();
            ip == Ipv4Addr::new(127, 0, 0, 53) || ip == Ipv4Addr::new(127, 0, 0, 54)
        };
        self.conf.servers.iter().all(stub)
    }

    pub(crate) fn len(&self) -> usize {
        self.conf.servers.len()
    }

    pub(crate) fn contains(&self, server: SocketAddr) -> bool {
        self.conf.servers.contains(&server)
    }

    /// How many questions may be sent in all before one is given up.
    pub(crate) fn attempts(&self) -> usize {
        (self.len() * self.conf.attempts).max(1)
    }

    /// How long to wait before question number `sent` is followed by another.
    pub(crate) fn patience(&self, sent: usize) -> Duration {
        // The first round is quick, for a dead nameserver must not be felt; those after it take
        // their time.
        let round = sent.saturating_sub(1) / self.len().max(1);
        self.conf.retry * u32::try_from(round + 1).unwrap_or(1)
    }

    /// Where to begin, as a position in the list.
    pub(crate) fn first(&mut self, now: Instant) -> usize {
        if self.conf.rotate {
            self.turn = self.turn.wrapping_add(1);
            return self.turn;
        }
        match self.preferred {
            Some((at, since)) if now.saturating_duration_since(since) < DEMOTED => at,
            _ => {
                self.preferred = None;
                0
            }
        }
    }

    /// The server at a position, which counts on round the list.
    pub(crate) fn at(&self, position: usize) -> Option<SocketAddr> {
        self.conf.servers.get(position % self.len().max(1)).copied()
    }

    /// A server has answered a query that another had failed.
    pub(crate) fn prefer(&mut self, server: SocketAddr, now: Instant) {
        if let Some(at) = self.conf.servers.iter().position(|&known| known == server) {
            let since = self.preferred.map_or(now, |(_, since)| since);
            self.preferred = (at > 0).then_some((at, since));
        }
    }
}

impl ResolvConf {
    pub(crate) fn parse(text: &str) -> Self {
        let mut conf = Self {
            servers: Vec::new(),
            search: Vec::new(),
            rotate: false,
            retry: RETRY,
            attempts: ATTEMPTS,
            no_aaaa: false,
        };
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => conf.add_server(words.next()),
                Some("search") => conf.search = domains(words),
                Some("domain") => conf.search = domains(words.take(1)),
                Some("options") => words.for_each(|option| conf.set_option(option)),
                _ => {}
            }
        }
        conf
    }

    fn add_server(&mut self, text: Option<&str>) {
        if let Some(server) = text.and_then(address)
            && !self.servers.contains(&server)
            && self.servers.len() < MOST
        {
            self.servers.push(server);
        }
    }

    fn set_option(&mut self, option: &str) {
        match option.split_once(':') {
            None => match option {
                "rotate" => self.rotate = true,
                "no-aaaa" => self.no_aaaa = true,
                _ => {}
            },
            Some(("timeout", seconds)) => {
                if let Ok(seconds) = seconds.parse::<u64>() {
                    self.retry = Duration::from_secs(seconds.clamp(1, 5));
                }
            }
            Some(("attempts", count)) => {
                if let Ok(count) = count.parse::<usize>() {
                    self.attempts = count.clamp(1, 5);
                }
            }
            Some(_) => {}
        }
    }

    fn or_public(mut self) -> Self {
        if self.servers.is_empty() {
            self.servers = PUBLIC.map(|ip| (ip, PORT).into()).to_vec();
        }
        self
    }
}

/// Search domains; the root, by which some files say "none", is not one.
fn domains<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let names = words.map(|word| word.trim_end_matches('.'));
    let valid = names.filter(|name| crate::name::from_text(name).is_ok());
    valid.take(MOST_DOMAINS).map(str::to_owned).collect()
}

fn address(text: &str) -> Option<SocketAddr> {
    if let Some((ip, zone)) = text.split_once('%') {
        return Some(SocketAddrV6::new(ip.parse().ok()?, PORT, 0, scope(zone)?).into());
    }
    match text.parse().ok()? {
        // As libc takes it: this machine.
        IpAddr::V4(ip) if ip.is_unspecified() => Some((Ipv4Addr::LOCALHOST, PORT).into()),
        ip => Some(SocketAddr::new(ip, PORT)),
    }
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
        let text = "# nameserver 9.9.9.9\n;nameserver 9.9.9.8\ndomain first.example\nsearch lan Corp.example. .\n\
                    nameserver 127.0.0.53\n nameserver\t10.0.0.1 x\nnameserver wrong\n\
                    nameserver fe80::1%lo\nnameserver 10.0.0.2\noptions edns0 rotate timeout:3 attempts:1\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(conf.servers, servers(&["127.0.0.53:53", "10.0.0.1:53", "[fe80::1%1]:53"]));
        assert_eq!(conf.search, ["lan", "Corp.example"]);
        assert!(conf.rotate && !conf.no_aaaa);
        assert_eq!((conf.retry, conf.attempts), (Duration::from_secs(3), 1));
        let none = Servers::new(ResolvConf::parse("search .\n"));
        assert_eq!(none.conf.servers, servers(&["8.8.8.8:53", "1.1.1.1:53"]));
        assert_eq!(none.search(), &[] as &[String]);
    }

    #[test]
    fn a_server_that_stands_in_is_preferred_for_a_while() {
        let list = servers(&["10.0.0.1:53", "10.0.0.2:53"]);
        let mut servers = Servers::given(list.clone());
        let start = Instant::now();
        assert_eq!(servers.first(start), 0);
        servers.prefer(list[1], start);
        assert_eq!(servers.first(start + Duration::from_secs(59)), 1);
        servers.prefer(list[1], start + Duration::from_secs(59));
        assert_eq!(servers.first(start + Duration::from_secs(61)), 0);
        assert_eq!((servers.at(1), servers.at(2)), (Some(list[1]), Some(list[0])));
    }

    #[test]
    fn patience_grows_by_the_round() {
        let two = Servers::given(servers(&["10.0.0.1:53", "10.0.0.2:53"]));
        let waits: Vec<u64> = (1..=4).map(|sent| two.patience(sent).as_secs()).collect();
        assert_eq!((waits, two.attempts()), (vec![1, 1, 2, 2], 4));
    }
}
