use super::*;
use crate::testing::{networks, parse};

/// What is said about a file that cannot be used.
fn errors(text: &str) -> String {
    parse(text).expect_err("an error").to_string()
}

fn warnings(text: &str) -> String {
    parse(text).unwrap_or_else(|e| panic!("{e}")).warnings.expect("a warning").to_string()
}

#[test]
fn a_file_of_an_older_version_is_read_as_it_is() {
    let text = "\
paths:
  socketVMNet: /opt/socket_vmnet/bin/socket_vmnet
  varRun: /private/var/run/lima
  sudoers: /private/etc/sudoers.d/lima

group: everyone

networks:
  shared:
    mode: shared
    gateway: 192.168.105.1
    dhcpEnd: 192.168.105.254
    netmask: 255.255.255.0
  bridged:
    mode: bridged
    interface: en0
    # bridged mode doesn't have a gateway; dhcp is managed by outside network
  host:
    mode: host
    gateway: 192.168.106.1
    dhcpEnd: 192.168.106.254
    netmask: 255.255.255.0
";
    let read = parse(text).unwrap();
    assert!(read.warnings.is_none());
    let networks = read.networks;
    assert_eq!(networks.group, "everyone");
    assert_eq!(networks.names().collect::<Vec<_>>(), ["bridged", "host", "shared", "user-v2"]);
    assert_eq!(networks.get("bridged").unwrap().interface(), Some("en0"));
    let shared = networks.get("shared").unwrap().subnet().unwrap();
    assert_eq!(shared.gateway_cidr(), "192.168.105.1/24");
    let var_run = networks.paths.var_run.unwrap();
    assert_eq!(var_run.value, PathBuf::from("/private/var/run/lima"));
}

#[test]
fn nothing_has_every_default() {
    for text in ["", "# nothing\n", "networks:\n", "networks: {}\npaths:\ngroup:\n", "---\n"] {
        let networks = networks(text);
        assert_eq!(networks.names().collect::<Vec<_>>(), ["user-v2"], "{text:?}");
        assert_eq!(networks.group, "sudo");
        let built_in = networks.get("user-v2").unwrap();
        assert_eq!(built_in.subnet().unwrap().gateway_cidr(), "192.168.104.1/24");
        assert_eq!(built_in.span, None);
    }
}

#[test]
fn defaults_of_a_network_are_filled_in() {
    let text = "\
networks:
  a: {mode: shared, gateway: 10.1.0.1}
  b: {mode: host, gateway: 10.2.0.1, netmask: 255.255.0.0}
  c: {mode: user-v2, gateway: 10.3.0.1}
  user-v2: {mode: user-v2}
";
    let networks = networks(text);
    let subnet = |name| *networks.get(name).unwrap().subnet().unwrap();
    assert_eq!(subnet("a").dhcp_end.unwrap().to_string(), "10.1.0.254");
    assert_eq!(subnet("a").netmask().to_string(), "255.255.255.0");
    assert_eq!(subnet("b").dhcp_end.unwrap().to_string(), "10.2.0.254");
    assert_eq!(subnet("b").gateway_cidr(), "10.2.0.1/16");
    assert_eq!(subnet("c").dhcp_end, None);
    assert_eq!(subnet("user-v2"), Subnet::built_in());
}

#[test]
fn the_built_in_network_gives_way() {
    let own = networks("networks: {user-v2: {mode: host, gateway: 10.1.0.1}}");
    assert_eq!(own.get(BUILT_IN).unwrap().mode, Mode::Host);
    let same = networks("networks: {mine: {mode: user-v2, gateway: 192.168.104.1}}");
    assert_eq!(same.names().collect::<Vec<_>>(), ["mine"]);
    let other = networks("networks: {mine: {mode: user-v2, gateway: 10.1.0.1}}");
    assert_eq!(other.names().collect::<Vec<_>>(), ["mine", "user-v2"]);
}

#[test]
fn every_error_is_told_with_its_line() {
    let said = errors(
        "\
group: \"everyone ALL=(ALL) ALL #\"
networks:
  no-mode:
    gateway: 10.1.0.1
  \"bad name\":
    mode: host
    gateway: 10.1.0.1
  bad-mode:
    mode: \"shared\\nALL ALL=(ALL) ALL\"
    gateway: 10.1.0.1
  no-gateway: {mode: shared}
  no-interface: {mode: bridged}
  empty-interface: {mode: bridged, interface: \"\"}
  bad-interface: {mode: bridged, interface: \"en0 --pidfile=/etc/x\"}
  bad-gateway:
    mode: user-v2
    gateway: 10.1.0.256   # too large
  loopback: {mode: host, gateway: 127.0.0.1}
  network: {mode: host, gateway: 10.1.0.0}
  name-server: {mode: user-v2, gateway: 10.1.0.3}
  bad-mask: {mode: host, gateway: 10.1.0.1, netmask: 255.0.255.0}
  small: {mode: host, gateway: 10.1.0.1, netmask: 255.255.255.252}
  outside: {mode: host, gateway: 10.1.0.1, dhcpEnd: 10.1.1.254}
  early: {mode: host, gateway: 10.1.0.9, dhcpEnd: 10.1.0.8}
",
    );
    insta::assert_snapshot!(said);
}

#[test]
fn what_means_nothing_is_a_warning() {
    let said = warnings(
        "\
paths:
  vdeSwitch: /opt/vde/bin/vde_switch
  vdeVMNet: /opt/vde/bin/vde_vmnet
  varRun: /private/var/run/lima
color: blue
networks:
  a:
    mode: host
    gateway: 10.1.0.1
    interface: en0
    mtu: 1500
  b:
    mode: bridged
    interface: en0
    gateway: 10.1.0.1
  c: {mode: user-v2, gateway: 10.3.0.1, dhcpEnd: 10.3.0.9}
",
    );
    insta::assert_snapshot!(said);
}

#[test]
fn what_is_no_yaml_is_told_with_its_line() {
    let texts = [
        "networks:\n  a:\n    mode: host\n   gateway: 10.1.0.1\n",
        "networks: [a, b]\n",
        "networks:\n  a: host\n",
        "networks:\n  a: {mode: [host]}\n",
        "networks: {a: {mode: host, mode: shared}}\n",
        "group: a\ngroup: b\n",
        "just text\n",
        "- a\n",
        "networks: {a: *nowhere}\n",
        "networks:\n\t a: 1\n",
        "a: 1\n---\nb: 2\n",
        "networks: {",
        "group: \"\u{1b}[31m\n",
        "group: \"\\e[31m\"\n",
    ];
    let said = texts.map(errors).join("\n\n");
    insta::assert_snapshot!(said);
}

#[test]
fn what_costs_too_much_is_refused() {
    let laughs = "a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n\
        c: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n\
        e: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e]\n\
        g: [*f, *f, *f, *f, *f, *f, *f, *f]\n";
    errors(laughs);
    errors(&format!("a: {}", "[".repeat(10_000)));
    let large = errors(&format!("# {}", "x".repeat(2 << 20)));
    assert!(large.contains("at most 1048576 are read"), "{large}");
}

#[test]
fn a_network_of_the_command_line_is_checked_as_well() {
    let new = |name, mode, gateway: Option<&str>, interface| {
        let gateway = gateway.map(|text| subnet::parse_gateway(text).unwrap());
        Network::new(name, mode, gateway, interface).unwrap_err()
    };
    let gateway = Some("10.1.0.1");
    let cases = [
        (
            new("a b", Mode::Host, gateway, None),
            "invalid network name `a b`: identifier `a b` must match \
             ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$",
        ),
        (
            new("a", Mode::Bridged, gateway, None),
            "network mode `bridged` does not support specifying gateway",
        ),
        (
            new("a", Mode::Bridged, None, None),
            "network mode `bridged` requires specifying interface",
        ),
        (
            new("a", Mode::Bridged, None, Some("/")),
            "invalid interface `/`: identifier `/` must match \
             ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$",
        ),
        (new("a", Mode::Host, None, None), "network mode `host` requires specifying gateway"),
        (
            new("a", Mode::Shared, gateway, Some("en0")),
            "network mode `shared` does not support specifying interface",
        ),
        (
            new("a", Mode::UserV2, Some("10.1.0.3"), None),
            "gateway 10.1.0.3 is the address of the name server in 10.1.0.0/24",
        ),
    ];
    for (is, want) in cases {
        assert_eq!(is, want);
    }
}
