//! Forwards of a running network, and what `vmlan network show` tells of one.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use rustix::process::{Signal, kill_process};

use crate::lab::{Guest, Lab, SERVE, eventually};
use crate::ports::free_ports;
use crate::support::Said;

/// A listing without a forward.
const NONE: &str = "NETWORK    PROTOCOL    LISTEN    TARGET    GUEST\n";

fn forward(lab: &Lab, args: &[&str]) -> Said {
    lab.0.vmlan(&[&["forward"], args].concat(), "")
}

fn hello(mut stream: impl Read) -> Option<String> {
    let mut line = String::new();
    BufReader::new(&mut stream).read_line(&mut line).ok().filter(|n| *n > 0).map(|_| line)
}

#[test]
fn a_guests_forwards_come_and_go_with_it() {
    let lab = Lab::new();
    let mut web = Guest::start(&lab, &["--name", "web"]);
    let _other = Guest::start(&lab, &["--name", "other"]);
    assert_eq!(web.line(SERVE), "started");
    let port = free_ports(3);
    let (socket, range) = (lab.0.path("web.sock"), format!("{}-{}", port + 1, port + 2));
    let (tcp, ranges) = (format!("{port}:8000"), format!("{range}:8000-8001"));
    let unix = format!("{}:8000", socket.display());
    assert_eq!(forward(&lab, &["add", "web", &tcp, &ranges, &unix]).quiet(), "");
    let said = eventually("an answer", || hello(TcpStream::connect(("127.0.0.1", port)).ok()?));
    assert_eq!(said, "hello\n");
    assert_eq!(web.line(SERVE), "started");
    let said = eventually("an answer", || hello(UnixStream::connect(&socket).ok()?));
    assert_eq!(said, "hello\n");

    let table = forward(&lab, &["list"]).quiet();
    assert_eq!(table.lines().count(), 5, "{table}");
    let row = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let listen = format!("127.0.0.1:{port}");
    let want = ["lab", "tcp", &listen, "10.71.0.4:8000", "web"];
    assert!(table.lines().any(|line| row(line) == want), "{table}");
    let json = forward(&lab, &["list", "--json", "lab"]).quiet();
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(first["network"], "lab");
    assert_eq!((json.lines().count(), &first["guest"]), (4, &"web".into()));

    // Nobody takes another's away, and all of it goes or nothing.
    let error = forward(&lab, &["remove", "other", &port.to_string()]).failed(1);
    assert!(error.contains("not to other"), "{error}");
    let error = forward(&lab, &["remove", "web", &port.to_string(), "1"]).failed(1);
    assert!(error.contains("127.0.0.1:1: no forward listens there"), "{error}");
    assert_eq!(forward(&lab, &["list"]).quiet().lines().count(), 5);
    assert_eq!(forward(&lab, &["remove", "lab", &range]).quiet(), "");
    assert_eq!(forward(&lab, &["list"]).quiet().lines().count(), 3);

    drop(web);
    let none = || forward(&lab, &["list"]).quiet() == NONE;
    eventually("the forwards' end", || none().then_some(()));
    assert!(!socket.exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

/// What has been added while a network runs is there under the daemon that follows a killed one, and
/// goes with the network.
#[test]
fn what_was_added_outlives_a_killed_daemon() {
    let lab = Lab::new();
    let mut web = Guest::start(&lab, &["--name", "web"]);
    let gone = Guest::start(&lab, &["--name", "gone"]);
    let port = free_ports(3);
    forward(&lab, &["add", "web", &format!("{port}:8000")]).quiet();
    forward(&lab, &["add", "lab", &format!("{}=10.71.0.4:8000,source=keep", port + 1)]).quiet();
    forward(&lab, &["add", "gone", &format!("{}:8000", port + 2)]).quiet();
    let client = vmlan_api::Client::new(&lab.0.path("_networks/lab/lab_ep.sock"));
    let zone = serde_json::json!({"Name": "zone.test.", "DefaultIP": "10.71.0.9"});
    client.post("/services/dns/add", &zone).unwrap();
    let list = || forward(&lab, &["list", "--json"]).quiet();
    let there = |list: &str| {
        let is_there = |n: &u16| list.contains(&format!("127.0.0.1:{}\"", port + n));
        [0, 1, 2].into_iter().filter(is_there).collect::<Vec<_>>()
    };
    let before = list();
    assert_eq!(there(&before), [0, 1, 2], "{before}");

    let (first, file) = (lab.pid().unwrap(), lab.0.path("_networks/lab/additions.json"));
    eventually("the file", || std::fs::read_to_string(&file).ok()?.contains("zone").then_some(()));
    // One guest is gone with the daemon.
    kill_process(first, Signal::STOP).unwrap();
    drop(gone);
    kill_process(first, Signal::KILL).unwrap();
    eventually("another daemon", || lab.pid().filter(|pid| *pid != first));
    eventually("the same forwards", || (there(&list()) == [0, 1, 2]).then_some(()));
    for port in [port, port + 1] {
        assert_eq!(web.line(SERVE), "started");
        let answer = || hello(TcpStream::connect(("127.0.0.1", port)).ok()?);
        assert_eq!(eventually("an answer", answer), "hello\n");
    }
    let ask = "getent ahostsv4 a.zone.test | head -1 | cut -d ' ' -f 1";
    assert_eq!(web.line(ask), "10.71.0.9");
    let rest = || (there(&list()) == [0, 1]).then(list);
    let rest = eventually("the end of a forward whose guest does not come back", rest);
    assert!(before.starts_with(&rest), "{before}{rest}");

    drop(web);
    eventually("the end of all", || lab.left().is_empty().then_some(()));
    assert!(TcpStream::connect(("127.0.0.1", port + 1)).is_err());
}

#[test]
fn what_cannot_be_forwarded_is_told() {
    let lab = Lab::new();
    let error = forward(&lab, &["add", "lab", "1=10.71.0.4:1"]).failed(1);
    assert!(error.contains("network `lab` has no daemon now"), "{error}");
    let error = forward(&lab, &["add", "nobody", "1:1"]).failed(1);
    assert!(
        error.contains("no network and no running guest is called `nobody`: there is lab"),
        "{error}"
    );
    let error = forward(&lab, &["list", "nobody"]).failed(1);
    assert!(error.contains("there is lab"), "{error}");
    let nothing = forward(&lab, &["list"]);
    assert_eq!(nothing.quiet(), NONE);

    let _web = Guest::start(&lab, &["--name", "web"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let free = free_ports(1);
    let (free, taken) = (format!("{free}:80"), format!("{port}:80"));
    let error = forward(&lab, &["add", "web", &free, &taken]).failed(1);
    assert!(error.contains(&port.to_string()), "{error}");
    assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
    assert_eq!(forward(&lab, &["list"]).quiet(), NONE, "none of them, then");
    assert_eq!(forward(&lab, &["add", "lab/web", &free]).quiet(), "");
    let error = forward(&lab, &["add", "web", &free]).failed(1);
    assert!(error.contains("leads to 10.71.0.4:80 on this network already"), "{error}");
    for (args, want) in [
        (["add", "web", "80"], "`80`: this should be"),
        (["add", "web", "80=10.71.0.9:80"], "10.71.0.9 is not an address of web's"),
        (["add", "lab", "80=80"], "which guest's port"),
        (["remove", "web", "x"], "`x` is not a port"),
    ] {
        let error = forward(&lab, &args).failed(2);
        assert!(error.contains(want), "{args:?}: {error}");
    }
    let error = forward(&lab, &["add", "lab", "80=192.168.9.9:80"]).failed(1);
    assert!(error.contains("192.168.9.9 is not a guest's address in 10.71.0.0/24"), "{error}");
    let error = forward(&lab, &["add", "lab/none", "80:80"]).failed(1);
    assert!(error.contains("no guest `none` is on network `lab`: the guests are web"), "{error}");
}

#[test]
fn a_running_network_is_shown() {
    let lab = Lab::new();
    let show = |args: &[&str]| lab.0.network(&[&["show", "lab"], args].concat()).quiet();
    assert!(show(&[]).contains("daemon      none now"));
    assert!(!show(&["--json"]).contains("live"));
    let mut web = Guest::start(&lab, &["--name", "web"]);
    assert_eq!(web.line("ping -q -c 3 -i 0.01 10.71.0.1 >/dev/null && echo reached"), "reached");
    let text = show(&[]);
    assert!(text.contains("daemon      well, pid "), "{text}");
    assert!(text.contains("guest       web, 10.71.0.4, "), "{text}");
    let live: serde_json::Value = serde_json::from_str(&show(&["--json"])).unwrap();
    let live = &live["live"];
    assert_eq!(live["subnet"], "10.71.0.0/24");
    let pid = lab.pid().unwrap().as_raw_nonzero().get();
    assert_eq!(live["daemon"]["pid"], pid);
    assert_eq!(live["daemon"]["warnings"], serde_json::json!([]));
    let guest = &live["guests"][0];
    assert_eq!((&guest["name"], &guest["link"]), (&"web".into(), &"tap".into()));
    // Three of 98 bytes each way, ARP and what the kernel says of itself.
    for direction in ["fromGuest", "toGuest"] {
        let count = |what: &str| guest[direction][what].as_u64().unwrap();
        assert!((3..50).contains(&count("frames")), "{guest}");
        assert!((3 * 98..10_000).contains(&count("bytes")), "{guest}");
    }
    assert!(live["leases"].to_string().contains("10.71.0.4"), "{live}");
}
