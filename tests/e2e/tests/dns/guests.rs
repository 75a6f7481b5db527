//! The programs of guests that look names up, each in its own way, as they come from Debian.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use vmlan_e2e::binary::{unpacked, vmlan};
use vmlan_e2e::named::Named;
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::{capture, eventually, run};
use vmlan_e2e::world::host_and_outside;
use vmlan_e2e::{Machine, Netns, Process, World};

/// A world with the real nameserver outside, and a guest that asks vmlan's.
struct Scene {
    world: World,
    _named: Named,
}

impl Scene {
    #[track_caller]
    fn new(arguments: &[&str]) -> Self {
        let world = World::with(arguments);
        world.guest.set_resolv_conf("nameserver 192.168.5.3\n");
        let named = Named::start(&world.outside);
        Self { world, _named: named }
    }

    #[track_caller]
    fn run(&self, command: &str) -> String {
        self.world.guest.run(command)
    }

    /// What a program says that does not succeed.
    #[track_caller]
    fn fail(&self, command: &str) -> String {
        let output = self.world.guest.capture(command, SOON);
        assert!(!output.status.success(), "{command}: {output:?}");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }
}

#[test]
fn dig() {
    let scene = Scene::new(&[]);
    let dig = |arguments: &str| scene.run(&format!("dig +tries=1 {arguments}"));
    assert_eq!(dig("+short www.test"), "203.0.113.10\n203.0.113.11\n");
    assert_eq!(dig("+short www.test AAAA"), "2001:db8:1::10\n");
    assert_eq!(dig("+short -x 203.0.113.10"), "www.test.\n");
    assert_eq!(dig("+short -x 2001:db8:1::10"), "www.test.\n");
    assert_eq!(dig("+short test MX").lines().count(), 2);
    assert_eq!(dig("+short unknown.test TYPE65280"), "\\# 6 010203FFFE00\n");
    assert_eq!(dig("+short +tcp text60k.test TXT").len(), 235 * 258);
    // Too much for a datagram, which dig notices by itself.
    assert_eq!(dig("+short mob.test").lines().count(), 370);
    let big = dig("+bufsize=4096 throng.test");
    assert!(big.contains("ANSWER: 180") && big.contains("(UDP)"), "{big}");
    let missing = dig("missing.test");
    assert!(missing.contains("status: NXDOMAIN") && missing.contains("AUTHORITY: 1"), "{missing}");
    let empty = dig("v4only.test AAAA");
    assert!(empty.contains("status: NOERROR") && empty.contains("ANSWER: 0"), "{empty}");
    let signed = dig("+dnssec www.signed.test");
    assert!(signed.contains("RRSIG") && signed.contains("flags: do"), "{signed}");
    assert!(!dig("").is_empty());
    // One connection for several questions.
    let several = dig("+tcp +keepopen www.test +short v4only.test +short alias.test CNAME +short");
    assert_eq!(several, "203.0.113.10\n203.0.113.11\n203.0.113.4\nwww.test.\n");
}

#[test]
fn getent() {
    let scene = Scene::new(&[]);
    let first = |text: String| text.split_whitespace().next().map(str::to_owned);
    assert_eq!(first(scene.run("getent hosts v6only.test")).as_deref(), Some("2001:db8:1::6"));
    assert_eq!(first(scene.run("getent hosts v4only.test")).as_deref(), Some("203.0.113.4"));
    let both = scene.run("getent ahosts www.test");
    for address in ["203.0.113.10", "203.0.113.11", "2001:db8:1::10"] {
        assert!(both.contains(address), "{both}");
    }
    assert!(scene.run("getent ahostsv4 alias.test").contains("203.0.113.10"));
    assert!(scene.run("getent hosts 203.0.113.10").contains("www.test"));
    assert!(scene.run("getent ahostsv4 host.lima.internal").contains("192.168.5.2"));
    assert!(scene.run("getent ahostsv4 mob.test").lines().count() >= 370);
    scene.fail("getent hosts missing.test");
    scene.fail("getent ahostsv4 v6only.test");
}

#[test]
fn busybox_nslookup() {
    let scene = Scene::new(&[]);
    let answer = scene.run("busybox nslookup www.test");
    for address in ["203.0.113.10", "203.0.113.11", "2001:db8:1::10"] {
        assert!(answer.contains(address), "{answer}");
    }
    // A name that has addresses of one family only is found: musl and busybox ask for both.
    assert!(scene.run("busybox nslookup v4only.test").contains("203.0.113.4"));
    assert!(scene.run("busybox nslookup v6only.test").contains("2001:db8:1::6"));
    assert!(scene.run("busybox nslookup -type=mx test").contains("mail.test"));
    assert!(scene.run("busybox nslookup 203.0.113.10").contains("www.test"));
    assert!(scene.run("busybox nslookup host.lima.internal").contains("192.168.5.2"));
    let missing = scene.fail("busybox nslookup missing.test");
    assert!(missing.contains("NXDOMAIN"), "{missing}");
}

/// The stub resolver of most guests of today, with its bus and its cache.
#[test]
fn systemd_resolved() {
    let (host, outside) = host_and_outside();
    let named = Named::start(&outside);
    let mut world = World::on(host, outside, "ifname=tap0", &[]);
    let etc = world.guest.own_files();
    fs::write(etc.join("resolv.conf"), "nameserver 192.168.5.3\n").expect("a file");
    let _bus = bus(&world.guest, &etc);
    let resolved = resolved(&world.guest);
    let scene = Scene { world, _named: named };
    let query = |arguments: &str| {
        let mut command = scene.world.guest.command(unpacked("usr/bin/resolvectl"));
        capture(command.args(arguments.split_whitespace()), SOON)
    };
    let text = |arguments: &str| {
        let output = query(arguments);
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let www = text("query www.test");
    for address in ["203.0.113.10", "203.0.113.11", "2001:db8:1::10"] {
        assert!(www.contains(address), "{www}");
    }
    assert!(text("query 203.0.113.10").contains("www.test"));
    assert!(text("query --type=MX any.wild.test").contains("mail.test"));
    assert!(text("query --type=TXT --legend=no text255.test").contains("xxx"));
    assert!(text("query host.lima.internal").contains("192.168.5.2"));
    // More than any datagram holds.
    assert!(text("query --cache=no mob.test").matches("203.0.11").count() >= 370);
    let missing = query("query missing.test");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("not found"), "{missing:?}");
    // It finds out what its nameserver can do, and finds nothing that it would have to do without.
    let status = text("status");
    assert!(status.contains("192.168.5.3"), "{status}");
    let stub = scene.run("dig +tries=1 +short @127.0.0.53 v4only.test");
    assert_eq!(stub, "203.0.113.4\n");
    let stub = scene.run("dig +tries=1 @127.0.0.53 missing.test");
    assert!(stub.contains("status: NXDOMAIN"), "{stub}");
    let log = resolved.stderr();
    assert!(!log.contains("degraded"), "{log}");
}

/// `vmlan run` gives its command a resolv.conf that leads to vmlan.
#[test]
fn a_command_of_run() {
    let (host, outside) = host_and_outside();
    let _named = Named::start(&outside);
    let guest = |line: &str| {
        let mut command = host.command(vmlan());
        command.args(["run", "--root", "--"]).args(line.split_whitespace());
        run(&mut command, SOON)
    };
    assert!(guest("getent hosts v4only.test").contains("203.0.113.4"));
    assert!(guest("getent ahosts www.test").contains("203.0.113.10"));
    assert_eq!(guest("dig +tries=1 +short www.test AAAA"), "2001:db8:1::10\n");
    assert!(guest("busybox nslookup www.test").contains("203.0.113.11"));
}

/// A machine's names are there from the first packet of its boot.
#[test]
fn a_machine() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("qemu.sock").display().to_string();
    let scene = Scene::new(&["--listen-qemu", &path]);
    let netdev = format!("stream,server=off,addr.type=unix,addr.path={path}");
    let mut machine = Machine::boot(&netdev, "52:54:00:00:00:01");
    machine.dhcp();
    let answer = machine.sh("nslookup www.test", SOON);
    for address in ["203.0.113.10", "203.0.113.11", "2001:db8:1::10"] {
        assert!(answer.contains(address), "{answer}");
    }
    assert!(machine.sh("nslookup v4only.test", SOON).contains("203.0.113.4"));
    assert!(machine.sh("nslookup 203.0.113.10", SOON).contains("www.test"));
    assert!(machine.try_sh("nslookup missing.test", SOON).text.contains("NXDOMAIN"));
    drop(scene);
}

/// A message bus for the system, in the namespace's own /run, on which everybody may do everything.
#[track_caller]
fn bus(netns: &Netns, etc: &Path) -> Process {
    let configuration = "<busconfig><type>system</type><auth>EXTERNAL</auth>\
        <listen>unix:path=/run/dbus/system_bus_socket</listen>\
        <policy context='default'><allow user='*'/><allow own='*'/><allow eavesdrop='true'/>\
        <allow send_destination='*' eavesdrop='true'/></policy></busconfig>";
    fs::write(etc.join("bus.conf"), configuration).expect("a file");
    netns.run("mkdir -p /run/dbus /run/systemd");
    let mut command = netns.command(unpacked("usr/bin/dbus-daemon"));
    command.args(["--nofork", "--nopidfile", "--config-file=/etc/bus.conf"]);
    let mut process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()));
    eventually("the message bus", SOON, || {
        assert!(process.is_running(), "the bus ended:\n{}", process.stderr());
        let there = netns.capture("test -S /run/dbus/system_bus_socket", SOON);
        there.status.success().then_some(())
    });
    process
}

#[track_caller]
fn resolved(netns: &Netns) -> Process {
    let mut command = netns.command(unpacked("lib/systemd/systemd-resolved"));
    let mut process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()));
    eventually("systemd-resolved", SOON, || {
        assert!(process.is_running(), "systemd-resolved ended:\n{}", process.stderr());
        let asked = netns.capture("dig +tries=1 +time=1 @127.0.0.53 localhost", SOON);
        asked.status.success().then_some(())
    });
    process
}
