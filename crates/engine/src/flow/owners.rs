//! What each guest holds: its limit is its own, so that one guest's flood costs another nothing.
//! A guest is whatever is behind one port; MAC and IP addresses it can make up.
//!
//! Forwards hold their clients in the same way.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

use crate::hash::SeededState;
use crate::io::PortId;

/// Flows looked at to find one that may go.
const SAMPLE: usize = 8;

#[derive(Debug)]
pub(crate) struct Owners<K = PortId> {
    table: HashMap<K, Held, SeededState>,
    /// Counts choices; hashed with the seed it is as good as random.
    choices: u64,
}

#[derive(Debug, Default)]
struct Held {
    /// Indexes of flows, in no order.
    flows: Vec<u32>,
    peers: usize,
    /// Flows with something to read that wait for room on the link.
    waiting: Vec<u32>,
}

impl<K: Copy + Eq + Hash> Owners<K> {
    pub(crate) fn new(seed: [u8; 16]) -> Self {
        Self { table: HashMap::with_hasher(SeededState::new(seed)), choices: 0 }
    }

    pub(crate) fn flows(&self, owner: K) -> usize {
        self.table.get(&owner).map_or(0, |h| h.flows.len())
    }

    /// Adds a flow and returns its position, which [`Owners::remove`] wants to know.
    pub(crate) fn add(&mut self, owner: K, flow: u32) -> usize {
        let held = self.table.entry(owner).or_default();
        held.flows.push(flow);
        held.flows.len() - 1
    }

    /// Removes the flow at `position`. The flow that now has that position is returned.
    pub(crate) fn remove(&mut self, owner: K, position: usize) -> Option<u32> {
        let held = self.table.get_mut(&owner)?;
        if position < held.flows.len() {
            held.flows.swap_remove(position);
        }
        if held.flows.is_empty() {
            self.table.remove(&owner);
            return None;
        }
        held.flows.get(position).copied()
    }

    pub(crate) fn clear(&mut self) {
        self.table.clear();
    }

    /// One of the flows, if there is any.
    pub(crate) fn first(&self, owner: K) -> Option<u32> {
        self.table.get(&owner)?.flows.first().copied()
    }

    /// A few of a guest's flows, chosen at random.
    pub(crate) fn sample(&mut self, owner: K) -> impl Iterator<Item = u32> {
        let state = *self.table.hasher();
        let choices = self.choices;
        self.choices = choices.wrapping_add(SAMPLE as u64);
        let flows = self.table.get(&owner).map_or(&[][..], |h| h.flows.as_slice());
        (0..SAMPLE as u64).filter_map(move |i| {
            let chosen = state.hash_one(choices.wrapping_add(i)).checked_rem(flows.len() as u64)?;
            flows.get(usize::try_from(chosen).ok()?).copied()
        })
    }

    pub(crate) fn peers(&self, owner: K) -> usize {
        self.table.get(&owner).map_or(0, |h| h.peers)
    }

    pub(crate) fn add_peers(&mut self, owner: K, count: usize) {
        self.table.entry(owner).or_default().peers += count;
    }

    pub(crate) fn remove_peers(&mut self, owner: K, count: usize) {
        if let Some(held) = self.table.get_mut(&owner) {
            held.peers = held.peers.saturating_sub(count);
        }
    }

    pub(crate) fn wait(&mut self, owner: K, flow: u32) {
        self.table.entry(owner).or_default().waiting.push(flow);
    }

    pub(crate) fn stop_waiting(&mut self, owner: K, flow: u32) {
        if let Some(held) = self.table.get_mut(&owner) {
            held.waiting.retain(|f| *f != flow);
        }
    }

    /// Those that waited.
    pub(crate) fn take_waiting(&mut self, owner: K) -> Vec<u32> {
        self.table.get_mut(&owner).map(|h| std::mem::take(&mut h.waiting)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: PortId = PortId(3);

    #[test]
    fn removing_tells_who_moved() {
        let mut owners = Owners::new([1; 16]);
        for flow in 10..13 {
            assert_eq!(owners.add(PORT, flow), flow as usize - 10);
        }
        assert_eq!(owners.remove(PORT, 0), Some(12));
        assert_eq!(owners.remove(PORT, 1), None, "the last has no successor");
        assert_eq!(owners.remove(PORT, 0), None);
        assert!(owners.table.is_empty());
    }

    #[test]
    fn samples_are_the_guest_s_own() {
        let mut owners = Owners::new([1; 16]);
        assert_eq!(owners.sample(PORT).count(), 0);
        for flow in 0..100 {
            owners.add(PORT, flow);
            owners.add(PortId(4), 1000 + flow);
        }
        let seen: Vec<u32> =
            (0..50).flat_map(|_| owners.sample(PORT).collect::<Vec<_>>()).collect();
        assert!(seen.iter().all(|f| *f < 100));
        let mut different = seen.clone();
        different.sort_unstable();
        different.dedup();
        assert!(different.len() > 50, "only {} of 100 are ever chosen", different.len());
    }
}
