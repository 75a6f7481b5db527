//! The forwarding database: MAC address to port.

use std::collections::HashMap;
use std::time::Duration;

use vmlan_wire::Mac;

use crate::hash::SeededState;
use crate::io::PortId;
use crate::time::Instant;

/// A MAC that is in use on one port may move to another only after this silence: a guest that
/// was restarted moves at once in practice (its old port is gone), one that steals does not.
const MOVE_AFTER: Duration = Duration::from_secs(2);

/// Entries refresh at most this often, so that learning a known address writes nothing.
const REFRESH: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Fdb {
    entries: HashMap<Mac, Entry, SeededState>,
    per_port: Vec<usize>,
    ageing: Duration,
    max_per_port: usize,
    /// Counts what has been entered, moved or removed.
    pub(super) changes: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    port: PortId,
    seen: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learned {
    Ok,
    /// The port has used up its addresses.
    TooMany,
    /// The address is in use on another port.
    Refused,
}

impl Fdb {
    pub(super) fn new(seed: [u8; 16], ageing: Duration, max_per_port: usize) -> Self {
        Self {
            entries: HashMap::with_hasher(SeededState::new(seed)),
            per_port: Vec::new(),
            ageing,
            max_per_port,
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
            if now.since(entry.seen) < MOVE_AFTER {
                return Learned::Refused;
            }
            let old = entry.port;
            self.remove(mac, old);
        }
        if self.count(port) >= self.max_per_port {
            self.age(now);
            if self.count(port) >= self.max_per_port {
                return Learned::TooMany;
            }
        }
        self.changes = self.changes.wrapping_add(1);
        self.entries.insert(mac, Entry { port, seen: now });
        let index = usize::from(port.0);
        if self.per_port.len() <= index {
            self.per_port.resize(index + 1, 0);
        }
        if let Some(count) = self.per_port.get_mut(index) {
            *count += 1;
        }
        Learned::Ok
    }

    pub(super) fn forget_port(&mut self, port: PortId) {
        self.changes = self.changes.wrapping_add(1);
        self.entries.retain(|_, e| e.port != port);
        if let Some(count) = self.per_port.get_mut(usize::from(port.0)) {
            *count = 0;
        }
    }

    /// Drops what has been silent too long. Only called when room is needed: an old entry does no
    /// harm, it is corrected by the address's next frame.
    fn age(&mut self, now: Instant) {
        self.changes = self.changes.wrapping_add(1);
        let (ageing, per_port) = (self.ageing, &mut self.per_port);
        self.entries.retain(|_, e| {
            let keep = now.since(e.seen) < ageing;
            if !keep && let Some(count) = per_port.get_mut(usize::from(e.port.0)) {
                *count = count.saturating_sub(1);
            }
            keep
        });
    }

    fn count(&self, port: PortId) -> usize {
        self.per_port.get(usize::from(port.0)).copied().unwrap_or(0)
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
        Fdb::new([1; 16], Duration::from_secs(300), 2)
    }

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    fn at(secs: u64) -> Instant {
        Instant::from_micros(secs * 1_000_000)
    }

    #[test]
    fn an_address_in_use_does_not_move_and_a_silent_one_does() {
        let mut fdb = fdb();
        assert_eq!(fdb.learn(mac(1), PortId(0), at(0)), Learned::Ok);
        assert_eq!(fdb.learn(mac(1), PortId(1), at(1)), Learned::Refused);
        assert_eq!(fdb.lookup(mac(1)), Some(PortId(0)));
        assert_eq!(fdb.learn(mac(1), PortId(1), at(5)), Learned::Ok);
        assert_eq!(fdb.lookup(mac(1)), Some(PortId(1)));
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
        assert_eq!(fdb.lookup(mac(0)), None);
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
