//! `_config/default.yaml`, an instance's own `lima.yaml` and `_config/override.yaml` as one: what
//! comes later in this order counts more.

use std::fs;
use std::io;
use std::path::Path;

use crate::file::FileError;
use crate::home::LimaHome;
use crate::raw::{At, Entries, RawEntry, RawHostResolver, RawInstance};
use crate::source::Source;

/// What holds for every instance of a home.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layers {
    pub default: RawInstance,
    pub overriding: RawInstance,
}

impl Layers {
    /// Reads both files, where they are.
    pub fn load(home: &LimaHome) -> Result<Self, FileError> {
        Ok(Self { default: read(&home.default_yaml())?, overriding: read(&home.override_yaml())? })
    }

    /// What is in force for an instance whose own file says `own`. Places that are not in that file
    /// are forgotten.
    pub fn apply(&self, own: RawInstance) -> RawInstance {
        merge(merge(self.default.clone().nowhere(), own), self.overriding.clone().nowhere())
    }
}

fn read(path: &Path) -> Result<RawInstance, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => RawInstance::parse(&Source::new(path, text))
            .map_err(|report| FileError::Report(Box::new(report))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(RawInstance::default()),
        Err(source) => Err(FileError::Read { path: path.into(), source }),
    }
}

fn merge(under: RawInstance, over: RawInstance) -> RawInstance {
    let networks = under.networks.into_iter().chain(over.networks).flatten();
    let resolver =
        (under.host_resolver.unwrap_or_default(), over.host_resolver.unwrap_or_default());
    let given = |list: &Vec<At<String>>| !list.is_empty();
    RawInstance {
        networks: Some(networks.fold(Vec::new(), join)),
        host_resolver: Some(merge_resolvers(resolver.0, resolver.1)),
        // Of several lists one counts: they are not combined.
        dns: over.dns.filter(given).or(under.dns),
        unknown: over.unknown,
    }
}

/// Entries with one interface are one, and what was said later counts.
fn join(mut entries: Vec<At<RawEntry>>, entry: At<RawEntry>) -> Vec<At<RawEntry>> {
    let name = |entry: &At<RawEntry>| {
        let interface = entry.value.interface.as_ref().map(|at| at.value.clone());
        interface.filter(|name| !name.is_empty())
    };
    let wanted = name(&entry);
    let same = entries.iter_mut().find(|other| wanted.is_some() && name(other) == wanted);
    let Some(known) = same else {
        entries.push(entry);
        return entries;
    };
    let At { value: new, span } = entry;
    let old = std::mem::take(&mut known.value);
    let retargeted = new.lima.is_some() || new.socket.is_some() || new.vz_nat.is_some();
    let (lima, socket, vz_nat) = match retargeted {
        true => (new.lima, new.socket, new.vz_nat),
        false => (old.lima, old.socket, old.vz_nat),
    };
    known.span = span;
    known.value = RawEntry {
        lima,
        socket,
        vz_nat,
        mac_address: new.mac_address.or(old.mac_address),
        interface: new.interface,
        metric: new.metric.or(old.metric),
        unknown: old.unknown.into_iter().chain(new.unknown).collect(),
    };
    entries
}

fn merge_resolvers(under: RawHostResolver, over: RawHostResolver) -> RawHostResolver {
    let mut hosts = under.hosts.unwrap_or_default().0;
    let new = over.hosts.unwrap_or_default().0;
    hosts.retain(|(known, _)| !new.iter().any(|(n, _)| n.value.eq_ignore_ascii_case(&known.value)));
    hosts.extend(new);
    RawHostResolver {
        enabled: over.enabled.or(under.enabled),
        ipv6: over.ipv6.or(under.ipv6),
        hosts: Some(Entries(hosts)),
        unknown: over.unknown,
    }
}

impl RawInstance {
    /// The same without places, which would be taken for places in another file.
    fn nowhere(mut self) -> Self {
        fn forget<T>(at: &mut Option<At<T>>) {
            if let Some(at) = at {
                at.span = None;
            }
        }
        for entry in self.networks.iter_mut().flatten() {
            entry.span = None;
            let RawEntry { lima, socket, vz_nat, mac_address, interface, metric, unknown } =
                &mut entry.value;
            [lima, socket, mac_address, interface].into_iter().for_each(forget);
            forget(vz_nat);
            forget(metric);
            unknown.clear();
        }
        if let Some(RawHostResolver { enabled, ipv6, hosts, unknown }) = &mut self.host_resolver {
            [enabled, ipv6].into_iter().for_each(forget);
            for (name, target) in hosts.iter_mut().flat_map(|hosts| &mut hosts.0) {
                (name.span, target.span) = (None, None);
            }
            unknown.clear();
        }
        for server in self.dns.iter_mut().flatten() {
            server.span = None;
        }
        self.unknown.clear();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(text: &str) -> RawInstance {
        RawInstance::parse(&Source::new("lima.yaml", text)).unwrap()
    }

    fn merged(default: &str, own: &str, overriding: &str) -> RawInstance {
        let layers = Layers { default: instance(default), overriding: instance(overriding) };
        layers.apply(instance(own))
    }

    fn targets(merged: &RawInstance) -> Vec<(String, Option<String>)> {
        let text = |at: &Option<At<String>>| at.as_ref().map(|at| at.value.clone());
        let entry = |e: &At<RawEntry>| {
            (
                text(&e.value.lima).or_else(|| text(&e.value.socket)).unwrap(),
                text(&e.value.interface),
            )
        };
        merged.networks.iter().flatten().map(entry).collect()
    }

    #[test]
    fn networks_follow_each_other_and_one_interface_is_one() {
        let merged = merged(
            "networks: [{lima: a}, {lima: b, interface: lan, metric: 5}]",
            "networks: [{lima: a}, {socket: /s, interface: lan}]",
            "networks: [{interface: lan, macAddress: 52:55:55:00:00:01}, {lima: c}]",
        );
        let lan = Some("lan".to_owned());
        let want = [("a", None), ("/s", lan), ("a", None), ("c", None)];
        assert_eq!(targets(&merged), want.map(|(target, i)| (target.to_owned(), i)));
        let entry = &merged.networks.as_ref().unwrap()[1].value;
        assert!(entry.lima.is_none());
        assert_eq!(entry.metric.as_ref().unwrap().value, 5);
        assert_eq!(entry.mac_address.as_ref().unwrap().value, "52:55:55:00:00:01");
    }

    #[test]
    fn what_is_said_later_counts() {
        let merged = merged(
            "dns: [10.0.0.1]\nhostResolver: {enabled: false, ipv6: true, hosts: {A: 1.1.1.1, b: 2.2.2.2}}",
            "dns: []\nhostResolver: {ipv6: false, hosts: {a: 3.3.3.3}}",
            "hostResolver: {enabled: true, hosts: {c: b}}",
        );
        assert_eq!(merged.dns.unwrap()[0].value, "10.0.0.1");
        let resolver = merged.host_resolver.unwrap();
        assert!(resolver.enabled.unwrap().value && !resolver.ipv6.unwrap().value);
        let hosts = resolver.hosts.unwrap().0;
        let hosts: Vec<_> = hosts.iter().map(|(a, b)| (&*a.value, &*b.value)).collect();
        assert_eq!(hosts, [("b", "2.2.2.2"), ("a", "3.3.3.3"), ("c", "b")]);
    }

    #[test]
    fn files_that_are_not_there_say_nothing_and_wrong_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let home = LimaHome::new(dir.path()).unwrap();
        assert_eq!(Layers::load(&home).unwrap(), Layers::default());
        fs::create_dir(dir.path().join("_config")).unwrap();
        fs::write(home.default_yaml(), "cpus: 4\ndns: [1.1.1.1]\n").unwrap();
        assert_eq!(Layers::load(&home).unwrap().default.dns.unwrap().len(), 1);
        fs::write(home.override_yaml(), "dns: 5\n").unwrap();
        let error = Layers::load(&home).unwrap_err().to_string();
        assert!(error.contains("_config/override.yaml:1:6"), "{error}");
    }
}
