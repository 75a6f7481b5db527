//! Guests that configure themselves: real DHCP clients, the kernel's SLAAC, and static addresses.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;
use vmlan_e2e::World;
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::{Process, eventually, run};
use vmlan_e2e::server::{exchange, serve_one};
use vmlan_e2e::world::{HOST, OUTSIDE};

/// A guest whose card is up and nothing else.
#[track_caller]
fn unconfigured(arguments: &[&str]) -> World {
    let world = World::with_guest("ifname=tap0,config=off", arguments);
    world.guest.ip("link set tap0 up");
    world
}

/// A script for a DHCP client: writes what it was told, one `NAME=VALUE` in a line.
fn client_script(dir: &TempDir) -> (String, String) {
    let (script, told) = (dir.path().join("script"), dir.path().join("told"));
    let text = format!("#!/bin/sh\n[ \"$1$reason\" = deconfig ] || env >>{}\n", told.display());
    fs::write(&script, text).expect("a file in a temporary directory");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a mode");
    (script.display().to_string(), told.display().to_string())
}

fn read_told(path: &str) -> HashMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[track_caller]
fn expect_the_network_works(world: &World) {
    let server = serve_one(world.outside.listen((OUTSIDE, 80)), |stream| stream);
    let client = world.guest.connect((OUTSIDE, 80)).expect("a server listens there");
    exchange(client, server.join().expect("a connection"), 1 << 20);
}

#[test]
fn udhcpc_gets_a_lease_with_all_that_belongs_to_it() {
    let world = unconfigured(&[]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (script, told) = client_script(&dir);
    let mut command = world.guest.command("busybox");
    command.args(["udhcpc", "-i", "tap0", "-n", "-q", "-t", "5", "-T", "1", "-s", &script]);
    command.args(["-O", "search", "-O", "mtu"]);
    run(&mut command, SOON);
    let told = read_told(&told);
    for (name, value) in [
        ("ip", "192.168.5.15"),
        ("subnet", "255.255.255.0"),
        ("router", "192.168.5.2"),
        ("dns", "192.168.5.3"),
        ("mtu", "65520"),
    ] {
        assert_eq!(told.get(name).map(String::as_str), Some(value), "{name} of {told:?}");
    }
    assert!(told.contains_key("lease"), "{told:?}");
    world.guest.ip("address add 192.168.5.15/24 dev tap0");
    world.guest.ip("route add default via 192.168.5.2");
    expect_the_network_works(&world);
}

#[test]
fn dhclient_gets_renews_and_releases_a_lease() {
    let world = unconfigured(&["--mtu", "1500"]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (script, told) = client_script(&dir);
    let dhclient = |flag: &str| {
        let file = |name: &str| dir.path().join(name).display().to_string();
        let mut command = world.guest.command("dhclient");
        command.args([flag, "-v", "-sf", &script, "-cf", "/dev/null"]);
        command.args(["-lf", &file("leases"), "-pf", &file("pid"), "tap0"]);
        run(&mut command, SOON)
    };
    // Stays behind as a daemon that renews; `-r` ends it, and the namespace's end if that fails.
    dhclient("-1");
    let got = read_told(&told);
    for (name, value) in [
        ("new_ip_address", "192.168.5.15"),
        ("new_subnet_mask", "255.255.255.0"),
        ("new_routers", "192.168.5.2"),
        ("new_domain_name_servers", "192.168.5.3"),
        ("new_dhcp_server_identifier", "192.168.5.2"),
    ] {
        assert_eq!(got.get(name).map(String::as_str), Some(value), "{name} of {got:?}");
    }
    dhclient("-r");
    let leases = fs::read_to_string(dir.path().join("leases")).expect("dhclient's leases");
    assert!(leases.contains("fixed-address 192.168.5.15"), "{leases}");
    // The same client is given the same address again.
    dhclient("-1");
    assert_eq!(read_told(&told).get("new_ip_address").map(String::as_str), Some("192.168.5.15"));
    dhclient("-r");
}

#[test]
fn the_kernel_configures_ipv6_from_advertisements() {
    let world = World::with_guest("ifname=tap0,config=off", &["--mtu", "8000"]);
    world.guest.sysctl("net/ipv6/conf/tap0/accept_ra", "2");
    // The kernel believes an advertised MTU only if it is below the card's.
    world.guest.ip("link set tap0 mtu 9000 up");
    let address = eventually("a global address", SOON, || {
        let text = world.guest.ip("-6 -o address show dev tap0 scope global -tentative");
        text.split_whitespace().find(|word| word.starts_with("fd")).map(str::to_owned)
    });
    assert!(address.ends_with("/64"), "{address}");
    let routes = world.guest.ip("-6 route show default");
    assert!(routes.contains("via fe80:") && routes.contains("proto ra"), "{routes}");
    let mtu = world.guest.run("cat /proc/sys/net/ipv6/conf/tap0/mtu");
    assert_eq!(mtu.trim(), "8000");
    world.guest.run("ping -6 -n -c 1 -W 5 2001:db8:1::2");
}

#[test]
fn a_guest_with_an_address_of_its_own_choice_works() {
    let world = unconfigured(&[]);
    world.guest.ip("address add 192.168.5.77/24 dev tap0");
    world.guest.ip("route add default via 192.168.5.2");
    expect_the_network_works(&world);
    world.guest.run(&format!("ping -n -c 1 -W 5 {HOST}"));
}

#[test]
fn a_guest_that_asks_for_nothing_is_configured_by_us() {
    let world = World::new();
    let addresses = world.guest.ip("-o address show dev tap0");
    assert!(addresses.contains("inet 192.168.5.15/24"), "{addresses}");
    assert!(addresses.contains("inet6 fd"), "{addresses}");
    let link = world.guest.ip("link show dev tap0");
    assert!(link.contains("mtu 65520") && link.contains("UP"), "{link}");
    let routes = world.guest.ip("route show default");
    assert!(routes.contains("via 192.168.5.2 dev tap0"), "{routes}");
    expect_the_network_works(&world);
}

#[test]
fn networkd_gets_a_lease_and_advertisements() {
    // Away from the machine's own systemd: runtime files in a private directory, and /sys
    // read-only, which is how networkd knows that no udev will announce the card.
    const SCENE: &str = r#"
        mount -t tmpfs runtime /run/systemd
        mkdir -p /run/systemd/network /run/systemd/netif/leases /run/systemd/netif/links
        chown -R systemd-network:systemd-network /run/systemd/netif
        printf '[Match]\nName=tap0\n[Network]\nDHCP=yes\n[DHCPv4]\nUseMTU=yes\n' \
            >/run/systemd/network/tap0.network
        mount -o remount,bind,ro /sys
        exec /lib/systemd/systemd-networkd
    "#;
    let world = World::with_guest("ifname=tap0,config=off", &[]);
    let mut command = world.guest.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", SCENE]);
    let _networkd = Process::spawn(&mut command);
    let configured = |what: &str| world.guest.ip("-o address show dev tap0").contains(what);
    eventually("a lease", SOON, || configured("inet 192.168.5.15/24").then_some(()));
    eventually("a global address", SOON, || configured("inet6 fd").then_some(()));
    eventually("the offered MTU", SOON, || {
        world.guest.ip("link show dev tap0").contains("mtu 65520").then_some(())
    });
    expect_the_network_works(&world);
}
