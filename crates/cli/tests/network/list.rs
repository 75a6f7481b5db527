//! `network list`, `network show`, `schema`, and what is said about the file.

use std::fs;

use crate::support::{Home, NETWORKS};

#[test]
fn the_first_time_there_is_the_default() {
    let home = Home::new();
    let list = home.network(&["list"]).quiet();
    let lines: Vec<_> = list.lines().collect();
    assert_eq!(lines[0], "NAME       MODE       GATEWAY             INTERFACE");
    assert!(lines[1].starts_with("bridged    bridged    -                   "), "{list}");
    assert_eq!(lines[2], "host       host       192.168.106.1/24    -");
    assert_eq!(lines[3], "shared     shared     192.168.105.1/24    -");
    assert_eq!(lines[4], "user-v2    user-v2    192.168.104.1/24    -");
    assert_eq!(lines.len(), 5);
    let text = home.text();
    for part in ["# Networks for virtual machines", "paths:", "varRun:", "group:", "user-v2:"] {
        assert!(text.contains(part), "{part}");
    }
    let dir = home.path("_config");
    let names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["networks.yaml"]);
}

#[test]
fn a_home_below_the_users_home() {
    let home = Home::new();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vmlan"))
        .args(["network", "ls", "--json"])
        .env_remove("LIMA_HOME")
        .env("HOME", home.path(""))
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(home.path(".lima/_config/networks.yaml").exists());
}

#[test]
fn lines_of_json() {
    let home = Home::with(NETWORKS);
    let want = r#"{"name":"lab","mode":"user-v2","gateway":"10.71.0.1","netmask":"255.255.255.0"}
{"name":"lan","mode":"bridged","interface":"br0"}
{"name":"old","mode":"shared","gateway":"10.72.0.1","dhcpEnd":"10.72.0.254","netmask":"255.255.0.0"}
{"name":"user-v2","mode":"user-v2","gateway":"192.168.104.1","netmask":"255.255.255.0"}
"#;
    assert_eq!(home.network(&["list", "--json"]).quiet(), want);
    assert_eq!(home.text(), NETWORKS);
}

#[test]
fn only_some_networks() {
    let home = Home::with(NETWORKS);
    let said = home.network(&["list", "lan", "none", "lab"]);
    assert_eq!(said.err, "vmlan: No network matching none found.\n");
    let names: Vec<_> = said.out.lines().map(|l| l.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["NAME", "lab", "lan"]);
}

#[test]
fn everything_about_a_network() {
    let home = Home::with(NETWORKS);
    home.instance("web", "networks:\n- lima: lab\n");
    let file = home.networks_yaml();
    let dir = home.path("_networks/lab");
    let want = format!(
        "\
name        lab
mode        user-v2
subnet      10.71.0.0/24
gateway     10.71.0.1
netmask     255.255.255.0
host        10.71.0.2
dns         10.71.0.3
ipv6        fd76:6d6c:a47:0::/64
defined in  {file}:3
instances   web
control     {dir}/lab_ep.sock
qemu        {dir}/lab_qemu.sock
fd          {dir}/lab_fd.sock
pid file    {dir}/usernet_lab.pid
stdout      {dir}/usernet.lab.stdout.log
stderr      {dir}/usernet.lab.stderr.log
leases      {dir}/leases.json
daemon      none now: one comes with the first guest
",
        file = file.display(),
        dir = dir.display()
    );
    let want = want.replace("fd76:6d6c:a47:0::", "fd76:6d6c:a47::");
    assert_eq!(home.network(&["show", "lab"]).quiet(), want);
    let shared = home.network(&["show", "old", "--json"]).quiet();
    for part in
        ["\"dhcpEnd\": \"10.72.0.254\"", "\"subnet\": \"10.72.0.0/16\"", "\"lineNumber\": 9"]
    {
        assert!(shared.contains(part), "{part} in {shared}");
    }
    let built_in = home.network(&["show", "user-v2"]).quiet();
    assert!(built_in.contains("defined in  vmlan itself"), "{built_in}");
    let error = home.network(&["show", "none"]).failed(1);
    assert!(error.ends_with("there is lab, lan, old, user-v2\n"), "{error}");
}

#[test]
fn networks_that_have_the_same_addresses_are_shown() {
    let home = Home::with(
        "networks:\n  a: {mode: host, gateway: 10.71.0.1}\n  \
         b: {mode: host, gateway: 10.71.0.129, netmask: 255.255.255.128}\n",
    );
    let shown = home.network(&["show", "a"]).quiet();
    let want = "conflict    10.71.0.0/24 overlaps network `b` (10.71.0.128/25)";
    assert!(shown.contains(want), "{shown}");
}

#[test]
fn an_error_has_its_place_and_what_would_be_right() {
    let home = Home::with("networks:\n  lab:\n    mode: user-v2\n    gateway: 10.71.0.300\n");
    let want = format!(
        "\
vmlan: `10.71.0.300` is not an IPv4 address
 --> {}:4:14
  |
4 |     gateway: 10.71.0.300
  |              ^^^^^^^^^^^
  |
  = help: four numbers from 0 to 255, such as 192.168.42.1
",
        home.networks_yaml().display()
    );
    assert_eq!(home.network(&["list"]).failed(1), want);
}

#[test]
fn old_fields_are_warnings() {
    let home = Home::with("paths:\n  vdeSwitch: /opt/vde/bin/vde_switch\nnetworks:\n");
    let said = home.network(&["list"]);
    assert_eq!(said.code, Some(0));
    assert!(said.err.starts_with("vmlan: warning: unknown field `vdeSwitch`"), "{}", said.err);
    assert!(said.err.contains("networks.yaml:2:3"), "{}", said.err);
    assert!(said.out.contains("user-v2"));
}

#[test]
fn a_home_that_cannot_be_made_is_named() {
    let home = Home::new();
    fs::write(home.path("file"), "").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vmlan"))
        .args(["network", "list"])
        .env("LIMA_HOME", home.path("file/home"))
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("file/home") && error.contains("Not a directory"), "{error}");
}

#[test]
fn schemas_are_json() {
    let home = Home::new();
    for args in [&["schema"][..], &["schema", "networks"], &["schema", "lima"]] {
        let text = home.vmlan(args, "").quiet();
        assert!(text.starts_with("{\n") && text.contains("\"$schema\""), "{text}");
    }
    assert!(!home.path("_config").exists());
}
