//! Forwards as they are written on a command line.
//!
//! `LISTEN=TARGET[/udp][,source=keep]`, with an address and a port, a port alone, or the path of a
//! UNIX socket to the left: `127.0.0.1:8080=192.168.5.15:80`, `8080=80`, `[::1]:5353=5353/udp`,
//! `unix:/run/web.sock=192.168.5.15:80`; `:53` is a port of every address. And the form of container tools,
//! `[HOSTIP:]HOSTPORT:GUESTPORT[/udp]`. Ports may be ranges of one length, which give one forward
//! for each pair.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Forward;
use crate::io::ListenAddr;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const KEEP: &str = "source=keep";

/// Parses `LISTEN=TARGET[/udp][,source=keep]`. A target that is only a port is a port of `guest`.
/// The error names the part that is wrong, not the whole.
pub fn parse_forward(text: &str, guest: IpAddr) -> Result<Vec<Forward>, String> {
    let (body, keep) = match text.rsplit_once(',') {
        Some((body, KEEP)) => (body, true),
        // A path may have commas.
        Some((body, option)) if !is_path(text) || is_whole(body, guest) => {
            return Err(format!("`{option}` is not an option; there is {KEEP}"));
        }
        _ => (text, false),
    };
    // A path may have equals signs, a target has none.
    let Some((listen, target)) = body.rsplit_once('=') else {
        return Err("this should be LISTEN=TARGET, as in 127.0.0.1:8080=192.168.5.15:80".into());
    };
    let (target, udp) = protocol(target)?;
    let to = Side::parse(target, guest)?;
    if is_path(listen) {
        return socket(listen, &to, udp, keep);
    }
    pairs(&Side::parse_listen(listen)?, &to, udp, keep)
}

/// Parses `[HOSTIP:]HOSTPORT:GUESTPORT[/udp]` for a guest, or `PATH:GUESTPORT`; the host's side is
/// 127.0.0.1 if not said. The error names the part that is wrong, not the whole.
pub fn parse_publish(text: &str, guest: IpAddr) -> Result<Vec<Forward>, String> {
    const FORM: &str = "this should be [HOSTIP:]HOSTPORT:GUESTPORT, as in 8080:80";
    if is_path(text) {
        let (path, target) = text.rsplit_once(':').ok_or(FORM)?;
        let (target, udp) = protocol(target)?;
        return socket(path, &Side::ports_of(target, guest)?, udp, false);
    }
    let (body, udp) = protocol(text)?;
    let (listen, target) = body.rsplit_once(':').ok_or(FORM)?;
    let to = Side::ports_of(target, guest)?;
    pairs(&Side::parse_listen(listen)?, &to, udp, false)
}

/// Parses where forwards listen: `[HOSTIP:]PORT[/udp]`, a range of ports, or a path. The error names
/// the part that is wrong, not the whole.
pub fn parse_listen(text: &str) -> Result<Vec<ListenAddr>, String> {
    if is_path(text) {
        return Ok(vec![ListenAddr::Unix(path(text)?.into())]);
    }
    let (body, udp) = protocol(text)?;
    let from = Side::parse_listen(body)?;
    let listen = |port| listen(from.ip, port, udp);
    Ok((from.first..=from.last).map(listen).collect())
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') || text.starts_with("./") || text.starts_with("unix:")
}

/// Whether nothing is missing after this.
fn is_whole(text: &str, guest: IpAddr) -> bool {
    let target = text.rsplit_once('=').map(|(_, target)| protocol(target));
    target.is_some_and(|t| t.and_then(|(target, _)| Side::parse(target, guest)).is_ok())
}

/// An address with the ports from `first` to `last`.
#[derive(Debug)]
struct Side {
    ip: IpAddr,
    first: u16,
    last: u16,
}

impl Side {
    /// As [`Side::parse`], with a port alone on the loopback; and `:PORTS` for every address.
    fn parse_listen(text: &str) -> Result<Self, String> {
        match text.rsplit_once(':') {
            Some(("", ports)) => Self::ports_of(ports, Ipv4Addr::UNSPECIFIED.into()),
            Some(("localhost", ports)) => Self::ports_of(ports, LOCALHOST),
            _ => Self::parse(text, LOCALHOST),
        }
    }

    /// `IP:PORTS`, `[IPV6]:PORTS`, or only `PORTS` of `default`.
    fn parse(text: &str, default: IpAddr) -> Result<Self, String> {
        let Some((ip, ports)) = text.rsplit_once(':') else {
            return Self::ports_of(text, default);
        };
        let inner = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
        let parsed = match inner {
            Some(ip) => ip.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => ip.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        };
        match parsed {
            Some(ip) => Self::ports_of(ports, ip),
            None if ip.contains(':') => {
                Err(format!("`{text}`: an IPv6 address needs brackets, as in [::1]:80"))
            }
            None => Err(format!("`{ip}` is not an IP address")),
        }
    }

    /// `PORT` or `FIRST-LAST`.
    fn ports_of(text: &str, ip: IpAddr) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(format!("the range {text} runs backwards"));
        }
        Ok(Self { ip, first, last })
    }

    fn count(&self) -> u16 {
        self.last - self.first
    }

    fn ports(&self) -> String {
        format!("{}-{}", self.first, self.last)
    }
}

fn port(text: &str) -> Result<u16, String> {
    // Not all that `parse` takes is how a port is written.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(format!("`{text}` is not a port from 1 to 65535")),
    }
}

/// Cuts off `/tcp` or `/udp`.
fn protocol(text: &str) -> Result<(&str, bool), String> {
    match text.rsplit_once('/') {
        None => Ok((text, false)),
        Some((rest, "tcp")) => Ok((rest, false)),
        Some((rest, "udp")) => Ok((rest, true)),
        Some((_, other)) => Err(format!("`{other}` is not a protocol: tcp or udp")),
    }
}

/// A forward from a UNIX socket.
fn socket(text: &str, to: &Side, udp: bool, keep: bool) -> Result<Vec<Forward>, String> {
    if udp {
        return Err("a UNIX socket leads to TCP ports only".into());
    }
    let path = path(text)?;
    if keep {
        return Err("the clients of a UNIX socket have no address to keep".into());
    }
    if to.first != to.last {
        return Err(format!("one socket cannot lead to the ports {}", to.ports()));
    }
    let listen = ListenAddr::Unix(path.into());
    let guest = SocketAddr::new(to.ip, to.first);
    Ok(vec![Forward { listen, guest, keep_source: keep }])
}

fn path(text: &str) -> Result<&str, String> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    if path.starts_with('/') || path.starts_with("./") {
        Ok(path)
    } else {
        Err(format!("`{path}` is not a path that starts with / or ./"))
    }
}

fn listen(ip: IpAddr, port: u16, udp: bool) -> ListenAddr {
    let addr = SocketAddr::new(ip, port);
    if udp { ListenAddr::Udp(addr) } else { ListenAddr::Tcp(addr) }
}

/// One forward for each pair of ports.
fn pairs(from: &Side, to: &Side, udp: bool, keep: bool) -> Result<Vec<Forward>, String> {
    if from.count() != to.count() {
        let (from, to) = (from.ports(), to.ports());
        return Err(format!("the ranges {from} and {to} are not of one length"));
    }
    let pair = |(from_port, to_port)| Forward {
        listen: listen(from.ip, from_port, udp),
        guest: SocketAddr::new(to.ip, to_port),
        keep_source: keep,
    };
    Ok((from.first..=from.last).zip(to.first..=to.last).map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 5, 15));

    /// Forwards in short: listener, guest, and a mark for kept sources.
    fn short(forwards: &[Forward]) -> Vec<String> {
        let one = |f: &Forward| {
            let keep = if f.keep_source { " keep" } else { "" };
            format!("{} -> {}{keep}", f.listen, f.guest)
        };
        forwards.iter().map(one).collect()
    }

    #[test]
    fn forwards() {
        for (text, expected) in [
            ("127.0.0.1:8080=192.168.5.15:80", &["127.0.0.1:8080 -> 192.168.5.15:80"][..]),
            ("8080=80", &["127.0.0.1:8080 -> 192.168.5.15:80"]),
            ("8080=80/tcp", &["127.0.0.1:8080 -> 192.168.5.15:80"]),
            ("0.0.0.0:53=53/udp", &["0.0.0.0:53/udp -> 192.168.5.15:53"]),
            ("[::1]:80=[fd00::15]:8080", &["[::1]:80 -> [fd00::15]:8080"]),
            ("[::]:80=192.168.5.16:80,source=keep", &["[::]:80 -> 192.168.5.16:80 keep"]),
            ("80=81/udp,source=keep", &["127.0.0.1:80/udp -> 192.168.5.15:81 keep"]),
            ("unix:/run/a.sock=192.168.5.15:80", &["/run/a.sock -> 192.168.5.15:80"]),
            ("/run/a=b,c.sock=80", &["/run/a=b,c.sock -> 192.168.5.15:80"]),
            ("./a.sock=80", &["./a.sock -> 192.168.5.15:80"]),
            (":53=53/udp", &["0.0.0.0:53/udp -> 192.168.5.15:53"]),
            ("localhost:80=80", &["127.0.0.1:80 -> 192.168.5.15:80"]),
            (
                "127.0.0.1:8000-8002=192.168.5.15:9000-9002",
                &[
                    "127.0.0.1:8000 -> 192.168.5.15:9000",
                    "127.0.0.1:8001 -> 192.168.5.15:9001",
                    "127.0.0.1:8002 -> 192.168.5.15:9002",
                ],
            ),
            (
                "8000-8001=8000-8001/udp",
                &[
                    "127.0.0.1:8000/udp -> 192.168.5.15:8000",
                    "127.0.0.1:8001/udp -> 192.168.5.15:8001",
                ],
            ),
        ] {
            let parsed = parse_forward(text, GUEST).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(short(&parsed), expected, "{text}");
        }
        assert_eq!(parse_forward("1-65535=1-65535", GUEST).map(|f| f.len()), Ok(65_535));
    }

    #[test]
    fn forwards_that_are_none_say_what_is_wrong() {
        for (text, part) in [
            ("", "LISTEN=TARGET"),
            ("8080", "LISTEN=TARGET"),
            ("8080:80", "LISTEN=TARGET"),
            ("=80", "`` is not a port"),
            ("8080=", "`` is not a port"),
            ("0=80", "`0` is not a port"),
            ("8080=65536", "`65536` is not a port"),
            ("+80=80", "`+80` is not a port"),
            ("8080=x", "`x` is not a port"),
            ("host:80=80", "`host` is not an IP address"),
            ("80=localhost:80", "`localhost` is not an IP address"),
            ("80=:80", "`` is not an IP address"),
            ("/run/a.sock=80,source=keep", "no address to keep"),
            ("127.0.0.1:80=host:80", "`host` is not an IP address"),
            ("::1:80=80", "brackets"),
            ("[::1:80=80", "brackets"),
            ("[127.0.0.1]:80=80", "`[127.0.0.1]` is not an IP address"),
            ("80=80/sctp", "`sctp` is not a protocol"),
            ("80=80,source=drop", "`source=drop` is not an option"),
            ("80=80,keep", "`keep` is not an option"),
            ("8010-8000=8010-8000", "8010-8000 runs backwards"),
            ("8000-8010=9000-9009", "8000-8010 and 9000-9009 are not of one length"),
            ("8000-8010=9000", "not of one length"),
            ("8000-=80", "`` is not a port"),
            ("unix:run/a.sock=80", "`run/a.sock` is not a path that starts"),
            ("/run/a.sock=80/udp", "TCP ports only"),
            ("/run/a.sock=80-81", "80-81"),
        ] {
            let error = parse_forward(text, GUEST).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn published_ports() {
        for (text, expected) in [
            ("8080:80", &["127.0.0.1:8080 -> 192.168.5.15:80"][..]),
            ("0.0.0.0:8080:80", &["0.0.0.0:8080 -> 192.168.5.15:80"]),
            ("[::1]:8080:80", &["[::1]:8080 -> 192.168.5.15:80"]),
            ("5353:53/udp", &["127.0.0.1:5353/udp -> 192.168.5.15:53"]),
            ("/run/a:b.sock:80", &["/run/a:b.sock -> 192.168.5.15:80"]),
            ("unix:./a.sock:80", &["./a.sock -> 192.168.5.15:80"]),
            (
                "10.0.0.1:8000-8001:9000-9001",
                &["10.0.0.1:8000 -> 192.168.5.15:9000", "10.0.0.1:8001 -> 192.168.5.15:9001"],
            ),
        ] {
            let parsed = parse_publish(text, GUEST).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(short(&parsed), expected, "{text}");
        }
        for (text, part) in [
            ("", "[HOSTIP:]HOSTPORT:GUESTPORT"),
            ("80", "[HOSTIP:]HOSTPORT:GUESTPORT"),
            ("80:", "`` is not a port"),
            (":80", "`` is not a port"),
            ("::80", "`` is not a port"),
            ("::1:80:80", "brackets"),
            ("a:80:80", "`a` is not an IP address"),
            ("80:80/x", "`x` is not a protocol"),
            ("8000-8001:80", "not of one length"),
            ("/run/a.sock", "[HOSTIP:]HOSTPORT:GUESTPORT"),
            ("/run/a.sock:80/udp", "TCP ports only"),
            ("unix:run/a.sock:80", "`run/a.sock` is not a path that starts"),
        ] {
            let error = parse_publish(text, GUEST).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn places_to_listen() {
        for (text, expected) in [
            ("8080", &["127.0.0.1:8080"][..]),
            (":53/udp", &["0.0.0.0:53/udp"]),
            ("[::1]:80-82", &["[::1]:80", "[::1]:81", "[::1]:82"]),
            ("unix:/run/a.sock", &["/run/a.sock"]),
            ("./a.sock", &["./a.sock"]),
        ] {
            let parsed = parse_listen(text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(parsed.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        }
        for (text, part) in
            [("", "`` is not a port"), ("8080:80", "`8080` is not an IP"), ("80/x", "`x` is not")]
        {
            let error = parse_listen(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
