//! Who has which address. An address belongs to its lease, else to the first guest that uses it,
//! until that guest leaves; what claims somebody else's address is not believed.
//!
//! A guest is what is behind one port: within it an address that was not leased may move from one
//! MAC to another. What one MAC and one port may hold is bounded, and only their own addresses give
//! way when they want more, so that nobody can crowd out the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use vmlan_wire::Mac;

use crate::hash::SeededState;
use crate::io::PortId;
use crate::time::Instant;

/// Addresses of one MAC; IPv6 privacy addresses add up, and the longest unused gives way.
const PER_MAC: usize = 64;

/// Addresses behind one port that were not leased: a nested bridge full of guests.
const PER_PORT: usize = 1024;

/// Of the addresses of an IPv4 subnet one port has no more than this part, leases apart: the others
/// are for the other guests. A few it may have in any subnet.
const PART: usize = 4;
const FEW: usize = 8;

/// A port that holds as many loses what has been silent for this long.
const SILENT: Duration = Duration::from_secs(300);

/// How often a port is searched for such.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Addresses known at all.
const MAX: usize = 65_536;

#[derive(Debug)]
pub(crate) struct Neighbors {
    table: HashMap<IpAddr, Neighbor, SeededState>,
    per_mac: HashMap<Mac, Vec<IpAddr>, SeededState>,
    per_port: Vec<PortUse>,
    /// IPv4 addresses behind one port that were not leased.
    per_port_v4: usize,
    /// Addresses that were given to guests which are not there.
    kept: HashMap<IpAddr, Mac, SeededState>,
    /// What guests used in an earlier run: theirs again if they come back in time.
    earlier: HashMap<Mac, IpAddr, SeededState>,
    earlier_until: Instant,
    /// Addresses learned since the last look: flows may be waiting for them.
    fresh: Vec<IpAddr>,
    /// Counts what has been entered, seen in use for the first time, or removed.
    pub(crate) changes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbor {
    pub(crate) mac: Mac,
    pub(crate) port: PortId,
    pub(crate) seen: Instant,
    /// Given to the guest: stays with its MAC while the lease lasts.
    pub(crate) leased: bool,
    pub(crate) used: Used,
}

/// Whether a guest has been seen with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Used {
    Never,
    /// In an earlier run.
    Earlier,
    Yes,
}

#[derive(Clone, Copy, Debug, Default)]
struct PortUse {
    /// Addresses that were not leased.
    held: usize,
    held_v4: usize,
    swept: Instant,
}

impl Neighbors {
    /// For a network with so many IPv4 addresses.
    pub(crate) fn new(seed: [u8; 16], addresses: usize) -> Self {
        let state = SeededState::new(seed);
        Self {
            table: HashMap::with_hasher(state),
            per_mac: HashMap::with_hasher(state),
            per_port: Vec::new(),
            per_port_v4: (addresses / PART).clamp(FEW, PER_PORT),
            kept: HashMap::with_hasher(state),
            earlier: HashMap::with_hasher(state),
            earlier_until: Instant::ZERO,
            fresh: Vec::new(),
            changes: 0,
        }
    }

    pub(crate) fn get(&self, ip: IpAddr) -> Option<Neighbor> {
        self.table.get(&ip).copied()
    }

    /// A guest uses `ip`: true if it may, because the address is its own or was nobody's.
    pub(crate) fn claim(&mut self, ip: IpAddr, mac: Mac, port: PortId, now: Instant) -> bool {
        self.take(ip, mac, port, now, Used::Yes)
    }

    fn take(&mut self, ip: IpAddr, mac: Mac, port: PortId, now: Instant, used: Used) -> bool {
        if let Some(known) = self.table.get_mut(&ip) {
            if known.mac == mac && known.port == port {
                known.seen = now;
                if known.used < used {
                    known.used = used;
                    self.changes = self.changes.wrapping_add(1);
                }
                return true;
            }
            let same_guest = known.mac == mac || known.port == port && !known.leased;
            if !same_guest {
                return false;
            }
            let leased = known.leased;
            self.forget(ip);
            return self.insert(ip, Neighbor { mac, port, seen: now, leased, used });
        }
        let leased = match self.kept.get(&ip) {
            Some(owner) if *owner != mac => return false,
            kept => kept.is_some(),
        };
        self.kept.remove(&ip);
        self.insert(ip, Neighbor { mac, port, seen: now, leased, used })
    }

    /// Nobody but `mac` may have `ip`, until that is said to be over by [`Neighbors::forget`].
    pub(crate) fn keep(&mut self, ip: IpAddr, mac: Mac) {
        self.kept.insert(ip, mac);
    }

    /// A guest used `ip` in an earlier run, and may come back until then.
    pub(crate) fn remember(&mut self, ip: IpAddr, mac: Mac, until: Instant) {
        self.earlier.insert(mac, ip);
        self.earlier_until = until;
    }

    /// What a guest that is there again used in an earlier run.
    pub(crate) fn earlier(&mut self, mac: Mac, now: Instant) -> Option<IpAddr> {
        if now > self.earlier_until {
            self.earlier = HashMap::with_hasher(*self.earlier.hasher());
        }
        self.earlier.get(&mac).copied()
    }

    /// A guest is there again with what it used, unless that is another's by now. It goes with the
    /// guest, as if it had been seen with it.
    pub(crate) fn come_back(&mut self, ip: IpAddr, mac: Mac, port: PortId, now: Instant) {
        if self.get(ip).is_none_or(|known| known.mac == mac) {
            self.take(ip, mac, port, now, Used::Earlier);
        }
    }

    /// DHCP gave `ip` to `mac`: it is that guest's from now on, whoever used it before.
    pub(crate) fn lease(&mut self, ip: IpAddr, mac: Mac, port: PortId, now: Instant) {
        self.forget(ip);
        self.insert(ip, Neighbor { mac, port, seen: now, leased: true, used: Used::Never });
    }

    /// The lease of `ip` ended: the next who uses it may have it.
    pub(crate) fn forget(&mut self, ip: IpAddr) {
        self.kept.remove(&ip);
        let Some(old) = self.table.remove(&ip) else { return };
        self.changes = self.changes.wrapping_add(1);
        if let Some(held) = self.per_mac.get_mut(&old.mac) {
            held.retain(|a| *a != ip);
            if held.is_empty() {
                self.per_mac.remove(&old.mac);
            }
        }
        if !old.leased
            && let Some(port) = self.per_port.get_mut(usize::from(old.port.0))
        {
            port.held = port.held.saturating_sub(1);
            port.held_v4 = port.held_v4.saturating_sub(usize::from(ip.is_ipv4()));
        }
    }

    /// A port is gone: what its guests had configured themselves is free again, and what they were
    /// given is kept for them.
    pub(crate) fn forget_port(&mut self, port: PortId) {
        self.forget_where(|n| n.port == port);
        let theirs = self.table.iter().filter(|(_, n)| n.port == port);
        let theirs: Vec<(IpAddr, Mac)> = theirs.map(|(ip, n)| (*ip, n.mac)).collect();
        for (ip, mac) in theirs {
            self.forget(ip);
            self.keep(ip, mac);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpAddr, Neighbor)> {
        self.table.iter().map(|(ip, n)| (*ip, *n))
    }

    /// The addresses of a card behind a port, in the order in which it came to have them.
    pub(crate) fn of(
        &self,
        mac: Mac,
        port: PortId,
    ) -> impl Iterator<Item = (IpAddr, Neighbor)> + '_ {
        let held = self.per_mac.get(&mac).into_iter().flatten();
        let known = held.filter_map(|ip| self.table.get(ip).map(|n| (*ip, *n)));
        known.filter(move |(_, n)| n.port == port)
    }

    /// Takes the list of addresses learned since the last call.
    pub(crate) fn take_fresh(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.fresh)
    }

    /// Enters an address that is nobody's; false if the guest has too many.
    fn insert(&mut self, ip: IpAddr, new: Neighbor) -> bool {
        if !new.leased && !self.make_room(ip, &new) {
            return false;
        }
        self.per_mac.entry(new.mac).or_default().push(ip);
        if !new.leased
            && let Some(port) = self.per_port.get_mut(usize::from(new.port.0))
        {
            port.held += 1;
            port.held_v4 += usize::from(ip.is_ipv4());
        }
        self.changes = self.changes.wrapping_add(1);
        self.table.insert(ip, new);
        self.fresh.push(ip);
        true
    }

    fn make_room(&mut self, ip: IpAddr, new: &Neighbor) -> bool {
        let (port, now) = (new.port, new.seen);
        let index = usize::from(port.0);
        if self.per_port.len() <= index {
            self.per_port.resize(index + 1, PortUse::default());
        }
        if self.per_mac.get(&new.mac).is_some_and(|held| held.len() >= PER_MAC)
            && let Some(oldest) = self.oldest_of(new.mac)
        {
            self.forget(oldest);
        }
        let max_v4 = if ip.is_ipv4() { self.per_port_v4 } else { usize::MAX };
        let full = |uses: &PortUse| uses.held >= PER_PORT || uses.held_v4 >= max_v4;
        let Some(uses) = self.per_port.get_mut(index) else { return false };
        if full(uses) && now.since(uses.swept) >= SWEEP_INTERVAL {
            uses.swept = now;
            self.forget_where(|n| n.port == port && now.since(n.seen) >= SILENT);
        }
        let room = self.per_port.get(index).is_some_and(|uses| !full(uses));
        room && self.table.len() < MAX
    }

    fn oldest_of(&self, mac: Mac) -> Option<IpAddr> {
        let held = self.per_mac.get(&mac)?.iter();
        let known = held.filter_map(|ip| self.table.get(ip).map(|n| (*ip, n)));
        known.filter(|(_, n)| !n.leased).min_by_key(|(_, n)| n.seen).map(|(ip, _)| ip)
    }

    /// Forgets what was not leased and passes.
    fn forget_where(&mut self, passes: impl Fn(&Neighbor) -> bool) {
        let fit = self.table.iter().filter(|(_, n)| !n.leased && passes(n));
        let gone: Vec<IpAddr> = fit.map(|(ip, _)| *ip).collect();
        gone.into_iter().for_each(|ip| self.forget(ip));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbors() -> Neighbors {
        Neighbors::new([3; 16], 1 << 16)
    }

    fn mac(n: u16) -> Mac {
        let [a, b] = n.to_be_bytes();
        Mac([2, 0, 0, 0, a, b])
    }

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + n).into())
    }

    fn at(secs: u64) -> Instant {
        Instant::from_micros(secs * 1_000_000)
    }

    const P0: PortId = PortId(0);
    const P1: PortId = PortId(1);

    #[test]
    fn the_first_who_uses_an_address_has_it_until_it_leaves() {
        let mut known = neighbors();
        assert!(known.claim(ip(1), mac(1), P0, at(0)));
        assert!(!known.claim(ip(1), mac(2), P1, at(1)));
        assert_eq!(known.take_fresh(), [ip(1)]);
        assert!(known.claim(ip(1), mac(1), P0, at(2)));
        assert!(known.take_fresh().is_empty());
        known.forget_port(P0);
        assert!(known.claim(ip(1), mac(2), P1, at(3)));
        assert_eq!(known.get(ip(1)).map(|n| n.mac), Some(mac(2)));
    }

    #[test]
    fn a_guest_may_move_its_address_to_another_card_or_port_unless_it_is_leased() {
        let mut known = neighbors();
        assert!(known.claim(ip(1), mac(1), P0, at(0)));
        assert!(known.claim(ip(1), mac(2), P0, at(1)));
        assert_eq!(known.get(ip(1)).map(|n| n.mac), Some(mac(2)));
        assert!(known.claim(ip(1), mac(2), P1, at(2)));
        assert_eq!(known.get(ip(1)).map(|n| n.port), Some(P1));
        assert_eq!((known.per_port[0].held, known.per_port[1].held), (0, 1));

        known.lease(ip(1), mac(3), P0, at(3));
        assert!(!known.claim(ip(1), mac(2), P1, at(4)));
        assert!(!known.claim(ip(1), mac(9), P0, at(4)));
        known.forget_port(P0);
        assert!(!known.claim(ip(1), mac(2), P1, at(5)));
        assert!(known.claim(ip(1), mac(3), P1, at(5)));
        assert!(known.get(ip(1)).is_some_and(|n| n.leased && n.port == P1));
        known.forget(ip(1));
        assert!(known.claim(ip(1), mac(2), P1, at(6)));
    }

    #[test]
    fn the_longest_unused_address_of_a_guest_gives_way() {
        let mut known = neighbors();
        known.lease(ip(1000), mac(1), P0, at(0));
        for n in 0..200 {
            assert!(known.claim(ip(n), mac(1), P0, at(u64::from(n))));
            assert!(known.claim(ip(0), mac(1), P0, at(u64::from(n))));
        }
        assert_eq!(known.iter().count(), PER_MAC);
        assert!(known.get(ip(0)).is_some() && known.get(ip(1000)).is_some());
        assert!(known.get(ip(199)).is_some() && known.get(ip(1)).is_none());
    }

    #[test]
    fn a_port_that_makes_up_guests_crowds_out_itself_only() {
        let mut known = neighbors();
        let mut n = 0;
        for round in 0..100u64 {
            for _ in 0..128 {
                n += 1;
                known.claim(ip(u32::from(n)), mac(n), P0, at(round));
            }
        }
        assert_eq!(known.iter().count(), PER_PORT);
        assert!(known.claim(ip(1 << 20), mac(0), P1, at(100)));
        // What went silent makes room for what comes.
        assert!(known.claim(ip(1 << 21), mac(0), P0, at(1000)));
        assert_eq!(known.per_port[0].held, 1);
        assert_eq!(known.per_mac.len(), 1);
    }

    #[test]
    fn one_guest_does_not_use_up_a_small_subnet() {
        let mut known = Neighbors::new([3; 16], 256);
        for n in 0..200u16 {
            known.claim(ip(n.into()), mac(n), P0, at(0));
        }
        assert_eq!(known.iter().count(), 64);
        assert!(known.claim("fd00::1".parse().unwrap(), mac(1), P0, at(0)));
        assert!(known.claim(ip(200), mac(300), P1, at(0)));
    }

    #[test]
    fn what_a_guest_used_in_an_earlier_run_is_its_own_while_it_is_there() {
        let mut known = neighbors();
        for n in 1..=3 {
            known.remember(ip(n.into()), mac(n), at(60));
        }
        // Nothing is kept for one that has not come back.
        assert!(known.claim(ip(1), mac(9), P1, at(0)));
        assert_eq!(known.earlier(mac(1), at(1)), Some(ip(1)));
        known.come_back(ip(1), mac(1), P0, at(1));
        assert_eq!(known.get(ip(1)).map(|n| n.mac), Some(mac(9)));

        known.come_back(ip(2), mac(2), P0, at(1));
        assert_eq!(known.get(ip(2)).map(|n| n.used), Some(Used::Earlier));
        assert!(!known.claim(ip(2), mac(9), P1, at(2)));
        assert!(known.claim(ip(2), mac(2), P0, at(2)));
        known.come_back(ip(2), mac(2), P0, at(3));
        assert_eq!(known.get(ip(2)).map(|n| n.used), Some(Used::Yes));
        known.forget_port(P0);
        assert!(known.claim(ip(2), mac(9), P1, at(4)));

        assert_eq!(known.earlier(mac(3), at(61)), None);
    }

    #[test]
    fn what_is_kept_for_a_guest_is_no_other_guests() {
        let mut known = neighbors();
        known.keep(ip(1), mac(1));
        assert!(!known.claim(ip(1), mac(2), P1, at(0)));
        assert!(known.claim(ip(1), mac(1), P0, at(0)));
        known.keep(ip(2), mac(1));
        known.forget(ip(2));
        assert!(known.claim(ip(2), mac(2), P1, at(0)));
    }
}
