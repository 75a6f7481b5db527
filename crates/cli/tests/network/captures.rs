//! `vmlan capture` of a network with guests.

use std::fs;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Guest, Lab, eventually};

fn capture(lab: &Lab, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmlan"));
    command.arg("capture").args(args).env("LIMA_HOME", lab.0.path(""));
    command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What tshark reads: who, and which ICMP type.
fn tshark(path: &std::path::Path) -> Vec<String> {
    let mut tshark = Command::new("tshark");
    tshark.args(["-T", "fields", "-E", "separator=/s", "-e", "frame.interface_name"]);
    tshark.args(["-e", "icmp.type", "-Y", "icmp", "-r"]).arg(path);
    let out = tshark.output().expect("tshark is installed");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn frames_are_written_until_ctrl_c() {
    let lab = Lab::new();
    let mut web = Guest::start(&lab, &["--name", "web"]);
    let mut client = Guest::start(&lab, &["--name", "client"]);
    let (all, one) = (lab.0.path("all.pcapng"), lab.0.path("one.pcapng"));
    let [all_path, one_path] = [&all, &one].map(|p| p.display().to_string());
    let children =
        [capture(&lab, &["lab", "-w", &all_path]), capture(&lab, &["lab", "web", "-w", &one_path])];
    for path in [&all, &one] {
        eventually("the head", || fs::metadata(path).is_ok_and(|m| m.len() > 0).then_some(()));
    }
    let ping = "ping -q -c 2 -i 0.01 10.71.0.1 >/dev/null && echo reached";
    assert_eq!(web.line(ping), "reached");
    assert_eq!(client.line(ping), "reached");
    for child in children {
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.ends_with(" frames, 0 left out\n"), "{said}");
    }
    let web = ["web 8", "web 0", "web 8", "web 0"];
    let client = ["client 8", "client 0", "client 8", "client 0"];
    assert_eq!(tshark(&one), web);
    assert_eq!(tshark(&all), [web, client].concat());
}

#[test]
fn a_capture_ends_with_its_reader_or_the_daemon() {
    let lab = Lab::new();
    let _web = Guest::start(&lab, &["--name", "web"]);
    let mut command = Command::new("sh");
    let pipe = format!("{} capture web -w - | head -c 8 >/dev/null", env!("CARGO_BIN_EXE_vmlan"));
    let output = command.args(["-c", &pipe]).env("LIMA_HOME", lab.0.path("")).output().unwrap();
    assert!(output.status.success());
    let file = lab.0.path("file.pcapng");
    let child = capture(&lab, &["lab", "-w", &file.display().to_string()]);
    eventually("the head", || fs::metadata(&file).is_ok_and(|m| m.len() > 0).then_some(()));
    kill_process(lab.pid().unwrap(), Signal::KILL).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(tshark(&file), Vec::<String>::new());
}

#[test]
fn what_cannot_be_captured_is_told() {
    let lab = Lab::new();
    let refused = |args: &[&str]| lab.0.vmlan(&[&["capture"], args].concat(), "");
    let error = refused(&["lab", "-w", "x"]).failed(1);
    assert!(error.contains("has no daemon now"), "{error}");
    let _web = Guest::start(&lab, &[]);
    let error = refused(&["lab", "web", "-w", "x"]).failed(1);
    assert!(error.contains("no guest `web` is on network `lab`"), "{error}");
    let error = refused(&["lab", "10.71.0.4", "-w", "/nowhere/x"]).failed(1);
    assert!(error.contains("/nowhere/x: "), "{error}");
    assert!(refused(&["lab"]).failed(2).contains("--write"));
}
