//! The table by its verdicts.

use std::path::Path;

use super::super::InstanceConfig;
use super::*;
use crate::source::Source;

const SSH: u16 = 60022;

fn table(text: &str) -> Forwards {
    let source = Source::new("lima.yaml", format!("portForwards:\n{text}"));
    let read = InstanceConfig::parse(&source, Path::new("/home/i"));
    read.unwrap_or_else(|report| panic!("{report}")).config.forwards.in_force(SSH)
}

/// Each line is a listener and its verdict: `ADDRESS PORT -> ADDRESS PORT`, or nothing behind the
/// arrow if it is not to be reached.
fn check(rules: &str, cases: &str) {
    let table = table(rules);
    for line in cases.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (guest, want) = line.split_once("->").unwrap();
        let guest = address(guest).unwrap();
        let want = match want.trim() {
            "" => Verdict::Ignored,
            path if path.starts_with('/') => Verdict::Socket(path.into()),
            host => Verdict::Port(address(host).unwrap()),
        };
        for udp in [false, true] {
            assert_eq!(table.decide(udp, guest), want, "{line}");
        }
    }
}

fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.trim().split_once(char::is_whitespace)?;
    Some(SocketAddr::new(ip.parse().ok()?, port.trim().parse().ok()?))
}

#[test]
fn without_rules_the_loopback_and_everywhere_are_reached() {
    check(
        "  []",
        "127.0.0.1 8080 -> 127.0.0.1 8080
         0.0.0.0 80 -> 127.0.0.1 80
         :: 65535 -> 127.0.0.1 65535
         ::1 1 -> 127.0.0.1 1
         127.0.0.2 8080 ->
         192.168.5.15 8080 ->
         127.0.0.1 22 ->
         0.0.0.0 22 ->
         192.168.5.15 22 ->
         127.0.0.1 60022 ->
         :: 60022 ->",
    );
}

const RANGES: &str = "
- {guestIP: 127.0.0.2, guestPortRange: [3000, 3009], hostPortRange: [2000, 2009], ignore: true}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [3010, 3019], ignore: true}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [3000, 3029], hostPortRange: [2000, 2029]}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [3020, 3029], ignore: true}
- {guestPortRange: [3030, 3039], hostPortRange: [2030, 2039], hostIP: 10.1.1.1}
";

#[test]
fn the_first_rule_that_fits_decides() {
    check(
        RANGES,
        "127.0.0.2 3000 ->
         127.0.0.3 3001 -> 127.0.0.1 2001
         0.0.0.0 3002 -> 127.0.0.1 2002
         0.0.0.0 3010 ->
         127.0.0.1 3011 ->
         127.0.0.2 3020 -> 127.0.0.1 2020
         127.0.0.1 3021 -> 127.0.0.1 2021
         0.0.0.0 3022 -> 127.0.0.1 2022
         :: 3023 -> 127.0.0.1 2023
         ::1 3024 -> 127.0.0.1 2024
         127.0.0.1 3030 -> 10.1.1.1 2030
         0.0.0.0 3031 -> 10.1.1.1 2031
         :: 3032 -> 10.1.1.1 2032
         ::1 3033 -> 10.1.1.1 2033",
    );
}

#[test]
fn the_loopback_is_everywhere_too_but_no_other_address() {
    check(
        "
- {guestPortRange: [300, 304]}
- {guestPortRange: [305, 309], guestIPMustBeZero: false}
- {guestPortRange: [310, 314], hostIP: 0.0.0.0}
- {guestPortRange: [315, 319], guestIPMustBeZero: false, hostIP: 0.0.0.0}
",
        "127.0.0.1 300 -> 127.0.0.1 300
         0.0.0.0 301 -> 127.0.0.1 301
         :: 302 -> 127.0.0.1 302
         ::1 303 -> 127.0.0.1 303
         192.168.5.15 304 ->
         127.0.0.1 305 -> 127.0.0.1 305
         0.0.0.0 306 -> 127.0.0.1 306
         :: 307 -> 127.0.0.1 307
         ::1 308 -> 127.0.0.1 308
         192.168.5.15 309 ->
         127.0.0.1 310 -> 0.0.0.0 310
         0.0.0.0 311 -> 0.0.0.0 311
         :: 312 -> 0.0.0.0 312
         ::1 313 -> 0.0.0.0 313
         192.168.5.15 314 ->
         127.0.0.1 315 -> 0.0.0.0 315
         0.0.0.0 316 -> 0.0.0.0 316
         :: 317 -> 0.0.0.0 317
         ::1 318 -> 0.0.0.0 318
         192.168.5.15 319 ->",
    );
}

#[test]
fn an_address_is_one_or_all() {
    check(
        "
- {guestIP: 192.168.5.15, guestPortRange: [4000, 4009], hostIP: 10.1.1.1}
- {guestIP: '::1', guestPortRange: [4010, 4019], hostIP: '::'}
- {guestIP: '::', guestPortRange: [4020, 4029], hostIP: 10.1.1.1}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [4030, 4039], hostIP: 10.1.1.1}
- {guestIPMustBeZero: true, guestPortRange: [4040, 4049]}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [4040, 4049], ignore: true}
- {guestIPMustBeZero: true, guestPort: 8888, hostIP: 0.0.0.0}
- {guestIP: 0.0.0.0, guestPort: 8889, hostPort: 9}
",
        "192.168.5.15 4000 -> 10.1.1.1 4000
         ::1 4010 -> :: 4010
         127.0.0.1 4020 -> 10.1.1.1 4020
         127.0.0.2 4021 -> 10.1.1.1 4021
         192.168.5.15 4022 -> 10.1.1.1 4022
         0.0.0.0 4023 -> 10.1.1.1 4023
         :: 4024 -> 10.1.1.1 4024
         ::1 4025 -> 10.1.1.1 4025
         127.0.0.1 4030 -> 10.1.1.1 4030
         127.0.0.2 4031 -> 10.1.1.1 4031
         192.168.5.15 4032 -> 10.1.1.1 4032
         0.0.0.0 4033 -> 10.1.1.1 4033
         :: 4034 -> 10.1.1.1 4034
         ::1 4035 -> 10.1.1.1 4035
         0.0.0.0 4040 -> 127.0.0.1 4040
         :: 4041 -> 127.0.0.1 4041
         127.0.0.1 4043 ->
         192.168.5.15 4044 ->
         0.0.0.0 8888 -> 0.0.0.0 8888
         127.0.0.1 8888 -> 127.0.0.1 8888
         0.0.0.0 8889 -> 127.0.0.1 9
         192.168.5.15 8889 ->",
    );
}

#[test]
fn a_port_may_lead_to_a_socket() {
    check(
        "
- {guestPort: 5000, hostSocket: port5000.sock}
- {guestPort: 5001, hostSocket: /run/port5001.sock}
- {guestPort: 5002, guestIPMustBeZero: false, hostSocket: port5002.sock}
",
        "127.0.0.1 5000 -> /home/i/sock/port5000.sock
         192.168.5.15 5000 ->
         0.0.0.0 5001 -> /run/port5001.sock
         192.168.5.15 5001 ->
         127.0.0.1 5002 -> /home/i/sock/port5002.sock
         192.168.5.15 5002 ->",
    );
}

#[test]
fn a_rule_may_be_about_one_protocol() {
    let table =
        table("- {guestPort: 53, proto: udp, hostPort: 1053}\n- {guestPort: 53, ignore: true}");
    let guest = "127.0.0.1:53".parse().unwrap();
    assert_eq!(table.decide(true, guest), Verdict::Port("127.0.0.1:1053".parse().unwrap()));
    assert_eq!(table.decide(false, guest), Verdict::Ignored);
}

#[test]
fn sockets_and_fixed_ports_stand_beside_the_listeners() {
    let table = table(
        "- {guestSocket: /run/docker.sock, hostSocket: docker.sock}\n\
         - {guestSocket: /run/x.sock, hostSocket: /tmp/x.sock, reverse: true}\n\
         - {guestPortRange: [7000, 7001], hostPortRange: [8000, 8001], proto: tcp, static: true}",
    );
    let docker = &table.sockets[0];
    assert_eq!(docker.host, Path::new("/home/i/sock/docker.sock"));
    assert!(!docker.reverse && table.sockets[1].reverse);
    let fixed: Vec<_> = table.fixed().collect();
    let to = |port| Verdict::Port(SocketAddr::new(LOOPBACK, port));
    assert_eq!(fixed, [(7000, Proto::Tcp, to(8000)), (7001, Proto::Tcp, to(8001))]);
}

#[test]
fn what_cannot_be_is_said_with_the_field() {
    for (rule, want) in [
        ("guestPort: -1", "guestPort` must be > 0"),
        ("guestPort: 70000", "guestPort` must be < 65536"),
        ("hostPort: 22", "hostPort` must not be 22"),
        ("guestPortRange: [5, 4]", "guestPortRange[1]` must be greater than or equal to"),
        ("guestPortRange: [5]", "guestPortRange` must have two ports"),
        ("guestPort: 6, guestPortRange: [5, 7]", "guestPort` must match guestPortRange[0]"),
        ("guestPortRange: [1, 4], hostPortRange: [1, 5]", "the same number of ports"),
        ("guestPortRange: [1, 4], hostSocket: s", "a single port or socket"),
        ("guestSocket: s, hostSocket: s", "must be an absolute path"),
        ("guestSocket: /s, guestPort: 1", "must be 0 when guestSocket is set"),
        ("guestSocket: /s", "needs a hostSocket"),
        ("guestPort: 1, reverse: true", "reverse` must be false"),
        ("guestIP: 127.0.0.1, guestIPMustBeZero: true", "only be true when guestIP is 0.0.0.0"),
        ("guestIP: x", "guestIP` must be an IP address"),
        ("proto: sctp", "proto` must be `tcp`, `udp`, or `any`"),
    ] {
        let source = Source::new("lima.yaml", format!("portForwards: [{{{rule}}}]"));
        let report = InstanceConfig::parse(&source, Path::new("/i")).unwrap_err().to_string();
        assert!(report.contains(want) && report.contains("lima.yaml:1:"), "{rule}: {report}");
    }
    let long = format!("portForwards: [{{guestPort: 1, hostSocket: {}}}]", "x".repeat(120));
    let report = InstanceConfig::parse(&Source::new("y", long), Path::new("/i")).unwrap_err();
    assert!(report.to_string().contains("UNIX_PATH_MAX"), "{report}");
}
