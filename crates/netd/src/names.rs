//! Names for guests that have said nothing but what they are called in DHCP: machines that somebody
//! starts by hand. They appear with the lease and go with the guest.
//!
//! A guest may call itself anything, so a name is one only if it could be a guest's, is not
//! reserved, and is not taken; who has it first keeps it. A guest that joins by name comes before
//! all of these. Each port has one name.

use std::net::IpAddr;
use std::time::Duration;

use vmlan_config::Reservation;
use vmlan_dns::{Names, Target};
use vmlan_engine::{Instant, PortId, PresentLease};
use vmlan_wire::Mac;

/// Addresses that guests make themselves are looked for no more often than this.
const PAUSE: Duration = Duration::from_secs(1);

/// The names that are given at the moment.
#[derive(Debug, Default)]
pub(crate) struct LeaseNames {
    /// The engine's counts of changes to leases and addresses that have been seen.
    leases: u64,
    addresses: u32,
    /// The last look, and when the next is due.
    looked: Instant,
    due: Option<Instant>,
    given: Vec<Given>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    /// As `lima-NAME`, folded.
    host: String,
    mac: Mac,
    port: PortId,
    addresses: Vec<IpAddr>,
}

impl LeaseNames {
    /// Whether to look: leases have changed since the last time, or addresses have and it is time.
    /// Guests use new addresses as often as they like.
    pub(crate) fn must_look(&mut self, leases: u64, addresses: u32, now: Instant) -> bool {
        if self.addresses != addresses && self.due.is_none() {
            self.due = Some(self.looked + PAUSE);
        }
        if self.leases == leases && self.due.is_none_or(|due| due > now) {
            return false;
        }
        (self.leases, self.addresses) = (leases, addresses);
        (self.looked, self.due) = (now, None);
        true
    }

    /// When [`LeaseNames::must_look`] says so by the time.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// What a guest is called, without `lima-`.
    pub(crate) fn of(&self, port: PortId) -> Option<&str> {
        let given = self.given.iter().find(|given| given.port == port)?;
        given.host.strip_prefix(PREFIX)
    }

    /// Gives names to the guests that are there with a lease. `joined` says of a MAC address or a
    /// name that it is a guest's that has joined.
    pub(crate) fn update<'a>(
        &mut self,
        leases: impl Iterator<Item = PresentLease<'a>>,
        reservations: &[Reservation],
        joined: impl Fn(Mac, &str) -> bool,
        names: &mut Names,
    ) {
        let mut wanted: Vec<Given> = leases
            .filter_map(|lease| {
                let host = wanted_name(&lease, reservations)?;
                let six = lease.address6.map(IpAddr::V6);
                let addresses = [lease.address.into()].into_iter().chain(six).collect();
                let given = Given { host, mac: lease.mac, port: lease.port, addresses };
                (!joined(given.mac, &given.host)).then_some(given)
            })
            .collect();
        // Who has a name keeps it.
        wanted.sort_by_key(|w| {
            let place = self.given.iter().position(|g| (&g.host, g.mac) == (&w.host, w.mac));
            (place.unwrap_or(usize::MAX), w.mac)
        });
        let mut now: Vec<Given> = Vec::new();
        for given in wanted {
            if !now.iter().any(|other| other.host == given.host || other.port == given.port) {
                now.push(given);
            }
        }
        for old in self.given.iter().filter(|old| !now.contains(old)) {
            names.remove(&full(&old.host));
        }
        for new in now.iter().filter(|new| !self.given.contains(new)) {
            for address in &new.addresses {
                // The name has been checked.
                let _ = names.add(&full(&new.host), &Target::Address(*address));
            }
        }
        self.given = now;
    }
}

const PREFIX: &str = "lima-";

fn full(host: &str) -> String {
    format!("{host}.internal")
}

/// What a guest is to be called, as `lima-NAME`.
fn wanted_name(lease: &PresentLease<'_>, reservations: &[Reservation]) -> Option<String> {
    let host = |name: &str| vmlan_config::host_name(name).map(|n| n.to_ascii_lowercase()).ok();
    let own = reservations.iter().find(|r| r.mac == Some(lease.mac));
    if let Some(name) = own.and_then(|r| r.name.as_deref()) {
        return host(name);
    }
    let name = lease.host_name?;
    // The first label of what may be a whole name.
    let name = name.split('.').next().unwrap_or_default();
    let name = host(name.strip_prefix(PREFIX).unwrap_or(name))?;
    let reserved = reservations.iter().filter_map(|r| r.name.as_deref()).filter_map(host);
    (!reserved.into_iter().any(|reserved| reserved == name)).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn lease(n: u8, host_name: Option<&str>) -> PresentLease<'_> {
        PresentLease {
            mac: Mac([2, 0, 0, 0, 0, n]),
            port: PortId(n.into()),
            address: Ipv4Addr::new(10, 0, 0, n),
            address6: Some(format!("fd00::{n}").parse().unwrap()),
            host_name,
        }
    }

    fn nobody(_: Mac, _: &str) -> bool {
        false
    }

    #[test]
    fn names_come_and_go_with_their_leases() {
        let (mut lease_names, mut names) = (LeaseNames::default(), Names::default());
        let leases = [lease(1, Some("lima-Web")), lease(2, Some("db.example")), lease(3, None)];
        lease_names.update(leases.into_iter(), &[], nobody, &mut names);
        assert_eq!(lease_names.of(PortId(1)), Some("web"));
        assert_eq!(lease_names.of(PortId(2)), Some("db"));
        assert_eq!(lease_names.of(PortId(3)), None);
        assert!(lease_names.given.iter().all(|given| given.addresses.len() == 2));
        lease_names.update([lease(2, Some("db"))].into_iter(), &[], nobody, &mut names);
        assert_eq!(lease_names.of(PortId(1)), None);
    }

    #[test]
    fn addresses_are_looked_for_now_and_then() {
        let at = |millis: u64| Instant::from_micros(1_000_000_000 + millis * 1000);
        let mut names = LeaseNames::default();
        assert!(!names.must_look(0, 0, at(0)));
        assert!(names.must_look(1, 0, at(0)));
        assert!(!names.must_look(1, 1, at(1)));
        assert_eq!(names.next_timeout(), Some(at(1000)));
        assert!(!names.must_look(1, 2, at(999)));
        assert!(names.must_look(1, 2, at(1000)));
        assert_eq!(names.next_timeout(), None);
        assert!(names.must_look(2, 2, at(1001)));
        // After a while without any, the first is seen at once.
        assert!(names.must_look(2, 3, at(5000)));
    }

    #[test]
    fn nobody_takes_anothers_name() {
        let (mut lease_names, mut names) = (LeaseNames::default(), Names::default());
        lease_names.update([lease(2, Some("web"))].into_iter(), &[], nobody, &mut names);
        // One that is first by every other measure, one behind the same port.
        let second = PresentLease { port: PortId(2), ..lease(5, Some("other")) };
        let leases = [lease(1, Some("web")), second, lease(2, Some("web")), lease(3, Some("a b"))];
        let reservations = ["name=kept,ip=10.0.0.9", "mac=02:00:00:00:00:07,name=mine"];
        let reservations = reservations.map(|r| r.parse().unwrap());
        let more = [lease(4, Some("kept")), lease(6, Some("mine")), lease(7, Some("x"))];
        let leases = leases.into_iter().chain(more);
        lease_names.update(leases, &reservations, nobody, &mut names);
        let of = |n| lease_names.of(PortId(n));
        assert_eq!([of(1), of(2), of(3), of(4), of(6)], [None, Some("web"), None, None, None]);
        assert_eq!(of(7), Some("mine"));
        // A guest that joins has it.
        let joined = |_: Mac, host: &str| host == "lima-web";
        lease_names.update([lease(2, Some("web"))].into_iter(), &[], joined, &mut names);
        assert_eq!(lease_names.of(PortId(2)), None);
    }
}
