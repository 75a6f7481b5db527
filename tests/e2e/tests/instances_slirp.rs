//! Machines on QEMU's own network, `--user-network=slirp`: what vmlan adds to it, forwards by ssh and
//! names by the host agent's resolver.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use vmlan_e2e::instances::Image;
use vmlan_e2e::process::eventually;
use vmlan_e2e::world::OUTSIDE;
use vmlan_e2e::{MachineHost, nameserver};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// What the host has promised, and a little for the commands that look.
const PROMISED: Duration = Duration::from_secs(6);

fn word(host: &MachineHost, at: (IpAddr, u16)) -> Option<String> {
    let mut text = String::new();
    host.net.connect(at).ok()?.read_to_string(&mut text).ok()?;
    (!text.is_empty()).then(|| text.trim().to_owned())
}

#[track_caller]
fn comes_and_goes(host: &MachineHost, guest: &dyn Fn(&str) -> String) {
    for (listen, port) in [
        ("TCP4-LISTEN:8001,bind=127.0.0.1", 8001),
        ("TCP4-LISTEN:8002", 8002),
        ("TCP6-LISTEN:8003,bind=[::1]", 8003),
        ("TCP6-LISTEN:8004", 8004),
    ] {
        let server = format!("socat {listen},fork,reuseaddr SYSTEM:\"echo port{port}\"");
        let pid = guest(&format!("{server} >/dev/null 2>&1 </dev/null & echo $!"));
        for ip in [V4, V6] {
            let got = eventually((ip, port), PROMISED, || word(host, (ip, port)));
            assert_eq!(got, format!("port{port}"));
        }
        guest(&format!("kill {pid}"));
        let gone = || host.net.connect((V4, port)).is_err().then_some(());
        eventually(format!("the end of {port}"), PROMISED, gone);
    }
}

/// The last word on the console is the kernel's.
#[track_caller]
fn shut_down_by_itself(host: &MachineHost, name: &str) {
    let console = host.run(&format!("tail -n 3 .lima/{name}/serial.log"));
    assert!(console.contains("reboot: Power down"), "{console}");
}

/// A name that only the resolver on the host's ports knows, and sockets that lead to the host's.
const LINES: &str = "hostResolver:
  hosts: {mine.test: 192.0.2.9}
portForwards:
- {guestSocket: /run/user/in.sock, hostSocket: out.sock}
- {guestSocket: /tmp/new/back.sock, hostSocket: /run/home/back.sock, reverse: true}";

#[test]
fn a_machine_that_can_redirect_nothing_says_so_and_keeps_the_names_of_qemus_network() {
    let host = MachineHost::new();
    nameserver::serve(&host.outside, OUTSIDE);
    let lines = format!("{LINES}\nprovision:\n- {{script: exit 3}}");
    host.describe("one", Image::Small, &lines);
    let said = host.run("env -u USER vmlan start --user-network=slirp one.yaml 2>&1");
    assert!(said.contains("UDP") && said.contains("not forwarded"), "{said}");
    assert!(!said.contains("no agent"), "{said}");
    assert!(said.contains("eth0\tslirp\t192.168.5.15"), "{said}");
    assert!(host.guest("one", "nslookup -type=a known.test").contains("203.0.113.7"));
    host.until("vmlan list one | grep 'neither iptables nor nft'", PROMISED);
    let failed = "provision-0000-system has failed with status 3";
    host.until(&format!("vmlan list one | grep '{failed}'"), PROMISED);
    // Nor has its ssh server sockets that lead elsewhere.
    let why = host.until("vmlan list one | grep back.sock", PROMISED);
    assert!(why.contains("/tmp/new/back.sock is not forwarded"), "{why}");
    // The caller's account says who that is, if nothing else does.
    assert_eq!(host.run("vmlan shell one id -un"), "vmlan-test");
    let one = host.listed("one").expect("a machine");
    assert_eq!((one["cpus"].as_u64(), one["memory"].as_u64()), (Some(1), Some(256 << 20)));
    comes_and_goes(&host, &|script| host.guest("one", script));
    host.run("vmlan stop one");
    host.await_end("vmlan");
    host.await_end("ssh");
    shut_down_by_itself(&host, "one");
}

#[test]
fn a_machine_without_iptables_asks_the_host_agent_for_names_by_nft() {
    let host = MachineHost::new();
    nameserver::serve(&host.outside, OUTSIDE);
    host.describe("one", Image::Small, LINES);
    let path = host.home().join("one.yaml");
    let text = fs::read_to_string(&path).expect("a file");
    fs::write(&path, text.replace(" quiet ", " quiet nft ")).expect("a file");
    host.run("vmlan start --user-network=slirp one.yaml 2>&1");
    let table = host.guest("one", "nft list table ip LIMADNS");
    for rule in [
        "hook prerouting priority",
        "hook output priority",
        "ip daddr 192.168.5.3 udp dport 53 dnat to 192.168.5.2:",
        "ip daddr 192.168.5.3 tcp dport 53 dnat to 192.168.5.2:",
    ] {
        assert!(table.contains(rule), "{rule} in {table}");
    }
    assert_eq!(table.matches("dnat to").count(), 4, "{table}");
    assert!(host.guest("one", "nslookup -type=a mine.test").contains("192.0.2.9"));
    // The same question by TCP, for which busybox has no program.
    let ask = r#"printf '\000\033\0\1\1\0\0\1\0\0\0\0\0\0\004mine\004test\0\0\1\0\1' |
        socat -t 5 - TCP:192.168.5.3:53 | hexdump -ve '1/1 "%d "'"#;
    let answer = host.guest("one", ask);
    assert!(answer.ends_with("192 0 2 9"), "{answer}");
    assert!(host.guest("one", "nslookup -type=a known.test").contains("203.0.113.7"));
    // However often it is set up, it is there once.
    host.guest("one", "sh /run/vmlan/seed/vmlan-boot late");
    assert_eq!(host.guest("one", "nft list table ip LIMADNS"), table);
    let list = host.run("vmlan list one");
    assert!(!list.contains("iptables"), "{list}");
}

#[test]
fn debian_asks_the_host_agent_for_names() {
    let host = MachineHost::new();
    nameserver::serve(&host.outside, OUTSIDE);
    host.describe("deb", Image::Debian, LINES);
    host.run("vmlan start --user-network=slirp deb.yaml 2>&1");
    let sh = |script: &str| {
        let words = script.replace('\'', r"'\''");
        host.run(&format!("vmlan shell deb sh -c '{words}' 2>&1"))
    };
    assert!(sh("sudo cloud-init status --wait").contains("status: done"));
    let chain = sh("sudo iptables -t nat -S LIMADNS");
    assert_eq!(chain.matches("-d 192.168.5.3/32").count(), 2, "{chain}");
    for at in ["PREROUTING", "OUTPUT"] {
        let first = sh(&format!("sudo iptables -t nat -S {at} 1"));
        assert!(first.contains("-j LIMADNS"), "{first}");
    }
    // Only the resolver on the host's ports knows this one.
    assert!(sh("getent ahostsv4 mine.test").contains("192.0.2.9"));
    assert!(sh("getent ahostsv4 known.test").contains("203.0.113.7"));
    assert!(sh("getent ahostsv4 host.lima.internal").contains("192.168.5.2"));
    comes_and_goes(&host, &sh);
    sh("sudo install -d -m 777 /run/user
        socat UNIX-LISTEN:/run/user/in.sock,fork SYSTEM:\"echo socket\" >/dev/null 2>&1 </dev/null &");
    let ask = "socat -t 5 - UNIX-CONNECT:.lima/deb/sock/out.sock </dev/null | grep socket";
    host.until(ask, PROMISED);
    // And the other way: a socket in the machine that leads to one of the host's.
    host.run(
        "socat UNIX-LISTEN:back.sock,fork SYSTEM:'echo the host' >/dev/null 2>&1 </dev/null &",
    );
    let ask = "socat -t 5 - UNIX-CONNECT:/tmp/new/back.sock </dev/null";
    assert_eq!(sh(ask), "the host");
    let one = host.listed("deb").expect("a machine");
    let ports = one["ports"].as_array().expect("ports");
    let back = ports.iter().find(|port| port["reverse"] == true).expect("a port");
    assert_eq!(back["problem"], serde_json::Value::Null);
    // It comes back with the connection, whatever is left of it.
    let session = host.processes("ControlMaster=yes");
    let pid = session[0].split(' ').next().expect("the number of a process");
    host.run(&format!("kill -KILL {pid}"));
    sh("while [ -S /tmp/new/back.sock ]; do sleep 0.2; done; touch /tmp/new/x
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/tmp/new/back.sock\")'");
    host.until(&format!("vmlan shell deb {ask} 2>&1 | grep 'the host'"), 5 * PROMISED);
    host.run("vmlan stop deb");
    host.await_end("vmlan");
    shut_down_by_itself(&host, "deb");
    // The end of it all is no conflict.
    let events = host.run("cat .lima/deb/ha.stdout.log");
    assert!(!events.contains("\"failed\""), "{events}");
}
