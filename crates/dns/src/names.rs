//! Names that the network itself gives: never asked of a nameserver, whatever the type, and never
//! in the way of any other name. They may come and go while the resolver runs.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::hash::{ByName, Hashed};
use crate::message::Alias;
use crate::name::{self, NameError};
use crate::zones::{Zone, Zones};

/// Aliases that are followed.
const MAX_CHAIN: usize = 16;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Address(IpAddr),
    /// Another name, here or anywhere.
    Alias(String),
}

/// The network's own names.
#[derive(Clone, Debug, Default)]
pub struct Names {
    by_name: ByName<Entry>,
    /// The first name that was given to an address.
    by_address: HashMap<IpAddr, Box<[u8]>>,
    /// Subnets whose addresses nobody else has names for.
    subnets: Vec<(IpAddr, u8)>,
    /// What is below these is the network's own, where no name says otherwise.
    zones: Zones,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Addresses(Vec<IpAddr>),
    Alias(Box<[u8]>),
}

/// What the network knows of a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// The name is somebody else's. With a chain, its last name is.
    Elsewhere(Alias),
    /// There is no such name.
    Missing,
    /// The name stands for these, maybe by way of others. There may be none.
    Addresses(Alias, &'a [IpAddr]),
    /// The name of an address.
    Name(&'a [u8]),
}

impl Names {
    /// Gives a name one more address, or makes it an alias. An alias has nothing else.
    pub fn add(&mut self, name: &str, target: &Target) -> Result<(), NameError> {
        let name = name::from_text(name)?;
        match target {
            Target::Alias(target) => {
                let target = name::from_text(target)?;
                self.remove_wire(&name);
                self.by_name.insert(name, Entry::Alias(target));
            }
            &Target::Address(address) => {
                self.by_address.entry(address).or_insert_with(|| name.clone());
                match self.by_name.get_mut(&name) {
                    Some(Entry::Addresses(known)) if known.contains(&address) => {}
                    Some(Entry::Addresses(known)) => known.push(address),
                    _ => {
                        self.by_name.insert(name, Entry::Addresses(vec![address]));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a name is the network's own, there or not.
    pub fn has(&self, name: &str) -> bool {
        let name = name::from_text(name);
        name.is_ok_and(|name| self.find(Hashed::new(&name)) != Found::Elsewhere(Alias::new()))
    }

    /// Takes a name away, with all it stood for.
    pub fn remove(&mut self, name: &str) {
        if let Ok(name) = name::from_text(name) {
            self.remove_wire(&name);
        }
    }

    fn remove_wire(&mut self, name: &[u8]) {
        if let Some(Entry::Addresses(addresses)) = self.by_name.remove(name) {
            for address in addresses {
                if self.by_address.get(&address).is_some_and(|named| **named == *name) {
                    self.by_address.remove(&address);
                    let other = self.by_name.iter().find(|(_, entry)| {
                        matches!(entry, Entry::Addresses(known) if known.contains(&address))
                    });
                    if let Some((other, _)) = other {
                        self.by_address.insert(address, other.into());
                    }
                }
            }
        }
    }

    /// Makes the reverse names of a subnet the network's own.
    pub fn add_subnet(&mut self, network: IpAddr, prefix: u8) {
        self.subnets.push((network, prefix));
    }

    /// Makes every name below a zone the network's own. A zone that is there gets the new records as
    /// well, and the new default.
    pub fn add_zone(&mut self, zone: Zone) -> Result<(), NameError> {
        self.zones.add(zone)
    }

    pub fn zones(&self) -> impl Iterator<Item = &Zone> {
        self.zones.iter()
    }

    /// Looks a folded name up.
    pub(crate) fn find(&self, hashed: Hashed<'_>) -> Found<'_> {
        let name = hashed.name;
        match self.by_name.get(hashed) {
            None => match self.zones.find(name) {
                Some(Some(addresses)) => Found::Addresses(Alias::new(), addresses),
                Some(None) => Found::Missing,
                None if is_reserved(name) => Found::Missing,
                None => self.find_reverse(name),
            },
            Some(Entry::Addresses(addresses)) => Found::Addresses(Alias::new(), addresses),
            Some(Entry::Alias(target)) => self.follow(name, target),
        }
    }

    fn follow<'a>(&'a self, name: &[u8], mut target: &'a [u8]) -> Found<'a> {
        let mut chain: Alias = vec![name.into()];
        let mut seen = HashSet::from([name.to_vec()]);
        loop {
            chain.push(target.into());
            if !seen.insert(target.to_vec()) || chain.len() > MAX_CHAIN {
                // Round in a circle: there is nothing at its end.
                return Found::Addresses(chain, &[]);
            }
            match self.by_name.get(Hashed::new(target)) {
                Some(Entry::Addresses(addresses)) => return Found::Addresses(chain, addresses),
                Some(Entry::Alias(next)) => target = next,
                None => {
                    return match self.zones.find(target) {
                        Some(addresses) => Found::Addresses(chain, addresses.unwrap_or_default()),
                        None if is_reserved(target) => Found::Addresses(chain, &[]),
                        None => Found::Elsewhere(chain),
                    };
                }
            }
        }
    }

    fn find_reverse(&self, name: &[u8]) -> Found<'_> {
        let Some(address) = name::reverse(name) else { return Found::Elsewhere(Alias::new()) };
        match self.by_address.get(&address) {
            Some(name) => Found::Name(name),
            None if self.subnets.iter().any(|subnet| contains(*subnet, address)) => Found::Missing,
            None => Found::Elsewhere(Alias::new()),
        }
    }
}

/// Whether a name is vmlan's, there or not: `host.lima.internal` and its like, and the names of
/// instances.
fn is_reserved(name: &[u8]) -> bool {
    if !name.ends_with(b"\x08internal\0") {
        return false;
    }
    let mut from_top = [&b""[..]; 2];
    for label in name::labels(name) {
        from_top = [from_top[1], label];
    }
    from_top[1] == b"internal" && (from_top[0] == b"lima" || from_top[0].starts_with(b"lima-"))
}

fn contains((network, prefix): (IpAddr, u8), address: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
    network.is_ipv4() == address.is_ipv4() && bits(network) & mask == bits(address) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Names {
        fn look(&self, name: &[u8]) -> Found<'_> {
            self.find(Hashed::new(name))
        }
    }

    fn wire(name: &str) -> Box<[u8]> {
        name::from_text(name).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn names(list: &[(&str, &str)]) -> Names {
        let mut names = Names::default();
        for (name, target) in list {
            let target = match target.parse() {
                Ok(address) => Target::Address(address),
                Err(_) => Target::Alias((*target).to_owned()),
            };
            names.add(name, &target).unwrap();
        }
        names
    }

    #[test]
    fn only_exact_names_are_known() {
        let names = names(&[("Local.Example.dev", "10.0.0.1"), ("local.example.dev", "fd00::1")]);
        let both = [ip("10.0.0.1"), ip("fd00::1")];
        let found = |name: &str| names.look(&wire(name)) == Found::Addresses(vec![], &both);
        assert!(found("local.example.dev"));
        for other in ["dev", "example.dev", "other.example.dev", "a.local.example.dev", "."] {
            let other = if other == "." { Box::from(&b"\0"[..]) } else { wire(other) };
            assert_eq!(names.look(&other), Found::Elsewhere(vec![]));
        }
    }

    #[test]
    fn the_networks_own_names_are_missing_or_there() {
        let names = names(&[("host.lima.internal", "192.168.5.2")]);
        for missing in ["x.lima.internal", "lima.internal", "lima-b.internal", "a.lima-b.internal"]
        {
            assert_eq!(names.look(&wire(missing)), Found::Missing, "{missing}");
        }
        for other in ["internal", "corp.internal", "limax.internal", "lima-b.internal.example"] {
            assert_eq!(names.look(&wire(other)), Found::Elsewhere(vec![]), "{other}");
        }
    }

    #[test]
    fn chains_are_followed_and_circles_cut() {
        let names = names(&[
            ("a.test", "b.test"),
            ("b.test", "c.test"),
            ("c.test", "10.0.0.3"),
            ("out.test", "deb.example"),
            ("x.test", "y.test"),
            ("y.test", "x.test"),
        ]);
        let chain = |list: &[&str]| list.iter().map(|name| wire(name)).collect::<Alias>();
        let expected = chain(&["a.test", "b.test", "c.test"]);
        assert_eq!(names.look(&wire("a.test")), Found::Addresses(expected, &[ip("10.0.0.3")]));
        let expected = chain(&["out.test", "deb.example"]);
        assert_eq!(names.look(&wire("out.test")), Found::Elsewhere(expected));
        let expected = chain(&["x.test", "y.test", "x.test"]);
        assert_eq!(names.look(&wire("x.test")), Found::Addresses(expected, &[]));
    }

    #[test]
    fn zones_come_after_names() {
        let mut names = names(&[("a.zone.test", "10.0.0.1"), ("alias.test", "x.zone.test")]);
        let zone =
            Zone { name: "zone.test".into(), default: Some(ip("10.0.0.2")), ..Zone::default() };
        names.add_zone(zone).unwrap();
        let found = |name: &str| match names.look(&wire(name)) {
            Found::Addresses(alias, addresses) => (alias.len(), addresses.to_vec()),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(found("a.zone.test"), (0, vec![ip("10.0.0.1")]));
        assert_eq!(found("b.zone.test"), (0, vec![ip("10.0.0.2")]));
        assert_eq!(found("alias.test"), (2, vec![ip("10.0.0.2")]));
        assert_eq!(names.look(&wire("zone.test")), Found::Elsewhere(vec![]));
        let zone = Zone { name: "internal".into(), ..Zone::default() };
        names.add_zone(zone).unwrap();
        assert_eq!(names.look(&wire("x.internal")), Found::Missing);
    }

    #[test]
    fn addresses_have_names_as_long_as_the_names_last() {
        let mut names = names(&[("a.test", "192.168.5.15"), ("b.test", "192.168.5.15")]);
        names.add_subnet(ip("192.168.5.0"), 24);
        let ptr = |octet: u8| wire(&format!("{octet}.5.168.192.in-addr.arpa"));
        assert_eq!(names.look(&ptr(15)), Found::Name(&wire("a.test")));
        assert_eq!(names.look(&ptr(16)), Found::Missing);
        assert_eq!(names.look(&wire("1.6.168.192.in-addr.arpa")), Found::Elsewhere(vec![]));
        names.remove("A.test");
        assert_eq!(names.look(&ptr(15)), Found::Name(&wire("b.test")));
        names.remove("b.test");
        assert_eq!(names.look(&ptr(15)), Found::Missing);
        assert_eq!(names.look(&wire("a.test")), Found::Elsewhere(vec![]));
    }
}
