//! Networks of mode bridged: guests on the network that the host is on, with a DHCP server, a router
//! and another host there.

use std::time::Duration;

use vmlan_e2e::{As, BridgeHost, RunningGuest};

/// A LAN with a machine that is DHCP server, router and another host: 10.9.0.2, fd09::/64. The
/// host's interface is `up0`.
const LAN: &str = "
    ip netns add other
    ip link add up0 type veth peer name lan0 netns other
    ip -n other addr add 10.9.0.2/24 dev lan0
    ip -n other addr add fd09::2/64 dev lan0 nodad
    ip -n other link set lan0 up
    ip -n other link set lo up
    mkdir -p /run/layers/dhcp
";

const SERVER: &str = "
    ip netns exec other dnsmasq --conf-file=/dev/null --interface=lan0 --bind-interfaces --no-resolv \
        --no-hosts --dhcp-range=10.9.0.50,10.9.0.99,LEASE --dhcp-option=option:router,10.9.0.2 \
        --dhcp-range=fd09::,ra-only,64 --enable-ra \
        --port=0 --dhcp-leasefile=/run/layers/dhcp/leases --pid-file=/run/layers/dhcp/pid --user=root
";

const CONFIG: &str = "
    cat >>/run/home/.lima/_config/networks.yaml <<'END'
  lan: {mode: bridged, interface: INTERFACE}
END
    cat /run/home/.lima/_config/networks.yaml >/run/other/.lima/_config/networks.yaml
";

/// What the host is like, and the interface that the network is on.
struct Case {
    make: &'static str,
    interface: &'static str,
    /// Guests and host see each other, the host having this address.
    sees_host: Option<&'static str>,
}

const EMPTY: Case = Case {
    make: "echo 0 >/proc/sys/net/ipv6/conf/up0/accept_ra; ip link set up0 up",
    interface: "up0",
    sees_host: None,
};
const BRIDGE: Case = Case {
    make: "ip link add br0 type bridge; ip link set up0 master br0 up; ip link set br0 up
           ip addr add 10.9.0.1/24 dev br0",
    interface: "br0",
    sees_host: Some("10.9.0.1"),
};
const USED: Case = Case {
    make: "ip link set up0 up; ip addr add 10.9.0.1/24 dev up0",
    interface: "up0",
    sees_host: None,
};

fn host(case: &Case, lease: &str) -> BridgeHost {
    let host = BridgeHost::new();
    host.run(As::Root, LAN);
    host.run(As::Root, case.make);
    let settled = "until [ -n \"$(ip -n other -6 addr show dev lan0 scope link -tentative)\" ]; do sleep 0.05; done
                   until [ -n \"$(ip -6 addr show dev NAME scope link -tentative)\" ]; do sleep 0.05; done
";
    host.run(As::Root, &settled.replace("NAME", case.interface));
    host.run(As::Root, &SERVER.replace("LEASE", lease));
    if case.make.contains("addr add") {
        let show = format!("ip -6 addr show dev {}", case.interface);
        host.eventually(&format!("{show} | grep fd09: | grep -vq tentative"));
    }
    host.run(As::Root, &CONFIG.replace("INTERFACE", case.interface));
    host.install_sudoers();
    host
}

fn end_server(host: &BridgeHost) {
    host.run(As::Root, "kill $(cat /run/layers/dhcp/pid); rm -rf /run/layers/dhcp");
}

/// Whether a guest reaches another address by the network that this is about.
fn reaches(guest: &RunningGuest, address: &str) -> bool {
    guest.can(&format!("ping -I lima0 -c 1 -W 2 {address} >/dev/null"))
}

/// A guest's IPv6 address, once the network's router has told the prefix.
fn six(guest: &RunningGuest) -> String {
    let show = "ip -6 -o addr show dev lima0 scope global -tentative";
    assert!(guest.can(&format!(
        "for i in $(seq 100); do [ -n \"$({show})\" ] && exit; sleep 0.1; done; exit 1"
    )));
    let text = guest.run(show);
    let word = text.split_whitespace().find(|word| word.contains('/')).expect("an address");
    word.split('/').next().expect("a word").to_owned()
}

fn reachability(case: &Case) {
    let host = host(case, "1h");
    let before = host.listing();
    let guests = ["one", "two"].map(|name| host.guest("lima:lan", name));
    let sixes = [six(&guests[0]), six(&guests[1])];
    // From the LAN's own server, under the guests' names.
    let leases = host.run(As::Root, "cat /run/layers/dhcp/leases");
    for (guest, name) in guests.iter().zip(["lima-one", "lima-two"]) {
        assert!(guest.address.starts_with("10.9.0."), "{}", guest.address);
        assert!(leases.contains(&format!("{} {name} ", guest.address)), "{leases}");
    }
    for address in ["10.9.0.2", "fd09::2", &guests[1].address, &sixes[1]] {
        assert!(reaches(&guests[0], address), "{address}");
    }
    for address in [&guests[0].address, &sixes[0]] {
        host.run(As::Root, &format!("ip netns exec other ping -c 1 -W 2 {address}"));
    }
    assert!(guests[0].run("ip route show default dev lima0").contains("via 10.9.0.2"));
    match case.sees_host {
        Some(address) => {
            assert!(reaches(&guests[0], address));
            host.run(As::User, &format!("ping -c 1 -W 2 {}", guests[0].address));
        }
        None => {
            host.fail(As::User, &format!("ping -c 1 -W 1 {}", guests[0].address));
        }
    }
    let said = guests[0].process.stderr();
    let beside = case.interface == "up0" && case.make.contains("addr add");
    assert_eq!(said.contains("do not see each other"), beside, "{said}");
    drop(guests);
    host.await_listing(&before);
    end_server(&host);
}

#[test]
fn on_an_interface_without_addresses() {
    reachability(&EMPTY);
}

#[test]
fn on_a_bridge_that_is_there() {
    reachability(&BRIDGE);
}

#[test]
fn beside_the_host() {
    reachability(&USED);
}

#[test]
fn a_lease_is_renewed_and_another_address_taken_up() {
    // The shortest that the server has.
    let host = host(&EMPTY, "2m");
    let guest = host.guest("lima:lan", "one");
    let at = || host.run(As::Root, "cut -d ' ' -f 1 /run/layers/dhcp/leases | head -1");
    let first = at();
    host.eventually_within(
        Duration::from_secs(90),
        &format!(
            "[ \"$(cut -d ' ' -f 1 /run/layers/dhcp/leases | head -1)\" -gt {} ]",
            first.trim()
        ),
    );
    assert!(reaches(&guest, "10.9.0.2"));
    // The server does not know the address any more, and refuses it.
    end_server(&host);
    let other =
        SERVER.replace("LEASE", "2m").replace("10.9.0.50,10.9.0.99", "10.9.0.150,10.9.0.199");
    host.run(
        As::Root,
        &format!("mkdir /run/layers/dhcp\n{} --dhcp-authoritative", other.trim_end()),
    );
    let moved =
        "for i in $(seq 900); do ip -4 addr show dev lima0 | grep -q '10.9.0.1[5-9]' && exit
                 sleep 0.1; done; exit 1";
    assert!(guest.can_within(Duration::from_secs(95), moved));
    assert!(reaches(&guest, "10.9.0.2"));
    assert!(!guest.run("ip -4 addr show dev lima0").contains(&guest.address));
    drop(guest);
    end_server(&host);
}

#[test]
fn after_a_crash_the_next_user_undoes_it() {
    let host = host(&EMPTY, "1h");
    let before = host.listing();
    let mut guest = host.guest("lima:lan", "one");
    let pid = host.run(As::Root, "cat /run/home/.lima/_networks/lan/usernet_lan.pid");
    // All at once, so that none of them undoes something or brings up another.
    let all = format!("{} {}", guest.processes().join(" "), pid.trim());
    host.run(As::Root, &format!("kill -STOP {all}; kill -KILL {all}"));
    guest.process.wait(Duration::from_secs(10));
    host.run(As::Root, "ip link show vmlan-lan && test -e /run/lima");
    host.run(As::User, "vmlan run --network lima:lan -- ping -c 1 -W 2 10.9.0.2");
    host.await_listing(&before);
    end_server(&host);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let host = host(&EMPTY, "1h");
    end_server(&host);
    let before = host.listing();
    // Nobody gives addresses.
    let said = host.fail(As::User, "vmlan run --network lima:lan -- true");
    assert!(
        said.contains("nobody on the network of lima0 has given the guest an address"),
        "{said}"
    );
    host.await_listing(&before);
    host.run(As::Root, "ip link set up0 name up1");
    let before = host.listing();
    let said = host.fail(As::User, "vmlan run --network lima:lan -- true");
    assert!(
        said.contains("there is no interface up0; set `interface` in networks.yaml to"),
        "{said}"
    );
    host.await_listing(&before);
}
