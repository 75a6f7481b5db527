use super::*;
use crate::mac::show_mac;
use crate::testing::{networks, platform};

fn resolve(text: &str) -> Result<Vec<Attachment>, String> {
    let networks = networks(&crate::default_networks(&platform()));
    let dir = Path::new("/home/me/.lima/default");
    let instance = Instance { networks: &networks, machine: "abc", dir };
    let raw = RawInstance::parse(&Source::new("lima.yaml", text)).unwrap();
    let report = |diagnostics| {
        let file = Source::new("lima.yaml", text);
        Report { file, diagnostics }.to_string()
    };
    let resolved = attachments(&raw.networks.unwrap_or_default(), instance);
    let (all, warnings) = resolved.map_err(report)?;
    if warnings.is_empty() { Ok(all) } else { Err(report(warnings)) }
}

fn interfaces(text: &str) -> Vec<(String, String, u32, Target)> {
    let all = resolve(text).unwrap_or_else(|e| panic!("{e}"));
    all.into_iter().map(|a| (a.interface, show_mac(a.mac), a.metric, a.target)).collect()
}

fn mac(interface: &str) -> String {
    show_mac(mac_address("abc", interface))
}

#[test]
fn without_an_entry_there_is_the_default_network() {
    let first = mac("/home/me/.lima/default");
    for text in ["", "networks: []", "images: []\nnetworks:\n"] {
        assert_eq!(interfaces(text), [("eth0".into(), first.clone(), 200, Target::Default)]);
    }
}

#[test]
fn names_addresses_and_metrics_follow_the_list() {
    let text = "\
networks:
- lima: shared
- lima: user-v2
- socket: /nowhere/socket
  macAddress: 52:55:55:00:00:01
  interface: dmz0
  metric: 50
- vzNAT: true
- lima: user-v2
";
    let nth = |i| mac(&format!("/home/me/.lima/default/lima.yaml#{i}"));
    let lima = |name: &str| Target::Lima(name.into());
    let want = [
        ("eth0".into(), mac("/home/me/.lima/default"), 200, lima("user-v2")),
        ("lima0".into(), nth(0), 100, lima("shared")),
        ("dmz0".into(), "52:55:55:00:00:01".into(), 50, Target::Socket("/nowhere/socket".into())),
        ("lima3".into(), nth(3), 100, Target::VzNat),
        ("lima4".into(), nth(4), 100, lima("user-v2")),
    ];
    assert_eq!(interfaces(text), want);
}

#[test]
fn what_is_said_of_the_first_interface_counts_except_for_its_name() {
    let text =
        "networks: [{lima: user-v2, macAddress: 52-55-55-00-00-01, metric: 7, interface: x}]";
    let want = ("eth0".into(), "52:55:55:00:00:01".into(), 7, Target::Lima("user-v2".into()));
    assert_eq!(interfaces(text), [want]);
}

#[test]
fn every_error_is_told_with_its_line() {
    let text = "\
networks:
- lima: none
- lima: shared
  socket: /run/x
- lima: shared
  vzNAT: true
- socket: /run/x
  vzNAT: true
- socket: /
- interface: five
- lima: shared
  macAddress: nonsense
- lima: shared
  macAddress: 52:55:55:00:00:00:00:01
- lima: shared
  macAddress: ff:ff:ff:ff:ff:ff
- lima: shared
  interface: sixteen-bytes-00
- lima: shared
  interface: \"a b\"
- lima: shared
  interface: a/b
- lima: shared
  interface: \"..\"
- lima: shared
  interface: eth0
- lima: shared
  interface: same
- lima: host
  interface: same
- {}
";
    let said = resolve(text).unwrap_err();
    insta::assert_snapshot!(said);
}

#[test]
fn unknown_fields_are_warnings() {
    let warnings = resolve("networks:\n- lima: shared\n  mtu: 1500\n").unwrap_err();
    assert!(warnings.starts_with("warning: unknown field `mtu` of `networks[0]`"), "{warnings}");
}

#[test]
fn values_of_the_wrong_type_are_told_with_their_line() {
    for (text, line) in [
        ("networks:\n- lima: [a]\n", 2),
        ("networks:\n- vzNAT: perhaps\n", 2),
        ("networks:\n- lima: a\n  metric: -1\n", 3),
        ("networks: shared\n", 1),
    ] {
        let error = RawInstance::parse(&Source::new("lima.yaml", text)).unwrap_err().to_string();
        assert!(error.contains(&format!(" --> lima.yaml:{line}:")), "{text}: {error}");
    }
}

#[test]
fn what_the_flag_says() {
    let flag = |text| RawEntry::from_flag(text);
    assert_eq!(flag("lima:user-v2").unwrap().lima.unwrap().value, "user-v2");
    assert_eq!(flag("socket:/run/a:b").unwrap().socket.unwrap().value, "/run/a:b");
    assert!(flag("vzNAT").unwrap().vz_nat.unwrap().value);
    for text in ["", "user-v2", "lima:", "vznat", "vzNAT:x", "socket:"] {
        let want = format!("network name must be `vzNAT`, `lima:*` or `socket:*`, got `{text}`");
        assert_eq!(flag(text).unwrap_err(), want);
    }
}
