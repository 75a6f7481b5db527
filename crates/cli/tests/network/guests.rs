//! Guests on a configured network: names, addresses, and the daemon that comes and goes with them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};

use rustix::process::{Signal, kill_process};

use crate::lab::{Guest, Lab, SERVE, eventually};
use crate::ports::free_ports;

#[test]
fn guests_reach_each_other_by_name_and_the_daemon_goes_with_them() {
    let lab = Lab::new();
    let mut web = Guest::start(&lab, &["--name", "web"]);
    let pid = lab.pid().unwrap();
    assert_eq!(web.line(SERVE), "started");
    let fetch = "for i in $(seq 100); do busybox nc lima-web.internal 8000 </dev/null 2>/dev/null && break; \
                 sleep 0.05; done; \
                 getent ahosts lima-web.internal | cut -d ' ' -f 1 | sort -u; \
                 getent hosts 10.71.0.4 | tr -s ' '; ip -br link show eth0 | cut -c 1-4";
    let said = lab.output(&["--name", "client", "--", "sh", "-c", fetch]);
    let want = "hello\n10.71.0.4\nfd76:6d6c:a47::4\n10.71.0.4 lima-web.internal\neth0\n";
    assert_eq!(said, want);
    assert_eq!(lab.pid(), Some(pid), "one daemon served both");
    // A name goes with its guest.
    let gone = lab.output(&["--", "sh", "-c", "getent hosts lima-client.internal || echo gone"]);
    assert_eq!(gone, "gone\n");
    drop(web);
    eventually("the daemon's end", || (lab.left().is_empty()).then_some(()));
}

#[test]
fn a_named_guest_keeps_its_addresses() {
    let lab = Lab::new();
    let show = ["--", "ip", "-br", "address", "show", "eth0"];
    let named = |name| lab.output(&[&["--name", name][..], &show].concat());
    let (a, b) = (named("a"), named("b"));
    assert!(a.contains("10.71.0.4/24") && a.contains("fd76:6d6c:a47::4/64"), "{a}");
    assert!(b.contains("10.71.0.5/24"), "{b}");
    let mac = || lab.output(&["--name", "a", "--", "cat", "/sys/class/net/eth0/address"]);
    let first = mac();
    assert!(first.starts_with("52:55:55:"), "{first}");
    kill_process(lab.pid().unwrap(), Signal::TERM).unwrap();
    eventually("the daemon's end", || (lab.left().is_empty()).then_some(()));
    assert!(named("b").contains("10.71.0.5/24"));
    assert_eq!(mac(), first);
}

#[test]
fn a_killed_daemon_is_replaced_under_its_guests() {
    let lab = Lab::new();
    let mut guests = ["a", "b", "c"].map(|name| Guest::start(&lab, &["--name", name]));
    let before = guests.each_mut().map(Guest::addresses);
    let first = lab.pid().unwrap();
    kill_process(first, Signal::KILL).unwrap();
    let second = eventually("another daemon", || lab.pid().filter(|pid| *pid != first));
    for name in ["a", "b", "c"] {
        let ask = format!(
            "for i in $(seq 100); do getent hosts lima-{name}.internal >/dev/null && break; \
             sleep 0.05; done; ping -q -c 1 -W 5 lima-{name}.internal >/dev/null && echo reached || echo lost"
        );
        for guest in &mut guests {
            assert_eq!(guest.line(&ask), "reached", "{name}");
        }
    }
    assert_eq!(guests.each_mut().map(Guest::addresses), before);
    assert_eq!(lab.pid(), Some(second));
}

#[test]
fn many_that_start_at_once_have_one_daemon() {
    let lab = Lab::new();
    let names: Vec<String> = (0..6).map(|i| format!("g{i}")).collect();
    let show = ["--", "ip", "-br", "-4", "address", "show", "eth0"];
    let mut children: Vec<Child> = names
        .iter()
        .map(|name| {
            let mut command = lab.run(&["--name", name]);
            command.args(show).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let mut addresses = Vec::new();
    for child in children.drain(..) {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        addresses.push(text.split_whitespace().nth(2).unwrap().to_owned());
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), names.len());
    let log = fs::read_to_string(lab.0.path("_networks/lab/usernet.lab.stderr.log")).unwrap();
    assert_eq!(log.matches("ready").count(), 1, "{log}");
}

#[test]
fn a_network_can_be_held_without_a_guest() {
    let lab = Lab::new();
    assert_eq!(lab.0.network(&["start", "lab"]).quiet(), "");
    let pid = lab.pid().unwrap();
    assert_eq!(lab.0.network(&["start", "lab"]).quiet(), "");
    assert_eq!(lab.pid(), Some(pid));
    lab.output(&["--", "true"]);
    assert_eq!(lab.pid(), Some(pid));
    assert_eq!(lab.0.network(&["stop", "lab"]).quiet(), "");
    eventually("the daemon's end", || (lab.left().is_empty()).then_some(()));
    assert_eq!(lab.0.network(&["stop", "lab"]).quiet(), "");
    let error = lab.0.network(&["start", "none"]).failed(1);
    assert!(error.contains("no network `none`"), "{error}");
}

#[test]
fn a_held_network_whose_daemon_is_killed_comes_back() {
    let lab = Lab::new();
    assert_eq!(lab.0.network(&["start", "lab"]).quiet(), "");
    let first = lab.pid().unwrap();
    assert_eq!(lab.0.network(&["start", "lab"]).quiet(), "");
    kill_process(first, Signal::KILL).unwrap();
    eventually("another daemon", || lab.pid().filter(|pid| *pid != first));
    eventually("its hold", || {
        lab.0.network(&["show", "lab"]).quiet().contains("held").then_some(())
    });
    assert_eq!(lab.0.network(&["stop", "lab"]).quiet(), "");
    eventually("the daemon's end", || (lab.left().is_empty()).then_some(()));
}

#[test]
fn a_network_in_use_is_not_deleted_and_goes_with_force() {
    let lab = Lab::new();
    let mut web = Guest::start(&lab, &["--name", "web"]);
    let error = lab.0.network(&["delete", "lab"]).failed(1);
    assert!(error.contains("network `lab` is used by web; see --force"), "{error}");
    assert_eq!(lab.0.network(&["delete", "--force", "lab"]).quiet(), "");
    assert!(!lab.0.path("_networks/lab").exists());
    // The guest goes on without the network, and brings nothing back.
    assert_eq!(web.line("echo here"), "here");
    assert!(!lab.0.path("_networks/lab").exists());
    drop(web);

    assert_eq!(lab.0.network(&["start", "user-v2"]).quiet(), "");
    fs::write(lab.0.networks_yaml(), "networks:\n  user-v2: {mode: user-v2}\n").unwrap();
    let error = lab.0.network(&["delete", "user-v2"]).failed(1);
    assert!(error.contains("is kept by `vmlan network start user-v2`"), "{error}");
    assert_eq!(lab.0.network(&["stop", "user-v2"]).quiet(), "");
    let deleted = lab.0.network(&["delete", "user-v2"]);
    assert_eq!(deleted.code, Some(0), "{}", deleted.err);
    assert!(!lab.0.path("_networks/user-v2").exists());
}

#[test]
fn what_cannot_join_is_told() {
    let lab = Lab::new();
    let refused = |args: &[&str]| {
        let output = lab.run(args).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let _web = Guest::start(&lab, &["--name", "web"]);
    let error = refused(&["--name", "web", "--", "true"]);
    assert!(error.contains("a guest with the name `web` is on the network already"), "{error}");
    // Names are the same in every case of letters.
    let error = refused(&["--name", "WEB", "--", "true"]);
    assert!(error.contains("a guest with the name `WEB` is on the network already"), "{error}");
    let error = refused(&["--name", "a/b", "--", "true"]);
    assert!(error.contains("--name a/b: identifier `a/b` must match"), "{error}");
    // A port that somebody has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let publish = format!("{}:80", taken.local_addr().unwrap().port());
    let error = refused(&["-p", &publish, "--", "true"]);
    assert!(error.contains(&taken.local_addr().unwrap().port().to_string()), "{error}");
}

#[test]
fn published_ports_lead_to_the_guest_while_it_is_there() {
    let lab = Lab::new();
    let port = free_ports(1);
    let mut guest = Guest::start(&lab, &["-p", &format!("{port}:8000")]);
    assert_eq!(guest.line(SERVE), "started");
    let said = eventually("an answer", || {
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok().filter(|n| *n > 0).map(|_| line)
    });
    assert_eq!(said, "hello\n");
    drop(guest);
    eventually("the port's end", || std::net::TcpListener::bind(("127.0.0.1", port)).ok());
}

/// The stale files of a daemon that was killed while nobody was there.
#[test]
fn what_a_dead_daemon_left_is_cleared() {
    let lab = Lab::new();
    let dir = lab.0.path("_networks/lab");
    fs::create_dir_all(&dir).unwrap();
    for socket in ["lab_ep.sock", "lab_fd.sock", "lab_qemu.sock"] {
        drop(UnixListener::bind(dir.join(socket)).unwrap());
    }
    // Its number is somebody else's by now.
    fs::write(dir.join("usernet_lab.pid"), format!("{}\n", std::process::id())).unwrap();
    fs::write(dir.join("leases.json.new"), "{").unwrap();
    fs::write(dir.join("leases.json"), "{").unwrap();
    assert_eq!(lab.output(&["--name", "a", "--", "echo", "here"]), "here\n");
    eventually("the daemon's end", || (lab.left().is_empty()).then_some(()));
    let leases = fs::read(dir.join("leases.json")).unwrap();
    let leases: serde_json::Value = serde_json::from_slice(&leases).unwrap();
    assert!(leases["10.71.0.4"].as_str().unwrap().starts_with("52:55:55:"), "{leases}");
}
