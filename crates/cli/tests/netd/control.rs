//! The control API, with curl and with clients that mean no good.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::ports::free_ports;
use crate::support::{GATEWAY, Guest, Netd, PATIENCE, eventually};

fn start() -> Netd {
    Netd::start(&["--listen-qemu", "{}/qemu", "--control", "{}/control"])
}

/// Status and body of a request; a body is sent with POST.
fn curl(netd: &Netd, path: &str, body: Option<&str>) -> (u16, String) {
    let mut curl = Command::new("curl");
    curl.args(["-s", "-m", "10", "-w", "\n%{http_code}", "--unix-socket"]);
    curl.arg(netd.path("control")).arg(format!("http://vmlan{path}"));
    if let Some(body) = body {
        curl.args(["-d", body]);
    }
    let output = curl.output().expect("curl is installed");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.trim_end().to_owned())
}

#[test]
fn what_is_there_is_listed() {
    let netd = start();
    let mut guest = Guest::connect(&netd.path("qemu"), 15);
    guest.resolve(GATEWAY);
    assert_eq!(curl(&netd, "/cam", None), (200, r#"{"52:54:00:00:00:0f":0}"#.into()));
    let leases = (200, r#"{"192.168.5.15":"52:54:00:00:00:0f"}"#.into());
    assert_eq!(curl(&netd, "/leases", None), leases);
    assert_eq!(curl(&netd, "/services/dhcp/leases", None), leases);
    assert_eq!(curl(&netd, "/v1/flows", None), (200, "[]".into()));
    let (status, stats) = curl(&netd, "/stats", None);
    assert_eq!(status, 200);
    assert!(stats.contains(r#""BytesReceived":42"#), "{stats}");
    assert!(stats.contains(r#""FramesReceived":1"#), "{stats}");
}

#[test]
fn forwards_are_opened_and_closed() {
    let netd = start();
    let port = free_ports(1);
    let body = format!(r#"{{"local":"127.0.0.1:{port}","remote":"192.168.5.15:22"}}"#);
    let expose = "/services/forwarder/expose";
    assert_eq!(curl(&netd, expose, Some(&body)), (200, String::new()));
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    let again = format!("proxy already running for tcp on 127.0.0.1:{port}");
    assert_eq!(curl(&netd, expose, Some(&body)), (500, again));
    let listed =
        format!(r#"[{{"local":"127.0.0.1:{port}","remote":"192.168.5.15:22","protocol":"tcp"}}]"#);
    assert_eq!(curl(&netd, "/services/forwarder/all", None), (200, listed));
    let body = format!(r#"{{"local":"127.0.0.1:{port}","protocol":"tcp"}}"#);
    let unexpose = "/services/forwarder/unexpose";
    assert_eq!(curl(&netd, unexpose, Some(&body)), (200, String::new()));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert_eq!(curl(&netd, unexpose, Some(&body)), (500, "proxy not found".into()));
    assert_eq!(curl(&netd, "/services/forwarder/all", None), (200, "[]".into()));
}

#[test]
fn a_port_without_an_address_is_the_only_guests() {
    let netd = start();
    let port = free_ports(1);
    let body = format!(r#"{{"local":"127.0.0.1:{port}","remote":":80"}}"#);
    let expose = || curl(&netd, "/services/forwarder/expose", Some(&body));
    let (status, text) = expose();
    assert!(status == 500 && text.starts_with(":80: whose port? No guest"), "{text}");
    let mut first = Guest::connect(&netd.path("qemu"), 15);
    first.resolve(GATEWAY);
    let second = {
        let mut second = Guest::connect(&netd.path("qemu"), 16);
        second.resolve(GATEWAY);
        let (status, text) = expose();
        assert!(status == 500 && text.contains("192.168.5.15, 192.168.5.16"), "{text}");
        second
    };
    drop(second);
    eventually(|| (!curl(&netd, "/cam", None).1.contains("00:10")).then_some(()));
    assert_eq!(expose(), (200, String::new()));
    let (_, all) = curl(&netd, "/services/forwarder/all", None);
    assert!(all.contains(r#""remote":"192.168.5.15:80""#), "{all}");
}

/// As gvisor-tap-vsock has them: what is below a zone is answered here or is not there.
#[test]
fn zones_are_answered_for() {
    let netd = start();
    let (all, add) = ("/services/dns/all", "/services/dns/add");
    assert_eq!(curl(&netd, all, None), (200, "[]".into()));
    let zone = r#"{"Name":"zone.test.","Records":[{"Name":"a","IP":"192.168.5.20"}]}"#;
    assert_eq!(curl(&netd, add, Some(zone)), (200, String::new()));
    let ask = |name: &str| {
        let (status, text) = curl(&netd, &format!("/v1/dns?name={name}"), None);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &answer["from"]), (200, &"static".into()), "{text}");
        (answer["rcode"].clone(), answer["answer"][0]["data"].clone())
    };
    assert_eq!(ask("A.Zone.test"), ("NOERROR".into(), "192.168.5.20".into()));
    assert_eq!(ask("b.zone.test"), ("NXDOMAIN".into(), serde_json::Value::Null));
    // Another type of a name that is there: no record, and still no question to anybody else.
    assert_eq!(ask("a.zone.test&type=AAAA"), ("NOERROR".into(), serde_json::Value::Null));
    let more = r#"{"Name":"zone.test.","Records":[{"Name":"c","IP":"fd00::1"}],"DefaultIP":"192.168.5.2"}"#;
    assert_eq!(curl(&netd, add, Some(more)).0, 200);
    assert_eq!(ask("a.zone.test").1, "192.168.5.20");
    assert_eq!(ask("b.c.zone.test").1, "192.168.5.2");
    assert_eq!(ask("c.zone.test&type=AAAA").1, "fd00::1");
    let listed = r#"[{"Name":"zone.test.","Records":[{"Name":"c","IP":"fd00::1"},{"Name":"a","IP":"192.168.5.20"}],"DefaultIP":"192.168.5.2"}]"#;
    assert_eq!(curl(&netd, all, None), (200, listed.into()));
    assert_eq!(curl(&netd, add, None), (400, "post only".into()));
    assert_eq!(curl(&netd, add, Some(r#"{"Name":"a..b"}"#)).0, 400);
}

#[test]
fn what_cannot_be_is_refused() {
    let netd = start();
    assert_eq!(curl(&netd, "/nothing", None).0, 404);
    assert_eq!(curl(&netd, "/services/forwarder/expose", None), (400, "post only".into()));
    assert_eq!(curl(&netd, "/services/forwarder/expose", Some("{")).0, 400);
    let outside = r#"{"local":"127.0.0.1:1","remote":"10.0.0.1:22"}"#;
    let (status, text) = curl(&netd, "/services/forwarder/expose", Some(outside));
    assert!(status == 500 && text.contains("10.0.0.1"), "{text}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let body = format!(r#"{{"local":"{at}","remote":"192.168.5.15:22"}}"#);
    let (status, text) = curl(&netd, "/services/forwarder/expose", Some(&body));
    assert!(status == 500 && text.contains(&at.to_string()), "{text}");
}

#[test]
fn it_is_private() {
    let netd = start();
    let mode = std::fs::metadata(netd.path("control")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn idle_clients_keep_nobody_waiting() {
    let netd = start();
    let connect = || UnixStream::connect(netd.path("control")).unwrap();
    let mut idle: Vec<_> = (0..15).map(|_| connect()).collect();
    for client in &mut idle {
        client.write_all(b"GET /stats HTTP/1.1\r\nX: ").unwrap();
    }
    Guest::connect(&netd.path("qemu"), 15).resolve(GATEWAY);
    assert_eq!(curl(&netd, "/v1/flows", None).0, 200);
    let mut extra = connect();
    idle.push(connect());
    // One too many: it waits until another leaves.
    idle.truncate(4);
    extra.set_read_timeout(Some(PATIENCE)).unwrap();
    extra.write_all(b"GET /v1/flows HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    extra.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[test]
fn garbage_is_answered_and_forgotten() {
    let netd = start();
    for garbage in [&[0; 3][..], &[0xff; 70_000], b"GET\r\n\r\n", b"\r\n\r\n\r\n"] {
        let mut client = UnixStream::connect(netd.path("control")).unwrap();
        // The daemon may close before everything is written.
        let _ = client.write_all(garbage);
        let _ = client.shutdown(std::net::Shutdown::Write);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
    assert_eq!(curl(&netd, "/v1/flows", None).0, 200);
}

/// As gvisor-tap-vsock's clients do: no answer, and frames from there on.
#[test]
fn a_connection_becomes_a_guests_link() {
    let netd = start();
    let mut other = Guest::connect(&netd.path("qemu"), 15);
    other.resolve(GATEWAY);
    let mut stream = UnixStream::connect(netd.path("control")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let guest = Guest::over(stream.try_clone().unwrap(), 16);
    let ask = guest.arp([0xff; 6], 1, [0; 6], other.ip);
    let framed = [&u16::try_from(ask.len()).unwrap().to_le_bytes(), &ask[..]].concat();
    // The first frame comes with the request.
    let head = b"POST /connect HTTP/1.1\r\nHost: vmlan\r\n\r\n";
    stream.write_all(&[&head[..], &framed].concat()).unwrap();
    let question = other.recv_type(0x0806);
    assert_eq!(question, ask);
    other.send(&other.arp(guest.mac, 2, guest.mac, guest.ip));
    let mut word = [0; 2];
    stream.read_exact(&mut word).unwrap();
    let mut answer = vec![0; usize::from(u16::from_le_bytes(word))];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, other.arp(guest.mac, 2, guest.mac, guest.ip));
    assert_eq!(curl(&netd, "/cam", None).1, r#"{"52:54:00:00:00:0f":0,"52:54:00:00:00:10":1}"#);
    drop((stream, guest));
    eventually(|| (!curl(&netd, "/cam", None).1.contains("00:10")).then_some(()));
}
