//! What the loopback of the machine does not show: echo sockets, small MTUs, missing routes and
//! routers. In network namespaces of the test's own, which need no privilege and end with it.
#![cfg(target_os = "linux")]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use common::{PLAIN, Rig};
use vmlan_dns::{Options, Source};
use vmlan_engine::io::{DatagramKind, DatagramOptions, Failure, StreamTarget};
use vmlan_engine::{Host, PortId, SockId, Token};

const INSIDE: &str = "VMLAN_TEST_INSIDE";

/// A loopback with a small MTU, and a router `r` between us and 10.2.0.0/24.
const SETUP: &str = r#"
set -e
ip link set lo up mtu 1500
echo "0 0" > /proc/sys/net/ipv4/ping_group_range
unshare --net sleep 1000 &
router=$!
while [ "$(readlink /proc/$router/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
ip link add a0 type veth peer name r0 netns $router
in_router() { nsenter --target $router --net "$@"; }
ip addr add 10.1.0.1/24 dev a0
ip addr add fd01::1/64 dev a0 nodad
ip link set a0 up
in_router ip addr add 10.1.0.2/24 dev r0
in_router ip addr add fd01::2/64 dev r0 nodad
in_router ip link set r0 up
in_router ip link set lo up
in_router sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding'
in_router ip route add 10.2.0.0/24 dev r0
in_router ip route add unreachable 10.3.0.0/24
ip route add 10.2.0.0/24 via 10.1.0.2
ip route add 10.3.0.0/24 via 10.1.0.2
ip route add fd02::/64 via fd01::2
in_router ip route add fd02::/64 dev r0
status=0
"$@" || status=$?
kill $router
exit $status
"#;

/// Runs a test again inside of namespaces; true if it is there already.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork"])
        .args(["--kill-child", "--mount-proc", "sh", "-c", SETUP, "setup"])
        .arg(this)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    false
}

/// An ICMP error as the engine is told of it.
#[derive(Debug, PartialEq)]
struct Seen {
    kind: u8,
    code: u8,
    mtu: u32,
    offender: Option<IpAddr>,
    to: SocketAddr,
}

fn seen(kind: u8, code: u8, offender: Option<&str>, to: SocketAddr) -> Seen {
    Seen { kind, code, mtu: 0, offender: offender.map(|ip| ip.parse().unwrap()), to }
}

fn errors(rig: &mut Rig, sock: SockId) -> Vec<Seen> {
    let mut all = Vec::new();
    rig.sockets.datagram_errors(sock, &mut |error| {
        let (kind, code, mtu) = (error.kind, error.code, error.mtu);
        all.push(Seen { kind, code, mtu, offender: error.offender, to: error.to });
    });
    all
}

fn await_errors(rig: &mut Rig, token: u64, sock: SockId) -> Vec<Seen> {
    rig.until("an error", |rig| Some(rig.event(token)).filter(|ready| ready.error));
    errors(rig, sock)
}

fn open(rig: &mut Rig, kind: DatagramKind) -> SockId {
    rig.sockets.datagram_open(Token(1), kind).unwrap()
}

fn with_ttl(ttl: u8) -> DatagramOptions {
    DatagramOptions { ttl, ..PLAIN }
}

#[test]
fn echo_goes_through_ping_sockets() {
    if !inside("echo_goes_through_ping_sockets") {
        return;
    }
    for (kind, to, request, reply) in
        [(DatagramKind::Ping4, "10.1.0.2:0", 8, 0), (DatagramKind::Ping6, "[fd01::2]:0", 128, 129)]
    {
        let mut rig = Rig::new();
        let to: SocketAddr = to.parse().unwrap();
        let sock = open(&mut rig, kind);
        let message = [request, 0, 0, 0, 0x12, 0x34, 0, 7, b'd', b'a', b't', b'a'];
        assert_eq!(rig.sockets.datagram_send(sock, to, PLAIN, &[&message]), 1);
        let answer = rig.until("an echo", |rig| {
            rig.event(1);
            let mut answer = None;
            rig.sockets.datagram_recv(sock, 8, &mut |batch| {
                answer = Some((batch[0].from, batch[0].data.to_vec()));
            });
            answer
        });
        assert_eq!(answer.0, to);
        assert_eq!((answer.1[0], answer.1[1]), (reply, 0));
        assert_eq!(&answer.1[6..], &message[6..]);

        // A router on the way, for traceroute by ping.
        let (far, router) = match kind {
            DatagramKind::Ping4 => ("10.2.0.9:0", "10.1.0.2"),
            _ => ("[fd02::9]:0", "fd01::2"),
        };
        let far: SocketAddr = far.parse().unwrap();
        let expired = if far.is_ipv4() { 11 } else { 3 };
        rig.sockets.datagram_send(sock, far, with_ttl(1), &[&message]);
        assert_eq!(await_errors(&mut rig, 1, sock), [seen(expired, 0, Some(router), far)]);
    }
}

#[test]
fn the_right_to_ping_is_told_apart() {
    if !inside("the_right_to_ping_is_told_apart") {
        return;
    }
    // A new network namespace gives nobody the right.
    // SAFETY: only this thread moves, and it has nothing open there.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    let mut rig = Rig::new();
    let opened = rig.sockets.datagram_open(Token(1), DatagramKind::Ping4);
    assert_eq!(opened, Err(Failure::Unsupported));
}

#[test]
fn what_is_too_big_is_told_or_cut() {
    if !inside("what_is_too_big_is_told_or_cut") {
        return;
    }
    for (kind, at, icmp, code) in
        [(DatagramKind::Udp4, "127.0.0.1:0", 3, 4), (DatagramKind::Udp6, "[::1]:0", 2, 0)]
    {
        let mut rig = Rig::new();
        let peer = UdpSocket::bind(at).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let to = peer.local_addr().unwrap();
        let sock = open(&mut rig, kind);
        let mut buf = vec![0; 1 << 16];
        let large = vec![7; 3000];
        let small = vec![8; 1000];

        let whole = DatagramOptions { dont_fragment: true, ..PLAIN };
        let sent = rig.sockets.datagram_send(sock, to, whole, &[&large]);
        assert_eq!(sent, 0);
        let told = errors(&mut rig, sock);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0], Seen { mtu: 1500, ..seen(icmp, code, None, told[0].to) });
        assert_eq!(told[0].to.ip(), to.ip());

        // Those that fit go nevertheless, before and after.
        let batch: [&[u8]; 5] = [&small, &large, &large, &small, &small];
        assert_eq!(rig.sockets.datagram_send(sock, to, whole, &batch), 3);
        for _ in 0..3 {
            assert_eq!(peer.recv(&mut buf).unwrap(), 1000);
        }
        errors(&mut rig, sock);

        // Without the flag the system cuts, runs of equal size too.
        let batch: [&[u8]; 4] = [&large, &large, &large, &small];
        assert_eq!(rig.sockets.datagram_send(sock, to, PLAIN, &batch), 4);
        for payload in batch {
            assert_eq!(peer.recv(&mut buf).unwrap(), payload.len());
        }
        assert_eq!(errors(&mut rig, sock), []);
    }
}

#[test]
fn missing_routes_are_told_at_once() {
    if !inside("missing_routes_are_told_at_once") {
        return;
    }
    let mut rig = Rig::new();
    let to: SocketAddr = "192.0.2.1:7".parse().unwrap();
    let sock = open(&mut rig, DatagramKind::Udp4);
    for payloads in [&[&b"x"[..]][..], &[b"x", b"x"], &[b"x", b"yy", b"zzz"]] {
        assert_eq!(rig.sockets.datagram_send(sock, to, PLAIN, payloads), 0);
        assert_eq!(errors(&mut rig, sock), [seen(3, 0, None, to)]);
        assert_eq!(errors(&mut rig, sock), []);
    }
    let six: SocketAddr = "[2001:db8::1]:7".parse().unwrap();
    let other = rig.sockets.datagram_open(Token(2), DatagramKind::Udp6).unwrap();
    assert_eq!(rig.sockets.datagram_send(other, six, PLAIN, &[b"x"]), 0);
    // Not those of another socket.
    assert_eq!(errors(&mut rig, sock), []);
    assert_eq!(errors(&mut rig, other), [seen(1, 0, None, six)]);
    for to in [to, six] {
        assert_eq!(rig.connect(3, to), Err(Failure::NetUnreachable));
    }
}

#[test]
fn routers_on_the_way_are_heard() {
    if !inside("routers_on_the_way_are_heard") {
        return;
    }
    for (kind, far, router, expired) in [
        (DatagramKind::Udp4, "10.2.0.9:33434", "10.1.0.2", 11),
        (DatagramKind::Udp6, "[fd02::9]:33434", "fd01::2", 3),
    ] {
        let mut rig = Rig::new();
        let far: SocketAddr = far.parse().unwrap();
        let sock = open(&mut rig, kind);
        rig.sockets.datagram_send(sock, far, with_ttl(1), &[b"probe"]);
        assert_eq!(await_errors(&mut rig, 1, sock), [seen(expired, 0, Some(router), far)]);

        let target = StreamTarget::Tcp(far);
        let sock = rig.sockets.connect(Token(2), &target, Some(1)).unwrap();
        assert_eq!(await_errors(&mut rig, 2, sock), [seen(expired, 0, Some(router), far)]);
        assert_eq!(rig.sockets.take_error(sock), Some(Failure::HostUnreachable));
    }
    let mut rig = Rig::new();
    let unreachable: SocketAddr = "10.3.0.1:80".parse().unwrap();
    assert_eq!(rig.connect(1, unreachable), Err(Failure::HostUnreachable));
    let nobody: SocketAddr = "10.1.0.77:80".parse().unwrap();
    assert_eq!(rig.connect(2, nobody), Err(Failure::HostUnreachable));
}

#[test]
fn without_ipv6_its_loopback_leads_to_ipv4() {
    if !inside("without_ipv6_its_loopback_leads_to_ipv4") {
        return;
    }
    std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut rig = Rig::new();
    rig.connect(1, format!("[::1]:{port}").parse().unwrap()).unwrap();
    listener.accept().unwrap();
}

#[test]
fn nameservers_are_those_of_resolv_conf() {
    if !inside("nameservers_are_those_of_resolv_conf") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 127.0.0.53\n").unwrap();
    let source = Source::ResolvConf(path.clone());
    let mut rig = Rig::with(Options { source, ..Options::default() });
    let query = [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x01a\0\0\x01\0\x01"].concat();
    let mut reply = query.clone();
    reply[2] |= 0x80;
    for (token, at) in [(1, "127.0.0.53:53"), (2, "[::1]:53")] {
        let server = UdpSocket::bind(at).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        rig.sockets.dns_query(Token(token), PortId(1), &query);
        rig.turn(Duration::ZERO);
        let mut buf = [0; 512];
        let (len, from) = server.recv_from(&mut buf).unwrap();
        assert_eq!(buf[2..len], query[2..]);
        buf[2] |= 0x80;
        server.send_to(&buf[..len], from).unwrap();
        assert_eq!(rig.answer(token), reply);
        std::fs::write(&path, "nameserver ::1\n").unwrap();
        // The file is looked at once a second.
        std::thread::sleep(Duration::from_millis(1100));
    }
}
