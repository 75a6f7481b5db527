//! Networks with a bridge of the kernel, as an ordinary user starts them with real sudo.

use std::time::Duration;

use rustix::process::Signal;
use vmlan_e2e::bridge_host::ADD_OUTSIDE;
use vmlan_e2e::{As, BridgeHost, RunningGuest};

/// Whether a guest reaches another address, by the network that this is about.
fn reaches(guest: &RunningGuest, address: &str) -> bool {
    guest.can(&format!("ping -I lima0 -c 1 -W 2 {address} >/dev/null"))
}

/// The IPv6 address of a guest whose IPv4 address this is.
fn six(address: &str) -> String {
    let bytes: Vec<u8> = address.split('.').map(|byte| byte.parse().unwrap()).collect();
    format!("fd76:6d6c:c0a8:{:02x}00::{:x}", bytes[2], bytes[3])
}

#[test]
fn guests_reach_whom_they_should_and_nothing_is_left() {
    let host = BridgeHost::new();
    host.run(As::Root, ADD_OUTSIDE);
    let before = host.listing();
    let shared = ["one", "two"].map(|name| host.guest("lima:shared", name));
    let inside = ["three", "four"].map(|name| host.guest("lima:host", name));
    for (guests, leads_out, gateway) in
        [(&shared, true, "192.168.105.1"), (&inside, false, "192.168.106.1")]
    {
        let [guest, other] = guests;
        for address in [gateway, &other.address, &six(gateway), &six(&other.address)] {
            assert!(reaches(guest, address), "{} to {address}", guest.address);
        }
        for address in ["203.0.113.2", "fd00:77::2"] {
            assert_eq!(reaches(guest, address), leads_out, "{} to {address}", guest.address);
        }
        for address in [guest.address.clone(), six(&guest.address)] {
            host.run(As::User, &format!("ping -c 1 -W 2 {address}"));
        }
    }
    // Not from one network to the other, nor from outside.
    assert!(!reaches(&shared[0], &inside[0].address));
    assert!(!reaches(&inside[0], &shared[0].address));
    host.run(As::Root, "ip -n outside route add 192.168.0.0/16 via 203.0.113.1");
    for guest in [&shared[0], &inside[0]] {
        let ping = format!("ip netns exec outside ping -c 1 -W 1 {}", guest.address);
        host.fail(As::Root, &ping);
    }
    // Names of the guests, and of the host, by the network's own name server.
    assert!(shared[0].can("ping -c 1 -W 2 lima-two.internal"));
    assert!(shared[0].can("getent ahostsv4 host.lima.internal | grep -q '^192.168.105.1 '"));
    drop((shared, inside));
    host.await_listing(&before);
}

#[test]
fn a_dead_daemon_is_replaced_under_its_guests() {
    let host = BridgeHost::new();
    let before = host.listing();
    let guests = ["one", "two"].map(|name| host.guest("lima:shared", name));
    let pidfile = "/run/home/.lima/_networks/shared/usernet_shared.pid";
    let old = host.run(As::Root, &format!("cat {pidfile}"));
    host.run(As::Root, &format!("kill -9 {old}"));
    // The guests go on without it.
    assert!(reaches(&guests[0], &guests[1].address));
    host.eventually(&format!("[ -e {pidfile} ] && [ \"$(cat {pidfile})\" != {} ]", old.trim()));
    host.eventually("ip link show master vmlan-shared | grep -q vmlp");
    let named =
        "for i in 1 2 3 4 5 6 7 8 9; do getent hosts lima-two.internal && exit; sleep 1; done";
    assert!(guests[0].can(&format!("{named}; exit 1")));
    assert!(reaches(&guests[0], &guests[1].address));
    drop(guests);
    host.await_listing(&before);
}

#[test]
fn after_a_crash_of_everything_the_next_user_undoes_it() {
    let host = BridgeHost::new();
    let before = host.listing();
    let mut guest = host.guest("lima:shared", "one");
    let pid = host.run(As::Root, "cat /run/home/.lima/_networks/shared/usernet_shared.pid");
    // Stopped first, so that the guest cannot bring up another.
    guest.process.signal(Signal::STOP);
    host.run(As::Root, &format!("kill -9 {pid}"));
    guest.process.signal(Signal::KILL);
    guest.process.wait(Duration::from_secs(10));
    host.run(As::Root, "ip link show vmlan-shared && test -e /run/lima");
    host.run(As::User, "vmlan run --network lima:shared -- ping -c 1 -W 2 192.168.105.1");
    host.await_listing(&before);
}

#[test]
fn a_daemon_that_ends_before_the_card_is_made_is_replaced() {
    let host = BridgeHost::new();
    let before = host.listing();
    // Between the addresses and the card, the daemon ends and the bridge with it.
    let sudo = "#!/bin/sh
case \"$*\" in *attach*)
    if mkdir /run/home/once 2>/dev/null; then
        kill $(cat /run/home/.lima/_networks/shared/usernet_shared.pid)
        while [ -e /sys/class/net/vmlan-shared ]; do sleep 0.05; done
    fi
esac
exec /usr/bin/sudo \"$@\"
";
    host.run(
        As::Root,
        &format!("cat >/usr/local/bin/sudo <<'END'\n{sudo}END\nchmod 755 /usr/local/bin/sudo"),
    );
    host.run(As::User, "vmlan run --network lima:shared -- ping -c 1 -W 2 192.168.105.1");
    host.run(As::Root, "rmdir /run/home/once && rm /usr/local/bin/sudo");
    host.await_listing(&before);
}

#[test]
fn machines_are_served_by_dhcp_and_router_advertisements() {
    let host = BridgeHost::new();
    let guest = host.guest("lima:shared", "one");
    // As a virtual machine's card would be on the bridge.
    host.run(
        As::Root,
        "ip netns add machine
         ip link add m0 type veth peer name m1 netns machine
         ip link set m0 master vmlan-shared up
         ip -n machine link set m1 up
         printf '#!/bin/sh\\nenv\\n' >/run/script && chmod 755 /run/script",
    );
    let client = "ip netns exec machine busybox udhcpc -n -q -f -i m1 -s /run/script";
    let said = host.run(As::Root, client);
    for line in ["router=192.168.105.1", "dns=192.168.105.3", "mtu=1500", "mask=24"] {
        assert!(said.lines().any(|l| l == line), "no {line} in {said}");
    }
    host.eventually(
        "ip -n machine -6 route | grep -q 'default via fe80::5055:c0ff:fea8:6901 dev m1'
         ip -n machine -6 addr show dev m1 scope global | grep -q fd76:6d6c:c0a8:6900:",
    );
    host.run(As::Root, "ip netns exec machine ping -c 1 -W 2 fd76:6d6c:c0a8:6900::1");
    host.run(As::Root, "ip link del m0");
    drop(guest);
}

#[test]
fn only_who_may_can_and_only_what_is_written() {
    let host = BridgeHost::new();
    let before = host.listing();
    let said = host.run(As::User, "vmlan sudoers --check");
    assert_eq!(said, "`/etc/sudoers.d/lima` is up-to-date\n");
    // Where only root can look into the directory, sudo itself is asked.
    host.run(As::Root, "chmod 750 /etc/sudoers.d");
    host.run(As::User, "vmlan sudoers --check");
    host.fail(As::Other, "vmlan sudoers --check");
    host.run(As::Root, "chmod 755 /etc/sudoers.d");
    // Not a member of the group.
    let said = host.fail(As::Other, "vmlan sudoers --check");
    assert!(
        said.contains("`/etc/sudoers.d/lima` is up-to-date, but sudo does not let you"),
        "{said}"
    );
    assert!(said.contains("sudo usermod -a -G vmlan-admins \"$USER\""), "{said}");
    host.run(As::Other, "vmlan sudoers --check /etc/sudoers.d/lima");
    let said = host.fail(As::Other, "vmlan run --network lima:shared -- true");
    assert!(said.contains("sudo does not let you start this network"), "{said}");
    assert!(said.contains("vmlan sudoers --check"), "{said}");
    // Other words than those that are written down.
    let helper = "sudo -n -u root -g root -- /usr/local/libexec/vmlan-helper";
    for args in [
        "stop --bridge=vmlan-other",
        "attach --bridge=vmlan-shared extra",
        "start --bridge=vmlan-shared --mode=shared --gateway=10.0.0.1/8 --gateway6=fd00::1/64",
        "",
    ] {
        let said = host.fail(As::User, &format!("{helper} {args}"));
        assert!(said.contains("a password is required"), "{args}: {said}");
    }
    // Nor the right words with an environment or a standard input of the user's own.
    let stop = format!("{helper} stop --bridge=vmlan-shared");
    host.fail(As::User, &stop.replace("sudo", "sudo SUDO_UID=0"));
    host.fail(As::User, &format!("{helper} attach --bridge=vmlan-shared </dev/null"));
    // A place for the sudoers file that others could write to.
    host.run(
        As::Root,
        "mkdir -m 777 /etc/loose
         sed -i s:sudoers.d/lima:loose/lima: /run/home/.lima/_config/networks.yaml",
    );
    let said = host.fail(As::User, "vmlan sudoers");
    assert!(
        said.contains("dir `/etc/loose` is world-writable; mend it with: sudo chmod o-w"),
        "{said}"
    );
    host.run(
        As::Root,
        "rmdir /etc/loose; sed -i s:loose/lima:sudoers.d/lima: /run/home/.lima/_config/networks.yaml",
    );
    // A configuration that has changed since.
    host.run(As::User, "vmlan network create more --mode host --gateway 10.9.0.1/24");
    let said = host.fail(As::User, "vmlan sudoers --check");
    assert!(said.contains("+     sha256:") && said.contains("vmlan-more"), "{said}");
    assert!(said.contains("sudo install -o root etc_sudoers.d_lima"), "{said}");
    let said = host.fail(As::User, "vmlan run --network lima:more -- true");
    assert!(said.contains("sudo does not let you"), "{said}");
    // A helper that is not the one that was installed, or that others could replace.
    host.run(As::Root, "echo >>/usr/local/libexec/vmlan-helper");
    let said = host.fail(As::User, &stop);
    assert!(said.contains("a password is required"), "{said}");
    host.run(As::Root, "chown vmlan-test /usr/local/libexec/vmlan-helper");
    let said = host.fail(As::User, "vmlan sudoers");
    assert!(said.contains("is not owned by `root`"), "{said}");
    assert!(said.contains("mend it with: sudo install -D -o root"), "{said}");
    host.run(As::Root, "rm /usr/local/libexec/vmlan-helper");
    let said = host.fail(As::User, "vmlan sudoers");
    assert!(said.contains("has to be installed; do it with: sudo install"), "{said}");
    host.run(As::User, "sed -i s/vmlan-admins/nobodys-group/ ~/.lima/_config/networks.yaml");
    let said = host.fail(As::User, "vmlan sudoers");
    assert!(said.contains("there is no group `nobodys-group`"), "{said}");
    host.await_listing(&before);
}

#[test]
fn doctor_says_what_is_in_the_way() {
    let host = BridgeHost::new();
    let finds = |who: As, parts: &[&str]| {
        // A fault of something else on this machine is none of this.
        let output = host.output(who, "vmlan doctor");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        for part in parts {
            assert!(said.contains(part), "{part} is not said:\n{said}");
        }
    };
    finds(
        As::User,
        &[
            "ok       root         host, shared may be started, by /etc/sudoers.d/lima",
            "ok       firewall     ways through other firewalls are opened for guests",
        ],
    );
    finds(
        As::Other,
        &[
            "warning  root         host, shared cannot be started: it needs root for a moment",
            "it lets the members of group `vmlan-admins`: sudo usermod -a -G vmlan-admins \"$USER\"",
            "vmlan sudoers --check says what is missing, and the command that mends it",
        ],
    );
    let drop_all =
        "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }";
    host.run(As::Root, &format!("nft '{drop_all}'"));
    let guest = host.guest("lima:shared", "one");
    finds(As::User, &["guests of `shared` have a way through ip filter FORWARD"]);
    host.run(As::Root, "nft flush chain ip filter FORWARD; cp -r /run/home /run/roots");
    let said = host.output(As::Root, "HOME=/run/roots vmlan doctor");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("is gone from: ip filter FORWARD"), "{said}");
    assert!(said.contains("mend: vmlan run --network lima:shared -- true"), "{said}");
    host.run(As::User, "vmlan run --network lima:shared -- true");
    assert!(host.run(As::Root, "nft list chain ip filter FORWARD").contains("vmlan-shared"));
    drop(guest);
    host.run(
        As::Root,
        "echo '  lan: {mode: bridged, interface: eth9}' >>/run/home/.lima/_config/networks.yaml",
    );
    finds(
        As::User,
        &[
            "warning  interfaces   guests of `lan` cannot be on the network of eth9",
            "why:  there is no interface eth9",
            "cannot be started: it needs root for a moment",
            "is out of sync",
        ],
    );
}
