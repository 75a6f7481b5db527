//! Machines with real kernels and a command in namespaces on one configured network: by address and
//! by name, over IPv4 and IPv6, in every direction.

use std::time::Duration;

use vmlan_e2e::managed::Shell;
use vmlan_e2e::netns::SOON;
use vmlan_e2e::{Lab, Machine};

/// Cards, with the names and addresses that the network keeps for them.
const ONE: (&str, &str, &str) = ("52:54:00:00:00:01", "lima-one.internal", "10.71.0.51");
const TWO: (&str, &str, &str) = ("52:54:00:00:00:02", "lima-two.internal", "10.71.0.52");

/// An emulated processor needs its time, and shares it with the other tests.
const PATIENT: Duration = Duration::from_secs(120);

/// Bytes that a web server has.
const LENGTH: usize = 4 << 20;

fn boot(lab: &Lab, mac: &str) -> Machine {
    let path = lab.qemu_socket().display().to_string();
    let mut machine =
        Machine::boot(&format!("stream,server=off,addr.type=unix,addr.path={path}"), mac);
    machine.dhcp();
    machine.sh("mkdir -p /tmp/www", SOON);
    let make = format!("dd if=/dev/urandom of=/tmp/www/bytes bs=64k count={} 2>&1", LENGTH >> 16);
    machine.sh(&make, PATIENT);
    machine.sh("httpd -p 80 -h /tmp/www", SOON);
    machine
}

/// The address that a machine has made for itself of the network's prefix and its card.
fn ipv6_of(machine: &mut Machine) -> String {
    let find = "i=0; while [ $i -lt 100 ]; do \
                a=$(ip -6 -o address show dev eth0 scope global | grep -v tentative); \
                [ -n \"$a\" ] && break; i=$((i+1)); sleep 0.1; done; echo \"$a\"";
    let text = machine.sh(find, PATIENT);
    let word = text.split_whitespace().find(|word| word.starts_with("fd")).expect("an address");
    word.split('/').next().expect("an address").to_owned()
}

fn digest(text: &str) -> &str {
    text.split_whitespace().next().expect("a digest")
}

/// Datagrams that have come for ports where nobody listens.
fn unheard(machine: &mut Machine, six: bool) -> u64 {
    let show = if six {
        "awk '/^Udp6NoPorts/ { print $2 }' /proc/net/snmp6"
    } else {
        "awk '/^Udp: [0-9]/ { print $3 }' /proc/net/snmp"
    };
    machine.sh(show, SOON).trim().parse().expect("a count")
}

/// One machine reaches the other: echo, bytes of its web server, datagrams and their refusal.
fn reaches(from: &mut Machine, to: &mut Machine, address: &str) {
    let six = address.contains(':');
    from.sh(&format!("ping -c 2 -W 5 {address}"), SOON);
    let host = if six { format!("[{address}]") } else { address.to_owned() };
    let got = from.sh(&format!("wget -q -O - http://{host}/bytes | sha256sum"), PATIENT);
    assert_eq!(digest(&got), digest(&to.sh("sha256sum </tmp/www/bytes", PATIENT)));
    let before = unheard(to, six);
    let tool = if six { "traceroute6" } else { "traceroute" };
    let hops = from.sh(&format!("{tool} -n -q 3 -w 2 -m 2 {address}"), SOON);
    assert!(
        hops.lines().any(|l| l.trim_start().starts_with("1 ") && l.contains(address)),
        "{hops}"
    );
    assert_eq!(unheard(to, six) - before, 3);
}

/// The address of a name, as the network's nameserver tells it.
fn resolves(machine: &mut Machine, name: &str) -> String {
    let text = machine.sh(&format!("nslookup -type=a {name}"), SOON);
    let answer = text.rsplit("Name:").next().expect("an answer");
    let address = answer.split_once("Address: ").expect("an address").1;
    address.split_whitespace().next().expect("an address").to_owned()
}

fn lab() -> Lab {
    let keep = |(mac, name, ip): (&str, &str, &str)| {
        let name = name.trim_start_matches("lima-").trim_end_matches(".internal");
        format!("- {{mac: '{mac}', ip: {ip}, name: {name}}}")
    };
    Lab::start(&["gateway: 10.71.0.1", "reservations:", &keep(ONE), &keep(TWO)])
}

#[test]
fn two_machines_reach_each_other_by_name() {
    let lab = lab();
    let (mut one, mut two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| boot(&lab, ONE.0));
        let two = scope.spawn(|| boot(&lab, TWO.0));
        (one.join().expect("a machine"), two.join().expect("a machine"))
    });
    assert_eq!(resolves(&mut one, TWO.1), TWO.2);
    assert_eq!(resolves(&mut two, ONE.1), ONE.2);
    let six = ipv6_of(&mut two);
    reaches(&mut one, &mut two, TWO.2);
    reaches(&mut two, &mut one, ONE.2);
    reaches(&mut one, &mut two, &six);
}

#[test]
fn machine_and_command_reach_each_other_by_name() {
    let lab = lab();
    let mut machine = boot(&lab, ONE.0);
    let mut command: Shell = lab.shell("web");
    let files = tempfile::tempdir().expect("a temporary directory");
    command.sh(&format!("cd {}", files.path().display()));
    let six = ipv6_of(&mut machine);

    // The command's side: the machine's web server by name, and its refusal of a datagram.
    command.sh(&format!("ping -c 1 -W 5 {}", ONE.1));
    command.sh(&format!("ping -c 1 -W 5 {six}"));
    let sent = machine.sh("sha256sum </tmp/www/bytes", PATIENT);
    for host in [ONE.1, &format!("[{six}]")] {
        let got = command.sh(&format!("curl -sS --max-time 60 http://{host}/bytes | sha256sum"));
        assert_eq!(digest(&got), digest(&sent));
    }
    let refused = "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
                   s.settimeout(10); s.connect((sys.argv[1], 9)); s.send(b'x'); s.recv(1)";
    let said = command.sh(&format!("python3 -c \"{refused}\" {} || true", ONE.1));
    assert!(said.contains("ConnectionRefusedError"), "{said}");

    // The machine's side.
    let address = resolves(&mut machine, "lima-web.internal");
    let own = command.sh("ip -4 -o address show dev eth0");
    assert!(own.contains(&format!("{address}/")), "{own}");
    let own6 = command.sh("ip -6 -o address show dev eth0 scope global");
    let own6 = own6.split_whitespace().find(|word| word.starts_with("fd")).expect("an address");
    let own6 = own6.split('/').next().expect("an address");
    for to in [&address, own6] {
        machine.sh(&format!("ping -c 1 -W 5 {to}"), SOON);
    }
    command.sh("head -c 4000000 /dev/urandom >bytes");
    let made = command.sh("sha256sum <bytes");
    for (to, family) in [(address.as_str(), "AF_INET"), (own6, "AF_INET6")] {
        let serve = format!(
            "import socket, sys; s = socket.create_server(('', 8000), family=socket.{family}); \
             print('ready', flush=True); c = s.accept()[0]; c.sendall(open(sys.argv[1], 'rb').read()); \
             c.shutdown(1); c.recv(1)"
        );
        let start = format!(
            "mkfifo ready; python3 -c \"{serve}\" bytes \
             >ready & head -n 1 ready; rm ready"
        );
        assert_eq!(command.sh(&start), "ready");
        let got = machine.sh(&format!("nc {to} 8000 </dev/null | sha256sum"), PATIENT);
        assert_eq!(digest(&got), digest(&made));
    }
    // A datagram with something in it.
    let listen = "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
                  s.bind(('', 5514)); print('ready', flush=True); s.settimeout(20); \
                  open(sys.argv[1], 'wb').write(s.recv(999))";
    let start = format!(
        "mkfifo ready; python3 -c \"{listen}\" log \
         >ready & head -n 1 ready; rm ready"
    );
    assert_eq!(command.sh(&start), "ready");
    machine.sh(&format!("syslogd -R {address}:5514"), SOON);
    machine.sh("for i in 1 2 3 4 5; do logger from-the-machine; sleep 0.2; done", SOON);
    let log = "for i in $(seq 100); do [ -s log ] && break; sleep 0.1; done; \
               cat log";
    assert!(command.sh(log).contains("from-the-machine"));
}
