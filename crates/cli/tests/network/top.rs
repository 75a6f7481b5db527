//! `vmlan network top`, on a terminal and elsewhere.

use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::LocalModes;

use crate::lab::{Guest, Lab};
use crate::pty::Pty;

#[test]
fn one_look_where_there_is_no_terminal() {
    let lab = Lab::new();
    let top = |args: &[&str]| lab.0.network(&[&["top"], args].concat());
    assert_eq!(top(&[]).quiet(), "no network has a daemon now\n");
    assert_eq!(top(&["--prometheus"]).quiet(), "");
    let error = top(&["lab"]).failed(1);
    assert!(error.contains("network `lab` has no daemon now"), "{error}");
    assert!(top(&["-i", "0"]).failed(2).contains("seconds"));
    let _web = Guest::start(&lab, &["--name", "web"]);
    let text = top(&["lab"]).quiet();
    assert!(text.starts_with("lab  10.71.0.0/24  well  pid "), "{text}");
    assert!(text.lines().any(|line| line.starts_with("web  ") && line.contains("10.71.0.4")));
    let json: serde_json::Value = serde_json::from_str(&top(&["--json"]).quiet()).unwrap();
    assert_eq!(json["networks"][0]["name"], "lab");
    assert_eq!(json["networks"][0]["guests"][0]["name"], "web");
    let metrics = top(&["--prometheus"]).quiet();
    assert!(metrics.contains("vmlan_guests{network=\"lab\"} 1\n"), "{metrics}");
}

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

fn watch(lab: &Lab, interval: &str) -> Pty {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmlan"));
    command.args(["network", "top", "-i", interval]).env("LIMA_HOME", lab.0.path(""));
    Pty::start(&command)
}

#[test]
fn the_terminal_is_as_before_whatever_ends_it() {
    let lab = Lab::new();
    let _web = Guest::start(&lab, &["--name", "web"]);
    let keys = ["q", "Q", "\x03", "\x04"].map(Ok);
    let signals = [Signal::INT, Signal::TERM, Signal::HUP].map(Err);
    for end in keys.into_iter().chain(signals) {
        let mut top = watch(&lab, "0.1");
        let before = top.modes();
        assert!(before.contains(LocalModes::ICANON | LocalModes::ISIG));
        assert_eq!(top.expect(ENTER), ENTER);
        top.expect("lab  10.71.0.0/24");
        let taken = LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHO;
        assert!(!top.modes().intersects(taken));
        // It goes on by itself.
        top.expect("lab  10.71.0.0/24");
        match end {
            Ok(key) => top.type_in(key),
            Err(signal) => kill_process(Pid::from_raw(top.pid()).unwrap(), signal).unwrap(),
        }
        top.expect(LEAVE);
        assert_eq!(top.modes(), before, "{end:?}");
        let (rest, status) = top.finish();
        assert_eq!((rest.as_str(), status.code()), ("", Some(0)), "{end:?}");
    }
    // Of a terminal that is gone, nobody needs anything.
    let mut top = watch(&lab, "0.1");
    top.expect("lab  10.71.0.0/24");
    top.hang_up();
    top.wait();
}

#[test]
fn the_picture_is_as_large_as_the_terminal() {
    let lab = Lab::new();
    let _web = Guest::start(&lab, &["--name", "web"]);
    // Nothing but another size has it drawn again.
    let mut top = watch(&lab, "3600");
    let all = top.expect("\x1b[J");
    let lines = all.matches("\r\n").count() + 1;
    assert!(lines > 3 && !all.contains("more lines"), "{all:?}");
    top.resize(2, 40);
    let small = top.expect("\x1b[J");
    assert_eq!(small.matches("\r\n").count(), 1, "{small:?}");
    assert!(small.contains(&format!("... {} more lines", lines - 1)), "{small:?}");
    top.resize(50, 10);
    let narrow = top.expect("\x1b[J");
    assert_eq!(narrow.matches("\r\n").count() + 1, lines, "{narrow:?}");
    assert!(narrow.contains("\x1b[Hlab  10.71\r"), "{narrow:?}");
    top.type_in("q");
    assert!(top.finish().1.success());
}
