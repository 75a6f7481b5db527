//! Forwards as the control API has them, and whether a network can have them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use vmlan_engine::io::ListenAddr;
use vmlan_engine::{Config, Forward};

/// Why a text is not a forward of this network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error("`{0}` is not a place to listen: ADDRESS:PORT, PORT, or the path of a socket")]
    Listen(String),
    #[error("`{0}` is not a guest's ADDRESS:PORT")]
    Target(String),
    #[error("`{0}` is not a protocol: tcp or udp")]
    Protocol(String),
    #[error("port 0 is no port")]
    PortZero,
    #[error("a UNIX socket carries no datagrams to a guest")]
    UnixUdp,
    #[error("{addr} is not a guest's address in {net}")]
    Outside { addr: IpAddr, net: String },
    /// The system's word: what is wrong with the address, and who holds it.
    #[error("{0}")]
    Refused(String),
}

/// Where the host listens for a protocol, which is TCP if none is named.
pub(crate) fn listen_of(protocol: &str, text: &str) -> Result<ListenAddr, ForwardError> {
    match protocol {
        "" | "tcp" => parse_listen(text, false),
        "udp" => parse_listen(text, true),
        "unix" => Ok(ListenAddr::Unix(text.into())),
        other => Err(ForwardError::Protocol(other.into())),
    }
}

/// Where the host listens. A port alone means the loopback, an empty address every one.
pub(crate) fn parse_listen(text: &str, udp: bool) -> Result<ListenAddr, ForwardError> {
    let wrong = || ForwardError::Listen(text.into());
    if text.starts_with('/') || text.starts_with("./") {
        return if udp { Err(ForwardError::UnixUdp) } else { Ok(ListenAddr::Unix(text.into())) };
    }
    let addr = match text.rsplit_once(':') {
        None => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), text.parse().map_err(|_| wrong())?),
        Some(("", port)) => {
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port.parse().map_err(|_| wrong())?)
        }
        Some(("localhost", port)) => {
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse().map_err(|_| wrong())?)
        }
        Some(_) => text.parse().map_err(|_| wrong())?,
    };
    if addr.port() == 0 {
        return Err(ForwardError::PortZero);
    }
    Ok(if udp { ListenAddr::Udp(addr) } else { ListenAddr::Tcp(addr) })
}

/// As [`parse_guest`]; a port alone is that of the network's only guest, which is no address yet.
pub(crate) fn parse_remote(text: &str) -> Result<SocketAddr, ForwardError> {
    let Some(port) = text.strip_prefix(':') else { return parse_guest(text) };
    match port.parse() {
        Ok(0) => Err(ForwardError::PortZero),
        Ok(port) => Ok((Ipv4Addr::UNSPECIFIED, port).into()),
        Err(_) => Err(ForwardError::Target(text.into())),
    }
}

pub(crate) fn parse_guest(text: &str) -> Result<SocketAddr, ForwardError> {
    let addr: SocketAddr = text.parse().map_err(|_| ForwardError::Target(text.into()))?;
    if addr.port() == 0 { Err(ForwardError::PortZero) } else { Ok(addr) }
}

/// Whether a forward's target can be a guest of the network.
pub fn check(config: &Config, forward: &Forward) -> Result<(), ForwardError> {
    let addr = forward.guest.ip();
    if config.is_guest(addr) {
        return Ok(());
    }
    let net = match addr {
        IpAddr::V4(_) => config.ipv4.to_string(),
        IpAddr::V6(_) => format!("{}/64", config.ipv6.prefix),
    };
    Err(ForwardError::Outside { addr, net })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_listen_are_read() {
        let tcp = |addr: &str| ListenAddr::Tcp(addr.parse().unwrap());
        for (text, udp, want) in [
            ("127.0.0.1:5301", false, tcp("127.0.0.1:5301")),
            ("8080", false, tcp("127.0.0.1:8080")),
            ("localhost:8080", false, tcp("127.0.0.1:8080")),
            (":53", true, ListenAddr::Udp("0.0.0.0:53".parse().unwrap())),
            ("[::1]:8080", false, tcp("[::1]:8080")),
            ("/run/a,b=c.sock", false, ListenAddr::Unix("/run/a,b=c.sock".into())),
        ] {
            assert_eq!(parse_listen(text, udp), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, udp, want) in [
            ("x", false, "`x` is not a place"),
            ("127.0.0.1:99999", false, "`127.0.0.1:99999` is not a place"),
            ("0", false, "port 0"),
            ("/run/x", true, "no datagrams"),
        ] {
            let error = parse_listen(text, udp).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        let error = parse_guest("192.168.5.15").unwrap_err().to_string();
        assert!(error.contains("`192.168.5.15` is not a guest's"), "{error}");
        assert_eq!(parse_guest("192.168.5.15:0"), Err(ForwardError::PortZero));
        assert_eq!(parse_remote(":80"), Ok("0.0.0.0:80".parse().unwrap()));
        assert_eq!(parse_remote(":0"), Err(ForwardError::PortZero));
        assert_eq!(parse_remote(":"), Err(ForwardError::Target(":".into())));
    }

    #[test]
    fn a_target_is_a_guest_of_the_network() {
        let config = Config::new("192.168.5.0/24".parse().unwrap(), None, [0; 16]).unwrap();
        let listen = parse_listen("80", false).unwrap();
        let check = |guest: &str| {
            let guest = parse_guest(&format!("{guest}:80")).unwrap();
            check(&config, &Forward { listen: listen.clone(), guest, keep_source: false }).is_ok()
        };
        assert!(check("192.168.5.15"));
        assert!(!check("192.168.6.15"));
        assert!(!check("192.168.5.2"));
        assert!(!check("192.168.5.255"));
        assert!(!check("[fd00::1]"));
        assert!(check("[fd76:6d6c:c0a8:500::15]"));
    }
}
