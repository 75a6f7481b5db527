//! Addresses for guests that are configured from outside instead of by DHCP: out of the same pools,
//! so that nobody else gets them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use vmlan_wire::Mac;

use super::lease::State;
use super::{dhcp, dhcp6};
use crate::Engine;
use crate::io::PortId;
use crate::time::Instant;

/// Such a guest does not renew. Its addresses are kept for when it comes back, but others get them
/// before the pool is empty.
const TIME: Duration = Duration::from_secs(365 * 86_400);

impl Engine {
    /// Gives a guest its addresses: those that it had before, else those that it says it had, if
    /// they are still to be had. `port` is where it is attached; before that, another guest may yet
    /// get them. `None` when no address is left.
    pub fn assign(
        &mut self,
        mac: Mac,
        port: Option<PortId>,
        wanted: Option<(Ipv4Addr, Ipv6Addr)>,
        now: Instant,
    ) -> Option<(Ipv4Addr, Ipv6Addr)> {
        let net = &self.net;
        let wanted4 = wanted.and_then(|(four, _)| dhcp::number(&net.config, four));
        let wanted6 = wanted.and_then(|(_, six)| dhcp6::number(&net.config, six));
        let pool = self.gateway.dhcp.pool_mut();
        let four = pool.choose(mac, port, wanted4, |n| dhcp::is_free(net, n, mac)).ok()?;
        let before = [pool.of(mac), pool.get(four)];
        let held = pool.hold(four, mac, port, State::Bound, now, TIME);
        let pool = self.gateway.dhcp6.pool_mut();
        // The same number in both families is easier to read.
        let six =
            pool.choose(mac, port, wanted6.or(Some(four)), |n| dhcp6::is_free(net, n, mac)).ok()?;
        let before6 = [pool.of(mac), pool.get(six)];
        let held = held && pool.hold(six, mac, port, State::Bound, now, TIME);
        let (ipv4, ipv6) = (self.net.config.ipv4, self.net.config.ipv6);
        let addresses = (ipv4.nth(four), ipv6.nth(six.into()));
        // What it or another guest had before is theirs no more.
        for old in before.into_iter().flatten().filter(|l| l.state == State::Bound) {
            self.net.neighbors.forget(ipv4.nth(old.number).into());
        }
        for old in before6.into_iter().flatten().filter(|l| l.state == State::Bound) {
            self.net.neighbors.forget(ipv6.nth(old.number.into()).into());
        }
        if held && let Some(port) = port {
            self.net.switch.give(mac, port, now);
            self.net.lease(addresses.0.into(), mac, port, now);
            self.net.lease(addresses.1.into(), mac, port, now);
            self.net.come_back(mac, port, now);
        }
        self.gateway_worked();
        held.then_some(addresses)
    }

    /// Keeps an address for a guest from now on, in place of whoever it was kept for.
    pub fn reserve(&mut self, mac: Mac, ip: Ipv4Addr) {
        let config = &self.net.config;
        if !config.ipv4.is_host(ip) || config.is_own(ip.into()) {
            return;
        }
        let number = ip.to_bits().wrapping_sub(config.ipv4.network.to_bits());
        self.gateway.dhcp.pool_mut().reserve(number, mac);
        self.gateway.dhcp6.pool_mut().reserve(number, mac);
        self.net.neighbors.keep(ip.into(), mac);
        self.net.neighbors.keep(self.net.config.ipv6.nth(number.into()).into(), mac);
    }

    /// Forgets a guest that will not come back.
    pub fn unassign(&mut self, mac: Mac) {
        let (ipv4, ipv6) = (self.net.config.ipv4, self.net.config.ipv6);
        let pool = self.gateway.dhcp.pool_mut();
        if let Some(lease) = pool.of(mac) {
            pool.free(lease.number);
            self.net.neighbors.forget(ipv4.nth(lease.number).into());
        }
        let pool = self.gateway.dhcp6.pool_mut();
        if let Some(lease) = pool.of(mac) {
            pool.free(lease.number);
            self.net.neighbors.forget(ipv6.nth(lease.number.into()).into());
        }
        self.gateway_worked();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ipv4Net;
    use crate::testing::config;

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    #[test]
    fn a_guest_has_the_same_addresses_again() {
        let mut engine = Engine::new(config(), Instant::ZERO);
        let now = Instant::ZERO;
        let first = engine.assign(mac(1), None, None, now).unwrap();
        assert_eq!(first.0, Ipv4Addr::new(192, 168, 5, 15));
        assert_eq!(first.1, engine.config().ipv6.nth(15));
        let second = engine.assign(mac(2), Some(PortId(0)), None, now).unwrap();
        assert_eq!(second.0, Ipv4Addr::new(192, 168, 5, 16));
        assert_eq!(engine.assign(mac(1), Some(PortId(1)), None, now), Some(first));
        // An address rests as long as others are left, and is nobody's then.
        engine.unassign(mac(1));
        let third = engine.assign(mac(3), None, None, now).unwrap();
        assert_eq!(third.0, Ipv4Addr::new(192, 168, 5, 17));
        assert_eq!(engine.remembered_leases().len(), 4);
        assert_ne!(engine.assign(mac(1), None, None, now), Some(first));
    }

    #[test]
    fn a_reservation_goes_from_one_to_another() {
        let mut config = config();
        let kept = Ipv4Addr::new(192, 168, 5, 50);
        config.reservations = vec![(Mac([3, 0, 0, 0, 0, 0]), kept)];
        let mut engine = Engine::new(config, Instant::ZERO);
        let wanted = Some((kept, engine.config().ipv6.nth(50)));
        let other = engine.assign(mac(1), None, wanted, Instant::ZERO).unwrap();
        assert_eq!(other.0, Ipv4Addr::new(192, 168, 5, 15));
        engine.reserve(mac(2), kept);
        assert_eq!(engine.assign(mac(2), None, None, Instant::ZERO), wanted);
        engine.reserve(mac(1), kept);
        assert_eq!(engine.assign(mac(1), None, None, Instant::ZERO), wanted);
        engine.reserve(mac(3), engine.config().gateway);
        let third = engine.assign(mac(3), None, None, Instant::ZERO).unwrap();
        assert_eq!(third.0, Ipv4Addr::new(192, 168, 5, 16));
    }

    #[test]
    fn those_gone_for_longest_are_remembered_first() {
        let mut engine = Engine::new(config(), Instant::ZERO);
        let at = |secs| Instant::ZERO + Duration::from_secs(secs);
        for n in 1..=3 {
            engine.assign(mac(n), Some(PortId(n.into())), None, at(n.into())).unwrap();
        }
        // What a guest does as it leaves.
        engine.assign(mac(1), None, None, at(9)).unwrap();
        let remembered = engine.remembered_leases();
        let macs: Vec<Mac> =
            remembered.iter().filter(|(ip, _)| ip.is_ipv4()).map(|(_, mac)| *mac).collect();
        assert_eq!(macs, [mac(2), mac(3), mac(1)]);
    }

    #[test]
    fn what_a_guest_says_it_had_is_its_unless_it_is_anothers() {
        let mut engine = Engine::new(config(), Instant::ZERO);
        let had = (Ipv4Addr::new(192, 168, 5, 77), engine.config().ipv6.nth(78));
        assert_eq!(engine.assign(mac(1), None, Some(had), Instant::ZERO), Some(had));
        let other = engine.assign(mac(2), None, Some(had), Instant::ZERO).unwrap();
        assert_eq!(other.0, Ipv4Addr::new(192, 168, 5, 15));
        let gateway = (engine.config().gateway, engine.config().ipv6.gateway());
        let third = engine.assign(mac(3), None, Some(gateway), Instant::ZERO).unwrap();
        assert_eq!(third.0, Ipv4Addr::new(192, 168, 5, 16));
    }

    #[test]
    fn guests_that_are_gone_make_room() {
        let mut config = config();
        let subnet = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 29).unwrap();
        config.ipv4 = subnet;
        (config.gateway, config.host) = (subnet.nth(1), subnet.nth(2));
        (config.dns, config.first_guest) = (subnet.nth(3), subnet.nth(4));
        let mut engine = Engine::new(config, Instant::ZERO);
        let mut assign = |n, port: Option<u16>| {
            let addresses = engine.assign(mac(n), port.map(PortId), None, Instant::ZERO);
            addresses.map(|(four, _)| four.octets()[3])
        };
        assert_eq!(assign(1, Some(1)), Some(4));
        assert_eq!(assign(2, None), Some(5));
        assert_eq!(assign(3, Some(3)), Some(6));
        assert_eq!(assign(4, Some(4)), Some(5));
        assert_eq!(assign(5, Some(5)), None);
    }
}
