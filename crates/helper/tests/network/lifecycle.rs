//! Networks that come and go, what guests reach on them, and that nothing is left behind.

use std::os::fd::AsFd;

use crate::host::{Guest, Host, OTHER, USER};

pub(crate) const SHARED: &str = "--bridge=vmlan-shared --mode=shared --gateway=192.168.105.1/24 \
                                 --gateway6=fd76:6d6c:c0a8:6900::1/64";
pub(crate) const HOST: &str = "--bridge=vmlan-host --mode=host --gateway=192.168.106.1/24 \
                               --gateway6=fd76:6d6c:c0a8:6a00::1/64";

/// A host with a way to a namespace that is the outside, which has no way back but to the host.
pub(crate) fn with_outside() -> (Host, Guest) {
    let host = Host::new();
    let outside = Guest::new(0);
    let pid = outside.0.id();
    host.sh(&format!(
        "ip link add up0 type veth peer name out0 netns {pid}
         ip addr add 203.0.113.1/24 dev up0; ip addr add fd00:77::1/64 dev up0 nodad
         ip link set up0 up"
    ));
    outside.sh("echo 0 >/proc/sys/net/ipv6/conf/out0/accept_dad
         ip addr add 203.0.113.2/24 dev out0; ip addr add fd00:77::2/64 dev out0 nodad
         ip link set out0 up");
    let settled = |name: &str| {
        let shown = format!("ip -6 addr show dev {name} scope link -tentative");
        format!("until [ -n \"$({shown})\" ]; do sleep 0.05; done")
    };
    host.sh(&settled("up0"));
    outside.sh(&settled("out0"));
    (host, outside)
}

/// A guest with its addresses and routes.
pub(crate) fn guest(host: &Host, bridge: &str, net: u8, number: u8) -> Guest {
    let guest = Guest::new(USER);
    let mac = format!("52:55:55:00:{net:02x}:{number:02x}");
    host.attach(USER, bridge, &guest, &mac, &format!("192.168.{net}.{number}"));
    guest.sh(&format!(
        "ip addr add fd76:6d6c:c0a8:{net:02x}00::{number}/64 dev eth0 nodad
         ip route add default via 192.168.{net}.1
         ip route add default via fd76:6d6c:c0a8:{net:02x}00::1"
    ));
    guest
}

/// Whether pings come back, of both families or of none.
#[track_caller]
fn reaches(guest: &Guest, four: &str, six: &str) -> bool {
    let ping = |address: &str| guest.can(&format!("ping -c 1 -W 1 {address}"));
    let (four, six) = (ping(four), ping(six));
    assert_eq!(four, six, "IPv4 and IPv6 differ");
    four
}

/// Echo requests that have come, of both families.
fn heard(guest: &Guest) -> u32 {
    let counts = "awk '/^Icmp: [0-9]/ { print $10 } /^Icmp6InEchos/ { print $2 }' /proc/net/snmp /proc/net/snmp6";
    guest.sh(counts).lines().map(|count| count.parse::<u32>().unwrap()).sum()
}

/// Whether there is no way from one to another: not even one without an answer.
#[track_caller]
fn is_kept_from(guest: &Guest, other: &Guest, four: &str, six: &str) -> bool {
    let before = heard(other);
    let reached = reaches(guest, four, six);
    assert_eq!(heard(other) - before, if reached { 2 } else { 0 }, "what has come there");
    !reached
}

#[test]
fn who_reaches_whom() {
    let (host, outside) = with_outside();
    let before = host.listing();
    let taps = [host.start(USER, SHARED), host.start(USER, HOST)];
    let shared = [guest(&host, "vmlan-shared", 105, 10), guest(&host, "vmlan-shared", 105, 11)];
    let inside = [guest(&host, "vmlan-host", 106, 10), guest(&host, "vmlan-host", 106, 11)];

    assert!(reaches(&shared[0], "192.168.105.1", "fd76:6d6c:c0a8:6900::1"), "the host");
    assert!(reaches(&shared[0], "192.168.105.11", "fd76:6d6c:c0a8:6900::11"), "another guest");
    assert!(!is_kept_from(&shared[0], &outside, "203.0.113.2", "fd00:77::2"), "outside");
    let elsewhere = ["192.168.106.10", "fd76:6d6c:c0a8:6a00::10"];
    assert!(is_kept_from(&shared[0], &inside[0], elsewhere[0], elsewhere[1]), "elsewhere");

    assert!(reaches(&inside[0], "192.168.106.1", "fd76:6d6c:c0a8:6a00::1"), "the host");
    assert!(reaches(&inside[0], "192.168.106.11", "fd76:6d6c:c0a8:6a00::11"), "another guest");
    assert!(is_kept_from(&inside[0], &outside, "203.0.113.2", "fd00:77::2"), "outside");
    let elsewhere = ["192.168.105.10", "fd76:6d6c:c0a8:6900::10"];
    assert!(is_kept_from(&inside[0], &shared[0], elsewhere[0], elsewhere[1]), "elsewhere");

    for address in ["192.168.105.10", "192.168.106.10", "fd76:6d6c:c0a8:6a00::10"] {
        assert!(host.can(&format!("ping -c 1 -W 2 {address}")), "from the host to {address}");
    }
    outside
        .sh("ip route add 192.168.0.0/16 via 203.0.113.1; ip route add fd76::/16 via fd00:77::1");
    for (guest, four, six) in [
        (&shared[0], "192.168.105.10", "fd76:6d6c:c0a8:6900::10"),
        (&inside[0], "192.168.106.10", "fd76:6d6c:c0a8:6a00::10"),
    ] {
        assert!(is_kept_from(&outside, guest, four, six), "from outside to {four}");
    }

    // A source that is not the network's own goes nowhere.
    shared[1].sh("ip addr add 198.51.100.7/32 dev lo; ip addr add fd00:5::7/128 dev lo");
    let echoes = heard(&outside);
    for (source, to) in [("198.51.100.7", "203.0.113.2"), ("fd00:5::7", "fd00:77::2")] {
        assert!(!shared[1].can(&format!("ping -c 1 -W 1 -I {source} {to}")));
    }
    assert_eq!(heard(&outside), echoes, "what has come outside");

    drop((shared, inside, taps));
    host.run(USER, "stop --bridge=vmlan-shared").unwrap();
    host.run(USER, "stop --bridge=vmlan-host").unwrap();
    host.listing().assert_same(&before);
}

#[test]
fn a_network_outlives_who_serves_it_and_is_undone_after_a_crash() {
    let (host, _outside) = with_outside();
    let before = host.listing();
    let tap = host.start(USER, SHARED);
    let first = guest(&host, "vmlan-shared", 105, 10);
    // Who serves dies, and the guest goes on.
    drop(tap);
    assert!(reaches(&first, "203.0.113.2", "fd00:77::2"));
    let tap = host.start(USER, SHARED);
    assert!(reaches(&first, "203.0.113.2", "fd00:77::2"));
    // Others are told whose it is, and other settings too.
    let other = SHARED.replace("105.1/24", "105.9/24");
    for (uid, args) in [(OTHER, SHARED), (USER, &other)] {
        let why = host.helper(uid, &format!("start {args}")).end().unwrap_err();
        assert!(
            why.contains("is in use: the user 61234 has started it with --mode=shared"),
            "{why}"
        );
    }
    drop((first, tap));
    host.sh("while ip link | grep -q 'master vmlan-shared'; do sleep 0.05; done");
    // Nothing was stopped, and nobody is there any more: whoever comes next takes away what is left.
    let tap = host.start(OTHER, &other);
    assert!(host.sh("ip addr show vmlan-shared").contains("192.168.105.9/24"));
    drop(tap);
    host.run(OTHER, "stop --bridge=vmlan-shared").unwrap();
    host.listing().assert_same(&before);
    // Nothing is there to be stopped, and that is no failure.
    host.run(USER, "stop --bridge=vmlan-shared").unwrap();
    // A second start after all this is like the first.
    let tap = host.start(USER, SHARED);
    assert!(host.sh("ip addr show vmlan-shared").contains("192.168.105.1/24"));
    drop(tap);
    // The bridge is gone, by whatever: the rest is undone all the same.
    host.sh("ip link del vmlan-shared; nft delete table inet vmlan-shared");
    host.run(USER, "stop --bridge=vmlan-shared").unwrap();
    host.listing().assert_same(&before);
}

#[test]
fn forwarding_is_put_back_when_nobody_needs_it() {
    let (host, _outside) = with_outside();
    // As an administrator may have it.
    host.sh("echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects
         echo 1 >/proc/sys/net/ipv4/conf/up0/forwarding
         echo 1 >/proc/sys/net/ipv6/conf/up0/accept_ra");
    let before = host.listing();
    let other = SHARED.replace("105", "107").replace("6900", "6b00").replace("-shared", "-two");
    let taps = [host.start(USER, SHARED), host.start(USER, &other), host.start(USER, HOST)];
    let get = |name: &str| host.sh(&format!("cat /proc/sys/{name}"));
    assert_eq!(get("net/ipv6/conf/up0/accept_ra"), "2\n", "the host goes on hearing its router");
    host.run(USER, "stop --bridge=vmlan-shared").unwrap();
    assert_eq!(get("net/ipv4/ip_forward"), "1\n", "the other network needs it");
    assert_eq!(get("net/ipv6/conf/all/forwarding"), "1\n");
    host.run(USER, "stop --bridge=vmlan-two").unwrap();
    assert_eq!(get("net/ipv4/ip_forward"), "0\n");
    host.run(USER, "stop --bridge=vmlan-host").unwrap();
    host.listing().assert_same(&before);
    drop(taps);

    // Somebody else begins to need it in between.
    let tap = host.start(USER, SHARED);
    host.sh("nft 'table ip docker { chain p { type nat hook postrouting priority srcnat; masquerade; }; }'");
    host.run(USER, "stop --bridge=vmlan-shared").unwrap();
    assert_eq!(get("net/ipv4/ip_forward"), "1\n");
    drop(tap);
    // What was on before we came stays on.
    let tap = host.start(USER, SHARED);
    host.sh("nft delete table ip docker");
    host.run(USER, "stop --bridge=vmlan-shared").unwrap();
    assert_eq!(get("net/ipv4/ip_forward"), "1\n");
    assert!(!host.can("test -e /run/lima"));
    drop(tap);
}

#[test]
fn the_directory_of_others_is_left_there() {
    let host = Host::new();
    host.sh("mkdir /run/lima");
    let before = host.listing();
    drop(host.start(USER, HOST));
    host.run(USER, "stop --bridge=vmlan-host").unwrap();
    host.listing().assert_same(&before);
}

#[test]
fn a_helper_that_is_killed_half_way_is_cleaned_up_after() {
    let (host, _outside) = with_outside();
    host.sh("nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'
         mkdir /run/lima");
    let before = host.listing();
    let own = Guest::new(USER);
    for step in 0..24 {
        let time = std::time::Duration::from_millis(2 * step);
        // While it makes the network, gives out a card, undoes the network.
        host.helper(USER, &format!("start {SHARED}")).kill_after(time);
        let tap = host.start(USER, SHARED);
        let attach = host.helper(USER, "attach --bridge=vmlan-shared");
        attach.say("veth eth0 52:55:55:00:00:01", Some(own.0.network().as_fd()));
        attach.kill_after(time);
        drop(tap);
        host.helper(USER, "stop --bridge=vmlan-shared").kill_after(time);
        host.run(USER, "stop --bridge=vmlan-shared").unwrap();
        host.listing().assert_same(&before);
    }
}
