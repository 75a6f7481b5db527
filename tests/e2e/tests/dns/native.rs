//! Names that the host knows by other means than nameservers: its hosts file, sources of nsswitch,
//! multicast DNS. They are asked of the host's own C library, in a namespace with files of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vmlan_e2e::binary::unpacked;
use vmlan_e2e::dns_client::Client;
use vmlan_e2e::dns_message::{A, AAAA, MX, Message, NOERROR, NXDOMAIN, PTR, Query, SERVFAIL, TXT};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::{eventually, run};
use vmlan_e2e::world::{DNS, OUTSIDE, host_and_outside};
use vmlan_e2e::{Netns, Process, Upstream, World};

use crate::scene::resolve;

/// What the nameserver says of every name.
const UPSTREAM: [u8; 4] = [203, 0, 113, 1];

struct Scene {
    world: World,
    upstream: Upstream,
    etc: PathBuf,
}

impl Scene {
    /// A host with this line in its nsswitch.conf.
    #[track_caller]
    fn new(hosts: &str, arguments: &[&str], prepare: impl FnOnce(&Netns, &Path)) -> Self {
        let (mut host, outside) = host_and_outside();
        let etc = host.own_files();
        write(&etc.join("resolv.conf"), "nameserver 198.51.100.2\n");
        write(&etc.join("nsswitch.conf"), &format!("passwd: files\nhosts: {hosts}\n"));
        prepare(&host, &etc);
        let upstream = Upstream::of(&outside, OUTSIDE, UPSTREAM);
        let world = World::on(host, outside, "ifname=tap0", arguments);
        Self { world, upstream, etc }
    }

    fn guest(&self) -> Client<'_> {
        Client::new(&self.world.guest, DNS)
    }

    /// What the guest gets is what the host's C library says, and the nameserver is not asked.
    #[track_caller]
    fn expect(&self, name: &str, kind: u16, addresses: &[&str]) {
        let reply = self.guest().udp(name, kind);
        assert_eq!((reply.rcode, reply.addresses()), (NOERROR, owned(addresses)), "{name} {kind}");
        assert!(!reply.truncated() && reply.answer.iter().all(|record| record.ttl <= 5));
        assert_eq!(self.upstream.count(name), 0, "{name} leaked");
    }

    /// Names of nobody in particular are asked of the nameserver, with the types that only it has.
    #[track_caller]
    fn expect_the_nameserver_too(&self) {
        let reply = self.guest().udp("www.example.net", A);
        assert_eq!(reply.addresses(), ["203.0.113.1"]);
        let reply = self.guest().udp("www.example.net", TXT);
        assert_eq!((reply.rcode, reply.answer.len()), (NOERROR, 0));
        assert!(self.upstream.asked().iter().any(|asked| asked.kind() == TXT));
        assert_eq!(self.guest().udp("missing.example.net", A).rcode, NXDOMAIN);
        assert_eq!(self.guest().udp("missing.example.net", MX).rcode, NXDOMAIN);
    }
}

fn owned(addresses: &[&str]) -> Vec<String> {
    addresses.iter().map(|&address| address.to_owned()).collect()
}

#[track_caller]
fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a file in a temporary directory");
}

/// The source of nsswitch in `nss/corp.c`, among the libraries of a host.
#[track_caller]
fn build_corp(etc: &Path) {
    let library = etc.with_file_name("lib").join("libnss_corp.so.2");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("nss/corp.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).args([library, source]);
    run(&mut cc, SOON);
}

#[test]
fn the_hosts_file_comes_first() {
    let hosts = "127.0.0.1 localhost\n198.51.100.77 box.example.net box # a machine\n\
                 2001:db8:1::77\tbox.example.net\n198.51.100.78 BIG.example.net\n";
    let scene = Scene::new("files dns", &[], |_, etc| write(&etc.join("hosts"), hosts));
    for name in ["box.example.net", "BOX.Example.Net", "box"] {
        scene.expect(name, A, &["198.51.100.77"]);
    }
    scene.expect("box.example.net", AAAA, &["2001:db8:1::77"]);
    scene.expect("big.example.net", A, &["198.51.100.78"]);
    let reply = scene.guest().udp("77.100.51.198.in-addr.arpa", PTR);
    assert_eq!(reply.data(PTR), [" box.example.net."]);
    // The names beside it and above it are the nameserver's.
    for name in ["other.example.net", "example.net", "x.box.example.net"] {
        assert_eq!(scene.guest().udp(name, A).addresses(), ["203.0.113.1"], "{name}");
    }
    scene.expect_the_nameserver_too();
    // The file changes, in place and by a new one.
    write(&scene.etc.join("hosts"), "198.51.100.79 box.example.net\n");
    let mut guest = scene.guest();
    eventually("the new address", SOON, || {
        (guest.udp("box.example.net", A).addresses() == ["198.51.100.79"]).then_some(())
    });
    write(&scene.etc.join("new"), "198.51.100.80 box.example.net\n");
    fs::rename(scene.etc.join("new"), scene.etc.join("hosts")).expect("a file");
    eventually("the newest address", SOON, || {
        (guest.udp("box.example.net", A).addresses() == ["198.51.100.80"]).then_some(())
    });
    assert_eq!(guest.udp("big.example.net", A).addresses(), ["203.0.113.1"]);
}

#[test]
fn myhostname_knows_the_host_and_its_gateway() {
    let scene = Scene::new("files myhostname dns", &[], |_, _| {});
    scene.expect("_gateway", A, &["198.51.100.2"]);
    scene.expect("any.localhost", A, &["127.0.0.1"]);
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    scene.expect(&name, A, &["198.51.100.1"]);
    let getent = scene.world.host.run(&format!("getent ahostsv6 {name}"));
    let reply = scene.guest().udp(&name, AAAA);
    let expected = getent.split_whitespace().next().expect("an address");
    assert!(reply.addresses().iter().any(|address| address == expected), "{reply:?}, {getent}");
    scene.expect_the_nameserver_too();
}

#[test]
fn any_source_is_asked() {
    let scene = Scene::new("files corp dns", &[], |_, etc| build_corp(etc));
    scene.expect("vpn.corp", A, &["10.8.0.1"]);
    scene.expect("VPN.Corp", A, &["10.8.0.1"]);
    scene.expect("vpn.corp", AAAA, &["fd08::1"]);
    scene.expect("four.corp", A, &["10.8.0.4"]);
    // It exists, and has none of these: neither is it missing, nor is it somebody else's.
    let reply = scene.guest().udp("four.corp", AAAA);
    assert_eq!((reply.rcode, reply.answer.len()), (NOERROR, 0));
    let reply = scene.guest().udp("1.0.8.10.in-addr.arpa", PTR);
    assert_eq!(reply.data(PTR), [" vpn.corp."]);
    scene.expect_the_nameserver_too();
}

/// Without the host's own way there are only the nameservers that were given.
#[test]
fn given_nameservers_have_no_sources_beside_them() {
    let given = "198.51.100.3";
    let (mut host, outside) = host_and_outside();
    let etc = host.own_files();
    write(&etc.join("resolv.conf"), "nameserver 198.51.100.2\n");
    write(&etc.join("nsswitch.conf"), "hosts: files corp dns\n");
    build_corp(&etc);
    outside.ip(&format!("address add {given}/24 dev down0"));
    let not_asked = Upstream::of(&outside, OUTSIDE, UPSTREAM);
    let asked = Upstream::of(&outside, given.parse().expect("an address"), [203, 0, 113, 2]);
    let world = World::on(host, outside, "ifname=tap0", &["--dns", given]);
    let mut guest = Client::new(&world.guest, DNS);
    for name in ["www.example.net", "vpn.corp", "printer.local"] {
        assert_eq!(guest.udp(name, A).addresses(), ["203.0.113.2"], "{name}");
        assert_eq!(asked.count(name), 1);
    }
    assert!(not_asked.asked().is_empty());
}

/// Of the host there are only the nameservers that its resolv.conf lists, as that changes.
#[test]
fn the_nameservers_of_resolv_conf_have_no_sources_beside_them() {
    let second = "198.51.100.3";
    let scene = Scene::new("files corp dns", &["--dns", "resolv.conf"], |_, etc| {
        build_corp(etc);
        write(&etc.join("hosts"), "198.51.100.77 box.example.net\n");
    });
    let mut guest = scene.guest();
    for name in ["www.example.net", "box.example.net", "vpn.corp", "printer.local"] {
        assert_eq!(guest.udp(name, A).addresses(), ["203.0.113.1"], "{name}");
        assert_eq!(scene.upstream.count(name), 1);
    }
    // The network's own names are there all the same.
    assert_eq!(guest.udp("host.lima.internal", A).addresses(), ["192.168.5.2"]);
    scene.world.outside.ip(&format!("address add {second}/24 dev down0"));
    let server = second.parse().expect("an address");
    let _other = Upstream::of(&scene.world.outside, server, [203, 0, 113, 2]);
    write(&scene.etc.join("resolv.conf"), &format!("nameserver {second}\n"));
    eventually("the other nameserver", SOON, || {
        (guest.udp("vpn.corp", A).addresses() == ["203.0.113.2"]).then_some(())
    });
}

/// Threads that wait for a source are none that others need.
#[test]
fn a_slow_source_delays_no_other_name() {
    let scene = Scene::new("files corp dns", &[], |_, etc| {
        build_corp(etc);
        write(&etc.join("hosts"), "198.51.100.77 box.example.net\n");
    });
    let mut guest = scene.guest();
    let start = Instant::now();
    let flood = scene.guest();
    for n in 0..4 {
        let query = Query::new(&format!("slow{n}.corp"), A);
        flood.send_udp(&query.encode(n));
    }
    for n in 0..20 {
        assert_eq!(guest.udp(&format!("name{n}.example.net"), A).rcode, NOERROR);
        assert_eq!(guest.udp("host.lima.internal", A).addresses(), ["192.168.5.2"]);
        assert_eq!(guest.udp("box.example.net", A).addresses(), ["198.51.100.77"]);
        assert_eq!(guest.udp("vpn.corp", A).addresses(), ["10.8.0.1"]);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let reply = guest.udp("slow1.corp", A);
    assert_eq!(reply.addresses(), ["10.8.0.2"]);
}

/// A guest that asks a slow source for far more than it can give harms nobody in the end.
#[test]
fn a_flood_of_slow_names_passes() {
    let scene = Scene::new("files corp dns", &[], |_, etc| build_corp(etc));
    let flood = scene.guest();
    for n in 0..2000 {
        let name = format!("slow{n}.corp");
        flood.send_udp(&Query::new(&name, A).encode(n));
    }
    let mut guest = scene.guest();
    // What needs no source does not wait for one.
    assert_eq!(resolve(&mut guest, "host.lima.internal").addresses(), ["192.168.5.2"]);
    // The rest comes back.
    let message = Query::new("vpn.corp", A).encode(9);
    eventually("an answer of the source", 3 * SOON, || {
        let reply = guest.exchange_udp(&message, Duration::from_secs(1)).ok()?;
        let reply = Message::decode(&reply).expect("a reply");
        (reply.addresses() == ["10.8.0.1"]).then_some(())
    });
    let threads = fs::read_dir(format!("/proc/{}/task", scene.world.netd.id()))
        .expect("the daemon is running")
        .count();
    assert!(threads < 100, "{threads} threads");
}

#[test]
fn a_source_that_fails_is_no_missing_name() {
    let scene = Scene::new("corp", &[], |_, etc| build_corp(etc));
    assert_eq!(scene.guest().udp("broken.corp", A).rcode, SERVFAIL);
}

#[test]
fn multicast_dns_is_answered() {
    let (mut host, mut outside) = host_and_outside();
    let etc = host.own_files();
    outside.own_files();
    // The host's own daemon asks the network; another machine on it has the name.
    let _asker = avahi(&host, "up0", "thehost");
    let _responder = avahi(&outside, "down0", "printer");
    let upstream = Upstream::of(&outside, OUTSIDE, UPSTREAM);
    write(&etc.join("resolv.conf"), "nameserver 198.51.100.2\n");
    let hosts = "passwd: files\nhosts: files mdns4_minimal [NOTFOUND=return] dns\n";
    write(&etc.join("nsswitch.conf"), hosts);
    eventually("the host to find it", SOON, || {
        let found = host.capture("getent ahostsv4 printer.local", SOON);
        String::from_utf8_lossy(&found.stdout).contains("198.51.100.2").then_some(())
    });
    let world = World::on(host, outside, "ifname=tap0", &[]);
    let scene = Scene { world, upstream, etc };
    scene.expect("printer.local", A, &["198.51.100.2"]);
    scene.expect("Printer.LOCAL", A, &["198.51.100.2"]);
    let reply = scene.guest().udp("nobody.local", A);
    assert_eq!((reply.rcode, scene.upstream.count("nobody.local")), (NXDOMAIN, 0));
    scene.expect_the_nameserver_too();
}

/// Where the host has no multicast DNS, its nameservers may have the names below `.local`.
#[test]
fn nameservers_may_know_local_names() {
    let scene = Scene::new("files dns", &[], |_, _| {});
    assert_eq!(scene.guest().udp("intranet.local", A).addresses(), ["203.0.113.1"]);
    assert_eq!(scene.guest().udp("missing.local", A).rcode, NXDOMAIN);
}

/// The daemon that speaks multicast DNS for a machine, ready to answer.
#[track_caller]
fn avahi(netns: &Netns, interface: &str, name: &str) -> Process {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let configuration = dir.path().join("avahi.conf");
    write(
        &configuration,
        &format!(
            "[server]\nhost-name={name}\nuse-ipv6=no\nallow-interfaces={interface}\n\
             enable-dbus=no\n[wide-area]\nenable-wide-area=no\n[publish]\npublish-hinfo=no\n"
        ),
    );
    let mut command = netns.command(unpacked("usr/sbin/avahi-daemon"));
    command.args(["--no-drop-root", "--no-chroot", "--no-rlimits", "--no-proc-title", "-f"]);
    command.arg(&configuration).stdin(Stdio::null()).stdout(Stdio::null());
    let mut process = Process::spawn(&mut command);
    eventually(format!("avahi as {name}"), SOON, || {
        assert!(process.is_running(), "avahi ended:\n{}", process.stderr());
        process.stderr().contains("Server startup complete").then_some(())
    });
    process
}
