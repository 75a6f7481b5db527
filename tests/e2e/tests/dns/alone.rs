//! The resolver without a network: `vmlan dns serve` on ports of the host, and `vmlan dns query`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use rustix::process::Signal;
use vmlan_e2e::binary::vmlan;
use vmlan_e2e::dns_client::{Client, Transport};
use vmlan_e2e::dns_message::{A, Query};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::capture;
use vmlan_e2e::world::{OUTSIDE, host_and_outside};
use vmlan_e2e::{Netns, Process, Upstream};

/// A host whose nameserver gives every name one address, and whose hosts file knows one name.
struct Scene {
    host: Netns,
    upstream: Upstream,
    _outside: Netns,
}

impl Scene {
    #[track_caller]
    fn new() -> Self {
        let (mut host, outside) = host_and_outside();
        let etc = host.own_files();
        fs::write(etc.join("resolv.conf"), "nameserver 198.51.100.2\n").expect("a file");
        fs::write(etc.join("hosts"), "198.51.100.77 box.example.net\n").expect("a file");
        let upstream = Upstream::of(&outside, OUTSIDE, [203, 0, 113, 1]);
        Self { host, upstream, _outside: outside }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(vmlan());
        command.arg("dns").args(arguments);
        command
    }

    /// The server and its ports for UDP and TCP, as it tells them.
    #[track_caller]
    fn serve(&self, arguments: &[&str]) -> (Process, SocketAddr, SocketAddr) {
        let mut command = self.command(&[&["serve"], arguments].concat());
        let mut process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        let stdout = process.child().stdout.take().expect("stdout is a pipe");
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        let address = |transport: &str| {
            let line = told.recv_timeout(SOON).expect("a line for each port");
            let address = line.strip_prefix(transport).expect("the transport comes first").trim();
            address.parse().expect("an address")
        };
        let (udp, tcp) = (address("udp "), address("tcp "));
        (process, udp, tcp)
    }

    #[track_caller]
    fn expect(&self, at: SocketAddr, transport: Transport, name: &str, address: &str) {
        let reply = Client::at(&self.host, at).ask(&Query::new(name, A), transport);
        assert_eq!(reply.addresses(), [address], "{name} over {transport:?}");
    }

    /// The last line of what `vmlan dns query` says, and whether the name was found.
    #[track_caller]
    fn query(&self, arguments: &[&str]) -> (String, bool) {
        let output = capture(&mut self.command(&[&["query"], arguments].concat()), SOON);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.stderr.is_empty(), "{output:?}");
        (text, output.status.success())
    }
}

#[test]
fn it_serves_on_two_free_ports() {
    let scene = Scene::new();
    let arguments = ["--dns-host", "db.corp.example=10.1.2.3"];
    let (mut process, udp, tcp) = scene.serve(&arguments);
    let (_other, other_udp, other_tcp) = scene.serve(&[]);
    assert!(udp.ip().is_loopback() && tcp.ip().is_loopback());
    assert!(udp.port() != other_udp.port() && tcp.port() != other_tcp.port());
    for (at, transport) in [(udp, Transport::Udp), (tcp, Transport::Tcp)] {
        scene.expect(at, transport, "db.corp.example", "10.1.2.3");
        scene.expect(at, transport, "box.example.net", "198.51.100.77");
        scene.expect(at, transport, "www.example.net", "203.0.113.1");
    }
    scene.expect(other_udp, Transport::Udp, "db.corp.example", "203.0.113.1");
    process.signal(Signal::TERM);
    assert!(process.wait(SOON).success());
}

#[test]
fn it_serves_on_the_ports_that_it_is_given() {
    let scene = Scene::new();
    let (_process, udp, tcp) = scene.serve(&["--udp-port", "5300", "--tcp-port", "5301"]);
    assert_eq!((udp.port(), tcp.port()), (5300, 5301));
    scene.expect(udp, Transport::Udp, "www.example.net", "203.0.113.1");
    scene.expect(tcp, Transport::Tcp, "www.example.net", "203.0.113.1");
    // Whoever comes second is told which port it is.
    let mut second = scene.command(&["serve", "--udp-port", "5300"]);
    let output = capture(&mut second, SOON);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("5300"), "{output:?}");
}

#[test]
fn query_says_where_an_answer_came_from() {
    let scene = Scene::new();
    let given = ["--dns-host", "db.corp.example=10.1.2.3"];
    for (arguments, answer, origin) in [
        (&["db.corp.example"][..], "10.1.2.3", "static"),
        (&["host.lima.internal"], "192.168.5.2", "static"),
        (&["box.example.net"], "198.51.100.77", "hosts file"),
        (&["www.example.net"], "203.0.113.1", "198.51.100.2"),
        (&["10.1.2.3"], "db.corp.example.", "static"),
    ] {
        let (text, found) = scene.query(&[arguments, &given].concat());
        assert!(found && text.contains(answer), "{arguments:?}: {text}");
        let last = text.lines().last().expect("a line");
        assert!(last.contains("NOERROR") && last.contains(origin), "{arguments:?}: {text}");
    }
    let (text, found) = scene.query(&["missing.example.net"]);
    assert!(!found && text.contains("NXDOMAIN"), "{text}");
    let (text, found) = scene.query(&["--json", "www.example.net", "TYPE65280"]);
    assert!(found && text.contains("\"rcode\":\"NOERROR\""), "{text}");
    assert!(scene.upstream.asked().iter().any(|asked| asked.kind() == 65280));
}
