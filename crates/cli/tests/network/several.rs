//! Guests with several network cards, and what cannot be joined.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::lab::{Guest, Lab};

const TWO: &str = "\
networks:
  lab: {mode: user-v2, gateway: 10.71.0.1}
  dmz: {mode: user-v2, gateway: 10.73.0.1}
  lan: {mode: shared, gateway: 10.74.0.1}
";

/// Default routes by interface and metric, IPv4 addresses, the name server.
const SHOW: &str = "ip -4 route show default | sort | tr -s ' '; ip -br -4 address | tr -s ' '; \
                    grep ^nameserver /etc/resolv.conf";

#[test]
fn the_first_user_v2_network_is_eth0_and_others_go_by_their_place() {
    let lab = Lab::with(TWO);
    let said = lab.output(&["--network", "lima:dmz", "--", "sh", "-c", SHOW]);
    let want = "\
default via 10.71.0.1 dev eth0 metric 200 
default via 10.73.0.1 dev lima1 metric 100 
lo UNKNOWN 127.0.0.1/8 
eth0 UNKNOWN 10.71.0.4/24 
lima1 UNKNOWN 10.73.0.4/24 
nameserver 10.71.0.3
";
    assert_eq!(said.replace(" UP ", " UNKNOWN "), want);
}

#[test]
fn a_guest_is_reached_on_each_of_its_networks() {
    let lab = Lab::with(TWO);
    let mut both = Guest::start(&lab, &["--network", "lima:dmz", "--name", "both"]);
    assert_eq!(both.line("echo started"), "started");
    for (network, address) in [("lab", "10.71.0.4"), ("dmz", "10.73.0.4")] {
        let mut command = lab.run_alone(&["--network", &format!("lima:{network}")]);
        let ask = "getent ahostsv4 lima-both.internal | head -1 | cut -d ' ' -f 1; \
                   ping -q -c 1 -W 5 lima-both.internal >/dev/null && echo reached";
        let output = command.args(["--", "sh", "-c", ask]).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said, format!("{address}\nreached\n"), "{network}");
    }
    // What both of its networks could carry goes out by the one with the smaller metric.
    assert_eq!(both.line("ip route get 192.0.2.1 | head -1 | cut -d ' ' -f 5"), "lima1");
}

/// The network of a daemon of its own, which is not in networks.yaml.
#[test]
fn a_socket_of_somebody_elses_is_joined_beside_the_default_network() {
    let lab = Lab::with("networks: {}\n");
    let socket = lab.0.path("other.sock");
    let start = || {
        let mut netd = Command::new(env!("CARGO_BIN_EXE_vmlan"));
        netd.args(["netd", "--subnet", "10.75.0.0/24", "--gateway", "10.75.0.1", "--listen-qemu"]);
        netd.arg(&socket).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut netd = netd.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(netd.stderr.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(ready.contains("ready"), "{ready}");
        netd
    };
    let mut netd = start();
    let network = format!("socket:{}", socket.display());
    let args = ["--network", &network, "--name", "both"];
    let mut guest = Guest::from(lab.run_alone(&args));
    let show = format!("({SHOW}) | tr '\\n' '|'; echo");
    assert_eq!(
        guest.line(&show).replace(" UP ", " UNKNOWN "),
        "default via 10.75.0.1 dev lima0 metric 100 |default via 192.168.5.2 dev eth0 metric 200 \
         |lo UNKNOWN 127.0.0.1/8 |eth0 UNKNOWN 192.168.5.15/24 |lima0 UNKNOWN 10.75.0.4/24 \
         |nameserver 192.168.5.3|"
    );
    let ping = "ping -q -c 1 -W 5 10.75.0.1 >/dev/null && echo reached";
    assert_eq!(guest.line(ping), "reached");
    // Streams, by what the host's loopback serves.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let sender = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&vec![b'x'; 3_000_000]).unwrap();
    });
    assert_eq!(guest.line(&format!("busybox nc 10.75.0.2 {port} </dev/null | wc -c")), "3000000");
    sender.join().unwrap();
    // The daemon goes and another comes.
    netd.kill().unwrap();
    netd.wait().unwrap();
    let mut netd = start();
    let again = "until ping -q -c 1 -W 1 10.75.0.1 >/dev/null; do :; done; echo reached";
    assert_eq!(guest.line(again), "reached");
    netd.kill().unwrap();
    netd.wait().unwrap();
    drop(guest);
    let output = lab.run_alone(&args).args(["--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("other.sock: Connection refused"), "{error}");
}

#[test]
fn what_run_cannot_join_is_refused_before_anything_is_started() {
    let lab = Lab::with(TWO);
    let refused = |args: &[&str]| {
        let output = lab.run_alone(args).args(["--", "true"]).output().unwrap();
        assert!(output.stdout.is_empty());
        assert!(!lab.0.path("_networks").exists(), "{args:?} started something");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for (args, code, why) in [
        (
            &["--network", "lima:lab,lima:lan"][..],
            125,
            "lima:lan: `/usr/local/libexec/vmlan-helper` has to be installed",
        ),
        (&["--network", "lima:lab", "--network", "lima:lab"], 125, "lima:lab: given twice"),
        (&["--network", "lima:none"], 125, "not defined in networks.yaml"),
        (&["--network", "vzNAT"], 125, "vmType vz on macOS"),
        (&["--network", "lan"], 2, "network name must be"),
        (&["--network", "lima:lab", "--mtu", "1500"], 2, "--mtu: all guests"),
        (&["--network", "lima:lab", "--no-host-loopback"], 2, "--no-host-loopback: "),
        (&["--network", "lima:lab", "--capture", "/dev/null"], 2, "--capture: "),
    ] {
        let (status, error) = refused(args);
        assert_eq!(status, code, "{args:?}: {error}");
        assert!(error.contains(why), "{args:?}: {error}");
    }
}
