//! `vmlan tunnel`: guests reached from this machine by SOCKS5 and HTTP CONNECT.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::lab::{Guest, Lab, SERVE, eventually};
use crate::ports::free_ports;
use crate::support::Said;

/// Answers datagrams with themselves.
const ECHO: &str = "
from socket import *
s = socket(AF_INET6, SOCK_DGRAM)
s.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 0)
s.bind((\"::\", 7007))
print(\"started\", flush=True)
while True:
    data, peer = s.recvfrom(65536)
    s.sendto(data, peer)
";

const BODY: usize = 8 << 20;

/// A guest that serves a file and echoes datagrams, and a tunnel to it.
struct Tunnel {
    lab: Lab,
    _web: Guest,
    port: u16,
    addresses: Vec<IpAddr>,
}

fn tunnel(lab: &Lab, args: &[&str]) -> Said {
    lab.0.vmlan(&[&["tunnel"], args].concat(), "")
}

fn ports(lab: &Lab) -> Vec<u16> {
    let text = tunnel(lab, &["list", "--json"]).quiet();
    let port = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["network"], "lab");
        u16::try_from(line["port"].as_u64().unwrap()).unwrap()
    };
    text.lines().map(port).collect()
}

impl Tunnel {
    fn new() -> Self {
        let lab = Lab::new();
        let mut web = Guest::start(&lab, &["--name", "web"]);
        fs::write(lab.0.path("file"), vec![b'x'; BODY]).unwrap();
        let serve = format!("busybox httpd -p 8000 -h {}", lab.0.path("").display());
        assert_eq!(web.line(&format!("{serve}; python3 -c '{ECHO}' &")), "started");
        let shown = web.addresses();
        let ips = shown.split_whitespace().filter_map(|word| word.split_once('/')?.0.parse().ok());
        let addresses =
            ips.filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
        let addresses: Vec<IpAddr> = addresses.collect();
        assert_eq!(addresses.len(), 2, "{shown}");
        let said = tunnel(&lab, &["web"]).quiet();
        let port = ports(&lab)[0];
        let line = format!("ALL_PROXY=socks5h://127.0.0.1:{port} curl http://lima-web.internal");
        assert!(said.lines().any(|l| l == line), "{said}");
        Self { lab, _web: web, port, addresses }
    }

    /// What curl says of a URL, through a proxy.
    fn curl(&self, args: &[&str], url: &str) -> (Option<i32>, Vec<u8>, String) {
        let mut command = Command::new("curl");
        command.args(["-sS", "--noproxy", "", "--max-time", "20"]).args(args).arg(url);
        for name in ["ALL_PROXY", "all_proxy", "http_proxy", "HTTP_PROXY"] {
            command.env_remove(name);
        }
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), output.stdout, error)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// The reply to a request for an address, with the bytes of the address as they are.
    fn ask(&self, command: u8, address: &[u8], port: u16) -> (TcpStream, u8, SocketAddr) {
        let mut stream = self.connect();
        let request = [&[5, 1, 0, 5, command, 0], address, &port.to_be_bytes()].concat();
        stream.write_all(&request).unwrap();
        let (reply, bound) = reply(&mut stream);
        (stream, reply, bound)
    }
}

fn reply(stream: &mut TcpStream) -> (u8, SocketAddr) {
    let mut head = [0; 6];
    stream.read_exact(&mut head).unwrap();
    let [5, 0, 5, reply, 0, kind] = head else { panic!("{head:?}") };
    let ip: IpAddr = if kind == 1 {
        let mut octets = [0; 4];
        stream.read_exact(&mut octets).unwrap();
        Ipv4Addr::from(octets).into()
    } else {
        let mut octets = [0; 16];
        stream.read_exact(&mut octets).unwrap();
        Ipv6Addr::from(octets).into()
    };
    let mut port = [0; 2];
    stream.read_exact(&mut port).unwrap();
    (reply, SocketAddr::new(ip, u16::from_be_bytes(port)))
}

fn name(name: &str) -> Vec<u8> {
    [&[3, u8::try_from(name.len()).unwrap()], name.as_bytes()].concat()
}

fn ip(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => [&[1][..], &ip.octets()].concat(),
        IpAddr::V6(ip) => [&[4][..], &ip.octets()].concat(),
    }
}

#[test]
fn programs_reach_guests_by_name_and_address() {
    let world = Tunnel::new();
    let port = world.port;
    let mut hosts = vec!["lima-web.internal".to_owned(), "LIMA-Web.Internal".to_owned()];
    hosts.extend(world.addresses.iter().map(|ip| match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }));
    for host in hosts {
        let url = format!("http://{host}:8000/file");
        for proxy in [
            &["-x", &format!("socks5h://127.0.0.1:{port}")][..],
            &["-x", &format!("socks5h://[::1]:{port}")],
            &["-p", "-x", &format!("http://127.0.0.1:{port}")],
        ] {
            let (code, body, error) = world.curl(proxy, &url);
            assert_eq!((code, error.as_str()), (Some(0), ""), "{proxy:?} {url}");
            assert!(body.len() == BODY && body.iter().all(|b| *b == b'x'), "{}", body.len());
        }
    }
    // As the command says it.
    let output = Command::new("curl")
        .args([
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "http://lima-web.internal:8000/file",
        ])
        .env("ALL_PROXY", format!("socks5h://127.0.0.1:{port}"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200");
}

#[test]
fn what_is_not_reached_is_told_as_what_it_is() {
    let world = Tunnel::new();
    let config_gateway: IpAddr = "10.71.0.1".parse().unwrap();
    let nobody: IpAddr = "10.71.0.200".parse().unwrap();
    for (address, port, expected) in [
        (name("lima-web.internal"), 8000, 0),
        // Refused by the guest.
        (name("lima-web.internal"), 8001, 5),
        (ip(world.addresses[0]), 8001, 5),
        (ip(world.addresses[1]), 8001, 5),
        // Not there.
        (ip(nobody), 80, 4),
        (name("lima-nobody.internal"), 80, 4),
        // Not to be reached this way: the host, its loopback, the gateway, the world.
        (name("host.lima.internal"), 80, 2),
        (name("localhost"), 80, 2),
        (ip(config_gateway), 80, 2),
        (ip(Ipv4Addr::LOCALHOST.into()), world.port, 2),
        (ip(Ipv6Addr::LOCALHOST.into()), world.port, 2),
        (ip("192.0.2.1".parse().unwrap()), 80, 2),
        (ip(world.addresses[0]), 0, 2),
    ] {
        let (_, reply, _) = world.ask(1, &address, port);
        assert_eq!(reply, expected, "{address:?} {port}");
    }
    // BIND, and an unknown type of address.
    assert_eq!(world.ask(2, &ip(world.addresses[0]), 80).1, 7);
    assert_eq!(world.ask(1, &[9, 1, 2, 3, 4], 80).1, 8);

    let http = |url: &str| {
        let proxy = format!("http://127.0.0.1:{}", world.port);
        let args = ["-p", "-x", &proxy, "-o", "/dev/null", "-w", "%{http_connect}"];
        String::from_utf8(world.curl(&args, url).1).unwrap()
    };
    assert_eq!(http("http://lima-web.internal:8000/file"), "200");
    assert_eq!(http("http://lima-web.internal:8001/"), "502");
    assert_eq!(http("http://host.lima.internal/"), "403");
    let (_, body, _) =
        world.curl(&["-x", &format!("http://127.0.0.1:{}", world.port)], "http://a/");
    assert!(String::from_utf8_lossy(&body).contains("CONNECT alone"), "{body:?}");
}

#[test]
fn datagrams_are_relayed_as_long_as_the_stream_is_open() {
    let world = Tunnel::new();
    for (local, wildcard) in [
        ("127.0.0.1:0", ip(Ipv4Addr::UNSPECIFIED.into())),
        ("[::1]:0", ip(Ipv6Addr::UNSPECIFIED.into())),
    ] {
        let local: SocketAddr = local.parse().unwrap();
        let mut stream = TcpStream::connect((local.ip(), world.port)).unwrap();
        stream.write_all(&[&[5, 1, 0, 5, 3, 0], &wildcard[..], &[0, 0]].concat()).unwrap();
        let (code, relay) = reply(&mut stream);
        assert_eq!((code, relay.ip()), (0, local.ip()));
        let socket = UdpSocket::bind(local).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let guest = world.addresses[0];
        for address in [name("lima-web.internal"), ip(guest), name("lima-web.internal")] {
            for size in [0, 5, 1400, 9000] {
                let data = vec![b'd'; size];
                let head = [&[0, 0, 0], &address[..], &7007u16.to_be_bytes()].concat();
                socket.send_to(&[&head[..], &data].concat(), relay).unwrap();
                let mut buffer = vec![0; 65_536];
                let (len, from) = socket.recv_from(&mut buffer).unwrap();
                let shown = [&[0, 0, 0], &ip(guest)[..], &7007u16.to_be_bytes()].concat();
                assert_eq!((&buffer[..len], from), (&[shown, data].concat()[..], relay));
            }
        }
        // Fragments, strangers' datagrams and what is broken go nowhere.
        let whole = [&[0, 0, 0], &ip(guest)[..], &7007u16.to_be_bytes(), b"whole"].concat();
        let part = [&[0, 0, 1], &ip(guest)[..], &7007u16.to_be_bytes(), b"part"].concat();
        let stranger = UdpSocket::bind(local).unwrap();
        stranger.send_to(&whole, relay).unwrap();
        socket.send_to(&part, relay).unwrap();
        socket.send_to(b"x", relay).unwrap();
        socket.send_to(&whole, relay).unwrap();
        let mut buffer = vec![0; 65_536];
        let len = socket.recv(&mut buffer).unwrap();
        assert!(buffer[..len].ends_with(b"whole"));
        stranger.set_nonblocking(true).unwrap();
        assert!(stranger.recv(&mut buffer).is_err());
        // The port is free again when the stream has ended.
        drop(stream);
        eventually("the relay's end", || UdpSocket::bind(relay).ok());
    }
}

#[test]
fn who_says_nothing_keeps_nobody_out() {
    let world = Tunnel::new();
    let silent: Vec<_> = (0..600).map(|_| world.connect()).collect();
    for _ in 0..3 {
        assert_eq!(world.ask(1, &name("lima-web.internal"), 8000).1, 0);
    }
    drop(silent);
    // Byte by byte works, and so does a client that says everything at once.
    let mut slow = world.connect();
    let request = [&[5, 1, 0, 5, 1, 0], &name("lima-web.internal")[..], &[0x1f, 0x40]].concat();
    for byte in &request {
        slow.write_all(&[*byte]).unwrap();
        slow.flush().unwrap();
    }
    assert_eq!(reply(&mut slow).0, 0);
    let mut eager = world.connect();
    eager.write_all(&[&request[..], b"GET /none HTTP/1.0\r\n\r\n"].concat()).unwrap();
    assert_eq!(reply(&mut eager).0, 0);
    let mut answer = String::new();
    eager.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 404") || answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[test]
fn a_tunnel_is_there_until_it_is_stopped() {
    let lab = Lab::new();
    assert_eq!(tunnel(&lab, &["list"]).quiet(), "NETWORK    PROXY\n");
    // It brings up the network's daemon, and keeps it without a guest.
    let said = tunnel(&lab, &["lab"]).quiet();
    assert!(said.contains("http://lima-NAME.internal"), "{said}");
    let first = ports(&lab)[0];
    assert_eq!(tunnel(&lab, &["lima:lab"]).quiet(), said);
    tunnel(&lab, &["lab", "--socks-port", "0"]).quiet();
    assert_eq!(ports(&lab).len(), 2);
    let free = free_ports(1).to_string();
    let said = tunnel(&lab, &["lab", "--socks-port", &free]).quiet();
    assert!(said.contains(&format!("127.0.0.1:{free} ")), "{said}");
    let table = tunnel(&lab, &["list"]).quiet();
    assert!(table.contains(&format!("lab        socks5h://127.0.0.1:{first}\n")), "{table}");
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(ports(&lab).len(), 3, "longer than a network is there without anybody");

    let error = lab.0.network(&["delete", "lab"]).failed(1);
    assert!(error.contains("is kept by a tunnel"), "{error}");

    assert_eq!(tunnel(&lab, &["stop", &free]).quiet(), "");
    let error = tunnel(&lab, &["stop", &free]).failed(1);
    assert!(error.contains(&format!("no tunnel has port {free}")), "{error}");
    assert!(TcpStream::connect(format!("127.0.0.1:{free}")).is_err());
    assert_eq!(tunnel(&lab, &["stop", "lab"]).quiet(), "");
    assert!(ports(&lab).is_empty());
    eventually("the daemon's end", || lab.left().is_empty().then_some(()));
    assert_eq!(tunnel(&lab, &["stop", "--all"]).quiet(), "");
}

#[test]
fn a_tunnel_outlives_its_daemon() {
    let lab = Lab::new();
    tunnel(&lab, &["lab"]).quiet();
    let open = ports(&lab);
    let first = lab.pid().unwrap();
    kill_process(first, Signal::KILL).unwrap();
    let second = eventually("another daemon", || {
        lab.pid().filter(|pid| *pid != first && ports(&lab) == open)
    });
    let mut web = Guest::start(&lab, &["--name", "web"]);
    assert_eq!(web.line(SERVE), "started");
    kill_process(second, Signal::KILL).unwrap();
    eventually("an answer", || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, open[0])).ok()?;
        let request = [&[5, 1, 0, 5, 1, 0], &name("lima-web.internal")[..], &[0x1f, 0x40]].concat();
        stream.write_all(&request).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        answer.ends_with(b"hello\n").then_some(())
    });
    drop(web);
    assert_eq!(tunnel(&lab, &["stop", "--all"]).quiet(), "");
    eventually("the end of all", || lab.left().is_empty().then_some(()));
}

#[test]
fn a_held_network_and_its_tunnels_are_stopped_apart() {
    let lab = Lab::new();
    lab.0.network(&["start", "lab"]).quiet();
    tunnel(&lab, &["lab"]).quiet();
    let open = ports(&lab);
    let said = lab.0.network(&["stop", "lab"]);
    assert_eq!(said.code, Some(0));
    assert!(
        said.err.contains("stays for its tunnel; end that with: vmlan tunnel stop lab"),
        "{}",
        said.err
    );
    let first = lab.pid().unwrap();
    kill_process(first, Signal::KILL).unwrap();
    eventually("the tunnel", || (ports(&lab) == open).then_some(()));
    lab.0.network(&["start", "lab"]).quiet();
    tunnel(&lab, &["stop", "lab"]).quiet();
    let second = lab.pid().unwrap();
    kill_process(second, Signal::KILL).unwrap();
    eventually("another daemon", || lab.pid().filter(|pid| *pid != second));
    assert!(ports(&lab).is_empty());
    lab.0.network(&["stop", "lab"]).quiet();
    eventually("the end of all", || lab.left().is_empty().then_some(()));
}

#[test]
fn what_cannot_be_a_tunnel_is_told() {
    let lab = Lab::new();
    for port in ["80", "1023", "65536", "x", "-1"] {
        let error = tunnel(&lab, &["lab", &format!("--socks-port={port}")]).failed(2);
        assert!(error.contains(&format!("invalid socks port {port}")), "{error}");
    }
    let error = tunnel(&lab, &["lab", "--type", "l2tp"]).failed(2);
    assert!(error.contains("unknown tunnel type: `l2tp`"), "{error}");
    let error = tunnel(&lab, &["nobody"]).failed(1);
    assert!(error.contains("is called `nobody`: there is lab"), "{error}");
    fs::create_dir(lab.0.path("box")).unwrap();
    fs::write(lab.0.path("box/lima.yaml"), "networks: [{lima: lab}]\n").unwrap();
    let error = tunnel(&lab, &["box"]).failed(1);
    assert!(error.contains("instance `box` is stopped, run `vmlan start box`"), "{error}");
    tunnel(&lab, &[]).failed(2);
    tunnel(&lab, &["stop"]).failed(2);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let error = tunnel(&lab, &["lab", "--socks-port", &port]).failed(1);
    assert!(error.contains(&format!("127.0.0.1:{port} is already in use")), "{error}");
}

#[test]
fn clients_of_the_control_api_are_led_to_guests() {
    let world = Tunnel::new();
    let connect = |query: &str| {
        let mut stream =
            UnixStream::connect(world.lab.0.path("_networks/lab/lab_ep.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "POST /tunnel?{query} HTTP/1.1\r\nHost: vmlan\r\n\r\n").unwrap();
        stream
    };
    let mut stream = connect(&format!("ip={}&port=8000", world.addresses[0]));
    let mut ok = [0; 2];
    stream.read_exact(&mut ok).unwrap();
    assert_eq!(&ok, b"OK");
    write!(stream, "GET /file HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200"));
    assert!(answer.len() > BODY);
    for (query, expected) in [
        (format!("ip={}&port=8001", world.addresses[0]), "502"),
        ("ip=127.0.0.1&port=22".into(), "502"),
        ("ip=x&port=22".into(), "400"),
    ] {
        let mut answer = String::new();
        connect(&query).read_to_string(&mut answer).unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(expected), "{answer}");
    }
}
