//! Ready when it is, gone without a trace, and never in another's way.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{GATEWAY, Guest, Netd};

const ALL: [&str; 6] =
    ["--listen-qemu", "{}/qemu", "--control", "{}/control", "--pidfile", "{}/pid"];

#[test]
fn ready_means_that_guests_can_connect() {
    let mut netd = Netd::start(&ALL);
    assert_eq!(fs::read_to_string(netd.path("pid")).unwrap(), format!("{}\n", netd.pid()));
    assert!(netd.stderr_line().starts_with("vmlan: ready, 192.168.5.0/24"));
    UnixStream::connect(netd.path("control")).unwrap();
    Guest::connect(&netd.path("qemu"), 15).resolve(GATEWAY);
}

#[test]
fn signals_end_it_without_a_trace() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut netd = Netd::start(&ALL);
        let mut guest = Guest::connect(&netd.path("qemu"), 15);
        guest.resolve(GATEWAY);
        assert_eq!(netd.stop(signal).code(), Some(0), "{signal:?}");
        assert_eq!(fs::read_dir(netd.dir.path()).unwrap().count(), 0, "{signal:?}");
    }
}

#[test]
fn a_closed_pipe_does_not_end_it() {
    let netd = Netd::start(&ALL);
    netd.signal(Signal::PIPE);
    Guest::connect(&netd.path("qemu"), 15).resolve(GATEWAY);
}

/// What a second daemon says, with `{}` standing for the directory of the first.
fn refused(netd: &Netd, args: &[&str]) -> String {
    let dir = netd.dir.path().to_str().unwrap();
    let args = args.iter().map(|a| a.replace("{}", dir));
    // A daemon that starts after all must not keep the test waiting.
    let mut timeout = Command::new("timeout");
    timeout.args(["20", env!("CARGO_BIN_EXE_vmlan"), "netd"]).args(args).stdin(Stdio::null());
    let output = timeout.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn what_another_daemon_uses_is_left_alone() {
    let netd = Netd::start(&ALL);
    let text = refused(&netd, &["--listen-qemu", "{}/qemu"]);
    assert!(text.contains("/qemu: already in use by another process"), "{text}");
    let text = refused(&netd, &["--listen-qemu", "{}/x", "--control", "{}/control"]);
    assert!(text.contains("/control: already in use"), "{text}");
    let text = refused(&netd, &["--listen-qemu", "{}/x", "--pidfile", "{}/pid"]);
    assert!(text.contains(&format!("process {} is running", netd.pid())), "{text}");
    assert!(!netd.path("x").exists());
    Guest::connect(&netd.path("qemu"), 15).resolve(GATEWAY);
}

#[test]
fn what_is_not_a_socket_is_not_removed() {
    let netd = Netd::start(&["--listen-qemu", "{}/qemu"]);
    fs::write(netd.path("file"), "precious").unwrap();
    let text = refused(&netd, &["--listen-qemu", "{}/file"]);
    assert!(text.contains("/file"), "{text}");
    let text = refused(&netd, &["--listen-qemu", "{}/x", "--pidfile", "{}/file"]);
    assert!(text.contains("/file"), "{text}");
    assert_eq!(fs::read_to_string(netd.path("file")).unwrap(), "precious");
    let text = refused(&netd, &["--listen-qemu", "{}/no/such/directory"]);
    assert!(text.contains("--listen-qemu") && text.contains("/no/such/directory"), "{text}");
}

#[test]
fn a_killed_daemon_does_not_keep_the_next_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    drop(UnixListener::bind(at("qemu")).unwrap());
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    fs::write(at("pid"), gone.id().to_string()).unwrap();
    let netd = Netd::start(&["--listen-qemu", &at("qemu"), "--pidfile", &at("pid")]);
    Guest::connect(&dir.path().join("qemu"), 15).resolve(GATEWAY);
    assert_eq!(fs::read_to_string(at("pid")).unwrap(), format!("{}\n", netd.pid()));
}

#[test]
fn a_taken_port_is_told_with_its_address() {
    let netd = Netd::start(&["--listen-qemu", "{}/qemu"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let forward = format!("{at}=192.168.5.15:80");
    let text = refused(&netd, &["--listen-qemu", "{}/x", "--forward", &forward]);
    assert!(text.contains("--forward") && text.contains(&at), "{text}");
    assert!(!netd.path("x").exists());
}

#[test]
fn an_idle_daemon_is_small_and_asleep() {
    let netd = Netd::start(&ALL);
    let mut guest = Guest::connect(&netd.path("qemu"), 15);
    guest.resolve(GATEWAY);
    let wakes = || {
        let status = fs::read_to_string(format!("/proc/{}/status", netd.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    // Whatever the guest's arrival has set off ends within a few seconds.
    crate::support::eventually(|| {
        let before = wakes();
        std::thread::sleep(std::time::Duration::from_secs(1));
        (wakes() == before).then_some(())
    });
    assert!(netd.memory("VmRSS") < 12 * 1024, "{} KiB", netd.memory("VmRSS"));
}
