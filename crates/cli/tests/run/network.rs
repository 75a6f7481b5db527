//! The guest's network: what is configured, what it reaches, what reaches it.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::caller::{Told, run, run_sh};
use crate::ports::free_ports;

#[test]
fn addresses_and_routes_are_there_at_once() {
    let text = run_sh("ip -o addr; ip route; ip -6 route; ip link show eth0").text();
    for expected in [
        "lo    inet 127.0.0.1/8",
        "lo    inet6 ::1/128",
        "eth0    inet 192.168.5.15/24 brd 192.168.5.255",
        "eth0    inet6 fd76:6d6c:c0a8:500::15/64",
        "default via 192.168.5.2 dev eth0",
        "default via fd76:6d6c:c0a8:500::1 dev eth0",
        "mtu 65520",
    ] {
        assert!(text.contains(expected), "no {expected:?} in {text}");
    }
    assert!(!text.contains("tentative"), "{text}");
    let sysfs = run_sh("ls /sys/class/net; cat /sys/class/net/eth0/mtu").text();
    assert_eq!(sysfs, "eth0\nlo\n65520\n");
    let text = run(["--mtu", "1400", "--", "ip", "link", "show", "eth0"]).output().unwrap().text();
    assert!(text.contains("mtu 1400"), "{text}");
}

#[test]
fn the_gateway_answers_to_ping() {
    for target in ["192.168.5.2", "192.168.5.3", "fd76:6d6c:c0a8:500::1", "host.lima.internal"] {
        let text = run(["--", "ping", "-c1", "-W5", target]).output().unwrap().text();
        assert!(text.contains("1 received"), "{text}");
    }
    let range = run_sh("cat /proc/sys/net/ipv4/ping_group_range; id -g").text();
    let numbers: Vec<&str> = range.split_whitespace().collect();
    assert_eq!((numbers[0], numbers[1]), (numbers[2], numbers[2]));
}

/// Serves one connection on the host's loopback: returns what the client sent up to its FIN.
fn serve_one(listener: TcpListener) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(b"welcome\n").unwrap();
        got
    })
}

#[test]
fn the_hosts_loopback_is_reached_by_name() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = serve_one(listener);
    let script = format!(
        "import socket; s = socket.create_connection(('host.lima.internal', {port})); \
         s.sendall(b'hello'); s.shutdown(socket.SHUT_WR); print(s.recv(100).decode(), end='')"
    );
    let output = run(["--", "python3", "-c", &script]).output().unwrap();
    assert_eq!(output.text(), "welcome\n");
    assert_eq!(server.join().unwrap(), b"hello");
    // Nobody listens there any more.
    let refused = run(["--", "python3", "-c", &script]).output().unwrap();
    assert!(refused.error().contains("ConnectionRefused"), "{}", refused.error());
}

#[test]
fn the_hosts_loopback_can_be_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!("exec 3<>/dev/tcp/192.168.5.2/{port}");
    let output = run(["--no-host-loopback", "--", "timeout", "5", "bash", "-c", &script]).output();
    assert!(!output.unwrap().status.success());
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "the guest got through");
}

/// What a command has written is delivered though the command has ended at once.
#[test]
fn the_last_words_of_a_command_are_delivered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = serve_one(listener);
    let script = format!(
        "import socket; s = socket.create_connection(('192.168.5.2', {port})); \
         s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20); s.setblocking(False); \
         print(s.send(b'x' * (1 << 20)))"
    );
    let sent = run(["--", "python3", "-c", &script]).output().unwrap().text();
    assert_eq!(server.join().unwrap().len(), sent.trim().parse::<usize>().unwrap());
}

const SERVER: &str = "
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.socket(family); s.bind((sys.argv[1], int(sys.argv[2]))); s.listen()
print('up', flush=True)
c, peer = s.accept()
c.sendall(b'from the guest')
";

fn connect(address: &str) -> String {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        // Until the server in the guest listens, the connection is reset.
        let mut text = String::new();
        if let Ok(mut stream) = TcpStream::connect(address)
            && stream.read_to_string(&mut text).is_ok()
            && !text.is_empty()
        {
            return text;
        }
        assert!(Instant::now() < end, "nobody answers at {address}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn published_ports_lead_to_the_command() {
    let port = free_ports(2);
    for (publish, address) in [
        (format!("{port}:8000"), format!("127.0.0.1:{port}")),
        (format!("127.0.0.1:{port}-{}:7999-8000", port + 1), format!("127.0.0.1:{}", port + 1)),
        (format!("[::1]:{port}:8000"), format!("[::1]:{port}")),
    ] {
        let mut command = run(["-p", &publish, "--", "python3", "-c", SERVER, "0.0.0.0", "8000"]);
        let guest = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        assert_eq!(connect(&address), "from the guest", "{publish}");
        guest.wait_with_output().unwrap().text();
    }
}

#[test]
fn a_port_that_is_taken_ends_it_before_the_command() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = run(["-p", &format!("{port}:80"), "--", "echo", "ran"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(125), &b""[..]));
    let error = output.error();
    assert!(error.contains(&format!("127.0.0.1:{port}")) && error.lines().count() == 1, "{error}");
}

#[test]
fn frames_are_captured() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let file = dir.path().join("frames.pcapng");
    let capture = |path: &str| {
        run(["--capture", path, "--", "ping", "-c1", "-W5", "192.168.5.2"]).output().unwrap()
    };
    capture(file.to_str().unwrap()).text();
    let frames = fs::read(&file).unwrap();
    assert!(frames.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]));
    let echo_request = [192, 168, 5, 15, 192, 168, 5, 2, 8, 0];
    assert!(frames.windows(10).any(|bytes| bytes == echo_request));
    let refused = capture("/nonexistent/frames");
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(125), 0));
    assert!(refused.error().contains("--capture /nonexistent/frames"), "{}", refused.error());
}

#[test]
fn starting_is_quick() {
    let time = |mut command: Command| {
        let start = Instant::now();
        assert!(command.status().unwrap().success());
        start.elapsed()
    };
    let best = (0..10).map(|_| time(run(["true"]))).min().unwrap();
    let bare = (0..10).map(|_| time(crate::caller::user("true"))).min().unwrap();
    // Far above what it takes, far below what one would notice.
    assert!(best.saturating_sub(bare) < Duration::from_millis(250), "{best:?}, {bare:?} without");
}
