//! Machines that `vmlan start` makes: their lives, and what they reach and are reached by.

use std::net::IpAddr;
use std::time::Duration;

use vmlan_e2e::instances::{Image, PATIENT};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::capture;
use vmlan_e2e::server::{echo_udp, serve_one};
use vmlan_e2e::world::{OUTSIDE, OUTSIDE6};
use vmlan_e2e::{MachineHost, nameserver, pattern};

const MEGABYTES: usize = 8;
const LENGTH: usize = MEGABYTES << 20;

/// The machine gets bytes from the outside and sends some there; both arrive as they were.
#[track_caller]
fn transfers(host: &MachineHost, outside: IpAddr) {
    let source = serve_one(host.outside.listen((outside, 80)), |mut stream| {
        pattern::send(&mut stream, 1, LENGTH).expect("bytes can be sent");
    });
    let mut same = tempfile::NamedTempFile::new().expect("a temporary file");
    pattern::send(&mut same, 1, LENGTH).expect("a file can be written");
    let got = host.guest("one", &format!("nc {outside} 80 </dev/null | sha256sum"));
    source.join().expect("everything sent");
    let sum = host.root(&format!("sha256sum <{}", same.path().display()));
    assert_eq!(got, sum);

    let sink = serve_one(host.outside.listen((outside, 81)), |mut stream| {
        stream.set_read_timeout(Some(PATIENT)).expect("a deadline");
        let mut bytes = tempfile::NamedTempFile::new().expect("a temporary file");
        std::io::copy(&mut stream, &mut bytes).expect("bytes until an end in order");
        bytes
    });
    let make = format!("head -c {LENGTH} /dev/urandom >/tmp/bytes");
    let sent = host.guest(
        "one",
        &format!("{make}; nc {outside} 81 </tmp/bytes; sha256sum </tmp/bytes; rm /tmp/bytes"),
    );
    let bytes = sink.join().expect("a connection");
    assert_eq!(sent, host.root(&format!("sha256sum <{}", bytes.path().display())));
}

#[test]
fn a_machine_is_started_used_and_started_again() {
    let host = MachineHost::new();
    nameserver::serve(&host.outside, OUTSIDE);
    echo_udp(host.outside.udp((OUTSIDE, 7)));

    let said = host.start("one", "");
    let network = said.lines().find(|line| line.starts_with("eth0\t"));
    let network = network.unwrap_or_else(|| panic!("no line for the network in {said}"));
    assert!(network.contains("192.168.5.15"), "{said}");
    let one = host.listed("one").expect("a machine");
    assert_eq!(one["status"], "Running");
    assert_eq!(one["health"], "ready");
    assert!(said.contains(&format!("127.0.0.1:{}", one["sshLocalPort"])), "{said}");

    // Who it is, and its lease.
    assert_eq!(host.run("vmlan shell one id -un"), "vmlan-test");
    assert_eq!(host.output("vmlan shell one sh -c 'exit 3'").status.code(), Some(3));
    assert_eq!(host.guest("one", "hostname"), "lima-one");
    let lease = host.guest("one", "cat /run/lease.eth0");
    for what in ["ip='192.168.5.15'", "router='192.168.5.2'", "dns='192.168.5.3'"] {
        assert!(lease.contains(what), "{what} in {lease}");
    }

    // Names, the outside, and both over IPv6.
    assert!(host.guest("one", "nslookup -type=a known.test").contains("203.0.113.7"));
    assert!(host.guest("one", "nslookup -type=a host.lima.internal").contains("192.168.5.2"));
    transfers(&host, OUTSIDE);
    assert_eq!(host.guest("one", &format!("echo hello | socat -t 9 - UDP:{OUTSIDE}:7")), "hello");
    host.guest("one", &format!("ping -c 1 -W 5 {OUTSIDE}"));
    let made = "for i in $(seq 100); do ip -6 -o address show dev eth0 scope global | \
               grep -v tentative && break; sleep 0.1; done";
    let addresses = host.guest("one", made);
    assert!(addresses.contains(" fd"), "{addresses}");
    transfers(&host, OUTSIDE6);
    let six = addresses.split_whitespace().find(|word| word.starts_with("fd"));
    let six = six.and_then(|word| word.split('/').next()).expect("an address");
    let is_listed = format!("vmlan list one | grep {six}");
    host.until(&is_listed, SOON);
    let networks = host.listed("one").expect("a machine")["networks"].clone();

    // Again.
    host.run("vmlan stop one");
    assert_eq!(host.status("one"), "Stopped");
    host.await_end("vmlan");
    host.await_end("qemu-system");
    let refused = host.fail("vmlan shell one true");
    assert!(refused.contains("vmlan start one"), "{refused}");
    let again = host.run("vmlan start one");
    assert!(again.contains(network), "{network} is not in {again}");
    host.until(&is_listed, SOON);
    assert_eq!(host.listed("one").expect("a machine")["networks"], networks);
    host.until(&format!("vmlan shell one ip -6 address | grep -q {six}"), SOON);
    let refused = host.fail("vmlan delete one");
    assert!(refused.contains("--force"), "{refused}");
    host.run("vmlan delete --force one");
    assert!(!host.dir("one").exists());
    assert_eq!(host.listed("one"), None);
    host.await_end("qemu-system");
}

/// A server for the files of the home, by HTTPS with a certificate of a CA of its own.
const SERVE: &str = r#"
openssl req -x509 -newkey ed25519 -nodes -keyout ca.key -out ca.pem -subj /CN=ca 2>/dev/null
openssl req -newkey ed25519 -nodes -keyout key -out request -subj /CN=localhost 2>/dev/null
echo subjectAltName=DNS:localhost >names
openssl x509 -req -in request -CA ca.pem -CAkey ca.key -extfile names -out cert 2>/dev/null
python3 -c '
import http.server as h, ssl
server = h.ThreadingHTTPServer(("127.0.0.1", 8443), h.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("cert", "key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()' >/dev/null 2>&1 </dev/null &
"#;

#[test]
fn a_machine_is_described_and_has_its_image_at_a_url() {
    let host = MachineHost::new();
    host.run(SERVE);
    let url = "https://localhost:8443";
    host.run("cp /run/machines/small.raw . && printf image | dd of=small.raw conv=notrunc");
    let sum = host.run("sha256sum small.raw | cut -d ' ' -f 1");
    host.describe("web", Image::Small, "");
    let path = host.home().join("web.yaml");
    let text = std::fs::read_to_string(&path).expect("a file");
    let with = |sum: &str| {
        let at = format!("location: {url}/small.raw\n  digest: sha256:{sum}");
        std::fs::write(&path, text.replace("location: /run/machines/small.raw", &at))
            .expect("a file");
    };
    with(&"0".repeat(64));
    host.until(&format!("curl -sS --cacert ca.pem {url}/ca.pem"), SOON);
    // Nobody vouches for the server, nor then for the image.
    let said = host.fail(&format!("vmlan start {url}/web.yaml"));
    assert!(said.contains("certificate"), "{said}");
    let start = format!("SSL_CERT_FILE=ca.pem vmlan start {url}/web.yaml");
    let said = host.fail(&start);
    assert!(said.contains("small.raw") && said.contains(&sum), "{said}");
    assert_eq!(host.listed("web"), None);
    with(&sum);
    host.run(&start);
    assert_eq!(host.guest("web", "head -c 5 /dev/vda"), "image");
}

#[test]
fn a_machine_for_another_processor_is_used_like_any() {
    let host = MachineHost::new();
    nameserver::serve(&host.outside, OUTSIDE);
    host.describe("one", Image::Arm, "");
    let said = host.run("vmlan start one.yaml 2>&1");
    assert!(said.contains("emulated"), "{said}");
    // It has an agent if one could be built.
    let without = vmlan_vm::agent::binary("aarch64").is_none();
    assert_eq!(said.contains("UDP") && said.contains("not forwarded"), without, "{said}");
    assert_eq!(host.listed("one").expect("a machine")["arch"], "aarch64");
    assert_eq!(host.run("vmlan shell one uname -m"), "aarch64");
    assert!(host.guest("one", "nslookup -type=a known.test").contains("203.0.113.7"));
    transfers(&host, OUTSIDE);
    host.guest("one", "echo from there >/tmp/word; httpd -p 127.0.0.1:8000 -h /tmp");
    assert_eq!(host.until("curl -sf http://127.0.0.1:8000/word", SOON), "from there");
    host.guest("one", "killall httpd");
    host.until("! curl -s http://127.0.0.1:8000/word", SOON);
    // Debian's kernel for clouds has no power button without firmware that tells of it.
    host.run("vmlan stop --force one");
    host.await_end("qemu-system");
}

#[test]
fn two_starts_at_once_make_one_machine() {
    let host = MachineHost::new();
    host.describe("one", Image::Small, "");
    let both = "vmlan start one.yaml >a 2>&1 & first=$!
                vmlan start one.yaml >b 2>&1 & second=$!
                wait $first && echo ok; wait $second && echo ok; true";
    let ends = host.run(both);
    let said = host.run("cat a b");
    // The other one either follows the same machine, or finds that it exists.
    assert!(ends.contains("ok"), "{said}");
    assert!(ends.matches("ok").count() == 2 || said.contains("exists already"), "{said}");
    let one = |host: &MachineHost| {
        host.until("vmlan shell one true", PATIENT);
        assert_eq!(host.status("one"), "Running");
        let machines = host.processes("qemu-system");
        assert_eq!(machines.len(), 1, "{machines:?}");
        let agents = host.processes("vmlan hostagent");
        assert_eq!(agents.len(), 1, "{agents:?}");
    };
    one(&host);
    host.run("vmlan stop --force one");
    let ends = host.run(&both.replace(".yaml", ""));
    assert_eq!(ends, "ok\nok", "{}", host.run("cat a b"));
    one(&host);
    // And once more, when it runs.
    host.run("vmlan start one");
    one(&host);
}

/// Shows the IPv6 address of a machine in the list, once its network has seen it.
fn ipv6_of(name: &str) -> String {
    format!("vmlan list {name} | grep -o 'fd[0-9a-f]*:[0-9a-f:]*'")
}

#[test]
fn two_machines_of_a_network_reach_each_other_by_name() {
    let host = MachineHost::new();
    std::thread::scope(|scope| {
        for name in ["one", "two"] {
            let host = &host;
            scope.spawn(move || host.start(name, "networks:\n- lima: user-v2"));
        }
    });
    let mut addresses = Vec::new();
    for name in ["one", "two"] {
        let listed = host.listed(name).expect("a machine");
        let network = &listed["networks"][0];
        assert_eq!(network["network"], "lima:user-v2");
        assert_eq!(network["interface"], "eth0");
        let address = network["addresses"][0].as_str().expect("an address").to_owned();
        assert!(host.guest(name, "ip -4 address").contains(&address), "{address}");
        addresses.push(address);
    }
    host.guest("two", "head -c 4000000 /dev/urandom >/tmp/bytes; httpd -p 8000 -h /tmp");
    let sent = host.guest("two", "sha256sum </tmp/bytes");
    for (from, to, address) in [("one", "two", &addresses[1]), ("two", "one", &addresses[0])] {
        let name = format!("lima-{to}.internal");
        assert!(host.guest(from, &format!("nslookup -type=a {name}")).contains(address.as_str()));
        host.guest(from, &format!("ping -c 2 -W 5 {name}"));
        // The address that the other has made itself.
        let six = host.until(&ipv6_of(to), SOON);
        assert!(host.guest(to, "ip -6 address show dev eth0 scope global").contains(&six), "{six}");
        assert!(host.guest(from, &format!("nslookup -type=aaaa {name}")).contains(&six), "{six}");
        assert!(host.guest(from, &format!("nslookup {six}")).contains(&name), "{six}");
        host.guest(from, &format!("ping -6 -c 2 -W 5 {name}"));
    }
    for family in ["TCP4", "TCP6"] {
        let fetch = format!(
            "printf 'GET /bytes HTTP/1.0\\r\\n\\r\\n' | \
             socat -t 60 - {family}:lima-two.internal:8000 | sed '1,/^\\r$/d' | sha256sum"
        );
        assert_eq!(host.guest("one", &fetch), sent, "{family}");
    }
    // And from the host's side by the machine's port.
    let fetch = "curl -sS --max-time 60 http://127.0.0.1:8000/bytes | sha256sum";
    assert_eq!(host.until(&format!("{fetch} | grep {sent:.64}"), SOON), sent);

    // The network ends with its last machine.
    host.run("vmlan stop one");
    assert_eq!(host.guest("two", "ip -4 address").matches(&addresses[1]).count(), 1);
    host.run("vmlan stop two");
    host.await_end("vmlan");
}

/// Nobody but the machine knows what it was given there.
#[test]
fn a_machines_addresses_on_networks_of_others_are_shown() {
    let host = MachineHost::new();
    let other = "/run/home/other.sock";
    host.run(&format!(
        "vmlan netd --subnet 10.9.0.0/24 --listen-qemu {other} >/dev/null 2>&1 &
         until [ -S {other} ]; do sleep 0.05; done"
    ));
    let said = host.start("one", &format!("networks:\n- socket: {other}"));
    assert!(said.contains(&format!("lima0\tsocket:{other}\t10.9.0.15")), "{said}");
    assert!(host.guest("one", "ip -4 address show dev lima0").contains("10.9.0.15/"));
    let shown = |what: &str| {
        let list = host.run("vmlan list one");
        assert_eq!(list.matches(what).count(), 1, "{list}");
    };
    shown("10.9.0.15");
    // It follows what becomes of it.
    host.guest("one", "ip address add 10.9.0.77/24 dev lima0");
    host.until("vmlan list one | grep 10.9.0.77", SOON);
    shown("10.9.0.15");
}

#[test]
fn a_start_that_is_interrupted_leaves_nothing_running() {
    let host = MachineHost::new();
    host.describe("one", Image::Small, "");
    let mut start = host.command("exec setsid -w sh -c 'echo $$ >pid; exec vmlan start one.yaml'");
    let outcome = std::thread::scope(|scope| {
        let started = scope.spawn(|| capture(&mut start, PATIENT));
        host.until("grep -q booting .lima/one/ha.stdout.log", SOON);
        // Ctrl-C is for all processes of the terminal.
        host.run("kill -INT -$(cat pid)");
        started.join().expect("an end")
    });
    let said = String::from_utf8_lossy(&outcome.stderr);
    assert!(!outcome.status.success(), "{said}");
    assert!(said.contains("interrupted") && said.contains("vmlan start one"), "{said}");
    assert_eq!(host.status("one"), "Stopped");
    host.await_end("qemu-system");
    host.await_end("vmlan");
    host.run("vmlan start one");
    assert!(host.guest("one", "cut -d . -f 1 /proc/uptime").parse::<u64>().is_ok());
    // Not waited for, it goes on.
    host.until("vmlan list | grep -q Running", Duration::from_secs(1));
}
