//! A client's relay for datagrams (RFC 1928 section 7): a socket of the host's loopback, on which
//! each datagram says to which guest it is to go, or from which it comes.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant as SystemInstant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use vmlan_engine::RelayId;
use vmlan_proxy::{Host, datagram, datagram_header};

use crate::core::Core;

/// Datagrams read in one turn.
const BUDGET: usize = 64;

const MAX_DATAGRAM: usize = 65_536;

/// Names that a relay knows, how long, and datagrams that wait for one of them.
const MAX_NAMES: usize = 32;
const NAME_LIFE: Duration = Duration::from_secs(30);
const MAX_WAITING: usize = 16;

#[derive(Debug)]
pub(super) struct Relay {
    socket: UdpSocket,
    /// Whose datagrams are taken. The port is that of the first one if the client did not say.
    peer: (IpAddr, u16),
    names: HashMap<String, Known>,
}

/// What is known of a name, for a while.
#[derive(Debug)]
struct Known {
    guest: Option<IpAddr>,
    /// While it is being looked up: ports and payloads that wait for it.
    waiting: Option<Vec<(u16, Vec<u8>)>>,
    until: SystemInstant,
}

impl Relay {
    /// Opens the socket beside the address that the client has called; returns where it is.
    pub(super) fn open(
        registry: &Registry,
        token: Token,
        local: IpAddr,
        peer: (IpAddr, u16),
    ) -> io::Result<(Self, SocketAddr)> {
        let socket = UdpSocket::bind(SocketAddr::new(local, 0))?;
        socket.set_nonblocking(true)?;
        registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)?;
        let bound = socket.local_addr()?;
        Ok((Self { socket, peer, names: HashMap::new() }, bound))
    }

    /// Takes a budget of the client's datagrams. Names that have to be looked up come back, and
    /// whether there may be more.
    pub(super) fn receive(&mut self, own: RelayId, core: &mut Core) -> (Vec<String>, bool) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        let mut wanted = Vec::new();
        for _ in 0..BUDGET {
            match self.socket.recv_from(&mut buffer) {
                Ok((len, from)) if self.is_peer(from) => {
                    wanted.extend(self.pass_on(buffer.get(..len).unwrap_or_default(), own, core));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return (wanted, false),
                // A stranger's, or what an earlier answer has met.
                Ok(_) | Err(_) => {}
            }
        }
        (wanted, true)
    }

    /// A guest's datagram for the client. One that finds no room is lost, as datagrams are.
    pub(super) fn answer(&self, guest: SocketAddr, data: &[u8]) {
        let message = [&datagram_header(guest)[..], data].concat();
        let _ = self.socket.send_to(&message, SocketAddr::from(self.peer));
    }

    /// A name has been looked up: what has waited goes on.
    pub(super) fn resolved(&mut self, name: &str, found: &[IpAddr], own: RelayId, core: &mut Core) {
        let guest = found.iter().copied().find(|ip| core.is_guest(*ip));
        let until = SystemInstant::now() + NAME_LIFE;
        let known = Known { guest, waiting: None, until };
        let before = self.names.insert(name.to_owned(), known).and_then(|known| known.waiting);
        for (port, data) in before.unwrap_or_default() {
            self.send(own, guest, port, &data, core);
        }
    }

    /// Returns a name that has to be looked up.
    fn pass_on(&mut self, message: &[u8], own: RelayId, core: &mut Core) -> Option<String> {
        let datagram = datagram(message)?;
        let (port, data) = (datagram.target.port, datagram.data);
        let name = match datagram.target.host {
            Host::Ip(ip) => {
                self.send(own, Some(ip), port, data, core);
                return None;
            }
            Host::Name(name) => name,
        };
        let now = SystemInstant::now();
        self.names.retain(|_, known| known.until > now);
        if let Some(known) = self.names.get_mut(&name) {
            match (&mut known.waiting, known.guest) {
                (Some(waiting), _) if waiting.len() < MAX_WAITING => {
                    waiting.push((port, data.to_vec()));
                }
                (Some(_), _) => {}
                (None, guest) => self.send(own, guest, port, data, core),
            }
            return None;
        }
        if self.names.len() >= MAX_NAMES {
            return None;
        }
        let waiting = Some(vec![(port, data.to_vec())]);
        self.names.insert(name.clone(), Known { guest: None, waiting, until: now + NAME_LIFE });
        Some(name)
    }

    /// Who may not be reached is not, and there is no way to say so.
    fn send(&self, own: RelayId, to: Option<IpAddr>, port: u16, data: &[u8], core: &mut Core) {
        if let Some(ip) = to {
            let _ = core.relay(own, self.peer.1, SocketAddr::new(ip, port), data);
        }
    }

    fn is_peer(&mut self, from: SocketAddr) -> bool {
        let (ip, port) = &mut self.peer;
        if *port == 0 && from.ip() == *ip {
            *port = from.port();
        }
        SocketAddr::new(*ip, *port) == from
    }
}
