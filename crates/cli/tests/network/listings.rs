//! What scripts rely on: the fields of every listing, exit codes, and standard output that somebody
//! has closed.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::lab::{Guest, Lab};
use crate::support::Said;

/// A listing, whether it is one document instead of lines, and the fields of an entry.
const LISTINGS: &[(&str, bool, &[&str])] = &[
    (
        "list --json",
        false,
        &[
            "name",
            "hostname",
            "status",
            "health",
            "dir",
            "vmType",
            "arch",
            "cpus",
            "memory",
            "disk",
            "network",
            "sshLocalPort",
            "sshConfigFile",
            "sshAddress",
            "networks",
            "ports",
        ],
    ),
    ("network list --json", false, &["name", "mode", "gateway", "netmask"]),
    (
        "network show lab --json",
        true,
        &[
            "name",
            "mode",
            "gateway",
            "netmask",
            "subnet",
            "host",
            "dns",
            "ipv6",
            "file",
            "lineNumber",
            "instances",
            "overlaps",
            "daemon",
            "live",
        ],
    ),
    ("network top --json", true, &["time", "networks"]),
    (
        "network choose --from vms --vm-type qemu --json",
        true,
        &["network", "flag", "yaml", "notes"],
    ),
    (
        "forward list --json",
        false,
        &["network", "protocol", "listen", "target", "keepSource", "guest"],
    ),
    ("tunnel list --json", false, &["network", "port", "proxy"]),
    ("doctor --json", false, &["check", "verdict", "text"]),
    (
        "dns query host.lima.internal --json",
        true,
        &[
            "name",
            "type",
            "rcode",
            "flags",
            "from",
            "milliseconds",
            "answer",
            "authority",
            "additional",
        ],
    ),
];

/// A network with everything that can be listed.
fn full() -> (Lab, Guest) {
    let lab = Lab::new();
    let guest = Guest::start(&lab, &["--name", "web"]);
    let forward = format!("{}:80", lab.0.path("web.sock").display());
    for args in [&["forward", "add", "web", &forward][..], &["tunnel", "lab"]] {
        let said = lab.0.vmlan(args, "");
        assert_eq!(said.code, Some(0), "{}", said.err);
    }
    (lab, guest)
}

fn say(lab: &Lab, line: &str) -> Said {
    lab.0.vmlan(&line.split(' ').collect::<Vec<_>>(), "")
}

#[test]
fn listings_are_json_with_fields_that_stay() {
    let (lab, _guest) = full();
    for (line, document, fields) in LISTINGS {
        let out = say(&lab, line).out;
        let texts: Vec<&str> = if *document { vec![&out] } else { out.lines().collect() };
        assert!(!texts.is_empty(), "{line}");
        for text in texts {
            let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{line}: {e}"));
            for field in *fields {
                // Other networks of the file have other modes.
                let missing = value.get(field).is_none() && value["mode"] != "bridged";
                assert!(!missing, "{line}: no `{field}` in {text}");
            }
        }
    }
    // And nothing is nothing, not an error.
    let empty = Lab::new();
    for line in ["list --json", "forward list --json", "tunnel list --json"] {
        assert_eq!(say(&empty, line).quiet(), "", "{line}");
    }
}

#[test]
fn whoever_closes_standard_output_has_seen_enough() {
    let (lab, _guest) = full();
    let tables = ["list", "network list", "network show lab", "network top", "forward list"];
    let others = ["tunnel list", "doctor", "schema", "completion bash", "--help", "run --help"];
    let json = LISTINGS.iter().map(|(line, _, _)| *line);
    for line in tables.into_iter().chain(others).chain(json) {
        let vmlan = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_vmlan"));
            command.args(line.split(' ')).env("LIMA_HOME", lab.0.path(""));
            command.stdin(Stdio::null()).stderr(Stdio::piped());
            command
        };
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let output = vmlan().stdout(write).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*error), (Some(0), ""), "{line}");
        if line.ends_with("--help") {
            continue;
        }
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = vmlan().stdout(full).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(error.contains("standard output: No space left on device"), "{line}: {error}");
    }
}

#[test]
fn what_is_not_there_is_said_with_what_there_is() {
    let (lab, _guest) = full();
    for (line, code, text) in [
        ("stop web", 1, "`web` is a guest that `vmlan start` has not made"),
        ("delete web", 1, "`web` is a guest that `vmlan start` has not made"),
        ("shell nosuch true", 1, "there is no instance `nosuch`: none has been made yet"),
        ("delete nosuch", 1, "there is no instance `nosuch`: none has been made yet"),
        ("start nosuch", 1, "there is no instance and no template `nosuch`; templates are default"),
        ("start nosuch.yaml", 1, "nosuch.yaml: No such file"),
        ("start a/b", 1, "a/b: No such file"),
        ("restart nosuch", 1, "there is no instance `nosuch`"),
        ("edit nosuch", 1, "there is no instance `nosuch`"),
        ("show-ssh nosuch", 1, "there is no instance `nosuch`"),
        ("show-ssh nosuch --format x", 2, "possible values"),
        ("start --cpus x", 2, "invalid value 'x' for '--cpus <N>'"),
        ("start --network nosuch", 2, "network name must be `vzNAT`, `lima:*` or `socket:*`"),
        ("start --set x template:debian", 2, "--set"),
        ("run --network lima:nosuch -- true", 125, "network `nosuch` which is not defined"),
        ("run --network socket:/nosuch -- true", 125, "its daemon has to run first"),
        ("network show nosuch", 1, "there is lab, user-v2"),
        ("forward add nosuch 1:1", 1, "the guests are web"),
        ("forward list nosuch", 1, "no network `nosuch` of mode user-v2: there is lab"),
        ("capture lab nosuch -w -", 1, "the guests are web"),
        ("tunnel stop 1", 1, "no tunnel has port 1"),
    ] {
        let error = say(&lab, line).failed(code);
        assert!(error.contains(text), "{line}: {error}");
    }
    let said = say(&lab, "list nosuch web");
    assert_eq!(said.code, Some(1));
    assert_eq!(said.err, "vmlan: no instance matching nosuch found\n");
    assert!(said.out.lines().any(|line| line.starts_with("web  ")), "{}", said.out);
    assert_eq!(say(&lab, "delete --force nosuch").quiet(), "");
}
