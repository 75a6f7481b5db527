//! Machines on QEMU's own network, `--user-network=slirp`: what vmlan adds to it, forwards by ssh and
//! names by the host agent's resolver.

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

#[test]
fn a_machine_without_iptables_keeps_the_names_of_qemus_network() {
    let host = MachineHost::new();
    nameserver::serve(&host.outside, OUTSIDE);
    host.describe("one", Image::Small, "");
    let said = host.run("env -u USER vmlan start --user-network=slirp one.yaml 2>&1");
    assert!(said.contains("UDP") && said.contains("not forwarded"), "{said}");
    assert!(!said.contains("no agent"), "{said}");
    assert!(said.contains("eth0\tslirp\t192.168.5.15"), "{said}");
    assert!(host.guest("one", "nslookup -type=a known.test").contains("203.0.113.7"));
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
fn debian_asks_the_host_agent_for_names() {
    let host = MachineHost::new();
    nameserver::serve(&host.outside, OUTSIDE);
    let lines = "hostResolver:
  hosts: {mine.test: 192.0.2.9}
portForwards:
- {guestSocket: /run/user/in.sock, hostSocket: out.sock}";
    host.describe("deb", Image::Debian, lines);
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
    host.run("vmlan stop deb");
    host.await_end("vmlan");
    shut_down_by_itself(&host, "deb");
    // The end of it all is no conflict.
    let events = host.run("cat .lima/deb/ha.stdout.log");
    assert!(!events.contains("\"failed\""), "{events}");
}
