//! Other firewalls on the host: their drops are final, so ways are opened in them, and closed again.

use crate::host::USER;
use crate::lifecycle::{SHARED, guest, with_outside};

/// What is there before, and where a way must be opened.
fn through(rules: &str, chain: &str) {
    let (host, _outside) = with_outside();
    host.sh(&format!("nft -f - <<'E'\n{rules}\nE"));
    let before = host.listing();
    let tap = host.start(USER, SHARED);
    let guests = [guest(&host, "vmlan-shared", 105, 10), guest(&host, "vmlan-shared", 105, 11)];
    for address in ["192.168.105.1", "192.168.105.11", "203.0.113.2", "fd00:77::2"] {
        assert!(guests[0].can(&format!("ping -c 1 -W 2 {address}")), "{rules}\nto {address}");
    }
    assert!(host.sh(&format!("nft list chain {chain}")).contains("comment \"vmlan-shared\""));
    // Started again after a crash, no way is there twice.
    drop(tap);
    let tap = host.start(USER, SHARED);
    assert_eq!(
        host.sh(&format!("nft list chain {chain}")).matches("comment \"vmlan-shared\"").count(),
        2
    );
    drop((guests, tap));
    host.run(USER, "stop --bridge=vmlan-shared").unwrap();
    host.listing().assert_same(&before);
}

#[test]
fn a_policy_of_drop() {
    through(
        "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }
         table ip6 filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }",
        "ip6 filter FORWARD",
    );
}

#[test]
fn docker() {
    through(
        "table ip filter {
            chain DOCKER-USER { return; }
            chain FORWARD {
                type filter hook forward priority 0; policy drop;
                jump DOCKER-USER
            }
         }
         table ip nat { chain POSTROUTING {
            type nat hook postrouting priority srcnat; policy accept;
            ip saddr 172.17.0.0/16 oifname != \"docker0\" masquerade
         }; }",
        "ip filter DOCKER-USER",
    );
}

#[test]
fn firewalld() {
    through(
        "table inet firewalld {
            chain filter_FORWARD {
                type filter hook forward priority 10; policy accept;
                ct state established,related accept
                ct status dnat accept
                iifname lo accept
                ct state invalid drop
                reject with icmpx admin-prohibited
            }
         }",
        "inet firewalld filter_FORWARD",
    );
}

#[test]
fn ufw() {
    through(
        "table ip filter {
            chain ufw-before-forward { ct state related,established accept; }
            chain ufw-user-forward { }
            chain FORWARD {
                type filter hook forward priority 0; policy drop;
                jump ufw-before-forward
                jump ufw-user-forward
            }
         }
         table ip6 filter {
            chain ufw6-before-forward { ct state related,established accept; }
            chain FORWARD {
                type filter hook forward priority 0; policy drop;
                jump ufw6-before-forward
            }
         }",
        "ip6 filter FORWARD",
    );
}

#[test]
fn one_that_starts_anew_is_passed_again_with_the_next_guest() {
    let (host, _outside) = with_outside();
    let before = host.listing();
    let tap = host.start(USER, SHARED);
    let first = guest(&host, "vmlan-shared", 105, 10);
    let reaches =
        || ["203.0.113.2", "fd00:77::2"].map(|a| first.can(&format!("ping -c 1 -W 1 {a}")));
    assert_eq!(reaches(), [true, true]);
    for rules in [
        "flush ruleset",
        "flush ruleset; table inet firewalld { chain filter_FORWARD {
            type filter hook forward priority 10; policy accept; reject with icmpx admin-prohibited; }; }",
        "delete table inet firewalld; table ip filter { chain FORWARD {
            type filter hook forward priority 0; policy drop; }; }",
        "flush chain ip filter FORWARD",
    ] {
        host.sh(&format!("nft '{rules}'"));
        drop(guest(&host, "vmlan-shared", 105, 11));
        assert_eq!(reaches(), [true, true], "{rules}");
    }
    drop((first, tap));
    host.run(USER, "stop --bridge=vmlan-shared").unwrap();
    host.sh("nft delete table ip filter");
    host.listing().assert_same(&before);
}
