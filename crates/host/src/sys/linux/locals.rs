//! Which of this machine's addresses a peer spoke to, for sockets that are bound to all of them:
//! answers come from there, or the peer would not know them (RFC 1123 section 4.1.3.5).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Peers in one of the two halves of the memory.
const HALF: usize = 1024;

/// Remembers the peers that were heard last, at least [`HALF`] and at most twice as many.
#[derive(Debug, Default)]
pub(crate) struct Locals {
    young: HashMap<SocketAddr, IpAddr>,
    old: HashMap<SocketAddr, IpAddr>,
}

impl Locals {
    pub(crate) fn heard(&mut self, peer: SocketAddr, local: IpAddr) {
        if self.young.get(&peer) == Some(&local) {
            return;
        }
        if self.young.len() >= HALF {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(peer, local);
    }

    pub(crate) fn of(&self, peer: SocketAddr) -> Option<IpAddr> {
        self.young.get(&peer).or_else(|| self.old.get(&peer)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_peers_are_known_and_the_memory_is_bounded() {
        let mut locals = Locals::default();
        let peer = |n: u32| SocketAddr::new(IpAddr::from(n.to_be_bytes()), 1);
        let local = |n: u32| IpAddr::from([127, 0, 0, u8::try_from(n % 200).unwrap()]);
        for n in 0..10_000 {
            locals.heard(peer(n), local(n));
        }
        for n in 10_000 - 1024..10_000 {
            assert_eq!(locals.of(peer(n)), Some(local(n)));
        }
        assert_eq!(locals.of(peer(0)), None);
        assert!(locals.young.len() + locals.old.len() <= 2 * HALF);
        locals.heard(peer(9_999), local(5));
        assert_eq!(locals.of(peer(9_999)), Some(local(5)));
    }
}
