//! Forwards in words: `LISTEN=TARGET[/udp][,source=keep]`, as the command line and the control API
//! have them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use vmlan_engine::io::ListenAddr;
use vmlan_engine::{Config, Forward};

/// Why a text is not a forward of this network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error("there is no `=` between where to listen and the guest")]
    NoTarget,
    #[error("`{0}` is not a place to listen: ADDRESS:PORT, PORT, or the path of a socket")]
    Listen(String),
    #[error("`{0}` is not a guest's ADDRESS:PORT")]
    Target(String),
    #[error("`{0}` is not a protocol: tcp or udp")]
    Protocol(String),
    #[error("`{0}` is not an option: source=keep")]
    Option(String),
    #[error("port 0 is no port")]
    PortZero,
    #[error("a UNIX socket carries no datagrams to a guest")]
    UnixUdp,
    #[error("the clients of a UNIX socket have no address to keep")]
    UnixSource,
    #[error("{addr} is not a guest's address in {net}")]
    Outside { addr: IpAddr, net: String },
    /// The system's word: what is wrong with the address, and who holds it.
    #[error("{0}")]
    Refused(String),
}

/// Reads a forward from the command line.
pub fn parse_forward(text: &str) -> Result<Forward, ForwardError> {
    let (text, keep_source) = match text.rsplit_once(',') {
        Some((rest, "source=keep")) => (rest, true),
        // A path may have commas, a target has none.
        Some((_, option)) if !option.contains('=') || option.starts_with("source=") => {
            return Err(ForwardError::Option(option.into()));
        }
        _ => (text, false),
    };
    let (at, target) = text.rsplit_once('=').ok_or(ForwardError::NoTarget)?;
    let (target, protocol) = target.split_once('/').unwrap_or((target, "tcp"));
    let udp = match protocol {
        "tcp" => false,
        "udp" => true,
        other => return Err(ForwardError::Protocol(other.into())),
    };
    let forward =
        Forward { listen: parse_listen(at, udp)?, guest: parse_guest(target)?, keep_source };
    if keep_source && matches!(forward.listen, ListenAddr::Unix(_)) {
        return Err(ForwardError::UnixSource);
    }
    Ok(forward)
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

pub(crate) fn parse_guest(text: &str) -> Result<SocketAddr, ForwardError> {
    let addr: SocketAddr = text.parse().map_err(|_| ForwardError::Target(text.into()))?;
    if addr.port() == 0 { Err(ForwardError::PortZero) } else { Ok(addr) }
}

/// Whether a forward's target can be a guest of the network.
pub fn check(config: &Config, forward: &Forward) -> Result<(), ForwardError> {
    let addr = forward.guest.ip();
    let inside = match addr {
        IpAddr::V4(a) => config.ipv4.is_host(a),
        IpAddr::V6(a) => config.ipv6.contains(a),
    };
    if inside && !config.is_own(addr) {
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
    fn forwards_are_read() {
        for (text, listen, guest, keep) in [
            (
                "127.0.0.1:5301=192.168.5.15:5301",
                ListenAddr::Tcp("127.0.0.1:5301".parse().unwrap()),
                "192.168.5.15:5301",
                false,
            ),
            (
                "8080=192.168.5.15:80/tcp",
                ListenAddr::Tcp("127.0.0.1:8080".parse().unwrap()),
                "192.168.5.15:80",
                false,
            ),
            (
                ":53=192.168.5.15:53/udp,source=keep",
                ListenAddr::Udp("0.0.0.0:53".parse().unwrap()),
                "192.168.5.15:53",
                true,
            ),
            (
                "[::1]:8080=[fd76:6d6c:c0a8:500::15]:80",
                ListenAddr::Tcp("[::1]:8080".parse().unwrap()),
                "[fd76:6d6c:c0a8:500::15]:80",
                false,
            ),
            (
                "/run/a,b=c.sock=192.168.5.15:22",
                ListenAddr::Unix("/run/a,b=c.sock".into()),
                "192.168.5.15:22",
                false,
            ),
        ] {
            let guest = guest.parse().unwrap();
            let want = Forward { listen, guest, keep_source: keep };
            assert_eq!(parse_forward(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, want) in [
            ("", "no `=`"),
            ("127.0.0.1:80", "no `=`"),
            ("x=192.168.5.15:80", "`x` is not a place"),
            ("127.0.0.1:99999=192.168.5.15:80", "`127.0.0.1:99999` is not a place"),
            ("80=192.168.5.15", "`192.168.5.15` is not a guest's"),
            ("80=192.168.5.15:80/sctp", "`sctp` is not a protocol"),
            ("80=192.168.5.15:80,keep", "`keep` is not an option"),
            ("80=192.168.5.15:80,source=drop", "`source=drop` is not an option"),
            ("0=192.168.5.15:80", "port 0"),
            ("80=192.168.5.15:0", "port 0"),
            ("/run/x=192.168.5.15:80/udp", "no datagrams"),
            ("/run/x=192.168.5.15:80,source=keep", "no address to keep"),
        ] {
            let error = parse_forward(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn a_target_is_a_guest_of_the_network() {
        let config = Config::new("192.168.5.0/24".parse().unwrap(), None, [0; 16]).unwrap();
        let check = |guest: &str| {
            check(&config, &parse_forward(&format!("80={guest}:80")).unwrap()).is_ok()
        };
        assert!(check("192.168.5.15"));
        assert!(!check("192.168.6.15"));
        assert!(!check("192.168.5.2"));
        assert!(!check("192.168.5.255"));
        assert!(!check("[fd00::1]"));
        assert!(check("[fd76:6d6c:c0a8:500::15]"));
    }
}
