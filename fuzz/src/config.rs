//! The text of a `networks.yaml` or `lima.yaml`: whatever it is, it is understood or refused with a
//! place in it, and a change of it is right or refused.

use std::net::Ipv4Addr;
use std::path::Path;

use vmlan_config::raw::RawInstance;
use vmlan_config::{
    Instance, Mode, Network, Networks, Os, Platform, Report, Source, attachments, edit,
};

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let source = Source::new("networks.yaml", text.as_ref());
    match Networks::parse(&source, &platform()) {
        Ok(resolved) => {
            resolved.warnings.iter().for_each(told);
            changes(&text, &resolved.networks);
        }
        Err(report) => told(&report),
    }
    match RawInstance::parse(&source) {
        Ok(instance) => interfaces(&instance),
        Err(report) => told(&report),
    }
}

fn platform() -> Platform {
    Platform {
        os: Os::Linux,
        group: "wheel".into(),
        interface: "eth0".into(),
        socket_vmnet: "/opt/socket_vmnet/bin/socket_vmnet".into(),
    }
}

fn told(report: &Report) {
    assert!(!report.diagnostics.is_empty());
    let text = report.to_string();
    assert!(!text.contains('\x1b'), "{text:?}");
    for diagnostic in &report.diagnostics {
        if let Some(span) = diagnostic.span {
            let (line, column) = report.file.position(span.start);
            assert!(line >= 1 && column >= 1);
        }
    }
}

/// Adds and removes networks: all others stay what they are.
fn changes(text: &str, networks: &Networks) {
    let gateway = Some((Ipv4Addr::new(10, 71, 0, 1), 24));
    let new = Network::new("fuzz-new", Mode::Shared, gateway, None).expect("a sound network");
    if let Ok(text) = edit::add(text, &new) {
        let read = read(&text);
        assert_eq!(read.get("fuzz-new").map(|new| &new.link), Some(&new.link));
        same(networks, &read, "fuzz-new");
        let removed = edit::remove(&text, "fuzz-new").expect("what was added can be removed");
        same(networks, &self::read(&removed), "fuzz-new");
    }
    for network in networks.iter().take(4) {
        if let Ok(text) = edit::remove(text, &network.name) {
            same(networks, &read(&text), &network.name);
        }
    }
}

fn read(text: &str) -> Networks {
    let read = Networks::parse(&Source::new("networks.yaml", text), &platform());
    read.unwrap_or_else(|report| panic!("{report}")).networks
}

/// Both have the same networks but for one, and the built-in one, which may come and go with it.
fn same(before: &Networks, after: &Networks, but: &str) {
    let list = |networks: &Networks| {
        let others = networks.iter().filter(|n| n.name != but && n.span.is_some());
        others.map(|n| (n.name.clone(), n.mode, n.link.clone())).collect::<Vec<_>>()
    };
    assert_eq!(list(before), list(after));
    assert_eq!(before.group, after.group);
}

fn interfaces(instance: &RawInstance) {
    let networks = read(&vmlan_config::default_networks(&platform()));
    let with = Instance { networks: &networks, machine: "fuzz", dir: Path::new("/nowhere/fuzz") };
    let entries = instance.networks.as_deref().unwrap_or_default();
    let Ok((interfaces, _)) = attachments(entries, with) else { return };
    assert!(interfaces.len() <= entries.len() + 1);
    let mut names: Vec<_> = interfaces.iter().map(|i| &i.interface).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), interfaces.len(), "two interfaces have one name");
}
