//! Machines of QEMU's with cards on networks with a bridge, and beside the host on its own network.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use vmlan_e2e::{As, BridgeHost, Machine, Process};

const MAC: &str = "52:54:00:00:00:09";

/// An emulated processor needs its time, and shares it with the other tests.
const PATIENT: Duration = Duration::from_secs(120);

#[track_caller]
fn reaches(machine: &mut Machine, address: &str) -> bool {
    let six = if address.contains(':') { "ping -6" } else { "ping" };
    machine.try_sh(&format!("{six} -c 2 -W 5 {address}"), PATIENT).status == 0
}

/// Until the network's router has told the prefix, and the address has been tried.
fn await_six(machine: &mut Machine) {
    let show = "ip -6 addr show dev eth0 scope global | grep -v tentative | grep -q inet6";
    machine.sh(&format!("for i in $(seq 60); do {show} && break; sleep 1; done; {show}"), PATIENT);
}

/// A machine's card on the LAN, and a process that has joined for it, as host agents do.
fn joined(host: &BridgeHost) -> (Process, OwnedFd) {
    let hello = format!("{{\"mac\": \"{MAC}\", \"bridged\": true}}");
    let script = format!(
        "exec python3 -c '
import socket
s = socket.socket(socket.AF_UNIX)
s.connect(\"/run/home/.lima/_networks/lan/lan_fd.sock\")
s.sendall(b\"\"\"{hello}\\n\"\"\")
print(s.recv(4096).decode(), flush=True)
s.recv(1)'"
    );
    let mut command = host.command(As::User, &script);
    let mut agent = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()));
    let mut said = String::new();
    let out = agent.child().stdout.take().expect("a pipe");
    BufReader::new(out).read_line(&mut said).expect("a line");
    assert!(said.contains("\"lan\":true"), "{said}");
    (agent, host.tap("vmlan-lan", MAC))
}

#[test]
fn on_networks_of_the_hosts_own() {
    let host = BridgeHost::new();
    host.run(
        As::Root,
        "ip netns add outside
         ip link add up0 type veth peer name out0 netns outside
         ip addr add 203.0.113.1/24 dev up0; ip addr add fd00:77::1/64 dev up0 nodad
         ip link set up0 up
         ip -n outside addr add 203.0.113.2/24 dev out0
         ip -n outside addr add fd00:77::2/64 dev out0 nodad
         ip -n outside link set out0 up
         until [ -n \"$(ip -6 addr show dev up0 scope link -tentative)\" ]; do sleep 0.05; done",
    );
    let before = host.listing();
    for (network, leads_out, net) in [("shared", true, "105"), ("host", false, "106")] {
        let guest = host.guest(&format!("lima:{network}"), "one");
        let tap = host.tap(&format!("vmlan-{network}"), MAC);
        let mut machine = Machine::boot_on(&tap, MAC);
        let said = machine.dhcp();
        assert!(said.contains(&format!("192.168.{net}.")), "{said}");
        await_six(&mut machine);
        let hex = format!("{:02x}", net.parse::<u8>().unwrap());
        let prefix = format!("fd76:6d6c:c0a8:{hex}00::");
        for address in [format!("192.168.{net}.1"), guest.address.clone(), format!("{prefix}1")] {
            assert!(reaches(&mut machine, &address), "{network}: {address}");
        }
        for address in ["203.0.113.2", "fd00:77::2"] {
            assert_eq!(reaches(&mut machine, address), leads_out, "{network}: {address}");
        }
        let own = machine
            .sh("ip -4 -o addr show dev eth0 | sed 's|.* inet \\([0-9.]*\\)/.*|\\1|'", PATIENT);
        host.run(As::User, &format!("ping -c 2 -W 5 {own}"));
        assert!(guest.can(&format!("ping -I lima0 -c 2 -W 5 {own}")));
        drop((machine, tap, guest));
    }
    host.await_listing(&before);
}

#[test]
fn on_the_network_of_the_host() {
    for (make, beside) in [
        ("ip link set up0 up; ip addr add 10.9.0.1/24 dev up0", true),
        ("ip link set up0 up", false),
    ] {
        let host = BridgeHost::new();
        host.run(
            As::Root,
            &format!(
                "ip netns add other
                 ip link add up0 type veth peer name lan0 netns other
                 echo 0 >/proc/sys/net/ipv6/conf/up0/accept_ra
                 {make}
                 ip -n other addr add 10.9.0.2/24 dev lan0
                 ip -n other addr add fd09::2/64 dev lan0 nodad
                 ip -n other link set lan0 up
                 until [ -n \"$(ip -6 addr show dev up0 scope link -tentative)\" ]; do sleep 0.05; done
                 mkdir -p /run/layers/dhcp
                 ip netns exec other dnsmasq --conf-file=/dev/null --interface=lan0 \
                     --bind-interfaces --no-resolv --no-hosts --port=0 --user=root \
                     --dhcp-range=10.9.0.50,10.9.0.99,1h --dhcp-range=fd09::,ra-only,64 --enable-ra \
                     --dhcp-leasefile=/run/layers/dhcp/leases --pid-file=/run/layers/dhcp/pid
                 echo '  lan: {{mode: bridged, interface: up0}}' >>/run/home/.lima/_config/networks.yaml"
            ),
        );
        host.install_sudoers();
        let before = host.listing();
        let guest = host.guest("lima:lan", "one");
        let (mut agent, tap) = joined(&host);
        let mut machine = Machine::boot_on(&tap, MAC);
        let said = machine.dhcp();
        assert!(said.contains("10.9.0."), "{said}");
        await_six(&mut machine);
        for address in ["10.9.0.2", "fd09::2", &guest.address] {
            assert!(reaches(&mut machine, address), "{make}: {address}");
        }
        if beside {
            assert!(!reaches(&mut machine, "10.9.0.1"), "the host is not seen");
        }
        let own = machine
            .sh("ip -4 -o addr show dev eth0 | sed 's|.* inet \\([0-9.]*\\)/.*|\\1|'", PATIENT);
        host.run(As::Root, &format!("ip netns exec other ping -c 2 -W 5 {own}"));
        // The machine and whoever has started it are killed; another guest stays.
        machine.process().signal(Signal::KILL);
        agent.signal(Signal::KILL);
        agent.wait(PATIENT);
        drop((machine, tap));
        host.eventually("[ -z \"$(ip -o link show type macvtap)\" ]");
        assert!(guest.can("ping -I lima0 -c 2 -W 5 10.9.0.2"));
        drop(guest);
        host.await_listing(&before);
        host.run(As::Root, "kill $(cat /run/layers/dhcp/pid)");
    }
}
