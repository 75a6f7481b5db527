//! `_config/default.yaml`, an instance's own `lima.yaml` and `_config/override.yaml` as one: what
//! comes later in this order counts more.

use std::fs;
use std::io;
use std::path::Path;

use crate::file::FileError;
use crate::home::LimaHome;
use crate::instance::{InstanceConfig, Read};
use crate::raw::{At, Entries, RawEntry, RawHostResolver, RawInstance};
use crate::source::{Report, Source};
use crate::yaml::Places;

/// What holds for every instance of a home.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    pub default: RawInstance,
    pub overriding: RawInstance,
    /// The texts of both.
    default_text: Option<Source>,
    overriding_text: Option<Source>,
}

impl Layers {
    /// Reads both files, where they are.
    pub fn load(home: &LimaHome) -> Result<Self, FileError> {
        let (default, default_text) = read(&home.default_yaml())?;
        let (overriding, overriding_text) = read(&home.override_yaml())?;
        Ok(Self { default, overriding, default_text, overriding_text })
    }

    /// The machine of the instance whose own file is `own` and whose directory is `dir`. What is
    /// wrong in one of the files is told of that file.
    pub fn machine(&self, own: &Source, dir: &Path) -> Result<Read, Report> {
        let default = checked(self.default_text.as_ref(), dir)?;
        let overriding = checked(self.overriding_text.as_ref(), dir)?;
        InstanceConfig::layered(default, own, overriding, dir)
    }

    /// What is in force for an instance whose own file says `own`. Places that are not in that file
    /// are forgotten.
    pub fn apply(&self, own: RawInstance) -> RawInstance {
        merge(merge(nowhere(self.default.clone()), own), nowhere(self.overriding.clone()))
    }
}

/// The text of a layer in which nothing is wrong.
fn checked<'a>(layer: Option<&'a Source>, dir: &Path) -> Result<&'a str, Report> {
    match layer {
        Some(source) => InstanceConfig::parse(source, dir).map(|_| source.text()),
        None => Ok(""),
    }
}

fn read(path: &Path) -> Result<(RawInstance, Option<Source>), FileError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let source = Source::new(path, text);
            let raw = RawInstance::parse(&source);
            let raw = raw.map_err(|report| FileError::Report(Box::new(report)))?;
            Ok((raw, Some(source)))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((RawInstance::default(), None)),
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

fn nowhere<T: Places>(mut raw: T) -> T {
    raw.forget();
    raw
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(text: &str) -> RawInstance {
        RawInstance::parse(&Source::new("lima.yaml", text)).unwrap()
    }

    fn merged(default: &str, own: &str, overriding: &str) -> RawInstance {
        let (default, overriding) = (instance(default), instance(overriding));
        let layers = Layers { default, overriding, ..Layers::default() };
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
        let none = Layers::load(&home).unwrap();
        assert_eq!((none.default, none.overriding), Default::default());
        fs::create_dir(dir.path().join("_config")).unwrap();
        fs::write(home.default_yaml(), "cpus: 4\ndns: [1.1.1.1]\n").unwrap();
        assert_eq!(Layers::load(&home).unwrap().default.dns.unwrap().len(), 1);
        fs::write(home.override_yaml(), "dns: 5\n").unwrap();
        let error = Layers::load(&home).unwrap_err().to_string();
        assert!(error.contains("_config/override.yaml:1:6"), "{error}");
    }

    fn machine(default: &str, own: &str, overriding: &str) -> Result<Read, String> {
        let layer = |name: &str, text: &str| Some(Source::new(name, text));
        let layers = Layers {
            default_text: layer("default.yaml", default),
            overriding_text: layer("override.yaml", overriding),
            ..Layers::default()
        };
        let own = Source::new("lima.yaml", own);
        layers.machine(&own, Path::new("/i")).map_err(|report| report.to_string())
    }

    #[test]
    fn machines_are_merged() {
        let read = machine(
            "cpus: 1\nmemory: 1GiB\nimages: [{location: /d}]\nenv: {A: d, B: d}\nssh: {localPort: 2222}\n\
             caCerts: {removeDefaults: true, files: [/a, /b]}\nprovision: [{script: d}]\n\
             portForwards: [{guestPort: 1}]",
            "cpus: 2\nmemory: 2GiB\nimages: [{location: /y}]\nenv: {B: y, C: y}\nssh: {loadDotSSHPubKeys: true}\n\
             caCerts: {files: [/b, /c]}\nprovision: [{script: y}]\nplain: true\nmounts: []\n\
             portForwards: [{guestPort: 2}]",
            "cpus: 3\nenv: {C: o}\nimages: [{location: /o}]\nprovision: [{script: o}]",
        );
        let Read { config, warnings } = read.unwrap();
        assert_eq!((config.cpus, config.memory), (Some(3), Some(2 << 30)));
        let images: Vec<_> = config.images.iter().map(|image| &*image.disk.location).collect();
        assert_eq!(images, ["/o", "/y", "/d"]);
        let env: Vec<_> = config.env.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(env, [("A", "d"), ("B", "y"), ("C", "o")]);
        assert_eq!((config.ssh_port, config.load_public_keys), (Some(2222), true));
        assert!(config.plain && config.ca_certs.remove_defaults);
        assert_eq!(config.ca_certs.files, ["/a", "/b", "/c"].map(std::path::PathBuf::from));
        let scripts: Vec<_> = config.provision.iter().map(|script| &*script.script).collect();
        assert_eq!(scripts, ["o", "y", "d"]);
        // Of the own file, and not lost under the others.
        assert!(warnings.unwrap().to_string().contains("lima.yaml:9:1"));
    }

    #[test]
    fn what_is_wrong_is_told_of_the_file_in_which_it_is() {
        assert!(machine("cpus: 0", "cpus: 1", "").unwrap_err().contains("default.yaml:1:7"));
        assert!(machine("", "cpus: 0", "").unwrap_err().contains("lima.yaml:1:7"));
        assert!(machine("", "cpus: 0", "memory: x").unwrap_err().contains("override.yaml:1:9"));
        assert!(machine("", "", "cpu: 1").unwrap_err().contains("override.yaml:1:1"));
        assert_eq!(machine("", "", "").unwrap().config.cpus, None);
    }
}
