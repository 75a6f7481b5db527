//! What names mean to guests, and what is reserved for them.

use std::fs;

use crate::lab::{Guest, Lab, eventually};

fn config(lab: &Lab, file: &str, text: &str) {
    fs::write(lab.0.path("_config").join(file), text).unwrap();
}

#[test]
fn names_of_a_guest_are_there_while_it_is() {
    let lab = Lab::new();
    config(&lab, "default.yaml", "hostResolver: {hosts: {a.test: 10.9.9.1, b.test: 10.9.9.1}}\n");
    config(&lab, "override.yaml", "hostResolver: {hosts: {c.test: a.test}}\n");
    let ask =
        "for n in a b c; do getent ahostsv4 $n.test | head -1 | cut -d ' ' -f 1; done | xargs";
    let mut first = Guest::start(
        &lab,
        &["--name", "first", "--dns-host", "b.test=10.9.9.2", "--dns-ipv6=true"],
    );
    assert_eq!(first.line(ask), "10.9.9.1 10.9.9.2 10.9.9.1");

    let output =
        lab.run(&["--dns-host", "b.test=10.9.9.3", "--", "sh", "-c", ask]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("the name `b.test` is on the network already"), "{error}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "10.9.9.1 10.9.9.2 10.9.9.1\n");

    drop(first);
    fs::remove_file(lab.0.path("_config/default.yaml")).unwrap();
    fs::remove_file(lab.0.path("_config/override.yaml")).unwrap();
    let gone = "getent hosts b.test || echo gone";
    assert_eq!(lab.output(&["--", "sh", "-c", gone]), "gone\n");
}

/// The network that is a command's alone is no exception.
#[test]
fn names_of_the_home_are_on_the_default_network_too() {
    let lab = Lab::new();
    config(&lab, "default.yaml", "hostResolver: {hosts: {a.test: 10.9.9.1, b.test: 10.9.9.1}}\n");
    config(&lab, "override.yaml", "hostResolver: {hosts: {c.test: a.test}}\n");
    let ask =
        "for n in a b c; do getent ahostsv4 $n.test | head -1 | cut -d ' ' -f 1; done | xargs";
    let run = |args: &[&str]| lab.run_alone(args).output().unwrap();
    let said = run(&["--dns-host", "b.test=10.9.9.2", "--", "sh", "-c", ask]).stdout;
    assert_eq!(String::from_utf8(said).unwrap(), "10.9.9.1 10.9.9.2 10.9.9.1\n");
    config(&lab, "default.yaml", "hostResolver: {enabled: maybe}\n");
    let refused = run(&["--", "true"]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(125));
    assert!(error.contains("default.yaml:1:"), "{error}");
}

#[test]
fn nameservers_of_a_guest_are_in_its_own_file() {
    let lab = Lab::new();
    let show = ["--", "grep", "^nameserver", "/etc/resolv.conf"];
    let said = lab.output(&[&["--dns", "192.0.2.1", "--dns", "192.0.2.2"][..], &show].concat());
    assert_eq!(said, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n");
    config(&lab, "default.yaml", "hostResolver: {enabled: false}\ndns: [192.0.2.9]\n");
    assert_eq!(lab.output(&show), "nameserver 192.0.2.9\n");
    // The network's own name server, which asks the nameservers of resolv.conf for this guest.
    let own = "nameserver 10.71.0.3\n";
    assert_eq!(lab.output(&[&["--dns", "resolv.conf"][..], &show].concat()), own);
    config(&lab, "default.yaml", "hostResolver: {enabled: false}\n");
    assert_eq!(lab.output(&show), own);
    config(&lab, "default.yaml", "hostResolver: {enabled: false}\ndns: [192.0.2.9]\n");
    config(&lab, "override.yaml", "hostResolver: {enabled: true}\n");
    let error = String::from_utf8(lab.run(&show).output().unwrap().stderr).unwrap();
    assert!(error.contains("field `dns` must be empty when"), "{error}");
    let port = lab.run(&["--dns", "192.0.2.1:5353", "--", "true"]).output().unwrap();
    assert_eq!(port.status.code(), Some(2));
}

#[test]
fn what_is_reserved_is_kept() {
    let lab = Lab::with(
        "networks:\n  lab:\n    mode: user-v2\n    gateway: 10.71.0.1\n    reservations:\n    \
         - {name: web, ip: 10.71.0.50}\n    - {mac: '52:55:55:00:00:01', ip: 10.71.0.4, name: db}\n",
    );
    let show = ["--", "sh", "-c", "ip -br -4 address show eth0 | tr -s ' ' | cut -d ' ' -f 3"];
    assert_eq!(lab.output(&show), "10.71.0.5/24\n");
    assert_eq!(lab.output(&[&["--name", "web"][..], &show].concat()), "10.71.0.50/24\n");
    let error = lab.run(&["--name", "db", "--", "true"]).output().unwrap().stderr;
    let error = String::from_utf8(error).unwrap();
    assert!(error.contains("the name lima-db is reserved for 52:55:55:00:00:01"), "{error}");
}

#[test]
fn a_full_network_says_so_and_makes_room() {
    let lab = Lab::with(
        "networks:\n  lab: {mode: user-v2, gateway: 10.71.0.1, netmask: 255.255.255.248}\n",
    );
    // There is room for three.
    let mut guests: Vec<_> = ["a", "b", "c"].map(|n| Guest::start(&lab, &["--name", n])).into();
    let output = lab.run(&["--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("no address is left in 10.71.0.0/29"), "{error}");
    for name in ["a", "b"] {
        drop(guests.remove(0));
        let shown = format!("guest       {name},");
        let gone = || !lab.0.network(&["show", "lab"]).quiet().contains(&shown);
        eventually("the guest's end", || gone().then_some(()));
    }
    let show = ["--", "sh", "-c", "ip -br -4 address show eth0 | tr -s ' ' | cut -d ' ' -f 3"];
    // That of `a`, who has been gone for longer; `b` still has its own.
    assert_eq!(lab.output(&[&["--name", "d"][..], &show].concat()), "10.71.0.4/29\n");
    assert_eq!(lab.output(&[&["--name", "b"][..], &show].concat()), "10.71.0.5/29\n");
}
