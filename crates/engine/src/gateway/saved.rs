//! Leases on their way to a file and back: what survives the daemon.

use std::net::{IpAddr, Ipv6Addr};

use vmlan_wire::Mac;

use super::lease::{Pool, State};
use super::{Gateway, dhcp, dhcp6};
use crate::Engine;
use crate::config::Config;
use crate::time::Instant;

/// A lease as it is kept while no daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedLease {
    pub ip: IpAddr,
    pub mac: Mac,
    pub until: Instant,
}

impl Engine {
    /// The leases that are in force.
    pub fn saved_leases(&self) -> Vec<SavedLease> {
        let (v4, v6) = (self.net.config.ipv4, self.net.config.ipv6);
        let four = bound(self.gateway.dhcp.pool(), move |n| v4.nth(n).into());
        let six = bound(self.gateway.dhcp6.pool(), move |n| v6.nth(n.into()).into());
        four.chain(six).collect()
    }

    /// Whose every address is or last was, those first that have been gone for longest.
    pub fn remembered_leases(&self) -> Vec<(IpAddr, Mac)> {
        let (v4, v6) = (self.net.config.ipv4, self.net.config.ipv6);
        let four = known(self.gateway.dhcp.pool(), move |n| v4.nth(n).into());
        let six = known(self.gateway.dhcp6.pool(), move |n| v6.nth(n.into()).into());
        let mut all: Vec<_> = four.chain(six).collect();
        all.sort_unstable_by_key(|(past, lease)| (!*past, lease.until, lease.ip));
        all.into_iter().map(|(_, lease)| (lease.ip, lease.mac)).collect()
    }

    /// Counts up whenever [`Engine::remembered_leases`] has changed.
    pub fn lease_changes(&self) -> u64 {
        self.gateway.dhcp.pool().changes() + self.gateway.dhcp6.pool().changes()
    }

    /// Takes a lease over from an earlier run, before guests are there. False if it is over, or its
    /// address is not one that this network gives.
    pub fn restore_lease(&mut self, lease: SavedLease, now: Instant) -> bool {
        let restored = restore(&mut self.gateway, &self.net.config, lease, now).unwrap_or(false);
        if restored {
            self.net.neighbors.keep(lease.ip, lease.mac);
        }
        self.gateway_worked();
        restored
    }

    /// Takes over what [`Engine::present_leases`] said of a guest in an earlier run, after its leases.
    /// It is so again if the guest comes back in time; nothing is kept from others until then.
    pub fn restore_guest(
        &mut self,
        mac: Mac,
        address6: Option<Ipv6Addr>,
        host_name: Option<&str>,
        until: Instant,
    ) {
        let lease = self.gateway.dhcp.pool().of(mac);
        if lease.is_none_or(|lease| lease.state != State::Bound) {
            return;
        }
        self.gateway.dhcp.set_host_name(mac, host_name);
        let address6 = address6.map(IpAddr::V6).filter(|ip| self.net.config.is_guest(*ip));
        if let Some(ip) = address6 {
            self.net.neighbors.remember(ip, mac, until);
        }
    }
}

fn bound(pool: &Pool, ip: impl Fn(u32) -> IpAddr) -> impl Iterator<Item = SavedLease> {
    known(pool, ip).filter(|(past, _)| !past).map(|(_, lease)| lease)
}

/// Leases in force and past ones, and whether they are past.
fn known(pool: &Pool, ip: impl Fn(u32) -> IpAddr) -> impl Iterator<Item = (bool, SavedLease)> {
    let known = pool.iter().filter(|l| matches!(l.state, State::Bound | State::Past));
    known.map(move |l| {
        let lease = SavedLease { ip: ip(l.number), mac: l.mac, until: l.until };
        (l.state == State::Past, lease)
    })
}

fn restore(
    gateway: &mut Gateway,
    config: &Config,
    lease: SavedLease,
    now: Instant,
) -> Option<bool> {
    let (number, pool) = match lease.ip {
        IpAddr::V4(ip) => (dhcp::number(config, ip)?, gateway.dhcp.pool_mut()),
        IpAddr::V6(ip) => (dhcp6::number(config, ip)?, gateway.dhcp6.pool_mut()),
    };
    let time = lease.until.since(now);
    let good = !time.is_zero() && pool.may_have(number, lease.mac);
    Some(good && pool.hold(number, lease.mac, None, State::Bound, now, time))
}
