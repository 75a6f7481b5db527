//! Zones that the network answers for: every name below one is its own, there or not. A name that
//! belongs to several is the longest one's.

use std::net::IpAddr;

use crate::name::{self, NameError};

/// A zone as it is added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// The name that its names end with; `.` is every name's.
    pub name: String,
    pub records: Vec<ZoneRecord>,
    /// What the names without a record stand for; without it, there are no such names.
    pub default: Option<IpAddr>,
}

/// A name of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneRecord {
    /// Without the zone's own.
    pub name: String,
    /// Without one the name is there and stands for nothing.
    pub address: Option<IpAddr>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Zones {
    /// Longest names first.
    all: Vec<Known>,
}

/// A zone, and its names in wire form.
#[derive(Clone, Debug)]
struct Known {
    zone: Zone,
    name: Box<[u8]>,
    records: Vec<Box<[u8]>>,
}

impl Zones {
    /// Adds a zone. One that is there gets the new records, also in the place of those that have
    /// their names, and the new default.
    pub(crate) fn add(&mut self, mut zone: Zone) -> Result<(), NameError> {
        let name = wire(&zone.name)?;
        let old = self.all.iter().position(|known| known.name == name);
        if let Some(old) = old.and_then(|old| self.all.get(old)) {
            let is_new = |record: &&ZoneRecord| {
                !zone.records.iter().any(|new| new.name.eq_ignore_ascii_case(&record.name))
            };
            let kept: Vec<_> = old.zone.records.iter().filter(is_new).cloned().collect();
            zone.records.extend(kept);
        }
        let records = zone.records.iter().map(|record| below(&record.name, &zone.name));
        let records = records.collect::<Result<_, _>>()?;
        self.all.retain(|known| known.name != name);
        let at = self.all.partition_point(|known| known.name.len() >= name.len());
        self.all.insert(at, Known { zone, name, records });
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Zone> {
        self.all.iter().map(|known| &known.zone)
    }

    /// What a folded name stands for, if a zone has it; `Some(None)` if there is no such name.
    pub(crate) fn find(&self, name: &[u8]) -> Option<Option<&[IpAddr]>> {
        let known = self.all.iter().find(|known| is_below(name, &known.name))?;
        let mut records = known.zone.records.iter().zip(&known.records);
        let record = records.find(|(_, wire)| ***wire == *name);
        let found = record.map(|(record, _)| record.address.as_slice());
        Some(found.or_else(|| known.zone.default.as_ref().map(std::slice::from_ref)))
    }
}

fn wire(zone: &str) -> Result<Box<[u8]>, NameError> {
    if zone == "." { Ok([0].into()) } else { name::from_text(zone) }
}

fn below(record: &str, zone: &str) -> Result<Box<[u8]>, NameError> {
    // An empty label is no name: the zone's own is none of its names.
    name::from_text(record)?;
    if zone == "." { name::from_text(record) } else { name::from_text(&format!("{record}.{zone}")) }
}

/// Whether a name has labels in front of a zone's.
fn is_below(name: &[u8], zone: &[u8]) -> bool {
    let Some(front) = name.len().checked_sub(zone.len()).filter(|front| *front > 0) else {
        return false;
    };
    if !name.ends_with(zone) {
        return false;
    }
    // The zone has to begin where a label does.
    let mut at = 0;
    while at < front {
        at += 1 + name.get(at).map_or(0, |len| usize::from(*len));
    }
    at == front
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn zone(name: &str, records: &[(&str, &str)], default: Option<&str>) -> Zone {
        let record = |(name, ip): &(&str, &str)| ZoneRecord {
            name: (*name).into(),
            address: ip.parse().ok(),
        };
        let records = records.iter().map(record).collect();
        Zone { name: name.into(), records, default: default.map(ip) }
    }

    fn find(zones: &Zones, name: &str) -> Option<Option<Vec<IpAddr>>> {
        let name = if name == "." { Box::from([0]) } else { name::from_text(name).unwrap() };
        zones.find(&name).map(|found| found.map(<[IpAddr]>::to_vec))
    }

    #[test]
    fn names_below_a_zone_are_its_own() {
        let mut zones = Zones::default();
        zones.add(zone("crc.Testing.", &[("API", "10.0.0.1"), ("a.b", "fd00::1")], None)).unwrap();
        zones.add(zone("apps.crc.testing", &[("own", "")], Some("10.0.0.2"))).unwrap();
        assert_eq!(find(&zones, "api.crc.testing"), Some(Some(vec![ip("10.0.0.1")])));
        assert_eq!(find(&zones, "a.b.crc.testing"), Some(Some(vec![ip("fd00::1")])));
        assert_eq!(find(&zones, "x.crc.testing"), Some(None));
        assert_eq!(find(&zones, "x.y.apps.crc.testing"), Some(Some(vec![ip("10.0.0.2")])));
        assert_eq!(find(&zones, "own.apps.crc.testing"), Some(Some(vec![])));
        // The zone's own name is what it was, as are those that only end alike.
        for other in ["crc.testing", "testing", "xcrc.testing", "api.crc.testing.example", "."] {
            assert_eq!(find(&zones, other), None, "{other}");
        }
    }

    #[test]
    fn a_zone_that_is_added_again_has_old_and_new_records() {
        let mut zones = Zones::default();
        zones.add(zone("test", &[("a", "10.0.0.1"), ("b", "10.0.0.1")], Some("10.9.9.9"))).unwrap();
        zones.add(zone("TEST.", &[("A", "10.0.0.2")], None)).unwrap();
        assert_eq!(zones.iter().map(|zone| zone.records.len()).collect::<Vec<_>>(), [2]);
        assert_eq!(find(&zones, "a.test"), Some(Some(vec![ip("10.0.0.2")])));
        assert_eq!(find(&zones, "b.test"), Some(Some(vec![ip("10.0.0.1")])));
        assert_eq!(find(&zones, "c.test"), Some(None));
    }

    #[test]
    fn the_root_has_every_name() {
        let mut zones = Zones::default();
        zones.add(zone(".", &[("a.test", "10.0.0.1")], Some("10.9.9.9"))).unwrap();
        assert_eq!(find(&zones, "a.test"), Some(Some(vec![ip("10.0.0.1")])));
        assert_eq!(find(&zones, "anything"), Some(Some(vec![ip("10.9.9.9")])));
        assert_eq!(find(&zones, "."), None);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let mut zones = Zones::default();
        let long = "a".repeat(64);
        for (name, record) in
            [("", "a"), ("a..b", "a"), ("test", ""), ("test", &long), ("\u{fc}", "a")]
        {
            assert!(
                zones.add(zone(name, &[(record, "10.0.0.1")], None)).is_err(),
                "{name} {record}"
            );
        }
        assert_eq!(zones.iter().count(), 0);
    }
}
