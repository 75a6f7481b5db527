//! What cloud-init reads: `user-data`, `meta-data` and `network-config`. All are JSON, which is
//! YAML as well, and in which nothing that a user wrote can become more than a string.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use vmlan_config::show_mac;

use super::{Interface, Seed};

/// The user, the certificates, and how the rest of the boot begins.
pub(super) fn user_data(seed: &Seed) -> String {
    let user = &seed.user;
    let mut data = json!({
        "users": [{
            "name": user.name,
            "uid": user.uid,
            "homedir": user.home,
            "shell": user.shell,
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "lock_passwd": true,
            "ssh_authorized_keys": seed.keys,
        }],
        // The image's own: to make others takes longer than the rest of the boot.
        "locale": false,
        "manage_etc_hosts": false,
        // A changed configuration is a new instance to cloud-init, and yet the same machine.
        "ssh_deletekeys": false,
        "bootcmd": [["sh", "-c", include_str!("mount.sh")]],
        "write_files": [{
            "path": "/var/lib/cloud/scripts/per-boot/00-vmlan",
            "permissions": "0755",
            "content": LATE,
        }],
    });
    let trust = &seed.ca_certs;
    if trust.remove_defaults || !trust.certs.is_empty() {
        data["ca_certs"] = json!({
            "remove_defaults": trust.remove_defaults,
            "trusted": trust.certs,
        });
    }
    format!("#cloud-config\n{}", yaml(&data))
}

/// The guest's name, and an id that is another one if anything in `documents` is: only then does
/// cloud-init apply them to a machine that it knows.
pub(super) fn meta_data(name: &str, documents: &[&str]) -> String {
    let mut digest = Sha256::new();
    for document in documents {
        digest.update(document.len().to_be_bytes());
        digest.update(document);
    }
    let mut id = String::from("iid-");
    for byte in digest.finalize().iter().take(8) {
        let _ = write!(id, "{byte:02x}");
    }
    yaml(&json!({ "instance-id": id, "local-hostname": name }))
}

/// Every card by its hardware address, with DHCP, its name and its metric.
pub(super) fn network_config(seed: &Seed) -> String {
    let cards = seed.interfaces.iter().enumerate().map(|(i, interface)| {
        let dns = if i == 0 { seed.dns.as_slice() } else { &[] };
        (interface.name.clone(), card(interface, dns))
    });
    yaml(&json!({ "version": 2, "ethernets": cards.collect::<Map<_, _>>() }))
}

fn card(interface: &Interface, dns: &[IpAddr]) -> Value {
    let mut overrides = json!({ "route-metric": interface.metric });
    if !interface.default_route {
        overrides["use-routes"] = false.into();
    }
    let mut card = json!({
        "match": { "macaddress": show_mac(interface.mac) },
        "set-name": interface.name,
        "dhcp4": true,
        // A lease is the machine's, however often its disk is made anew.
        "dhcp-identifier": "mac",
        "dhcp4-overrides": overrides,
    });
    if !dns.is_empty() {
        // What DHCP says would be asked as well.
        card["dhcp4-overrides"]["use-dns"] = false.into();
        card["nameservers"] = json!({ "addresses": dns });
    }
    card
}

/// As YAML: it forbids some characters that JSON leaves as they are.
fn yaml(value: &Value) -> String {
    let mut text = String::new();
    for c in format!("{value:#}\n").chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            _ => text.push(c),
        }
    }
    text
}

const LATE: &str = "#!/bin/sh
boot=/run/vmlan/seed/vmlan-boot
[ ! -e \"$boot\" ] || exec sh \"$boot\" late
";
