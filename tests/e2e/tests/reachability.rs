//! Who reaches whom on networks with a bridge: commands in namespaces and QEMU machines, on networks of
//! mode shared, host and bridged, by IPv4 and IPv6; alone, and beside other firewalls.

use std::thread;
use std::time::Duration;

use vmlan_e2e::{As, BridgeHost, Machine, RunningGuest};

/// An emulated processor needs its time, and shares it with the other tests.
const PATIENT: Duration = Duration::from_secs(120);

/// The outside, and a LAN with another host, which gives addresses there. Both have routes to all
/// guests by the host.
const AROUND: &str = "
    echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
    echo 1 >/proc/sys/net/bridge/bridge-nf-call-ip6tables
    for there in outside other; do ip netns add $there; ip -n $there link set lo up; done
    ip link add up0 type veth peer name out0 netns outside
    ip link add up1 type veth peer name lan0 netns other
    ip link add br0 type bridge mcast_snooping 0
    echo 0 >/proc/sys/net/ipv6/conf/br0/accept_ra
    echo 1 >/proc/sys/net/ipv6/conf/up1/disable_ipv6
    ip link set up1 master br0 up
    for card in up0:203.0.113.1/24:fd00:77::1/64 br0:10.9.0.1/24:fd09::1/64; do
        ip addr add $(echo $card | cut -d : -f 2) dev ${card%%:*}
        ip addr add $(echo $card | cut -d : -f 3-) dev ${card%%:*} nodad
        ip link set ${card%%:*} up
    done
    ip -n outside addr add 203.0.113.2/24 dev out0
    ip -n outside addr add fd00:77::2/64 dev out0 nodad
    ip -n outside link set out0 up
    ip -n outside route add 192.168.0.0/16 via 203.0.113.1
    ip -n outside route add fd76::/16 via fd00:77::1
    ip -n other addr add 10.9.0.2/24 dev lan0
    ip -n other addr add fd09::2/64 dev lan0 nodad
    ip -n other link set lan0 up
    ip -n other route add 192.168.0.0/16 via 10.9.0.1
    ip -n other route add fd76::/16 via fd09::1
    ip netns exec other sh -c 'echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
    for link in up0 br0; do
        until [ -n \"$(ip -6 addr show dev $link scope link -tentative)\" ]; do sleep 0.05; done
    done
    for there in outside other; do
        ip netns exec $there nft 'table inet seen {
            counter inside { }
            chain in {
                type filter hook prerouting priority filter;
                ip saddr 192.168.0.0/16 counter name inside
                ip6 saddr fd76::/16 counter name inside
            }
        }'
    done
    mkdir -p /run/layers/dhcp
    ip netns exec other dnsmasq --conf-file=/dev/null --interface=lan0 --bind-interfaces --no-resolv \
        --no-hosts --port=0 --user=root --dhcp-range=10.9.0.50,10.9.0.99,1h \
        --dhcp-option=option:router,10.9.0.1 --dhcp-range=fd09::,ra-only,64 --enable-ra \
        --dhcp-leasefile=/run/layers/dhcp/leases --pid-file=/run/layers/dhcp/pid
    echo '  lan: {mode: bridged, interface: br0}' >>/run/home/.lima/_config/networks.yaml
";

/// What others let through to the host itself in every case, or they would cut it off.
const INPUT: &str = "
        type filter hook input priority filter; policy drop;
        iifname lo accept
        ct state related,established accept
        icmp type echo-request accept
        icmpv6 type { echo-request, nd-router-solicit, nd-router-advert, nd-neighbor-solicit,
                      nd-neighbor-advert } accept
";

/// Other firewalls, as their rules are in netfilter. None of them lets a ping through by itself.
const FIREWALLS: [(&str, &str); 5] = [
    (
        "a policy of drop",
        "table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }
         table ip6 filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }",
    ),
    (
        "docker",
        "table ip filter {
            chain DOCKER-USER { return; }
            chain DOCKER-CT { oifname docker0 ct state related,established accept; }
            chain DOCKER-FORWARD { jump DOCKER-CT; iifname docker0 accept; }
            chain FORWARD {
                type filter hook forward priority filter; policy drop;
                jump DOCKER-USER
                jump DOCKER-FORWARD
            }
         }
         table ip6 filter {
            chain DOCKER-USER { return; }
            chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; }
         }
         table ip nat { chain POSTROUTING {
            type nat hook postrouting priority srcnat; policy accept;
            ip saddr 172.17.0.0/16 oifname != docker0 masquerade
         }; }",
    ),
    (
        "firewalld",
        "table inet firewalld {
            chain filter_INPUT { INPUT reject with icmpx admin-prohibited; }
            chain filter_FWD_public { return; }
            chain filter_FORWARD {
                type filter hook forward priority filter + 10; policy accept;
                ct state established,related accept
                ct status dnat accept
                iifname lo accept
                jump filter_FWD_public
                ct state invalid drop
                reject with icmpx admin-prohibited
            }
         }",
    ),
    (
        "ufw",
        "table ip filter {
            chain ufw-before-forward { ct state related,established accept; }
            chain ufw-user-forward { }
            chain ufw-after-forward { }
            chain ufw-reject-forward { }
            chain INPUT { INPUT }
            chain FORWARD {
                type filter hook forward priority filter; policy drop;
                jump ufw-before-forward
                jump ufw-user-forward
                jump ufw-after-forward
                jump ufw-reject-forward
            }
         }
         table ip6 filter {
            chain ufw6-before-forward { ct state related,established accept; }
            chain ufw6-user-forward { }
            chain INPUT { INPUT }
            chain FORWARD {
                type filter hook forward priority filter; policy drop;
                jump ufw6-before-forward
                jump ufw6-user-forward
            }
         }",
    ),
    ("none", ""),
];

const MODES: [&str; 3] = ["shared", "host", "lan"];

/// One network with a guest of each kind, and their addresses of both families.
struct Net {
    command: RunningGuest,
    machine: Machine,
    _tap: std::os::fd::OwnedFd,
    guests: [[String; 2]; 2],
}

/// The first address of a listing, without its prefix.
#[track_caller]
fn address(listing: &str) -> String {
    let word = listing.split_whitespace().find(|word| word.contains('/')).expect("an address");
    word.split('/').next().expect("a word").to_owned()
}

/// Waits for an address that was made of the prefix which the network's router tells.
fn show(card: &str) -> String {
    let show = format!("ip -6 addr show dev {card} scope global | grep inet6 | grep -v tentative");
    format!("for i in $(seq 60); do {show} && exit; sleep 1; done; exit 1")
}

impl Net {
    fn new(host: &BridgeHost, at: usize) -> Self {
        let name = MODES[at];
        let command = host.guest(&format!("lima:{name}"), "one");
        let mac = format!("52:54:00:00:00:0{at}");
        let tap = host.tap(&format!("vmlan-{name}"), &mac);
        let mut machine = Machine::boot_on(&tap, &mac);
        machine.dhcp();
        let four = address(&machine.sh("ip -4 addr show dev eth0 | grep inet", PATIENT));
        // In a shell of its own, which may end.
        let six = address(&machine.sh(&format!("({})", show("eth0")), PATIENT));
        let guests =
            [[command.address.clone(), address(&command.run(&show("lima0")))], [four, six]];
        Self { command, machine, _tap: tap, guests }
    }
}

/// The words of a shell that print which of some addresses answer a ping.
fn pings(option: &str, addresses: &[&String]) -> String {
    let each = addresses.iter().map(|address| {
        let six = if address.contains(':') { "-6" } else { "" };
        format!("(ping {six} {option} -c 2 -W 4 {address} >/dev/null 2>&1 && echo {address}) & ")
    });
    each.collect::<String>() + "wait"
}

struct Lab {
    host: BridgeHost,
    nets: Vec<Net>,
}

impl Lab {
    fn new(host: BridgeHost) -> Self {
        let nets: Vec<Net> = thread::scope(|scope| {
            let host = &host;
            let each = [0, 1, 2].map(|at| scope.spawn(move || Net::new(host, at)));
            each.into_iter().map(|net| net.join().expect("a network")).collect()
        });
        // A guest that knows a way out all the same.
        nets[1].command.run(
            "ip route add default via 192.168.106.1 dev lima0
             ip -6 route add default via fd76:6d6c:c0a8:6a00::1 dev lima0",
        );
        Self { host, nets }
    }

    /// Puts a firewall in the place of the one before, as starting its service anew does, and has the
    /// networks made anew under their guests.
    fn put_up(&self, rules: &str) {
        let rules = rules.replace("{ INPUT", &format!("{{ {INPUT}"));
        self.host.run(As::Root, &format!("nft -f - <<'E'\nflush ruleset\n{rules}\nE"));
        for name in MODES {
            let pidfile = format!("/run/home/.lima/_networks/{name}/usernet_{name}.pid");
            let old = self.host.run(As::Root, &format!("cat {pidfile}"));
            let old = old.trim();
            self.host.run(As::Root, &format!("kill -9 {old}"));
            self.host.eventually(&format!("[ -e {pidfile} ] && [ \"$(cat {pidfile})\" != {old} ]"));
        }
    }

    /// Everybody pings everybody.
    fn check(&mut self, firewall: &str) {
        let all: Vec<Vec<String>> = self.nets.iter().map(|net| net.guests.concat()).collect();
        let of = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (outside, other) = (of("203.0.113.2 fd00:77::2"), of("10.9.0.2 fd09::2"));
        let hosts = [
            of("192.168.105.1 fd76:6d6c:c0a8:6900::1"),
            of("192.168.106.1 fd76:6d6c:c0a8:6a00::1"),
            of("10.9.0.1 fd09::1"),
        ];
        let everywhere: Vec<&String> = all.iter().flatten().chain(&outside).chain(&other).collect();
        // Each from the network's guests: the host, each other, and what is said here.
        let beyond: [Vec<&String>; 3] = [
            all[2].iter().chain(&outside).chain(&other).collect(),
            Vec::new(),
            other.iter().collect(),
        ];
        let guests: Vec<&String> = all.iter().flatten().collect();
        let assert = |who: &str, said: String, mut want: Vec<&String>| {
            let mut got: Vec<&str> = said.lines().map(str::trim).collect();
            got.sort_unstable();
            want.sort();
            assert_eq!(got, want, "with {firewall}, {who} reaches other addresses");
        };
        let (host, line) = (&self.host, pings("", &guests));
        thread::scope(|scope| {
            for (at, net) in self.nets.iter_mut().enumerate() {
                let targets: Vec<_> = everywhere.iter().copied().chain(&hosts[at]).collect();
                let want: Vec<_> =
                    all[at].iter().chain(&hosts[at]).chain(beyond[at].clone()).collect();
                let (command, machine) = (&net.command, &mut net.machine);
                let (line, wanted) = (pings("-I lima0", &targets), want.clone());
                scope.spawn(move || {
                    assert(&format!("a command on {}", MODES[at]), command.run(&line), wanted);
                });
                let line = pings("", &targets);
                scope.spawn(move || {
                    machine.dhcp();
                    let said = machine.sh(&format!("({line})"), PATIENT);
                    assert(&format!("a machine on {}", MODES[at]), said, want);
                });
            }
            let line = &line;
            let run = |who, line: String| host.run(who, &line);
            let (all, guests) = (&all, &guests);
            scope.spawn(move || assert("the host", run(As::User, line.clone()), guests.clone()));
            for (name, want) in [("outside", Vec::new()), ("other", all[2].iter().collect())] {
                let line = format!("ip netns exec {name} sh -c '{line}'");
                scope.spawn(move || assert(name, run(As::Root, line), want));
            }
        });
        // Nothing comes there in the name of a network behind the host, not even one way.
        for there in ["outside", "other"] {
            let list = format!("ip netns exec {there} nft list counter inet seen inside");
            let said = host.run(As::Root, &list);
            assert!(said.contains("packets 0 "), "with {firewall}, {there} has seen: {said}");
        }
    }
}

#[test]
fn everybody_reaches_whom_they_should_beside_every_firewall() {
    let host = BridgeHost::new();
    host.run(As::Root, AROUND);
    host.install_sudoers();
    let before = host.listing();
    let mut lab = Lab::new(host);
    for (name, rules) in FIREWALLS {
        lab.put_up(rules);
        lab.check(name);
    }
    let Lab { host, nets } = lab;
    drop(nets);
    host.await_listing(&before);
    host.run(As::Root, "kill $(cat /run/layers/dhcp/pid)");
}
