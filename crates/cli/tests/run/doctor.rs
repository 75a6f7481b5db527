//! `vmlan doctor` as an ordinary user, on machines on which something is really wrong.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::caller::{Told, UID, is_root, user, user_where, vmlan_path};

/// What is found of one kind, and the exit status.
struct Found {
    code: Option<i32>,
    findings: Vec<Value>,
}

/// Runs `$VMLAN doctor --json` at the end of a shell script.
fn doctor(script: &str) -> Found {
    found(user("bash"), script)
}

fn found(mut bash: Command, script: &str) -> Found {
    bash.args(["-c", script]).env("VMLAN", vmlan_path()).env("DOCTOR", "doctor --json");
    if std::env::var_os("LIMA_HOME").is_none() {
        bash.env("LIMA_HOME", "/nonexistent/lima");
    }
    let output = bash.output().unwrap();
    assert_eq!(output.error(), "", "{script}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let findings = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    Found { code: output.status.code(), findings }
}

impl Found {
    /// The findings of a check.
    #[track_caller]
    fn of(&self, check: &str) -> Vec<&Value> {
        let found: Vec<_> = self.findings.iter().filter(|f| f["check"] == check).collect();
        assert!(!found.is_empty(), "{check}: {:#?}", self.findings);
        found
    }

    #[track_caller]
    fn is_ok(&self, check: &str) {
        assert!(self.of(check).iter().all(|f| f["verdict"] == "ok"), "{:#?}", self.of(check));
    }

    /// A check has found this, for that reason, and says how to mend it.
    #[track_caller]
    fn is(&self, verdict: &str, check: &str, why: &str, mend: &str) {
        let has = |f: &Value, field: &str, part: &str| {
            f[field].as_str().is_some_and(|t| t.contains(part))
        };
        let found = self.of(check);
        let there = found
            .iter()
            .any(|f| f["verdict"] == verdict && has(f, "why", why) && has(f, "mend", mend));
        assert!(there, "{verdict} {check}: {why}: {mend}: {found:#?}");
        assert_eq!(
            self.code,
            Some(i32::from(self.findings.iter().any(|f| f["verdict"] == "fault")))
        );
    }
}

/// A home of the ordinary user's, and what is in its networks.yaml.
fn home(networks: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("_config")).unwrap();
    if !networks.is_empty() {
        fs::write(dir.path().join("_config/networks.yaml"), networks).unwrap();
    }
    own(dir.path());
    dir
}

fn own(path: &Path) {
    if is_root() {
        let id = UID.parse().unwrap();
        for entry in fs::read_dir(path).into_iter().flatten() {
            own(&entry.unwrap().path());
        }
        chown(path, Some(id), Some(id)).unwrap();
    }
}

fn at(home: &Path, script: &str) -> Found {
    doctor(&format!("export LIMA_HOME={}; {script} $VMLAN $DOCTOR", home.display()))
}

#[test]
fn a_sound_machine_has_no_faults() {
    let found = doctor("$VMLAN $DOCTOR");
    assert_eq!(found.code, Some(0), "{:#?}", found.findings);
    for check in ["namespaces", "/dev/net/tun", "open files", "ipv6"] {
        found.is_ok(check);
    }
    let output = user(vmlan_path()).arg("doctor").env("LIMA_HOME", "/nonexistent").output();
    let text = output.unwrap().text();
    assert!(text.starts_with("ok       namespaces   commands run in namespaces"), "{text}");
}

#[test]
fn namespaces_that_are_not_allowed() {
    let found =
        doctor("unshare -Ur sh -c 'echo 0 >/proc/sys/user/max_user_namespaces; $VMLAN $DOCTOR'");
    let mend = "sudo sysctl -w user.max_user_namespaces=";
    found.is("fault", "namespaces", "user.max_user_namespaces is 0", mend);
}

#[test]
fn a_tun_device_that_is_missing_or_closed() {
    let with = |setup| found(user_where(setup, "bash"), "$VMLAN $DOCTOR");
    let missing = with("rm /dev/net/tun");
    missing.is("fault", "/dev/net/tun", "/dev/net/tun is missing", "sudo modprobe tun");
    missing.is_ok("namespaces");
    let closed = with("chmod 600 /dev/net/tun");
    closed.is("fault", "/dev/net/tun", "may not be opened", "sudo chmod 0666 /dev/net/tun");
}

#[test]
fn ping_sockets() {
    // A new network namespace has them for nobody.
    let found = doctor("unshare -Urn sh -c '$VMLAN $DOCTOR'");
    found.is(
        "warning",
        "ping",
        "ping_group_range is `",
        "sudo sysctl -w net.ipv4.ping_group_range=",
    );
    let mended = doctor(
        "unshare -Urn sh -c 'echo 0 0 >/proc/sys/net/ipv4/ping_group_range; $VMLAN $DOCTOR'",
    );
    mended.is_ok("ping");
}

#[test]
fn few_files() {
    let found = doctor("ulimit -n 256; $VMLAN $DOCTOR");
    found.is("warning", "open files", "ulimit -Hn", "hard nofile");
    assert!(found.of("open files")[0]["text"].as_str().unwrap().contains("256"));
}

/// Answers every question with itself, as an answer.
const NAMESERVER: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((\"127.0.0.1\", 53))
print(flush=True)
while True:
    d, a = s.recvfrom(9999)
    s.sendto(d[:2] + b\"\\x81\\x80\" + d[4:], a)
";

#[test]
fn nameservers_and_sources_of_names() {
    let dir = home("");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        own(dir.path());
        path.display().to_string()
    };
    let with = |resolv: &str, nsswitch: &str| {
        let (resolv, nsswitch) = (file("resolv", resolv), file("nsswitch", nsswitch));
        let server = file("server.py", NAMESERVER);
        doctor(&format!(
            "unshare -Urnm bash -c 'ip link set lo up; mount --bind {resolv} /etc/resolv.conf; \
             mount --bind {nsswitch} /etc/nsswitch.conf; coproc python3 {server}; \
             read <&${{COPROC[0]}}; $VMLAN $DOCTOR; code=$?; kill $COPROC_PID; exit $code'"
        ))
    };
    let found = with("nameserver 127.0.0.1\n", "hosts: files dns\n");
    found.is_ok("nameservers");
    found.is_ok("name sources");
    let found = with("nameserver 127.0.0.2\n", "hosts: files nosuch [NOTFOUND=return] dns\n");
    found.is(
        "warning",
        "nameservers",
        "127.0.0.2 of /etc/resolv.conf does not answer",
        "vmlan run --dns",
    );
    found.is("warning", "name sources", "there is no libnss_nosuch.so.2", "hosts:");
    let found = with("nameserver 127.0.0.2\nnameserver 127.0.0.1\n", "");
    found.is("warning", "nameservers", "127.0.0.2 of", "sudoedit");
    assert!(found.of("nameservers")[0]["text"].as_str().unwrap().contains("only 127.0.0.1"));
    let found = with("# nothing\n", "");
    found.is("warning", "nameservers", "names no nameserver", "nameserver ADDRESS");
}

#[test]
fn a_home_that_cannot_be_used() {
    let dir = home("");
    at(dir.path(), "").is_ok("home");
    let mode = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    at(dir.path(), "").is("warning", "home", "mode is 777", "chmod go-w");
    mode(0o555);
    at(dir.path(), "").is("warning", "home", "Permission denied", "sudo chown -R");
    mode(0o755);
    fs::write(dir.path().join("file"), "").unwrap();
    let found = at(&dir.path().join("file"), "");
    assert!(found.of("home")[0]["text"].as_str().unwrap().contains("no directory"));
}

#[test]
fn networks_that_collide_or_make_no_sense() {
    let dir = home(
        "networks:\n  one: {mode: user-v2, gateway: 10.71.0.1}\n  two: {mode: user-v2, gateway: 10.71.0.2}\n",
    );
    let found = at(dir.path(), "");
    found.is_ok("networks");
    found.is(
        "warning",
        "addresses",
        "overlaps network `two`",
        "vmlan network delete one && vmlan network create one",
    );
    let device =
        "ip tuntap add d0 mode tap && ip addr add 192.168.5.9/16 dev d0 && ip link set d0 up";
    let found = doctor(&format!("unshare -Urn sh -c '{device}; $VMLAN $DOCTOR'"));
    found.is(
        "warning",
        "addresses",
        "route to 192.168.0.0/16 on d0",
        "vmlan run --network lima:user-v2",
    );
    let wrong = home("networks:\n  one: {mode: nonsense}\n");
    at(wrong.path(), "").is("warning", "networks", "nonsense", "networks.yaml");
    let long =
        home(&format!("networks:\n  {}: {{mode: user-v2, gateway: 10.71.0.1}}\n", "x".repeat(60)));
    at(long.path(), "").is("warning", "daemons", "too long", "LIMA_HOME");
}

#[test]
fn daemons_that_left_something_or_do_not_answer() {
    let dir = home("networks:\n  lab: {mode: user-v2, gateway: 10.71.0.1}\n");
    at(dir.path(), "").is_ok("daemons");
    let files = dir.path().join("_networks/lab");
    fs::create_dir_all(&files).unwrap();
    drop(UnixListener::bind(files.join("lab_ep.sock")).unwrap());
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    fs::write(files.join("usernet_lab.pid"), format!("{}\n", dead.id())).unwrap();
    fs::write(files.join("usernet.lab.stderr.log"), "vmlan: it was the disk\n").unwrap();
    own(dir.path());
    let found = at(dir.path(), "");
    found.is("warning", "daemons", "it was the disk", "rm '");
    // As it says.
    let mend =
        found.of("daemons")[0]["mend"].as_str().unwrap().split(';').next().unwrap().to_owned();
    at(dir.path(), &format!("{mend};")).is_ok("daemons");

    // Somebody has the pid file's lock, as a daemon that hangs.
    let pidfile = files.join("usernet_lab.pid");
    fs::write(&pidfile, "4711\n").unwrap();
    own(dir.path());
    let lock = fs::File::open(&pidfile).unwrap();
    lock.lock().unwrap();
    let found = at(dir.path(), "");
    found.is("warning", "daemons", "no daemon", "kill -9 4711");
    drop(lock);

    let running =
        at(dir.path(), "$VMLAN network start lab; trap \"$VMLAN network stop lab\" EXIT;");
    running.is_ok("daemons");
    let text = running.of("daemons")[0]["text"].as_str().unwrap();
    assert!(text.contains("runs as process"), "{text}");
}

#[test]
fn qemu_of_every_age() {
    let dir = home("");
    let program = dir.path().join(format!("qemu-system-{}", std::env::consts::ARCH));
    let with = || at(dir.path(), &format!("export PATH={}:/usr/sbin;", dir.path().display()));
    with().is("warning", "qemu", "in PATH", "qemu");
    for (version, ok) in [("7.2.22 (Debian 1:7.2)", false), ("10.0.2", true)] {
        fs::write(&program, format!("#!/bin/sh\necho 'QEMU emulator version {version}'\n"))
            .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        own(dir.path());
        if ok {
            with().is_ok("qemu");
        } else {
            with().is("warning", "qemu", "below 8.0", "dgram");
        }
    }
}

#[test]
fn the_processor_s_help_is_tried() {
    let kvm = |setup: &str| found(user_where(setup, "bash"), "$VMLAN $DOCTOR");
    if Path::new("/dev/kvm").exists() {
        let closed =
            "touch /dev/net/kvm; chmod 600 /dev/net/kvm; mount --bind /dev/net/kvm /dev/kvm";
        kvm(closed).is("warning", "acceleration", "may not be opened", "sudo usermod -a -G kvm");
        kvm("touch /dev/net/kvm; chmod 666 /dev/net/kvm; mount --bind /dev/net/kvm /dev/kvm")
            .is_ok("acceleration");
    } else {
        kvm("").is("warning", "acceleration", "there is no /dev/kvm", "modprobe kvm");
    }
}
