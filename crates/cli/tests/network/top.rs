//! `vmlan network top`, on a terminal and elsewhere.

use std::process::{Command, Stdio};

use crate::lab::{Guest, Lab};

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

/// script(1) is the terminal; what it shows ends with the screen as it was, and the terminal's
/// settings are those from before.
#[test]
fn the_terminal_is_as_before_whatever_ends_it() {
    let lab = Lab::new();
    let _web = Guest::start(&lab, &["--name", "web"]);
    let vmlan = env!("CARGO_BIN_EXE_vmlan");
    let watch = format!("{vmlan} network top -i 0.1");
    for end in [
        // A key, Ctrl-C as a byte, and a signal from elsewhere.
        format!(
            "(sleep 0.5; printf q) | script -qec 'stty rows 5 cols 30; stty -g; {watch}; stty -g' /dev/null"
        ),
        format!("(sleep 0.5; printf '\\003') | script -qec 'stty -g; {watch}; stty -g' /dev/null"),
        format!(
            "sleep 1 | script -qec 'stty -g; timeout -s TERM --foreground 0.5 {watch}; stty -g' /dev/null"
        ),
    ] {
        let mut sh = Command::new("sh");
        sh.args(["-c", &end]).env("LIMA_HOME", lab.0.path("")).stdin(Stdio::null());
        let output = sh.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (before, rest) = text.split_once("\x1b[?1049h").unwrap_or_else(|| panic!("{text:?}"));
        let (shown, after) = rest.split_once("\x1b[?1049l").unwrap_or_else(|| panic!("{text:?}"));
        assert!(shown.contains("lab  10.71.0.0/24"), "{shown:?}");
        assert!(shown.matches("\x1b[H").count() > 1, "{shown:?}");
        assert_eq!(before.trim(), after.trim(), "{end}");
    }
}
