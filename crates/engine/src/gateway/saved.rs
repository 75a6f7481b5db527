//! Leases on their way to a file and back: what survives the daemon.

use std::net::IpAddr;

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

    /// Counts up whenever [`Engine::saved_leases`] has changed.
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
}

fn bound(pool: &Pool, ip: impl Fn(u32) -> IpAddr) -> impl Iterator<Item = SavedLease> {
    let bound = pool.iter().filter(|l| l.state == State::Bound);
    bound.map(move |l| SavedLease { ip: ip(l.number), mac: l.mac, until: l.until })
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
