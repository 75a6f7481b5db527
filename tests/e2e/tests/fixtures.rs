//! The scene itself, without vmlan in it: what the other tests build on.

use std::io::ErrorKind;
use std::time::Duration;

use vmlan_e2e::world::{OUTSIDE, host_and_outside};
use vmlan_e2e::{Machine, server};

#[test]
fn outside_answers_and_refuses_as_documented() {
    let (host, outside) = host_and_outside();
    host.run("ping -c 1 -W 2 2001:db8:1::2");
    server::echo(outside.listen((OUTSIDE, 80)));
    host.connect((OUTSIDE, 80)).expect("a server listens there");
    let refused = host.connect((OUTSIDE, 81)).expect_err("nobody listens there");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let unreachable = host.connect(([203, 0, 113, 1], 80)).expect_err("no route leads there");
    assert_eq!(unreachable.kind(), ErrorKind::HostUnreachable);
    assert_eq!(host.run("cat /etc/resolv.conf"), "nameserver 198.51.100.2\n");
}

#[test]
fn machine_boots_and_answers() {
    let quick = Duration::from_secs(20);
    let mut machine = Machine::boot("user", "52:54:00:00:00:01");
    let lease = machine.dhcp();
    assert!(lease.contains("lease of 10.0.2.15 obtained"), "{lease}");
    assert_eq!(machine.try_sh("false", quick).status, 1);
    machine.sh("insmod /lib/modules/sch_netem.ko", quick);
    machine.sh("/sbin/tc qdisc add dev eth0 root netem delay 20ms loss 5%", quick);
    let qdiscs = machine.sh("/sbin/tc qdisc show dev eth0", quick);
    assert!(qdiscs.contains("delay 20ms loss 5%"), "{qdiscs}");
}
