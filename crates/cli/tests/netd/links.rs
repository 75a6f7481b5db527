//! Guests that come by other ways than a stream listener: datagram sockets, passed descriptors,
//! network namespaces. Namespaces belong to user namespaces of their own, so this needs no rights.

use std::io::{ErrorKind, Read};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::support::{GATEWAY, Guest, Netd, PATIENCE, eventually};

/// A guest on a datagram socket.
struct DatagramGuest {
    socket: UnixDatagram,
    frames: Guest,
}

impl DatagramGuest {
    fn new(netd: &Netd, number: u8) -> Self {
        let socket = UnixDatagram::bind(netd.path(&format!("guest{number}"))).unwrap();
        socket.connect(netd.path("dgram")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // Only its addresses are used.
        let frames = Guest::over(UnixStream::pair().unwrap().0, number);
        Self { socket, frames }
    }

    fn send(&self, frame: &[u8]) {
        self.socket.send(frame).unwrap();
    }

    fn recv_type(&self, ethertype: u16) -> Vec<u8> {
        let mut frame = vec![0; 65536];
        loop {
            let len = self.socket.recv(&mut frame).unwrap();
            if len >= 14 && frame[12..14] == ethertype.to_be_bytes() {
                return frame[..len].to_vec();
            }
        }
    }

    fn resolve(&self, ip: [u8; 4]) {
        self.send(&self.frames.arp([0xff; 6], 1, [0; 6], ip));
        loop {
            let frame = self.recv_type(0x0806);
            if frame[21] == 2 && frame[28..32] == ip {
                return;
            }
        }
    }
}

#[test]
fn guests_share_a_datagram_socket() {
    let mut netd = Netd::start(&["--listen-dgram", "{}/dgram", "--listen-qemu", "{}/qemu"]);
    let a = DatagramGuest::new(&netd, 15);
    let b = DatagramGuest::new(&netd, 16);
    let mut c = Guest::connect(&netd.path("qemu"), 17);
    a.resolve(GATEWAY);
    b.resolve(GATEWAY);
    a.send(&a.frames.arp([0xff; 6], 1, [0; 6], [192, 168, 5, 99]));
    for question in [b.recv_type(0x0806), c.recv_type(0x0806)] {
        assert_eq!(question[6..12], a.frames.mac);
    }
    c.send(&[&b.frames.mac[..], &c.mac, &[0x88, 0xb5], &[7; 1400]].concat());
    assert_eq!(b.recv_type(0x88b5)[14..], [7; 1400]);
    // One leaves; the others stay.
    std::fs::remove_file(netd.path("guest15")).unwrap();
    drop(a);
    c.resolve(GATEWAY);
    b.resolve(GATEWAY);
    netd.stop(Signal::TERM);
    assert!(!netd.path("dgram").exists());
}

#[test]
fn a_passed_descriptor_is_a_guest() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let netd = Netd::start_with_fd(&["--fd", "4"], OwnedFd::from(theirs));
    Guest::over(ours, 15).resolve(GATEWAY);
    drop(netd);
}

#[test]
fn what_is_captured_can_be_read() {
    let mut netd = Netd::start(&["--listen-qemu", "{}/qemu", "--capture", "{}/capture"]);
    let mut guest = Guest::connect(&netd.path("qemu"), 15);
    let question = guest.arp([0xff; 6], 1, [0; 6], GATEWAY);
    guest.resolve(GATEWAY);
    netd.stop(Signal::TERM);
    let capture = std::fs::read(netd.path("capture")).unwrap();
    // A section header block, and the frame itself.
    assert_eq!(capture[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
    assert!(capture.windows(question.len()).any(|w| w == question));
}

/// A network namespace that lives as long as its holder.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        // It ends when its input does, even if this test is killed.
        let mut holder = Command::new("unshare")
            .args(["-Urn", "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is installed");
        let up = holder.stdout.as_mut().unwrap().read_exact(&mut [0]);
        up.expect("user namespaces are allowed");
        Self { holder }
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// Output of a command in the namespace, if it succeeds.
    fn run(&self, command: &str) -> Option<String> {
        let pid = self.holder.id().to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["-t", &pid, "-U", "-n", "--preserve-credentials"]);
        let output = nsenter.args(command.split_whitespace()).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn a_namespace_is_a_guest_as_soon_as_the_daemon_is_ready() {
    let (a, b) = (Namespace::new(), Namespace::new());
    let spec = |n: &Namespace| format!("{},ifname=eth0", n.path());
    let mut netd = Netd::start(&["--netns", &spec(&a), "--netns", &spec(&b), "--mtu", "9000"]);
    let address = a.run("ip -4 -o addr show dev eth0").unwrap();
    assert!(address.contains("192.168.5.15/24"), "{address}");
    let link = a.run("ip -o link show dev eth0").unwrap();
    assert!(link.contains("mtu 9000") && link.contains(",UP"), "{link}");
    let route = a.run("ip route get 198.51.100.1").unwrap();
    assert!(route.contains("via 192.168.5.2 dev eth0"), "{route}");
    a.run("ping -c 1 -W 5 192.168.5.2").expect("the gateway answers");
    a.run("ping -c 1 -W 5 -s 30000 192.168.5.16").expect("the other guest answers");
    b.run("ping -6 -c 1 -W 5 fd76:6d6c:c0a8:500::1").expect("the gateway answers by IPv6");
    netd.stop(Signal::TERM);
    assert_eq!(a.run("ip link show dev eth0"), None);
}

#[test]
fn an_interface_can_be_left_alone() {
    let namespace = Namespace::new();
    let spec = format!("{},ifname=tap7,config=off", namespace.path());
    let netd = Netd::start(&["--netns", &spec, "--listen-qemu", "{}/qemu"]);
    let link = namespace.run("ip -o link show dev tap7").unwrap();
    assert!(!link.contains(",UP"), "{link}");
    assert_eq!(namespace.run("ip -4 -o addr show dev tap7").unwrap(), "");
    // A guest that configures itself statically works too, and finds guests of other kinds.
    namespace.run("ip addr add 192.168.5.77/24 dev tap7").unwrap();
    namespace.run("ip link set tap7 up").unwrap();
    namespace.run("ping -c 1 -W 5 192.168.5.2").expect("the gateway answers");
    let mut guest = Guest::connect(&netd.path("qemu"), 15);
    guest.resolve([192, 168, 5, 77]);
}

#[test]
fn a_guest_does_not_command_its_own_network() {
    let namespace = Namespace::new();
    let spec = format!("{},ifname=eth0", namespace.path());
    let netd = Netd::start(&["--netns", &spec, "--control", "{}/control"]);
    let socket = netd.path("control").display().to_string();
    let curl = format!("curl -s -m 5 --unix-socket {socket} http://vmlan/v1/flows");
    assert_eq!(namespace.run(&curl), None);
    let output = Command::new("sh").args(["-c", &curl]).output().unwrap();
    assert_eq!(output.stdout, b"[]\n");
}

#[test]
fn the_end_of_the_daemon_resets_what_is_open() {
    let namespace = Namespace::new();
    let spec = format!("{},ifname=eth0", namespace.path());
    let mut netd = Netd::start(&["--netns", &spec]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let pid = namespace.holder.id().to_string();
    let script = format!("exec 3<>/dev/tcp/192.168.5.2/{port}; echo hello >&3; cat <&3");
    let mut guest = Command::new("nsenter")
        .args(["-t", &pid, "-U", "-n", "--preserve-credentials", "bash", "-c", &script])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut host, _) = listener.accept().unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hello = [0; 6];
    host.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello\n");
    netd.stop(Signal::TERM);
    assert_eq!(host.read(&mut hello).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let status = eventually(|| guest.try_wait().unwrap());
    let mut error = String::new();
    guest.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(!status.success() && error.contains("reset"), "{status} {error}");
}

#[test]
fn a_namespace_that_ends_takes_nobody_with_it() {
    let (a, b) = (Namespace::new(), Namespace::new());
    let spec = |n: &Namespace| format!("{},ifname=eth0", n.path());
    let netd = Netd::start(&["--netns", &spec(&a), "--netns", &spec(&b)]);
    drop(a);
    b.run("ping -c 1 -W 5 192.168.5.2").expect("the gateway answers");
    // The loop does not spin on the dead device.
    eventually(|| {
        let before = netd.cpu_ticks();
        std::thread::sleep(std::time::Duration::from_millis(300));
        (netd.cpu_ticks() - before < 3).then_some(())
    });
}

#[test]
fn a_namespace_that_cannot_be_used_is_named() {
    let namespace = Namespace::new();
    namespace.run("ip link add eth0 type veth peer name eth1").unwrap();
    let spec = |name: &str| format!("{},ifname={name}", namespace.path());
    let taken = spec("eth0");
    let many: Vec<_> = (0..4).map(|n| spec(&format!("tap{n}"))).collect();
    // A subnet with room for three guests.
    let mut full = vec!["--subnet", "192.168.5.0/29", "--gateway", "192.168.5.1"];
    full.extend(many.iter().flat_map(|spec| ["--netns", spec]));
    let table: [(Vec<&str>, &str); 4] = [
        (vec!["--netns", "/proc/self/ns/missing"], "No such file"),
        (vec!["--netns", "/dev/null"], "not a network namespace"),
        (vec!["--netns", &taken], "interface eth0"),
        (full, "192.168.5.0/29 has no address left"),
    ];
    for (args, want) in table {
        let output = crate::support::vmlan().arg("netd").args(&args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?} {text}");
        assert!(text.contains("--netns") && text.contains(want), "{args:?} {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
