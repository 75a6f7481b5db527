//! Networks that an interface of the host is on: by a bridge that is there, by one made for it, or
//! beside the host.

use std::os::fd::AsFd;

use crate::host::{Guest, Host, OTHER, USER};

const LAN: &str = "--bridge=vmlan-lan --mode=bridged --interface=";
const ATTACH: &str = "attach --bridge=vmlan-lan";

/// A host with an interface `up0` that is on a network with another host.
fn with_lan(make: &str) -> (Host, Guest) {
    let host = Host::new();
    let other = Guest::new(0);
    let pid = other.0.id();
    host.sh(&format!("ip link add up0 type veth peer name out0 netns {pid}\n{make}"));
    other.sh("echo 0 >/proc/sys/net/ipv6/conf/out0/accept_dad; ip addr add 10.9.0.2/24 dev out0
         ip addr add fd09::2/64 dev out0 nodad; ip link set out0 up");
    (host, other)
}

fn settled(host: &Host, name: &str) {
    let shown = format!("ip -6 addr show dev {name} scope link -tentative");
    host.sh(&format!("until [ -n \"$({shown})\" ]; do sleep 0.05; done"));
}

/// A guest with addresses of the network.
fn guest(host: &Host, number: u8) -> Guest {
    let guest = Guest::new(USER);
    let mac = format!("52:55:55:09:00:{number:02x}");
    host.attach(USER, "vmlan-lan", &guest, &mac, &format!("10.9.0.{number}"));
    guest.sh(&format!("ip addr add fd09::{number}/64 dev eth0 nodad"));
    guest
}

fn start(host: &Host, uid: u32, interface: &str) -> Result<String, String> {
    let (text, tap) = host.helper(uid, &format!("start {LAN}{interface}")).end()?;
    assert!(tap.is_none(), "nothing is served there");
    Ok(text)
}

fn reaches(guest: &Guest, number: u8) -> bool {
    let ping = |address: String| guest.can(&format!("ping -c 1 -W 2 {address}"));
    let (four, six) = (ping(format!("10.9.0.{number}")), ping(format!("fd09::{number}")));
    assert_eq!(four, six, "IPv4 and IPv6 differ");
    four
}

fn stop(host: &Host) {
    host.run(USER, "stop --bridge=vmlan-lan").unwrap();
}

#[test]
fn an_interface_without_addresses_becomes_a_port() {
    for (make, was) in [
        ("ip link set up0 up mtu 1400", "up"),
        ("ip link set up0 up mtu 1400; ip link set up0 down", "down"),
    ] {
        let (host, other) = with_lan(make);
        if was == "up" {
            settled(&host, "up0");
        }
        let before = host.listing();
        assert_eq!(start(&host, USER, "up0").unwrap(), "lan");
        let guests = [guest(&host, 10), guest(&host, 11)];
        assert!(reaches(&guests[0], 2) && reaches(&guests[0], 11) && reaches(&other, 10));
        assert!(guests[0].sh("ip link show eth0").contains("mtu 1400"), "as the interface has it");
        assert!(host.sh("ip addr show vmlan-lan").lines().all(|line| !line.contains("inet")));
        // Whoever looks after it dies; it is taken over, and nobody else's until its guests are gone.
        assert_eq!(start(&host, USER, "up0").unwrap(), "lan");
        assert!(reaches(&guests[0], 2));
        let why = start(&host, OTHER, "up0").unwrap_err();
        assert!(why.contains("is in use: the user 61234"), "{why}");
        drop(guests);
        host.sh("while ip link | grep -q 'master vmlan-lan.*vmlp'; do sleep 0.05; done");
        stop(&host);
        host.listing().assert_same(&before);
    }
}

#[test]
fn a_bridge_that_is_there_is_joined() {
    let (host, other) = with_lan(
        "ip link add br0 type bridge; ip link set up0 master br0 up
         ip link set up0 address fa:ff:ff:00:00:01; ip link set br0 mtu 1400; ip link set up0 mtu 1400; ip addr add 10.9.0.1/24 dev br0
         ip addr add fd09::1/64 dev br0 nodad; ip link set br0 up",
    );
    settled(&host, "br0");
    settled(&host, "up0");
    let before = host.listing();
    let mac = host.sh("cat /sys/class/net/br0/address").trim().to_owned();
    assert_eq!(start(&host, USER, "br0").unwrap(), "lan");
    let guests = [guest(&host, 10), guest(&host, 11)];
    for number in [1, 2, 11] {
        assert!(reaches(&guests[0], number), "{number}");
    }
    assert!(reaches(&other, 10));
    assert!(host.can("ping -c 1 -W 2 10.9.0.10"));
    let helper = host.helper(USER, ATTACH);
    helper.say("tap 52:55:55:09:00:20", None);
    let tap = helper.end().unwrap().1.expect("a TAP");
    let now = host.sh("ip -o link show br0");
    assert!(now.contains("mtu 1400") && now.contains(&mac), "the bridge is as it was: {now}");
    // With guests there: they lose their cards, and the bridge is not touched.
    stop(&host);
    drop((tap, guests));
    host.listing().assert_same(&before);
}

#[test]
fn beside_a_host_that_has_addresses_there() {
    let (host, other) = with_lan(
        "ip addr add 10.9.0.1/24 dev up0; ip addr add fd09::1/64 dev up0 nodad; ip link set up0 up",
    );
    settled(&host, "up0");
    let before = host.listing();
    assert_eq!(start(&host, USER, "up0").unwrap(), "beside");
    let guests = [guest(&host, 10), guest(&host, 11)];
    assert!(reaches(&guests[0], 2) && reaches(&guests[0], 11) && reaches(&other, 10));
    assert!(!reaches(&guests[0], 1), "the host itself is not seen");
    assert!(host.can("ping -c 1 -W 2 10.9.0.2"), "the host goes on");
    // A machine's device; with the same address once more, as after a crash, it is another one.
    let tap = || {
        let helper = host.helper(USER, ATTACH);
        helper.say("tap 52:55:55:09:00:20", None);
        helper.end().unwrap().1.expect("a device")
    };
    drop(tap());
    let device = tap();
    assert_eq!(host.sh("ip -o link show type macvtap").lines().count(), 1);
    // Who looks after the network says that another machine is gone, and then that this one is.
    let gone = |mac: &str| {
        let helper = host.helper(USER, ATTACH);
        helper.say(&format!("gone {mac}"), None);
        assert_eq!(helper.end().unwrap().0, "gone");
        host.sh("ip -o link show type macvtap").lines().count()
    };
    assert_eq!(gone("52:55:55:09:00:21"), 1);
    assert_eq!(gone("52:55:55:09:00:20"), 0);
    let device = {
        drop(device);
        tap()
    };
    assert_eq!(rustix::fs::fstat(device.as_fd()).unwrap().st_mode & 0o170_000, 0o020_000);
    drop(guests);
    stop(&host);
    // The guests' namespaces end when the kernel comes to it.
    host.sh("until ip -d link show up0 | grep -q 'promiscuity 0'; do sleep 0.05; done");
    host.listing().assert_same(&before);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let (host, _other) = with_lan(
        "ip link add wl0 type veth peer name wl1; ip tuntap add tun0 mode tun
         ip link add br0 type bridge; ip link add p0 type veth peer name p1; ip link set p0 master br0
         mount -t tmpfs tmpfs /sys; mkdir -p /sys/class/net/wl0/wireless",
    );
    let before = host.listing();
    for (interface, want) in [
        ("eth9", "there is no interface eth9; set `interface` in networks.yaml to one of: "),
        ("wl0", "wl0 is wireless: an access point takes frames from its own stations only"),
        ("tun0", "tun0 is not Ethernet"),
        ("p0", "p0 is a part of br0; set `interface` in networks.yaml to that one"),
    ] {
        let why = start(&host, USER, interface).unwrap_err();
        assert!(why.contains(want), "{interface}: {why}");
        host.listing().assert_same(&before);
    }
    let why = start(&host, USER, "eth9").unwrap_err();
    assert!(why.contains("br0") && why.contains("up0") && !why.contains("wl0"), "{why}");
    let why = host.helper(USER, ATTACH).end().unwrap_err();
    assert!(why.contains("cannot hear"), "{why}");
}

#[test]
fn frames_that_a_bridge_passes_go_through_other_firewalls() {
    let (host, _other) = with_lan("ip link set up0 up");
    let known = host.can("test -e /proc/sys/net/bridge/bridge-nf-call-iptables");
    assert!(known, "this test needs br_netfilter: modprobe br_netfilter");
    settled(&host, "up0");
    host.sh(
        "echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
         nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'",
    );
    let before = host.listing();
    start(&host, USER, "up0").unwrap();
    assert!(guest(&host, 10).can("ping -c 1 -W 2 10.9.0.2"));
    stop(&host);
    host.listing().assert_same(&before);
}
