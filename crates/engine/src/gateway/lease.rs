//! Who has which address number: the pool behind DHCPv4 and DHCPv6. It knows numbers (an address
//! less its network's), MAC addresses and time, but no packets.
//!
//! A guest is its MAC address: firmware, boot loader and system of one machine get one address,
//! whatever identifiers they make up, and clones with one machine identity get two. The guest's
//! last address is kept for it until nobody else can be served otherwise (RFC 2131 section 1.6).
//! Memory is bounded by [`MAX_LEASES`], and what one port takes by half of the pool.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use slab::Slab;
use vmlan_wire::Mac;

use crate::config::Config;
use crate::hash::SeededState;
use crate::io::PortId;
use crate::time::Instant;
use crate::timer::TimerWheel;

/// Entries of one pool.
const MAX_LEASES: usize = 4096;

/// Numbers looked at for a free one: more than can be taken.
const MAX_SEARCH: u32 = 4 * 4096;

/// How long an address that somebody else turned out to have is left alone.
pub(super) const BAD_TIME: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Pool {
    range: RangeInclusive<u32>,
    /// Numbers of the gateway's own.
    own: [u32; 3],
    /// Numbers that are kept for one MAC, both ways round.
    reserved: HashMap<u32, Mac, SeededState>,
    reservations: HashMap<Mac, u32, SeededState>,
    leases: Slab<Lease>,
    by_number: HashMap<u32, usize, SeededState>,
    by_mac: HashMap<Mac, usize, SeededState>,
    /// Where to look for a free number next, so that used ones rest as long as possible.
    next: u32,
    timers: TimerWheel,
    expired: Vec<u32>,
    per_port: Vec<usize>,
    port_limit: usize,
    /// Counts up when a guest gets an address for good, leaves or loses it.
    changes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) number: u32,
    pub(super) mac: Mac,
    /// Where the guest is attached; `None` when it is gone.
    pub(super) port: Option<PortId>,
    pub(super) state: State,
    /// When the state ends; of a past lease, when it ended.
    pub(super) until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Kept for the guest until it decides.
    Offered,
    /// The guest's.
    Bound,
    /// Was the guest's: it gets it again, unless the number was needed.
    Past,
    /// In use by somebody who was not given it.
    Bad,
}

/// No number can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exhausted;

impl Pool {
    /// Numbers from the first guest's to the last of the subnet.
    pub(super) fn new(config: &Config, now: Instant) -> Self {
        let number = |ip: Ipv4Addr| ip.to_bits().wrapping_sub(config.ipv4.network.to_bits());
        let last = number(config.ipv4.broadcast()).saturating_sub(1);
        let range = number(config.first_guest)..=config.last_guest.map_or(last, number);
        let state = SeededState::new(config.seed);
        let (mut reserved, mut reservations) =
            (HashMap::with_hasher(state), HashMap::with_hasher(state));
        for (mac, ip) in &config.reservations {
            if config.ipv4.is_host(*ip) && !config.is_own(IpAddr::V4(*ip)) {
                reserved.insert(number(*ip), *mac);
                reservations.insert(*mac, number(*ip));
            }
        }
        let size = range.end().saturating_sub(*range.start()) as usize + 1;
        Self {
            own: [number(config.gateway), number(config.host), number(config.dns)],
            reserved,
            reservations,
            leases: Slab::new(),
            by_number: HashMap::with_hasher(state),
            by_mac: HashMap::with_hasher(state),
            next: *range.start(),
            range,
            timers: TimerWheel::new(now),
            expired: Vec::new(),
            per_port: Vec::new(),
            port_limit: (size.min(MAX_LEASES) / 2).max(1),
            changes: 0,
        }
    }

    /// What a guest has or had.
    pub(super) fn of(&self, mac: Mac) -> Option<Lease> {
        self.by_mac.get(&mac).and_then(|slot| self.leases.get(*slot)).copied()
    }

    pub(super) fn get(&self, number: u32) -> Option<Lease> {
        self.by_number.get(&number).and_then(|slot| self.leases.get(*slot)).copied()
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.leases.iter().map(|(_, lease)| lease)
    }

    /// Keeps a number for `mac`, and for nobody that it was kept for before.
    pub(super) fn reserve(&mut self, number: u32, mac: Mac) {
        if let Some(before) = self.reserved.insert(number, mac) {
            self.reservations.remove(&before);
        }
        if let Some(before) = self.reservations.insert(mac, number).filter(|n| *n != number) {
            self.reserved.remove(&before);
        }
    }

    /// Whether this number is kept for `mac`.
    pub(super) fn is_reserved_for(&self, number: u32, mac: Mac) -> bool {
        self.reserved.get(&number) == Some(&mac)
    }

    /// Whether `mac` may be given this number, as far as the pool knows.
    pub(super) fn may_have(&self, number: u32, mac: Mac) -> bool {
        match self.reserved.get(&number) {
            Some(owner) => return *owner == mac,
            None if !self.range.contains(&number) || self.own.contains(&number) => return false,
            None => {}
        }
        self.get(number).is_none_or(|l| match l.state {
            State::Past => true,
            State::Bad => false,
            State::Offered | State::Bound => l.mac == mac,
        })
    }

    /// Picks a number for a guest in the order of RFC 2131 section 4.3.1: its own, its last, the
    /// one it asks for, a free one. `usable` says what else stands against a number.
    pub(super) fn choose(
        &mut self,
        mac: Mac,
        port: Option<PortId>,
        wanted: Option<u32>,
        usable: impl Fn(u32) -> bool,
    ) -> Result<u32, Exhausted> {
        if let Some(number) = self.reservations.get(&mac) {
            return Ok(*number);
        }
        let last = self.of(mac).map(|l| l.number);
        if let Some(number) = last.filter(|n| self.may_have(*n, mac) && usable(*n)) {
            return Ok(number);
        }
        if port.is_some_and(|port| self.held_by(port) >= self.port_limit) {
            return Err(Exhausted);
        }
        let free = |pool: &Self, n: u32| pool.may_have(n, mac) && usable(n);
        if let Some(number) = wanted.filter(|n| free(self, *n)) {
            return Ok(number);
        }
        self.find_free(|pool, n| pool.get(n).is_none() && free(pool, n))
            .or_else(|| self.oldest(|l| l.state == State::Past && usable(l.number)))
            .or_else(|| self.oldest(|l| l.port.is_none() && usable(l.number)))
            .ok_or(Exhausted)
    }

    /// Gives a number to a guest, in place of any other that it has. False if there is no room.
    /// The guest that had it before is told by the caller.
    pub(super) fn hold(
        &mut self,
        number: u32,
        mac: Mac,
        port: Option<PortId>,
        state: State,
        now: Instant,
        time: Duration,
    ) -> bool {
        let before = [self.by_number.get(&number).copied(), self.by_mac.get(&mac).copied()];
        before.into_iter().flatten().for_each(|slot| self.remove(slot));
        if self.leases.len() >= MAX_LEASES {
            let Some(old) = self.oldest(|l| l.state == State::Past) else { return false };
            self.free(old);
        }
        if self.leases.is_empty() {
            // Nobody turned the wheel while nothing was on it.
            self.timers.expired(now, &mut self.expired);
        }
        let until = now + time;
        let slot = self.leases.insert(Lease { number, mac, port, state, until });
        self.by_number.insert(number, slot);
        if state != State::Bad {
            self.by_mac.insert(mac, slot);
        }
        self.count(slot, true);
        self.changes += u64::from(state == State::Bound);
        self.timers.set(u32::try_from(slot).unwrap_or(u32::MAX), until);
        true
    }

    /// Ends a lease but remembers whose it was.
    pub(super) fn release(&mut self, number: u32, now: Instant) {
        if let Some(slot) = self.by_number.get(&number).copied() {
            self.end(slot, now);
        }
    }

    /// Forgets a number: it is free, and nobody's.
    pub(super) fn free(&mut self, number: u32) {
        if let Some(slot) = self.by_number.get(&number).copied() {
            self.remove(slot);
        }
    }

    /// Ends what is over at `now` and calls `ended` with the leases that were bound.
    pub(super) fn expire(&mut self, now: Instant, mut ended: impl FnMut(Lease)) {
        let mut expired = std::mem::take(&mut self.expired);
        self.timers.expired(now, &mut expired);
        for slot in expired.drain(..) {
            let slot = slot as usize;
            let Some(lease) = self.leases.get(slot).copied() else { continue };
            match lease.state {
                State::Bound => {
                    self.end(slot, now);
                    ended(lease);
                }
                State::Offered | State::Bad => self.remove(slot),
                State::Past => {}
            }
        }
        self.expired = expired;
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The guest of a lease from before is there again.
    pub(super) fn come_back(&mut self, mac: Mac, port: PortId) {
        let Some(slot) = self.by_mac.get(&mac).copied() else { return };
        if let Some(lease) = self.leases.get_mut(slot)
            && (lease.state, lease.port) == (State::Bound, None)
        {
            lease.port = Some(port);
            self.changes += 1;
            self.count(slot, true);
        }
    }

    /// A port is gone: its guests keep their leases, but no longer count against its number.
    pub(super) fn forget_port(&mut self, port: PortId) {
        for (_, lease) in &mut self.leases {
            if lease.port == Some(port) {
                lease.port = None;
                self.changes += u64::from(lease.state == State::Bound);
            }
        }
        if let Some(held) = self.per_port.get_mut(usize::from(port.0)) {
            *held = 0;
        }
    }

    /// Looks for a number that passes, from where the last search ended and all the way round.
    fn find_free(&mut self, passes: impl Fn(&Self, u32) -> bool) -> Option<u32> {
        let (first, last) = (*self.range.start(), *self.range.end());
        let mut number = self.next;
        for _ in 0..=last.saturating_sub(first).min(MAX_SEARCH) {
            let after = if number >= last { first } else { number + 1 };
            if passes(self, number) {
                self.next = after;
                return Some(number);
            }
            number = after;
        }
        None
    }

    fn oldest(&self, passes: impl Fn(&Lease) -> bool) -> Option<u32> {
        let fits = |l: &&Lease| {
            passes(l) && l.state != State::Bad && !self.reserved.contains_key(&l.number)
        };
        self.iter().filter(fits).min_by_key(|l| l.until).map(|l| l.number)
    }

    fn end(&mut self, slot: usize, now: Instant) {
        self.count(slot, false);
        self.timers.cancel(u32::try_from(slot).unwrap_or(u32::MAX));
        if let Some(lease) = self.leases.get_mut(slot) {
            (lease.state, lease.until, lease.port) = (State::Past, now, None);
            self.changes += 1;
        }
    }

    fn remove(&mut self, slot: usize) {
        self.count(slot, false);
        let Some(lease) = self.leases.try_remove(slot) else { return };
        self.changes += u64::from(lease.state == State::Bound);
        self.timers.cancel(u32::try_from(slot).unwrap_or(u32::MAX));
        self.by_number.remove(&lease.number);
        if self.by_mac.get(&lease.mac) == Some(&slot) {
            self.by_mac.remove(&lease.mac);
        }
    }

    fn held_by(&self, port: PortId) -> usize {
        self.per_port.get(usize::from(port.0)).copied().unwrap_or(0)
    }

    fn count(&mut self, slot: usize, more: bool) {
        let Some(port) = self.leases.get(slot).and_then(|l| l.port) else { return };
        let index = usize::from(port.0);
        if self.per_port.len() <= index {
            self.per_port.resize(index + 1, 0);
        }
        if let Some(held) = self.per_port.get_mut(index) {
            *held = if more { *held + 1 } else { held.saturating_sub(1) };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation)]
    use super::*;
    use crate::config::Ipv4Net;
    use crate::testing::config;

    fn mac(n: u32) -> Mac {
        let [a, b, c, d] = n.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    fn at(secs: u64) -> Instant {
        Instant::from_micros(secs * 1_000_000)
    }

    fn any(_: u32) -> bool {
        true
    }

    fn take(pool: &mut Pool, n: u32, port: u16, now: u64) -> Option<u32> {
        let number = pool.choose(mac(n), Some(PortId(port)), None, any).ok()?;
        let day = Duration::from_secs(86_400);
        pool.hold(number, mac(n), Some(PortId(port)), State::Bound, at(now), day).then_some(number)
    }

    #[test]
    fn numbers_rest_as_long_as_others_are_left() {
        let mut pool = Pool::new(&config(), at(0));
        assert_eq!(take(&mut pool, 1, 0, 0), Some(15));
        assert_eq!(take(&mut pool, 2, 0, 0), Some(16));
        pool.release(15, at(1));
        assert_eq!(take(&mut pool, 3, 0, 2), Some(17));
        // The guest that had it gets it again.
        assert_eq!(take(&mut pool, 1, 0, 3), Some(15));
    }

    #[test]
    fn a_full_pool_takes_back_what_ended_first_then_what_belongs_to_nobody_present() {
        let mut pool = Pool::new(&config(), at(0));
        let all: Vec<u32> = (0..240).map(|n| take(&mut pool, n, n as u16, 0).unwrap()).collect();
        assert_eq!(all, (15..=254).collect::<Vec<u32>>());
        assert_eq!(take(&mut pool, 1000, 1000, 0), None);
        pool.release(100, at(5));
        pool.release(50, at(6));
        assert_eq!(take(&mut pool, 1000, 1000, 7), Some(100));
        assert_eq!(take(&mut pool, 1001, 1001, 7), Some(50));
        pool.forget_port(PortId(20));
        assert_eq!(take(&mut pool, 1002, 1002, 8), Some(35));
        assert_eq!(pool.of(mac(20)), None);
        assert_eq!(take(&mut pool, 1003, 1003, 8), None);
    }

    #[test]
    fn one_port_has_at_most_half() {
        let mut pool = Pool::new(&config(), at(0));
        assert_eq!((0..200).filter_map(|n| take(&mut pool, n, 0, 0)).count(), 120);
        assert!(take(&mut pool, 500, 1, 0).is_some());
        // A port that comes after it with the same number starts afresh.
        pool.forget_port(PortId(0));
        assert!(take(&mut pool, 501, 0, 0).is_some());
    }

    #[test]
    fn what_ends_is_told_and_forgotten_or_remembered() {
        let mut pool = Pool::new(&config(), at(0));
        let minute = Duration::from_secs(60);
        assert!(pool.hold(20, mac(1), Some(PortId(0)), State::Offered, at(0), minute));
        assert!(pool.hold(21, mac(2), Some(PortId(0)), State::Bound, at(0), minute));
        assert!(pool.hold(22, mac(3), Some(PortId(0)), State::Bad, at(0), minute));
        assert!(!pool.may_have(22, mac(3)));
        let mut ended = Vec::new();
        pool.expire(at(61), |lease| ended.push(lease.number));
        assert_eq!(ended, [21]);
        assert_eq!((pool.get(20), pool.get(22)), (None, None));
        assert_eq!(pool.of(mac(2)).map(|l| l.state), Some(State::Past));
        assert_eq!(pool.held_by(PortId(0)), 0);
        assert_eq!(pool.next_timeout(), None);
    }

    #[test]
    fn reservations_are_for_their_owner_inside_the_pool_or_not() {
        let mut config = config();
        config.reservations = vec![
            (mac(1), Ipv4Addr::new(192, 168, 5, 15)),
            (mac(2), Ipv4Addr::new(192, 168, 5, 9)),
            (mac(3), Ipv4Addr::new(192, 168, 5, 2)),
            (mac(4), Ipv4Addr::new(10, 0, 0, 1)),
        ];
        let mut pool = Pool::new(&config, at(0));
        assert_eq!(take(&mut pool, 9, 0, 0), Some(16));
        assert_eq!(take(&mut pool, 2, 0, 0), Some(9));
        assert_eq!(take(&mut pool, 1, 0, 0), Some(15));
        assert_eq!(take(&mut pool, 3, 0, 0), Some(17));
        assert_eq!(take(&mut pool, 4, 0, 0), Some(18));
        assert!(!pool.may_have(9, mac(1)));
    }

    #[test]
    fn a_large_subnet_costs_no_more_than_its_guests() {
        let mut config = config();
        config.ipv4 = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 8).unwrap();
        config.gateway = Ipv4Addr::new(10, 0, 0, 2);
        config.first_guest = Ipv4Addr::new(10, 0, 0, 15);
        let mut pool = Pool::new(&config, at(0));
        let taken = (0..10_000).filter_map(|n| take(&mut pool, n, (n / 100) as u16, 0)).count();
        assert_eq!(taken, MAX_LEASES);
        assert_eq!(pool.leases.len(), MAX_LEASES);
        // A number far out, asked for by name.
        pool.release(15, at(1));
        assert!(pool.hold(9_000_000, mac(77_777), Some(PortId(0)), State::Bound, at(1), BAD_TIME));
        assert_eq!(pool.get(9_000_000).map(|l| l.mac), Some(mac(77_777)));
    }
}
