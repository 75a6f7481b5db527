//! A whole Debian with systemd and cloud-init: what the small machine does itself, a distribution
//! does with its own programs. One machine, since each boot takes most of a minute.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use vmlan_e2e::instances::{Image, PATIENT};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::eventually;
use vmlan_e2e::server::serve_one;
use vmlan_e2e::world::{OUTSIDE, OUTSIDE6};
use vmlan_e2e::{MachineHost, nameserver, pattern};

const LENGTH: usize = 16 << 20;
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What the host has promised, and a little for the commands that look.
const PROMISED: Duration = Duration::from_secs(4);

const LINES: &str = r#"env: {GREETING: hello}
caCerts:
  files: [/run/home/ca.pem]
provision:
- {mode: system, script: "id -u >/root/system"}
- {mode: user, script: "id -un >~/user"}"#;

#[test]
fn debian_is_started_used_and_started_again() {
    let host = MachineHost::new();
    nameserver::serve(&host.outside, OUTSIDE);
    host.run(
        "openssl req -x509 -newkey ed25519 -nodes -keyout key.pem -out ca.pem -subj /CN=test \
         -addext subjectAltName=DNS:host.lima.internal 2>&1",
    );
    host.describe("deb", Image::Debian, LINES);
    let said = host.run("http_proxy=http://127.0.0.1:3128 vmlan start deb.yaml 2>&1");
    assert!(said.contains("eth0\t") && said.contains("192.168.5.15"), "{said}");
    let sh = |script: &str| {
        let words = script.replace('\'', r"'\''");
        host.run(&format!("vmlan shell deb sh -c '{words}' 2>&1"))
    };

    // cloud-init comes to its end, and no unit fails.
    let end = host.output("vmlan shell deb sudo cloud-init status --wait --long");
    let end = String::from_utf8_lossy(&end.stdout).into_owned();
    assert!(end.contains("status: done"), "{end}{}", sh("sudo cat /var/log/cloud-init.log"));
    assert_eq!(sh("systemctl --failed --no-legend --plain"), "");
    assert_eq!(sh("hostname; id -un; sudo id -un"), "lima-deb\nvmlan-test\nroot");
    assert_eq!(sh("systemctl is-active vmlan-agent"), "active");
    // Its disk is what was asked for.
    let size = sh("df -BM --output=size / | tail -n 1");
    assert!(size.trim().trim_end_matches('M').parse::<u32>().is_ok_and(|m| m > 2500), "{size}");

    // DHCP and names, by networkd and resolved.
    let address = sh("ip -4 -o address show dev eth0");
    assert!(address.contains("192.168.5.15/24"), "{address}");
    assert!(sh("resolvectl dns eth0").contains("192.168.5.3"));
    assert!(sh("getent ahostsv4 known.test").contains("203.0.113.7"));
    assert!(sh("getent ahostsv4 host.lima.internal").contains("192.168.5.2"));

    // What lima.yaml says of the inside.
    let login = host.run("ssh -F .lima/deb/ssh.config lima-deb env");
    assert!(login.contains("GREETING=hello"), "{login}");
    assert!(login.contains("http_proxy=http://host.lima.internal:3128"), "{login}");
    let trusted = "grep -c -F -f /run/vmlan-ca /etc/ssl/certs/ca-certificates.crt";
    let line = host.run("sed -n 2p ca.pem");
    sh(&format!("echo '{line}' | sudo tee /run/vmlan-ca"));
    assert_eq!(sh(trusted), "1");
    host.run(
        "openssl s_server -quiet -www -accept 127.0.0.1:4433 -cert ca.pem -key key.pem \
              </dev/null >/dev/null 2>&1 &",
    );
    let ask =
        "import urllib.request as u; print(u.urlopen(\"https://host.lima.internal:4433\").status)";
    host.until(&format!("vmlan shell deb python3 -c '{ask}' | grep 200"), SOON);
    assert_eq!(sh("sudo cat /root/system; cat user"), "0\nvmlan-test");

    // TCP both ways, over both versions of IP.
    for outside in [OUTSIDE, OUTSIDE6] {
        let source = serve_one(host.outside.listen((outside, 80)), |mut stream| {
            pattern::send(&mut stream, 1, LENGTH).expect("bytes can be sent");
        });
        let to = if outside.is_ipv6() { format!("[{outside}]") } else { outside.to_string() };
        let got = sh(&format!("socat -u TCP:{to}:80 - | sha256sum"));
        source.join().expect("everything sent");
        let mut same = tempfile::NamedTempFile::new().expect("a temporary file");
        pattern::send(&mut same, 1, LENGTH).expect("a file can be written");
        assert_eq!(got, host.root(&format!("sha256sum <{}", same.path().display())));
    }
    sh(&format!("head -c {LENGTH} /dev/urandom >bytes"));
    sh(
        "sudo systemd-run -q --unit=web --working-directory=$HOME python3 -m http.server 8000 --bind 127.0.0.1",
    );
    eventually("the machine's port", PROMISED, || host.net.connect((LOOPBACK, 8000)).ok());
    let got = host.run("curl -sS --max-time 100 http://127.0.0.1:8000/bytes | sha256sum");
    assert_eq!(got, sh("sha256sum <bytes"));
    sh("sudo systemctl stop web");
    let gone = || host.net.connect((LOOPBACK, 8000)).is_err().then_some(());
    eventually("the end of the machine's port", PROMISED, gone);

    // A prompt end by the power button, and the same machine again.
    let before = host.listed("deb").expect("a machine");
    let id = sh("cat /etc/machine-id; cat /etc/ssh/ssh_host_ed25519_key.pub");
    host.run("vmlan stop deb");
    assert_eq!(host.status("deb"), "Stopped");
    assert!(host.run("tail -n 3 .lima/deb/serial.log").contains("reboot: Power down"));
    host.run("vmlan start deb");
    // Its file system was taken down in order.
    let mounted = sh("sudo dmesg | grep EXT4-fs");
    assert!(mounted.contains("mounted") && !mounted.contains("unchecked"), "{mounted}");
    let after = host.listed("deb").expect("a machine");
    assert_eq!(after["networks"], before["networks"]);
    assert_eq!(sh("cat /etc/machine-id; cat /etc/ssh/ssh_host_ed25519_key.pub"), id);
    assert!(sh("ip -4 -o address show dev eth0").contains("192.168.5.15/24"));
    let mut echo = String::new();
    let source = serve_one(host.outside.listen((OUTSIDE, 81)), |mut stream| {
        stream.set_read_timeout(Some(PATIENT)).expect("a deadline");
        stream.read_to_string(&mut echo).expect("bytes until an end in order");
        echo
    });
    sh(&format!("echo again | socat -u - TCP:{OUTSIDE}:81"));
    assert_eq!(source.join().expect("a connection"), "again\n");
    host.run("vmlan stop --force deb");
    host.await_end("qemu-system");
    host.await_end("vmlan");
}
