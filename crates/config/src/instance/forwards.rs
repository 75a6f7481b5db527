//! Which of the guest's listeners are to be reached on the host, and where: the rules of
//! `portForwards` as a table, of which the first line that fits decides. Who listens, and who hears
//! what the guest listens on, is others' business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Transport protocols that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    Any,
    Tcp,
    Udp,
}

/// What a rule does with a listener that it fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Ignore,
    /// The port at the same place of this range.
    Port {
        ip: IpAddr,
        first: u16,
    },
    /// A UNIX socket.
    Socket(PathBuf),
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub guest_ip: IpAddr,
    /// Only listeners on every address.
    pub must_be_zero: bool,
    pub ports: RangeInclusive<u16>,
    pub proto: Proto,
    pub action: Action,
    /// From the start, whether the guest listens or not.
    pub is_static: bool,
}

/// A UNIX socket of one side that leads to one of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketForward {
    pub guest: PathBuf,
    pub host: PathBuf,
    /// From the guest to the host.
    pub reverse: bool,
}

/// Where a listener of the guest is to be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ignored,
    Port(SocketAddr),
    Socket(PathBuf),
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwards {
    pub rules: Vec<Rule>,
    /// These have no port, and stand beside the table.
    pub sockets: Vec<SocketForward>,
}

pub(super) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(super) const EVERYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl Rule {
    /// What every table ends with: all that listens on the loopback or everywhere is to be reached
    /// on the host's loopback, at the same port.
    fn rest() -> Self {
        Self {
            guest_ip: LOOPBACK,
            must_be_zero: false,
            ports: 1..=u16::MAX,
            proto: Proto::Any,
            action: Action::Port { ip: LOOPBACK, first: 1 },
            is_static: false,
        }
    }

    fn ignore(port: u16) -> Self {
        Self { guest_ip: EVERYWHERE, ports: port..=port, action: Action::Ignore, ..Self::rest() }
    }

    fn fits(&self, udp: bool, guest: SocketAddr) -> bool {
        let proto = match self.proto {
            Proto::Any => true,
            Proto::Tcp => !udp,
            Proto::Udp => udp,
        };
        proto && self.ports.contains(&guest.port()) && self.fits_ip(guest.ip())
    }

    fn fits_ip(&self, guest: IpAddr) -> bool {
        guest.is_unspecified()
            || guest == self.guest_ip
            || (guest == IpAddr::V6(Ipv6Addr::LOCALHOST) && self.guest_ip == LOOPBACK)
            || (self.guest_ip.is_unspecified() && !self.must_be_zero)
    }
}

impl Forwards {
    /// The table in force: ssh has a way of its own, the user's rules, and the rest.
    #[must_use]
    pub fn in_force(self, ssh_port: u16) -> Self {
        let first = [Rule::ignore(22), Rule::ignore(ssh_port)];
        let rules = first.into_iter().chain(self.rules).chain([Rule::rest()]).collect();
        Self { rules, ..self }
    }

    /// What becomes of a listener of the guest.
    pub fn decide(&self, udp: bool, guest: SocketAddr) -> Verdict {
        for rule in self.rules.iter().filter(|rule| rule.fits(udp, guest)) {
            match &rule.action {
                // What listens on every address listens on others than the ignored one as well.
                Action::Ignore
                    if guest.ip().is_unspecified() && !rule.guest_ip.is_unspecified() => {}
                Action::Ignore => return Verdict::Ignored,
                Action::Port { ip, first } => {
                    let port = first + (guest.port() - rule.ports.start());
                    return Verdict::Port(SocketAddr::new(*ip, port));
                }
                Action::Socket(path) => return Verdict::Socket(path.clone()),
            }
        }
        Verdict::Ignored
    }

    /// What is there from the start: a port of the guest's loopback, the protocols, and where.
    pub fn fixed(&self) -> impl Iterator<Item = (u16, Proto, Verdict)> {
        self.rules.iter().filter(|rule| rule.is_static).flat_map(|rule| {
            rule.ports.clone().map(move |port| {
                let verdict = match &rule.action {
                    Action::Ignore => Verdict::Ignored,
                    Action::Socket(path) => Verdict::Socket(path.clone()),
                    Action::Port { ip, first } => {
                        let port = first + (port - rule.ports.start());
                        Verdict::Port(SocketAddr::new(*ip, port))
                    }
                };
                (port, rule.proto, verdict)
            })
        })
    }
}

#[cfg(test)]
#[path = "forwards_tests.rs"]
mod tests;
