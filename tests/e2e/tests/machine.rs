//! A real guest kernel in QEMU over the stream link, beside a namespace guest on the same network.

use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::run;
use vmlan_e2e::qemu::QEMU;
use vmlan_e2e::server::serve_one;
use vmlan_e2e::world::{GUEST, HOST, OUTSIDE};
use vmlan_e2e::{Machine, World, nameserver, pattern};

const MAC: &str = "52:54:00:00:00:01";
const MEGABYTE: usize = 1 << 20;

/// An emulated processor needs its time, and shares it with the other tests.
const PATIENT: Duration = Duration::from_secs(120);

/// A world whose daemon also listens for machines.
struct Scene {
    world: World,
    dir: TempDir,
}

impl Scene {
    #[track_caller]
    fn new(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("qemu.sock").display().to_string();
        let mut all = vec!["--listen-qemu", &path];
        all.extend(arguments);
        Self { world: World::with(&all), dir }
    }

    #[track_caller]
    fn boot(&self, mac: &str) -> Machine {
        let path = self.dir.path().join("qemu.sock").display().to_string();
        Machine::boot(&format!("stream,server=off,addr.type=unix,addr.path={path}"), mac)
    }
}

/// What `sha256sum` says of the first `length` bytes of a pattern.
#[track_caller]
fn digest(seed: u64, length: usize) -> String {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    pattern::send(&mut file, seed, length).expect("a file can be written");
    let line = run(Command::new("sha256sum").arg(file.path()), SOON);
    line.split_whitespace().next().expect("a digest").to_owned()
}

/// The machine fetches from the outside and sends to it, both checked to the last byte.
#[track_caller]
fn transfer(scene: &Scene, machine: &mut Machine, length: usize) {
    let source = serve_one(scene.world.outside.listen((OUTSIDE, 80)), move |mut stream| {
        pattern::send(&mut stream, 1, length).expect("bytes can be sent");
    });
    let received = machine.sh(&format!("nc {OUTSIDE} 80 </dev/null | sha256sum"), PATIENT);
    source.join().expect("everything sent");
    assert!(received.contains(&digest(1, length)), "{received}");

    let sink = serve_one(scene.world.outside.listen((OUTSIDE, 81)), move |mut stream| {
        stream.set_read_timeout(Some(PATIENT)).expect("a deadline");
        let mut bytes = tempfile::NamedTempFile::new().expect("a temporary file");
        std::io::copy(&mut stream, &mut bytes).expect("bytes until an end in order");
        run(Command::new("sha256sum").arg(bytes.path()), SOON)
    });
    // The same bytes twice: once on their way, once under the guest's own sum.
    let make = format!("dd if=/dev/urandom of=/tmp/bytes bs=1M count={} 2>&1", length / MEGABYTE);
    machine.sh(&make, PATIENT);
    machine.sh(&format!("nc {OUTSIDE} 81 </tmp/bytes"), PATIENT);
    let arrived = sink.join().expect("a connection");
    let sent = machine.sh("sha256sum </tmp/bytes; rm /tmp/bytes", PATIENT);
    assert_eq!(arrived.split_whitespace().next(), sent.split_whitespace().next());
}

/// Serves so many megabytes at port 8000 as `/bytes`, and returns their digest.
#[track_caller]
fn publish(machine: &mut Machine, megabytes: usize) -> String {
    machine.sh("mkdir -p /tmp/www", SOON);
    let make = format!("dd if=/dev/urandom of=/tmp/www/bytes bs=1M count={megabytes} 2>&1");
    machine.sh(&make, PATIENT);
    machine.sh("httpd -p 8000 -h /tmp/www", SOON);
    let line = machine.sh("sha256sum </tmp/www/bytes", PATIENT);
    line.split_whitespace().next().expect("a digest").to_owned()
}

#[test]
fn machine_gets_a_lease_and_resolves_and_pings() {
    let scene = Scene::new(&[]);
    nameserver::serve(&scene.world.outside, OUTSIDE);
    let mut machine = scene.boot(MAC);
    // The namespace guest holds .15.
    let lease = machine.dhcp();
    assert!(lease.contains("lease of 192.168.5.16 obtained from 192.168.5.2"), "{lease}");
    let told = machine.sh("cat /tmp/lease", SOON);
    for what in ["dns='192.168.5.3'", "router='192.168.5.2'", "mtu='65520'"] {
        assert!(told.contains(what), "{what} in {told}");
    }
    assert!(machine.sh("nslookup known.test", SOON).contains("203.0.113.7"));
    assert!(machine.sh("nslookup host.lima.internal", SOON).contains("192.168.5.2"));
    for target in [HOST, GUEST, OUTSIDE] {
        machine.sh(&format!("ping -c 1 -W 5 {target}"), SOON);
    }
    let refused = machine.try_sh(&format!("nc {OUTSIDE} 9"), SOON);
    assert!(refused.text.contains("Connection refused"), "{refused:?}");
}

/// Boots with a vhost-user card of the daemon that listens at a path.
#[track_caller]
fn boot_with_vhost_user(path: &str) -> Machine {
    let mut command = Command::new(QEMU);
    command
        .args(["-object", "memory-backend-memfd,id=m,share=on,size=256M"])
        .args(["-machine", "memory-backend=m"])
        .args(["-chardev", &format!("socket,id=c,path={path},reconnect=1")])
        // QEMU 7.2 crashes otherwise.
        .args(["-global", "virtio-net-pci.vectors=0"]);
    Machine::boot_by(command, "vhost-user,chardev=c", MAC)
}

#[test]
fn bytes_arrive_both_ways_by_vhost_user() {
    for arguments in [&[][..], &["--mtu", "1500"]] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("vhost.sock").display().to_string();
        let mut all = vec!["--listen-vhost-user", &path];
        all.extend(arguments);
        let scene = Scene { world: World::with(&all), dir };
        let mut machine = boot_with_vhost_user(&path);
        machine.dhcp();
        transfer(&scene, &mut machine, 16 * MEGABYTE);
        // Its driver starts anew, as after a reboot.
        let driver = "/sys/bus/virtio/drivers/virtio_net";
        let card = machine.sh(&format!("cd {driver}; ls -d virtio*; cd /"), SOON);
        for what in ["unbind", "bind"] {
            machine.sh(&format!("echo {card} >{driver}/{what}"), SOON);
        }
        machine.dhcp();
        for target in [HOST, GUEST] {
            machine.sh(&format!("ping -c 1 -W 5 {target}"), SOON);
        }
        transfer(&scene, &mut machine, MEGABYTE);
    }
}

#[test]
fn bytes_arrive_both_ways() {
    for arguments in [&[][..], &["--mtu", "1500"]] {
        let scene = Scene::new(arguments);
        let mut machine = scene.boot(MAC);
        machine.dhcp();
        transfer(&scene, &mut machine, 64 * MEGABYTE);
    }
}

#[test]
fn forwards_lead_to_the_machine() {
    let scene = Scene::new(&["--forward", "127.0.0.1:8080=192.168.5.16:8000"]);
    let mut machine = scene.boot(MAC);
    machine.dhcp();
    let sent = publish(&mut machine, 8);
    let fetch = "curl -sS --max-time 60 http://127.0.0.1:8080/bytes | sha256sum";
    let received = run(scene.world.host.command("sh").args(["-c", fetch]), PATIENT);
    assert_eq!(received.split_whitespace().next(), Some(sent.as_str()));
}

#[test]
fn machine_and_namespace_guest_reach_each_other() {
    for arguments in [&[][..], &["--mtu", "1500"]] {
        let scene = Scene::new(arguments);
        let mut machine = scene.boot(MAC);
        machine.dhcp();

        let length = 32 * MEGABYTE;
        let source = serve_one(scene.world.guest.listen((GUEST, 80)), move |mut stream| {
            pattern::send(&mut stream, 1, length).expect("bytes can be sent");
        });
        let received = machine.sh(&format!("nc {GUEST} 80 </dev/null | sha256sum"), PATIENT);
        source.join().expect("everything sent");
        assert!(received.contains(&digest(1, length)), "{received}");

        let sent = publish(&mut machine, 32);
        let fetch = "curl -sS --max-time 60 http://192.168.5.16:8000/bytes | sha256sum";
        let mut curl = scene.world.guest.command("sh");
        let arrived = run(curl.args(["-c", fetch]), PATIENT);
        assert_eq!(arrived.split_whitespace().next(), Some(sent.as_str()));

        // Datagrams of more than one frame, answered by the namespace guest's kernel.
        machine.sh(&format!("ping -c 2 -s 20000 -W 5 {GUEST}"), SOON);
    }
}

#[test]
fn two_machines_reach_each_other() {
    let scene = Scene::new(&[]);
    let (mut one, mut two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| scene.boot(MAC));
        let two = scope.spawn(|| scene.boot("52:54:00:00:00:02"));
        (one.join().expect("a machine"), two.join().expect("a machine"))
    });
    let address = |lease: &str| {
        let at = lease.find("lease of ").expect("a lease") + "lease of ".len();
        lease[at..].split_whitespace().next().expect("an address").to_owned()
    };
    let (first, second) = (address(&one.dhcp()), address(&two.dhcp()));
    assert_ne!(first, second);
    one.sh(&format!("ping -c 2 -W 5 {second}"), SOON);
    let sent = publish(&mut two, 16);
    let fetch = format!("wget -q -O - http://{second}:8000/bytes | sha256sum");
    let received = one.sh(&fetch, PATIENT);
    assert_eq!(received.split_whitespace().next(), Some(sent.as_str()));
}

#[test]
fn bytes_survive_netem_in_the_guest() {
    let scene = Scene::new(&["--mtu", "1500"]);
    let mut machine = scene.boot(MAC);
    machine.dhcp();
    for module in ["sch_netem", "sch_ingress", "cls_matchall", "act_mirred"] {
        machine.sh(&format!("insmod /lib/modules/{module}.ko"), SOON);
    }
    machine.sh("insmod /lib/modules/ifb.ko numifbs=1; ip link set ifb0 up", SOON);
    machine.sh("/sbin/tc qdisc add dev eth0 handle ffff: ingress", SOON);
    let redirect = "matchall action mirred egress redirect dev ifb0";
    machine.sh(&format!("/sbin/tc filter add dev eth0 parent ffff: {redirect}"), SOON);
    for fault in [
        "loss 2% limit 10000",
        "delay 20ms 5ms limit 10000",
        "delay 5ms reorder 25% limit 10000",
        "duplicate 5% limit 10000",
        "delay 5ms 2ms loss 1% duplicate 1% limit 10000",
    ] {
        for card in ["eth0", "ifb0"] {
            machine.sh(&format!("/sbin/tc qdisc replace dev {card} root netem {fault}"), SOON);
        }
        transfer(&scene, &mut machine, 10 * MEGABYTE);
    }
}
