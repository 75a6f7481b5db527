//! The forwarding database: MAC address to port.
//!
//! The address of a guest's own card is where it was first seen until that port is gone: a guest
//! that was restarted has a new port and its old one is gone, one that steals has neither. Those
//! of guests behind a guest may move, when they have been silent for as long as 802.1D remembers.

use std::collections::HashMap;
use std::time::Duration;

use vmlan_wire::Mac;

use crate::hash::SeededState;
use crate::io::PortId;
use crate::time::Instant;

/// How often the port of an address is asked whether it is still there.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// How often entries are looked through for old ones, at most.
const AGE_INTERVAL: Duration = Duration::from_secs(1);

/// Entries refresh at most this often, so that learning a known address writes nothing.
const REFRESH: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Fdb {
    entries: HashMap<Mac, Entry, SeededState>,
    per_port: Vec<usize>,
    ageing: Duration,
    /// At most, behind a guest's port and behind the one that leads to another network.
    max: (usize, usize),
    pub(super) uplink: Option<PortId>,
    /// When entries were last looked through for old ones.
    aged: Option<Instant>,
    /// Counts what has been entered, moved or removed.
    pub(super) changes: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    port: PortId,
    seen: Instant,
    /// It stays while its port is there: the first at its port, or one with a lease.
    fixed: bool,
    /// When its port was last asked for it.
    asked: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learned {
    Ok,
    /// The port has used up its addresses.
    TooMany,
    /// The address is another port's. With `ask` it is time to see whether that is still there.
    Refused {
        ask: bool,
    },
}

impl Fdb {
    pub(super) fn new(seed: [u8; 16], ageing: Duration, max: (usize, usize)) -> Self {
        Self {
            entries: HashMap::with_hasher(SeededState::new(seed)),
            per_port: Vec::new(),
            ageing,
            max,
            uplink: None,
            aged: None,
            changes: 0,
        }
    }

    pub(super) fn lookup(&self, mac: Mac) -> Option<PortId> {
        self.entries.get(&mac).map(|e| e.port)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (Mac, PortId)> {
        self.entries.iter().map(|(mac, e)| (*mac, e.port))
    }

    pub(super) fn learn(&mut self, mac: Mac, port: PortId, now: Instant) -> Learned {
        if let Some(entry) = self.entries.get_mut(&mac) {
            if entry.port == port {
                if now.since(entry.seen) >= REFRESH {
                    entry.seen = now;
                }
                return Learned::Ok;
            }
            if entry.fixed || now.since(entry.seen) < self.ageing {
                let ask = entry.asked.is_none_or(|at| now.since(at) >= ASK_INTERVAL);
                if ask {
                    entry.asked = Some(now);
                }
                return Learned::Refused { ask };
            }
            let old = entry.port;
            self.remove(mac, old);
        }
        let is_uplink = self.uplink == Some(port);
        let max = if is_uplink { self.max.1 } else { self.max.0 };
        if self.count(port) >= max {
            self.age(now);
            if self.count(port) >= max {
                return if is_uplink { Learned::Ok } else { Learned::TooMany };
            }
        }
        let fixed = self.count(port) == 0;
        self.insert(mac, Entry { port, seen: now, fixed, asked: None });
        Learned::Ok
    }

    /// The address is a card's at this port, whoever has used it.
    pub(super) fn give(&mut self, mac: Mac, port: PortId, now: Instant) {
        if let Some(old) = self.lookup(mac) {
            self.remove(mac, old);
        }
        self.insert(mac, Entry { port, seen: now, fixed: true, asked: None });
    }

    /// The address has a lease at this port: it stays there.
    pub(super) fn fix(&mut self, mac: Mac, port: PortId) {
        if let Some(entry) = self.entries.get_mut(&mac).filter(|e| e.port == port) {
            entry.fixed = true;
        }
    }

    pub(super) fn forget_port(&mut self, port: PortId) {
        self.changes = self.changes.wrapping_add(1);
        if self.uplink == Some(port) {
            self.uplink = None;
        }
        self.entries.retain(|_, e| e.port != port);
        if let Some(count) = self.per_port.get_mut(usize::from(port.0)) {
            *count = 0;
        }
    }

    /// Drops what has been silent too long. Only called when room is needed: an old entry does no
    /// harm, it is corrected by the address's next frame.
    fn age(&mut self, now: Instant) {
        if self.aged.is_some_and(|at| now.since(at) < AGE_INTERVAL) {
            return;
        }
        self.aged = Some(now);
        self.changes = self.changes.wrapping_add(1);
        let (ageing, per_port) = (self.ageing, &mut self.per_port);
        self.entries.retain(|_, e| {
            let keep = e.fixed || now.since(e.seen) < ageing;
            if !keep && let Some(count) = per_port.get_mut(usize::from(e.port.0)) {
                *count = count.saturating_sub(1);
            }
            keep
        });
    }

    fn count(&self, port: PortId) -> usize {
        self.per_port.get(usize::from(port.0)).copied().unwrap_or(0)
    }

    fn insert(&mut self, mac: Mac, entry: Entry) {
        let index = usize::from(entry.port.0);
        self.changes = self.changes.wrapping_add(1);
        self.entries.insert(mac, entry);
        if self.per_port.len() <= index {
            self.per_port.resize(index + 1, 0);
        }
        if let Some(count) = self.per_port.get_mut(index) {
            *count += 1;
        }
    }

    fn remove(&mut self, mac: Mac, port: PortId) {
        self.entries.remove(&mac);
        if let Some(count) = self.per_port.get_mut(usize::from(port.0)) {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fdb() -> Fdb {
        Fdb::new([1; 16], Duration::from_secs(300), (2, 4))
    }

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    fn at(secs: u64) -> Instant {
        Instant::from_micros(secs * 1_000_000)
    }

    #[test]
    fn a_card_s_address_stays_while_its_port_is_there() {
        let mut fdb = fdb();
        assert_eq!(fdb.learn(mac(1), PortId(0), at(0)), Learned::Ok);
        assert_eq!(fdb.learn(mac(1), PortId(1), at(1)), Learned::Refused { ask: true });
        assert_eq!(fdb.learn(mac(1), PortId(1), at(1)), Learned::Refused { ask: false });
        assert_eq!(fdb.learn(mac(1), PortId(1), at(9999)), Learned::Refused { ask: true });
        assert_eq!(fdb.lookup(mac(1)), Some(PortId(0)));
        fdb.forget_port(PortId(0));
        assert_eq!(fdb.learn(mac(1), PortId(1), at(9999)), Learned::Ok);
        assert_eq!(fdb.lookup(mac(1)), Some(PortId(1)));
    }

    #[test]
    fn one_behind_a_guest_moves_when_it_was_silent_unless_it_has_a_lease() {
        let mut fdb = fdb();
        for n in [1, 2] {
            assert_eq!(fdb.learn(mac(n), PortId(0), at(0)), Learned::Ok);
        }
        assert_eq!(fdb.learn(mac(2), PortId(1), at(299)), Learned::Refused { ask: true });
        assert_eq!(fdb.learn(mac(2), PortId(1), at(301)), Learned::Ok);
        fdb.learn(mac(3), PortId(1), at(301));
        fdb.fix(mac(3), PortId(0));
        fdb.fix(mac(3), PortId(1));
        assert_eq!(fdb.learn(mac(3), PortId(0), at(999)), Learned::Refused { ask: true });
    }

    #[test]
    fn a_port_has_only_so_many_addresses_until_they_age() {
        let mut fdb = fdb();
        for n in 0..2 {
            assert_eq!(fdb.learn(mac(n), PortId(0), at(0)), Learned::Ok);
        }
        assert_eq!(fdb.learn(mac(9), PortId(0), at(1)), Learned::TooMany);
        assert_eq!(fdb.learn(mac(9), PortId(1), at(1)), Learned::Ok);
        assert_eq!(fdb.learn(mac(8), PortId(0), at(301)), Learned::Ok);
        assert_eq!((fdb.lookup(mac(0)), fdb.lookup(mac(1))), (Some(PortId(0)), None));
    }

    #[test]
    fn behind_an_uplink_are_more_and_who_is_not_known_may_speak() {
        let mut fdb = fdb();
        fdb.uplink = Some(PortId(0));
        for n in 0..9 {
            assert_eq!(fdb.learn(mac(n), PortId(0), at(0)), Learned::Ok);
        }
        let known = (0..9).filter(|n| fdb.lookup(mac(*n)).is_some()).count();
        assert_eq!(known, 4);
    }

    #[test]
    fn a_port_that_goes_takes_its_addresses() {
        let mut fdb = fdb();
        fdb.learn(mac(1), PortId(0), at(0));
        fdb.forget_port(PortId(0));
        assert_eq!(fdb.lookup(mac(1)), None);
        assert_eq!(fdb.learn(mac(1), PortId(1), at(0)), Learned::Ok);
    }
}
