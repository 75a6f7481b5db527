//! The host's nameservers change while guests run: whoever asks next is answered by the new ones.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmlan_e2e::dns_client::Client;
use vmlan_e2e::dns_message::{A, Message, NOERROR, Query, SERVFAIL};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::{eventually, run};
use vmlan_e2e::world::{DNS, OUTSIDE, host_and_outside};
use vmlan_e2e::{Upstream, World};

const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 3));

/// A host with an /etc of its own and two nameservers to choose from, which can be told apart by
/// what they answer.
struct Scene {
    world: World,
    etc: PathBuf,
    first: Upstream,
    second: Upstream,
}

impl Scene {
    /// `prepare` is called with /etc before the daemon starts.
    #[track_caller]
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        let (mut host, outside) = host_and_outside();
        let etc = host.own_files();
        prepare(&etc);
        outside.ip("address add 198.51.100.3/24 dev down0");
        let first = Upstream::of(&outside, OUTSIDE, [203, 0, 113, 1]);
        let second = Upstream::of(&outside, SECOND, [203, 0, 113, 2]);
        let world = World::on(host, outside, "ifname=tap0", &[]);
        Self { world, etc, first, second }
    }

    /// Waits until answers come from the `n`th nameserver, for names that are new and for those
    /// that were asked before.
    #[track_caller]
    fn expect_answers_of(&self, n: u8) {
        let mut guest = Client::new(&self.world.guest, DNS);
        let expected = format!("203.0.113.{n}");
        for name in ["old.test", "new.test"] {
            let name = if name == "new.test" { format!("new{n}.test") } else { name.to_owned() };
            eventually((&name, n), SOON, || {
                let reply = ask(&mut guest, &name)?;
                (reply.addresses() == [expected.as_str()]).then_some(())
            });
        }
    }
}

fn ask(guest: &mut Client<'_>, name: &str) -> Option<Message> {
    let message = Query::new(name, A).encode(1);
    let reply = guest.exchange_udp(&message, Duration::from_secs(1)).ok()?;
    Some(Message::decode(&reply).expect("a reply"))
}

const ONE: &str = "nameserver 198.51.100.2\n";
const TWO: &str = "nameserver 198.51.100.3\n";

#[track_caller]
fn write(path: impl AsRef<Path>, text: &str) {
    fs::write(path, text).expect("a file in a temporary directory");
}

/// As careful programs do: a new file, then its name.
#[track_caller]
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    write(&new, text);
    fs::rename(new, path).expect("a file in a temporary directory");
}

#[test]
fn the_file_is_written_in_place() {
    let scene = Scene::new(|etc| write(etc.join("resolv.conf"), ONE));
    let file = scene.etc.join("resolv.conf");
    for (text, n) in [(ONE, 1), (TWO, 2), (ONE, 1)] {
        write(&file, text);
        scene.expect_answers_of(n);
    }
}

#[test]
fn the_file_is_replaced() {
    let scene = Scene::new(|etc| write(etc.join("resolv.conf"), ONE));
    let file = scene.etc.join("resolv.conf");
    for (text, n) in [(ONE, 1), (TWO, 2), (ONE, 1), (TWO, 2)] {
        replace(&file, text);
        scene.expect_answers_of(n);
    }
}

#[test]
fn the_file_goes_and_comes() {
    let scene = Scene::new(|etc| write(etc.join("resolv.conf"), ONE));
    scene.expect_answers_of(1);
    let file = scene.etc.join("resolv.conf");
    fs::remove_file(&file).expect("it is there");
    write(&file, TWO);
    scene.expect_answers_of(2);
    // Half a file on the way to a whole one.
    write(&file, "");
    write(&file, "nameserver 198.51");
    write(&file, ONE);
    scene.expect_answers_of(1);
}

/// As systemd-resolved, resolvconf and NetworkManager have it.
#[test]
fn the_file_is_a_link() {
    let scene = Scene::new(|etc| {
        fs::create_dir_all(etc.join("one/deep")).expect("a directory");
        fs::create_dir(etc.join("two")).expect("a directory");
        write(etc.join("one/deep/resolv.conf"), ONE);
        write(etc.join("two/resolv.conf"), TWO);
        symlink("one/deep/resolv.conf", etc.join("resolv.conf")).expect("a link");
    });
    scene.expect_answers_of(1);
    let (one, two) = (scene.etc.join("one/deep/resolv.conf"), scene.etc.join("two/resolv.conf"));
    // What it leads to changes, in place and by a new file.
    write(&one, TWO);
    scene.expect_answers_of(2);
    replace(&one, ONE);
    scene.expect_answers_of(1);
    // It leads elsewhere.
    symlink("/etc/two/resolv.conf", scene.etc.join("link")).expect("a link");
    fs::rename(scene.etc.join("link"), scene.etc.join("resolv.conf")).expect("a link");
    scene.expect_answers_of(2);
    // And what it leads to now.
    replace(&two, ONE);
    scene.expect_answers_of(1);
    // By way of another link.
    symlink("two", scene.etc.join("three")).expect("a link");
    symlink("three/resolv.conf", scene.etc.join("link")).expect("a link");
    fs::rename(scene.etc.join("link"), scene.etc.join("resolv.conf")).expect("a link");
    write(&two, TWO);
    scene.expect_answers_of(2);
}

/// As in a container whose manager writes it: the directory does not see what happens.
#[test]
fn the_file_is_a_mount() {
    let (host, outside) = host_and_outside();
    outside.ip("address add 198.51.100.3/24 dev down0");
    let first = Upstream::of(&outside, OUTSIDE, [203, 0, 113, 1]);
    let second = Upstream::of(&outside, SECOND, [203, 0, 113, 2]);
    // The namespace's file is bound to /etc/resolv.conf.
    let world = World::on(host, outside, "ifname=tap0", &[]);
    let scene = Scene { world, etc: PathBuf::new(), first, second };
    for (text, n) in [(ONE, 1), (TWO, 2), (ONE, 1)] {
        scene.world.host.set_resolv_conf(text);
        scene.expect_answers_of(n);
    }
}

/// The new nameservers are asked, and the old ones no more.
#[test]
fn the_old_ones_are_left_alone() {
    let scene = Scene::new(|etc| write(etc.join("resolv.conf"), ONE));
    scene.expect_answers_of(1);
    assert!(scene.second.asked().is_empty());
    replace(&scene.etc.join("resolv.conf"), TWO);
    scene.expect_answers_of(2);
    let asked = scene.first.asked().len();
    let mut guest = Client::new(&scene.world.guest, DNS);
    for n in 0..20 {
        let name = format!("later{n}.test");
        let reply = eventually(&name, SOON, || ask(&mut guest, &name));
        assert_eq!(reply.addresses(), ["203.0.113.2"]);
    }
    assert_eq!(scene.first.asked().len(), asked);
}

/// Options and comments are no nameservers; a port is not to be had, a zone of an address is.
#[test]
fn the_file_says_more() {
    let text = "# nameserver 198.51.100.2\n; nameserver 198.51.100.2\nsearch example.net\n\
                nameserver\nnameserver nonsense\n  nameserver   198.51.100.3 # here\n\
                options edns0 trust-ad\nsortlist 198.51.100.0\nnameserver 2001:db8:1::2";
    let scene = Scene::new(|etc| write(etc.join("resolv.conf"), text));
    scene.expect_answers_of(2);
}

/// Short names are looked for where the host looks for them, as it changes.
#[test]
fn the_search_domains_are_told_to_guests() {
    let scene =
        Scene::new(|etc| write(etc.join("resolv.conf"), &format!("{ONE}search corp.test a.b\n")));
    let told = || {
        let mut client = scene.world.guest.command("busybox");
        client.args(["udhcpc", "-i", "tap0", "-n", "-q", "-t", "5", "-T", "1", "-O", "search"]);
        let script = "#!/bin/sh\n[ \"$1\" != bound ] || echo \"$search\" >told\n";
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("script");
        write(path.clone(), script);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
        run(client.arg("-s").arg(&path).current_dir(dir.path()), SOON);
        let told = fs::read_to_string(dir.path().join("told"));
        told.expect("a lease").trim().to_owned()
    };
    assert_eq!(told(), "corp.test a.b");
    replace(&scene.etc.join("resolv.conf"), &format!("{ONE}search new.test\n"));
    eventually("the new domains", SOON, || (told() == "new.test").then_some(()));
    replace(&scene.etc.join("resolv.conf"), ONE);
    eventually("no domain", SOON, || told().is_empty().then_some(()));
}

#[test]
fn an_ipv6_nameserver() {
    let scene = Scene::new(|etc| write(etc.join("resolv.conf"), "nameserver 2001:db8:1::2\n"));
    let at = IpAddr::V6("2001:db8:1::2".parse().expect("an address"));
    let third = Upstream::of(&scene.world.outside, at, [203, 0, 113, 3]);
    scene.expect_answers_of(3);
    assert!(!third.asked().is_empty());
}

/// A daemon that starts before the network does: names are not known yet, and then they are.
#[test]
fn the_network_comes_later() {
    let (mut host, outside) = host_and_outside();
    let etc = host.own_files();
    host.ip("link set up0 down");
    let upstream = Upstream::of(&outside, OUTSIDE, [203, 0, 113, 1]);
    let world = World::on(host, outside, "ifname=tap0", &[]);
    let mut guest = Client::new(&world.guest, DNS);
    // Neither a nameserver nor a way to any. Whoever asks is told, and does not wait for nothing.
    let reply = eventually("an answer that there is none", SOON, || ask(&mut guest, "a.test"));
    assert_eq!(reply.rcode, SERVFAIL);
    // What the host knows by itself is known.
    let reply = eventually("an answer", SOON, || ask(&mut guest, "host.lima.internal"));
    assert_eq!((reply.rcode, reply.addresses().len()), (NOERROR, 1));
    world.host.ip("link set up0 up");
    world.host.ip("-6 address replace 2001:db8:1::1/64 dev up0 nodad");
    world.host.ip("route replace default via 198.51.100.2");
    replace(&etc.join("resolv.conf"), ONE);
    let reply = eventually("an answer of the nameserver", SOON, || {
        ask(&mut guest, "a.test").filter(|reply| reply.rcode == NOERROR)
    });
    assert_eq!(reply.addresses(), ["203.0.113.1"]);
    drop(upstream);
}

/// The nameserver is there before there is a way to it.
#[test]
fn the_way_comes_later() {
    let (mut host, outside) = host_and_outside();
    write(host.own_files().join("resolv.conf"), ONE);
    host.ip("link set up0 down");
    let _upstream = Upstream::of(&outside, OUTSIDE, [203, 0, 113, 1]);
    let world = World::on(host, outside, "ifname=tap0", &[]);
    let mut guest = Client::new(&world.guest, DNS);
    let reply = eventually("an answer that there is none", SOON, || ask(&mut guest, "a.test"));
    assert_eq!(reply.rcode, SERVFAIL);
    world.host.ip("link set up0 up");
    eventually("an answer of the nameserver", SOON, || {
        ask(&mut guest, "a.test").filter(|reply| reply.rcode == NOERROR)
    });
}

/// Public nameservers are for hosts that have none at all.
#[test]
fn public_nameservers_are_the_last_resort() {
    let scene = Scene::new(|_| {});
    let outside = &scene.world.outside;
    let public = ["8.8.8.8", "1.1.1.1"].map(|address| {
        outside.ip(&format!("address add {address}/32 dev lo"));
        Upstream::of(outside, address.parse().expect("an address"), [203, 0, 113, 8])
    });
    scene.expect_answers_of(8);
    write(scene.etc.join("resolv.conf"), ONE);
    scene.expect_answers_of(1);
    let asked = public.each_ref().map(|public| public.asked().len());
    scene.world.outside.ip("address add 198.51.100.4/24 dev down0");
    // One that does not answer is one all the same.
    replace(&scene.etc.join("resolv.conf"), "nameserver 198.51.100.4\n");
    let mut guest = Client::new(&scene.world.guest, DNS);
    let reply = eventually("an answer that there is none", SOON, || {
        ask(&mut guest, "later.test").filter(|reply| reply.rcode != NOERROR)
    });
    assert_eq!(reply.rcode, SERVFAIL);
    assert_eq!(public.each_ref().map(|public| public.asked().len()), asked);
}
