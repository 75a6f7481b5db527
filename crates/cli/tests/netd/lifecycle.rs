//! Ready when it is, gone without a trace, and never in another's way.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{GATEWAY, Guest, Netd};

const ALL: [&str; 6] =
    ["--listen-qemu", "{}/qemu", "--control", "{}/control", "--pidfile", "{}/pid"];

#[test]
fn ready_means_that_guests_can_connect() {
    let mut netd = Netd::start(&ALL);
    assert_eq!(fs::read_to_string(netd.path("pid")).unwrap(), format!("{}\n", netd.pid()));
    assert!(netd.stderr_line().starts_with("vmlan: ready, 192.168.5.0/24"));
    UnixStream::connect(netd.path("control")).unwrap();
    Guest::connect(&netd.path("qemu"), 15).resolve(GATEWAY);
}

#[test]
fn signals_end_it_without_a_trace() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut netd = Netd::start(&ALL);
        let mut guest = Guest::connect(&netd.path("qemu"), 15);
        guest.resolve(GATEWAY);
        assert_eq!(netd.stop(signal).code(), Some(0), "{signal:?}");
        assert_eq!(fs::read_dir(netd.dir.path()).unwrap().count(), 0, "{signal:?}");
    }
}

#[test]
fn a_closed_pipe_does_not_end_it() {
    let netd = Netd::start(&ALL);
    netd.signal(Signal::PIPE);
    Guest::connect(&netd.path("qemu"), 15).resolve(GATEWAY);
}

/// What a second daemon says, with `{}` standing for the directory of the first.
fn refused(netd: &Netd, args: &[&str]) -> String {
    let dir = netd.dir.path().to_str().unwrap();
    let args = args.iter().map(|a| a.replace("{}", dir));
    // A daemon that starts after all must not keep the test waiting.
    let mut timeout = Command::new("timeout");
    timeout.args(["20", env!("CARGO_BIN_EXE_vmlan"), "netd"]).args(args).stdin(Stdio::null());
    let output = timeout.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn what_another_daemon_uses_is_left_alone() {
    let netd = Netd::start(&ALL);
    let text = refused(&netd, &["--listen-qemu", "{}/qemu"]);
    assert!(text.contains("/qemu: already in use by another process"), "{text}");
    let text = refused(&netd, &["--listen-qemu", "{}/x", "--control", "{}/control"]);
    assert!(text.contains("/control: already in use"), "{text}");
    let text = refused(&netd, &["--listen-qemu", "{}/x", "--pidfile", "{}/pid"]);
    assert!(text.contains(&format!("process {} is running", netd.pid())), "{text}");
    assert!(!netd.path("x").exists());
    Guest::connect(&netd.path("qemu"), 15).resolve(GATEWAY);
}

#[test]
fn what_is_not_a_socket_is_not_removed() {
    let netd = Netd::start(&["--listen-qemu", "{}/qemu"]);
    fs::write(netd.path("file"), "precious").unwrap();
    let text = refused(&netd, &["--listen-qemu", "{}/file"]);
    assert!(text.contains("/file"), "{text}");
    let text = refused(&netd, &["--listen-qemu", "{}/x", "--pidfile", "{}/file"]);
    assert!(text.contains("/file"), "{text}");
    assert_eq!(fs::read_to_string(netd.path("file")).unwrap(), "precious");
    let text = refused(&netd, &["--listen-qemu", "{}/no/such/directory"]);
    assert!(text.contains("--listen-qemu") && text.contains("/no/such/directory"), "{text}");
}

#[test]
fn a_killed_daemon_does_not_keep_the_next_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    drop(UnixListener::bind(at("qemu")).unwrap());
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    fs::write(at("pid"), gone.id().to_string()).unwrap();
    let netd = Netd::start(&["--listen-qemu", &at("qemu"), "--pidfile", &at("pid")]);
    Guest::connect(&dir.path().join("qemu"), 15).resolve(GATEWAY);
    assert_eq!(fs::read_to_string(at("pid")).unwrap(), format!("{}\n", netd.pid()));
}

#[test]
fn a_taken_port_is_told_with_its_address() {
    let netd = Netd::start(&["--listen-qemu", "{}/qemu"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let forward = format!("{at}=192.168.5.15:80");
    let text = refused(&netd, &["--listen-qemu", "{}/x", "--forward", &forward]);
    assert!(text.contains("--forward") && text.contains(&at), "{text}");
    assert!(!netd.path("x").exists());
}

/// A DHCP message of a guest in its frame (RFC 2131, RFC 2132).
fn dhcp(guest: &Guest, kind: u8, options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, guest.mac[5]]);
    message[28..34].copy_from_slice(&guest.mac);
    message.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
    message.extend_from_slice(options);
    message.push(255);
    let len = u16::try_from(message.len()).unwrap();
    let [ip, udp] = [len + 28, len + 8].map(u16::to_be_bytes);
    let mut header =
        [0x45, 0, ip[0], ip[1], 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255];
    let words = header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&(!sum).to_be_bytes());
    let ports = [0, 68, 0, 67, udp[0], udp[1], 0, 0];
    [&[0xff; 6][..], &guest.mac, &[8, 0], &header, &ports, &message].concat()
}

/// The address in the next answer of this kind.
fn answer(guest: &mut Guest, kind: u8) -> [u8; 4] {
    loop {
        let frame = guest.recv_type(0x0800);
        let options = frame.get(282..).unwrap_or(&[]);
        if options.windows(3).any(|w| w == [53, 1, kind]) {
            return frame[58..62].try_into().unwrap();
        }
    }
}

/// Gets a lease as a client does.
fn lease(guest: &mut Guest) -> [u8; 4] {
    guest.send(&dhcp(guest, 1, &[]));
    let offer = answer(guest, 2);
    let wanted = [&[50, 4][..], &offer, &[54, 4], &GATEWAY].concat();
    guest.send(&dhcp(guest, 3, &wanted));
    answer(guest, 5)
}

#[test]
fn leases_outlive_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("leases").to_str().unwrap().to_owned();
    let args = ["--listen-qemu", "{}/qemu", "--leases", &file];
    let netd = Netd::start(&args);
    let mut guests = [21, 22].map(|n| Guest::connect(&netd.path("qemu"), n));
    let [a, b] = [0, 1].map(|i| lease(&mut guests[i]));
    assert_ne!(a, b);
    let listed = || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let leases = serde_json::from_str::<serde_json::Map<_, _>>(&text);
        leases.map_or(0, |leases| leases.len())
    };
    // The first is saved at once and the second a second later; a kill loses neither.
    crate::support::eventually(|| (listed() == 2).then_some(()));
    netd.signal(Signal::KILL);
    drop(netd);
    let netd = Netd::start(&args);
    // They come back in another order.
    assert_eq!(lease(&mut Guest::connect(&netd.path("qemu"), 22)), b);
    assert_eq!(lease(&mut Guest::connect(&netd.path("qemu"), 21)), a);
}

#[test]
fn an_idle_daemon_is_small_and_asleep() {
    let netd = Netd::start(&ALL);
    let mut guest = Guest::connect(&netd.path("qemu"), 15);
    guest.resolve(GATEWAY);
    let wakes = || {
        let status = fs::read_to_string(format!("/proc/{}/status", netd.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    // Whatever the guest's arrival has set off ends within a few seconds.
    crate::support::eventually(|| {
        let before = wakes();
        std::thread::sleep(std::time::Duration::from_secs(1));
        (wakes() == before).then_some(())
    });
    // How much is mapped of the program's file differs from build to build.
    let anonymous = netd.memory("RssAnon");
    assert!(anonymous < 3 * 1024, "{anonymous} KiB");
    let (resident, highest) = (netd.memory("VmRSS"), netd.memory("VmHWM"));
    assert!(resident < highest * 3 / 4, "{resident} KiB of {highest} KiB: the start's code stays");
}
