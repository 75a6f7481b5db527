//! Whom a guest's endpoint has talked to: replies are taken from nobody else.

use std::net::{IpAddr, SocketAddr};

use crate::time::Instant;

/// A place that a guest has sent to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// As the host knows it.
    pub(crate) host: SocketAddr,
    /// The address the guest used, when that is an alias.
    alias: Option<IpAddr>,
    last: Instant,
}

impl Peer {
    /// As the guest knows it.
    pub(crate) fn shown(&self) -> SocketAddr {
        self.alias.map_or(self.host, |ip| SocketAddr::new(ip, self.host.port()))
    }
}

/// A bounded set; the one used last is found at once.
#[derive(Debug, Default)]
pub(crate) struct Peers(Vec<Peer>);

impl Peers {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The peer with exactly this address of the host's network.
    pub(crate) fn find(&mut self, host: SocketAddr) -> Option<Peer> {
        let at = self.0.iter().position(|p| p.host == host)?;
        self.0.swap(0, at);
        self.0.first().copied()
    }

    /// The peer that an error is about. Linux leaves out the port in what it says itself about a
    /// datagram over IPv4 that is too big for the path.
    pub(crate) fn find_failed(&mut self, to: SocketAddr) -> Option<Peer> {
        if to.port() != 0 {
            return self.find(to);
        }
        self.0.iter().find(|p| p.host.ip() == to.ip()).copied()
    }

    /// Notes that the guest sent to `host`, which it calls `shown`. Beyond `limit` the peer unused
    /// for longest makes room.
    pub(crate) fn touch(
        &mut self,
        host: SocketAddr,
        shown: SocketAddr,
        now: Instant,
        limit: usize,
    ) {
        let alias = (host.ip() != shown.ip()).then(|| shown.ip());
        let peer = Peer { host, alias, last: now };
        if self.find(host).is_none() {
            while self.0.len() >= limit.max(1) {
                let oldest = self.0.iter().enumerate().min_by_key(|(_, p)| p.last);
                let Some((at, _)) = oldest else { break };
                self.0.swap_remove(at);
            }
            self.0.push(peer);
            let end = self.0.len() - 1;
            self.0.swap(0, end);
        } else if let Some(first) = self.0.first_mut() {
            *first = peer;
        }
    }

    /// The peer, if there is just one.
    pub(crate) fn only(&self) -> Option<&Peer> {
        if let [only] = self.0.as_slice() { Some(only) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], n))
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut peers = Peers::default();
        for n in 1..=4 {
            peers.touch(addr(n), addr(n), Instant::from_micros(u64::from(n)), 4);
        }
        peers.touch(addr(1), addr(1), Instant::from_micros(9), 4);
        peers.touch(addr(5), addr(5), Instant::from_micros(10), 4);
        assert_eq!(peers.len(), 4);
        assert!(peers.find(addr(2)).is_none());
        assert!([1, 3, 4, 5].into_iter().all(|n| peers.find(addr(n)).is_some()));
    }

    #[test]
    fn an_alias_is_restored_and_the_latest_counts() {
        let mut peers = Peers::default();
        let loopback = SocketAddr::from(([127, 0, 0, 1], 53));
        for shown in [[192, 168, 5, 2], [192, 168, 5, 1]] {
            let shown = SocketAddr::from((shown, 53));
            peers.touch(loopback, shown, Instant::ZERO, 4);
            assert_eq!(peers.find(loopback).map(|p| p.shown()), Some(shown));
        }
        assert_eq!(peers.len(), 1);
        assert!(peers.find(SocketAddr::from(([127, 0, 0, 1], 54))).is_none());
        assert!(peers.find(SocketAddr::from(([127, 0, 0, 1], 0))).is_none());
        assert!(peers.find_failed(SocketAddr::from(([127, 0, 0, 1], 0))).is_some());
    }
}
