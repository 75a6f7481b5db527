//! Who has which address. An address belongs to its lease, else to the first guest that uses it,
//! until that guest leaves; what claims somebody else's address is not believed.

use std::collections::HashMap;
use std::net::IpAddr;

use vmlan_wire::Mac;

use crate::hash::SeededState;
use crate::io::PortId;
use crate::time::Instant;

/// Addresses that one MAC may hold besides its lease (IPv6 privacy addresses add up).
const PER_MAC: usize = 64;

/// Addresses known at all.
const MAX: usize = 65_536;

#[derive(Debug)]
pub(crate) struct Neighbors {
    table: HashMap<IpAddr, Neighbor, SeededState>,
    per_mac: HashMap<Mac, usize, SeededState>,
    /// Addresses learned since the last look: flows may be waiting for them.
    fresh: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbor {
    pub(crate) mac: Mac,
    pub(crate) port: PortId,
    pub(crate) seen: Instant,
    /// Given by DHCP: stays with its MAC while the lease lasts, whether the guest is there or not.
    pub(crate) leased: bool,
}

impl Neighbors {
    pub(crate) fn new(seed: [u8; 16]) -> Self {
        let state = SeededState::new(seed);
        Self {
            table: HashMap::with_hasher(state),
            per_mac: HashMap::with_hasher(state),
            fresh: Vec::new(),
        }
    }

    pub(crate) fn get(&self, ip: IpAddr) -> Option<Neighbor> {
        self.table.get(&ip).copied()
    }

    /// A guest uses `ip`: true if it may, because the address is its own or was nobody's.
    pub(crate) fn claim(&mut self, ip: IpAddr, mac: Mac, port: PortId, now: Instant) -> bool {
        if let Some(known) = self.table.get_mut(&ip) {
            if known.mac != mac {
                return false;
            }
            (known.port, known.seen) = (port, now);
            return true;
        }
        let held = self.per_mac.entry(mac).or_insert(0);
        if *held >= PER_MAC || self.table.len() >= MAX {
            return false;
        }
        *held += 1;
        self.table.insert(ip, Neighbor { mac, port, seen: now, leased: false });
        self.fresh.push(ip);
        true
    }

    /// DHCP gave `ip` to `mac`: it is that guest's from now on, whoever used it before.
    pub(crate) fn lease(&mut self, ip: IpAddr, mac: Mac, port: PortId, now: Instant) {
        self.forget(ip);
        *self.per_mac.entry(mac).or_insert(0) += 1;
        self.table.insert(ip, Neighbor { mac, port, seen: now, leased: true });
        self.fresh.push(ip);
    }

    /// The lease of `ip` ended: the next who uses it may have it.
    pub(crate) fn forget(&mut self, ip: IpAddr) {
        if let Some(old) = self.table.remove(&ip) {
            self.release_mac(old.mac);
        }
    }

    /// A port is gone: what its guests had configured themselves is free again.
    pub(crate) fn forget_port(&mut self, port: PortId) {
        let gone: Vec<IpAddr> = self
            .table
            .iter()
            .filter(|(_, n)| n.port == port && !n.leased)
            .map(|(ip, _)| *ip)
            .collect();
        for ip in gone {
            self.forget(ip);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpAddr, Neighbor)> {
        self.table.iter().map(|(ip, n)| (*ip, *n))
    }

    /// Takes the list of addresses learned since the last call.
    pub(crate) fn take_fresh(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.fresh)
    }

    fn release_mac(&mut self, mac: Mac) {
        if let Some(held) = self.per_mac.get_mut(&mac) {
            *held -= 1;
            if *held == 0 {
                self.per_mac.remove(&mac);
            }
        }
    }
}
