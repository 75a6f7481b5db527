//! What listens in this machine: asked for at intervals, since the kernel tells nobody by itself.
//! Sockets that could be no server's are left out.

mod diag;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use vmlan_agent::message::{Listener, MAX_LISTENERS, Proto};
use vmlan_agent::proc_net;

use diag::Diag;

/// Asks for the listeners, and knows those of the last time.
#[derive(Debug)]
pub(crate) struct Watch {
    /// None where the kernel has none: then its text has to do.
    diag: Option<Diag>,
    /// Ports that clients get.
    ephemeral: RangeInclusive<u16>,
    /// UDP sockets of the last time that may be clients'.
    young: BTreeSet<Listener>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self { diag: Diag::open().ok(), ephemeral: ephemeral(), young: BTreeSet::new() }
    }

    /// The listeners of now, but these, in order and without doubles.
    pub(crate) fn list(&mut self, but: impl Fn(&Listener) -> bool) -> Vec<Listener> {
        let mut all = match self.diag.as_mut().map(Diag::list) {
            Some(Ok(all)) => all,
            _ => {
                self.diag = None;
                read_text()
            }
        };
        all.retain(|listener| is_reachable(listener.at.ip()) && !but(listener));
        all.sort_unstable();
        all.dedup();
        let doubtful = |listener: &Listener| {
            listener.proto == Proto::Udp && self.ephemeral.contains(&listener.at.port())
        };
        let young = all.iter().copied().filter(doubtful).collect();
        // A question to a nameserver is over sooner; who stays is a server.
        all.retain(|listener| !doubtful(listener) || self.young.contains(listener));
        self.young = young;
        all.truncate(MAX_LISTENERS);
        all
    }
}

fn read_text() -> Vec<Listener> {
    let files = proc_net::FILES.into_iter();
    let texts = files.filter_map(|(path, proto)| Some((fs::read_to_string(path).ok()?, proto)));
    texts.flat_map(|(text, proto)| proc_net::listeners(&text, proto).collect::<Vec<_>>()).collect()
}

/// Whether an address can be connected to without saying where it is.
fn is_reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => !a.is_multicast() && !a.is_broadcast(),
        IpAddr::V6(a) => !a.is_multicast() && !a.is_unicast_link_local(),
    }
}

fn ephemeral() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut words = text.split_ascii_whitespace().map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => 32768..=60999,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn both_ways_of_asking_see_the_same() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp6 = TcpListener::bind("[::1]:0").unwrap();
        let all = TcpListener::bind("[::]:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(udp.local_addr().unwrap()).unwrap();
        let stream = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let has =
            |found: &[Listener], proto, at, dual| found.contains(&Listener { proto, at, dual });
        let asked = Diag::open().unwrap().list().unwrap();
        for (found, dual) in [(asked, true), (read_text(), false)] {
            assert!(has(&found, Proto::Tcp, tcp.local_addr().unwrap(), false));
            assert!(has(&found, Proto::Tcp, tcp6.local_addr().unwrap(), false));
            assert!(has(&found, Proto::Tcp, all.local_addr().unwrap(), dual));
            assert!(has(&found, Proto::Udp, udp.local_addr().unwrap(), false));
            assert!(!has(&found, Proto::Udp, client.local_addr().unwrap(), false));
            assert!(!has(&found, Proto::Tcp, stream.local_addr().unwrap(), false));
        }
    }

    #[test]
    fn a_udp_socket_with_a_clients_port_has_to_stay() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = udp.local_addr().unwrap();
        let mut watch = Watch { ephemeral: at.port()..=at.port(), ..Watch::new() };
        let listener = Listener { proto: Proto::Udp, at, dual: false };
        assert!(!watch.list(|_| false).contains(&listener));
        assert!(watch.list(|_| false).contains(&listener));
        assert!(!watch.list(|other| *other == listener).contains(&listener));
    }
}
