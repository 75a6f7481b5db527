//! TAP links with a real kernel behind them, in namespaces of the tests' own. A test that needs to
//! be root in its namespace runs itself again under `unshare`, so an ordinary user can run all of
//! them where user namespaces are allowed.
#![cfg(target_os = "linux")]
#![allow(clippy::cast_possible_truncation)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmlan_link::fault::Faulty;
use vmlan_link::tap::{InterfaceConfig, NetnsError, TapLink, configure_interface, open_in_netns};
use vmlan_link::{CloseReason, Flushed, Link, PeerId, Recv};
use vmlan_wire::frame::Checksum;
use vmlan_wire::segment::{Train, complete};
use vmlan_wire::{FrameBatch, Offload, OutFrame};

const WAIT: Duration = Duration::from_secs(20);

/// Runs `body` in a process that is root in new user and network namespaces.
fn in_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os("VMLAN_TEST_NAMESPACE").is_some() {
        body();
        return;
    }
    // The namespace that is left stays open as descriptor 9.
    let script = "exec 9</proc/self/ns/net; exec unshare --user --map-root-user --net \"$@\"";
    let status = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("VMLAN_TEST_NAMESPACE", "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} in its namespace: {status}");
}

/// A thread in a network namespace of its own, which does what it is sent.
struct Guest {
    path: PathBuf,
    jobs: Option<Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    fn new() -> Self {
        let (jobs, todo) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: a plain system call, for this thread only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            let tid = rustix::thread::gettid().as_raw_nonzero();
            tell.send(PathBuf::from(format!("/proc/self/task/{tid}/ns/net"))).unwrap();
            for job in todo {
                job();
            }
        });
        Self { path: told.recv().unwrap(), jobs: Some(jobs), thread: Some(thread) }
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
        let (tell, told) = channel();
        let job = Box::new(move || {
            let _ = tell.send(job());
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        told
    }

    fn tap(&self, config: &InterfaceConfig) -> TapLink {
        TapLink::new(open_in_netns(&self.path, config, true).unwrap()).unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.thread.take().unwrap().join();
    }
}

/// A child that is ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn config(host: u8, mtu: u16) -> InterfaceConfig {
    InterfaceConfig {
        metric: None,
        name: "tap0".into(),
        mtu: Some(mtu),
        mac: Some([0x52, 0x55, 0, 0, 0, host]),
        addresses: vec![
            (IpAddr::V4(Ipv4Addr::new(192, 168, 5, host)), 24),
            (format!("fd00:5::{host:x}").parse().unwrap(), 64),
        ],
        gateways: vec!["192.168.5.2".parse().unwrap(), "fd00:5::2".parse().unwrap()],
        accept_ra: false,
    }
}

fn wait_for(links: &[&dyn Link]) {
    let mut fds: Vec<_> =
        links.iter().map(|l| PollFd::from_borrowed_fd(l.as_fd(), PollFlags::IN)).collect();
    let timed = links.iter().any(|l| l.next_timeout().is_some());
    let nanos = if timed { 1_000_000 } else { 100_000_000 };
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: nanos })).unwrap();
}

/// What went over a wire.
#[derive(Debug, Default)]
struct Seen {
    trains: usize,
    partial: usize,
    frames: usize,
}

/// Carries frames between two links until `done`, cutting and finishing them if `cut`.
fn carry<'a>(
    mut a: &'a mut dyn Link,
    mut b: &'a mut dyn Link,
    cut: bool,
    done: &Receiver<()>,
) -> Seen {
    let mut batch = FrameBatch::with_capacity(512 * 1024);
    let mut seen = Seen::default();
    let end = Instant::now() + WAIT;
    while done.try_recv().is_err() {
        assert!(Instant::now() < end, "no end in sight: {seen:?}");
        let mut idle = true;
        for _ in 0..2 {
            std::mem::swap(&mut a, &mut b);
            let (from, to) = (&mut *a, &mut *b);
            if let Recv::Frames { .. } = from.recv(&mut batch) {
                idle = false;
                for frame in batch.iter() {
                    seen.frames += 1;
                    seen.trains += usize::from(frame.offload.gso.is_some());
                    let partial = matches!(frame.offload.checksum, Checksum::Partial { .. });
                    seen.partial += usize::from(partial);
                    if cut {
                        send_plain(to, frame.into());
                    } else {
                        assert_eq!(to.send(PeerId(0), &[frame.into()]), 1);
                    }
                }
            }
            assert_eq!(from.flush(), Flushed::Done);
            assert_eq!(to.flush(), Flushed::Done);
        }
        if idle {
            wait_for(&[a, b]);
        }
    }
    seen
}

/// Sends what a link without offload would be given.
fn send_plain(to: &mut dyn Link, frame: OutFrame<'_>) {
    let mut heads = Vec::new();
    match frame.offload {
        Offload { gso: Some(gso), .. } => {
            let mut train = Train::new(&frame, gso).unwrap();
            while let Some(made) = train.next(&mut heads, true) {
                assert!(made.head_len + made.body[0].len() + made.body[1].len() <= 1514);
                let head = &heads[heads.len() - made.head_len..];
                to.send(PeerId(0), &[OutFrame { head, body: made.body, offload: made.offload }]);
            }
        }
        Offload { checksum: Checksum::Partial { start, offset }, .. } => {
            let made = complete(&frame, start, offset, &mut heads).unwrap();
            to.send(
                PeerId(0),
                &[OutFrame { head: &heads, body: made.body, offload: made.offload }],
            );
        }
        _ => {
            to.send(PeerId(0), &[frame]);
        }
    }
}

fn pattern(from: usize, buf: &mut [u8]) {
    for (i, byte) in buf.iter_mut().enumerate() {
        let at = from + i;
        *byte = (at ^ (at >> 8) ^ (at >> 16)) as u8;
    }
}

const TOTAL: usize = 24 << 20;

fn transfer(mtu: u16, cut: bool, server: IpAddr) -> Seen {
    let (a, b) = (Guest::new(), Guest::new());
    let (mut tap_a, mut tap_b) = (a.tap(&config(15, mtu)), b.tap(&config(16, mtu)));
    exchange(&a, &b, &mut tap_a, &mut tap_b, TOTAL, cut, server)
}

fn exchange(
    a: &Guest,
    b: &Guest,
    tap_a: &mut dyn Link,
    tap_b: &mut dyn Link,
    total: usize,
    cut: bool,
    server: IpAddr,
) -> Seen {
    let listener = a.run(move || TcpListener::bind((server, 7000)).unwrap()).recv().unwrap();
    let at = SocketAddr::new(server, 7000);
    let sent = b.run(move || {
        let mut stream = TcpStream::connect_timeout(&at, WAIT).unwrap();
        let mut buf = vec![0; 1 << 16];
        for from in (0..total).step_by(buf.len()) {
            pattern(from, &mut buf);
            stream.write_all(&buf).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // The other way around, to see the end of it.
        stream.read_to_end(&mut Vec::new()).unwrap()
    });
    let (tell, done) = channel();
    let received = a.run(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buf, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut got = 0;
        loop {
            let n = stream.read(&mut buf).unwrap();
            if n == 0 {
                break;
            }
            pattern(got, &mut right[..n]);
            assert!(buf[..n] == right[..n], "bytes from {got} on");
            got += n;
        }
        stream.write_all(b"thanks").unwrap();
        drop(stream);
        got
    });
    let result = std::thread::spawn(move || {
        let got = (received.recv(), sent.recv());
        let _ = tell.send(());
        got
    });
    let seen = carry(tap_a, tap_b, cut, &done);
    assert_eq!(result.join().unwrap(), (Ok(total), Ok(6)));
    seen
}

#[test]
fn guests_exchange_trains_as_they_are() {
    in_namespace("guests_exchange_trains_as_they_are", || {
        for mtu in [1500, 65520] {
            let seen = transfer(mtu, false, "192.168.5.15".parse().unwrap());
            assert!(seen.partial > 0 && seen.frames < TOTAL / 4000, "{seen:?}");
            assert!(mtu > 1500 || seen.trains > 0, "{seen:?}");
        }
        assert!(transfer(1500, false, "fd00:5::f".parse().unwrap()).trains > 0);
    });
}

#[test]
fn a_kernel_accepts_segments_cut_in_software() {
    in_namespace("a_kernel_accepts_segments_cut_in_software", || {
        for server in ["192.168.5.15", "fd00:5::f"] {
            let seen = transfer(1500, true, server.parse().unwrap());
            assert!(seen.trains > 0 && seen.partial >= seen.trains, "{seen:?}");
        }
    });
}

#[test]
fn a_connection_survives_a_bad_wire() {
    in_namespace("a_connection_survives_a_bad_wire", || {
        let (a, b) = (Guest::new(), Guest::new());
        let faults = "loss=2,reorder=25,duplicate=5,corrupt=2,delay=1,seed=5";
        let mut tap_a = Faulty::new(a.tap(&config(15, 1500)), faults.parse().unwrap());
        let mut tap_b = b.tap(&config(16, 1500));
        let server = "192.168.5.15".parse().unwrap();
        exchange(&a, &b, &mut tap_a, &mut tap_b, 1 << 20, false, server);
    });
}

#[test]
fn an_interface_is_set_up_at_once() {
    in_namespace("an_interface_is_set_up_at_once", || {
        let guest = Guest::new();
        let start = Instant::now();
        let mut tap = guest.tap(&config(15, 65520));
        println!("TAP in a namespace after {:?}", start.elapsed());
        let facts = guest.run(|| {
            let read =
                |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
            // No address may be tentative: it could not be bound.
            for local in ["192.168.5.15:0", "[fd00:5::f]:0", "127.0.0.1:0", "[::1]:0"] {
                UdpSocket::bind(local).unwrap();
            }
            let socket = UdpSocket::bind("192.168.5.15:9").unwrap();
            socket.connect("8.8.8.8:9").unwrap();
            UdpSocket::bind("[::]:0").unwrap().connect("[2001:db8::1]:9").unwrap();
            let dad = std::fs::read_to_string("/proc/sys/net/ipv6/conf/tap0/accept_dad").unwrap();
            (read("route").unwrap(), read("if_inet6").unwrap(), read("dev").unwrap(), dad)
        });
        let (route, inet6, dev, dad) = facts.recv().unwrap();
        assert!(route.contains("tap0\t00000000\t0205A8C0\t0003"), "{route}");
        assert!(dev.contains("tap0"), "{dev}");
        assert!(inet6.contains("fd00000500000000000000000000000f"), "{inet6}");
        // Nor does the kernel look for another owner of its own link-local address.
        assert_eq!(dad, "0\n");
        // A packet that fills the MTU comes in one frame, from the MAC address that was asked for.
        guest
            .run(|| {
                let socket = UdpSocket::bind("192.168.5.15:0").unwrap();
                socket.set_broadcast(true).unwrap();
                socket.send_to(&vec![7; 65520 - 28], "192.168.5.255:9").unwrap();
            })
            .recv()
            .unwrap();
        let mut batch = FrameBatch::default();
        let end = Instant::now() + WAIT;
        loop {
            assert!(Instant::now() < end);
            if let Recv::Frames { .. } = tap.recv(&mut batch)
                && let Some(big) = batch.iter().find(|f| f.data.len() == 14 + 65520)
            {
                assert_eq!(big.data[6..12], [0x52, 0x55, 0, 0, 0, 15]);
                break;
            }
            wait_for(&[&tap]);
        }
    });
}

#[test]
fn a_guest_sees_frames_that_are_sent() {
    in_namespace("a_guest_sees_frames_that_are_sent", || {
        let guest = Guest::new();
        let mut tap = guest.tap(&config(15, 1500));
        let socket = guest.run(|| UdpSocket::bind("192.168.5.15:9").unwrap()).recv().unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        // Ethernet, IPv4 and UDP with only the pseudo-header summed.
        let mut head = vec![0x52, 0x55, 0, 0, 0, 15, 2, 2, 2, 2, 2, 2, 8, 0];
        head.extend([0x45, 0, 0, 33, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 168, 5, 2, 192, 168, 5, 15]);
        let sum = vmlan_wire::checksum::checksum(&head[14..]);
        head[24..26].copy_from_slice(&sum);
        head.extend([0, 7, 0, 9, 0, 13, 0, 0]);
        let mut sum = vmlan_wire::checksum::Sum::new();
        sum.add(&head[26..34]);
        sum.add_u16(17);
        sum.add_u16(13);
        head[40..42].copy_from_slice(&sum.partial());
        let checksum = Checksum::Partial { start: 34, offset: 6 };
        let offload = Offload { checksum, gso: None };
        let good = OutFrame { head: &head, body: [b"he", b"llo"], offload };
        let runt = OutFrame::whole(&head[..5], Offload::NONE);
        assert_eq!(tap.send(PeerId(0), &[runt, good]), 2, "a bad frame is lost alone");
        let mut got = [0; 16];
        let (n, from) = socket.recv_from(&mut got).unwrap();
        assert_eq!((&got[..n], from.to_string()), (&b"hello"[..], "192.168.5.2:7".into()));
    });
}

#[test]
fn what_is_wrong_is_said() {
    in_namespace("what_is_wrong_is_said", || {
        let open = |path: &str, name: &str| {
            let config = InterfaceConfig { name: name.into(), ..config(15, 1500) };
            open_in_netns(Path::new(path), &config, true)
        };
        let own = "/proc/self/ns/net";
        assert!(matches!(open("/nowhere", "tap0"), Err(NetnsError::Open { .. })));
        for path in ["/etc/passwd", "/proc/self/ns/uts"] {
            assert!(matches!(open(path, "tap0"), Err(NetnsError::NotNetns { .. })));
        }
        for name in ["", "sixteen-letters-", "a b", "a/b", "tap%d", ".."] {
            assert!(matches!(open(own, name), Err(NetnsError::Name { .. })), "{name}");
        }
        assert!(matches!(open(own, "lo"), Err(NetnsError::Taken { .. })));
        let _first: OwnedFd = open(own, "tap0").unwrap();
        assert!(matches!(open(own, "tap0"), Err(NetnsError::Taken { .. })));
        let outside = open("/proc/self/fd/9", "tap1").unwrap_err();
        assert!(matches!(outside, NetnsError::Forbidden { .. }), "{outside}");

        let bad = InterfaceConfig { mtu: Some(20), ..config(15, 1500) };
        let error = configure_interface(&bad).unwrap_err().to_string();
        assert_eq!(error, "cannot bring up tap0 with MTU 20: Invalid argument (os error 22)");
        let bad = InterfaceConfig { name: "tap1".into(), ..bad };
        let error = open_in_netns(Path::new(own), &bad, true).unwrap_err().to_string();
        assert_eq!(error, "cannot bring up tap1 with MTU 20: Invalid argument (os error 22)");
        // The failed one is gone.
        assert!(open(own, "tap1").is_ok());
        assert!(TapLink::new(std::fs::File::open("/dev/null").unwrap().into()).is_err());
    });
}

#[test]
fn a_namespace_of_another_user_namespace_is_entered() {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "sleep", "60"]);
    let child = Process(command.spawn().unwrap());
    let path = PathBuf::from(format!("/proc/{}/ns/net", child.0.id()));
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let end = Instant::now() + WAIT;
    while std::fs::read_link(&path).is_ok_and(|ns| ns == own) {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    let start = Instant::now();
    let mut tap = TapLink::new(open_in_netns(&path, &config(15, 65520), true).unwrap()).unwrap();
    println!("TAP in another user's namespace after {:?}", start.elapsed());
    let mut batch = FrameBatch::default();
    // The kernel's own multicast reports come without anybody asking.
    while !matches!(tap.recv(&mut batch), Recv::Frames { .. }) {
        assert!(Instant::now() < end);
        wait_for(&[&tap]);
    }
}

#[test]
fn the_end_of_an_interface_is_seen() {
    in_namespace("the_end_of_an_interface_is_seen", || {
        let own = Path::new("/proc/self/ns/net");
        let device = open_in_netns(own, &config(15, 1500), true).unwrap();
        let mut tap = TapLink::new(device).unwrap();
        delete_link("tap0");
        let mut batch = FrameBatch::default();
        let end = Instant::now() + WAIT;
        loop {
            match tap.recv(&mut batch) {
                Recv::Closed(reason) => break assert_eq!(reason, CloseReason::Eof),
                _ => wait_for(&[&tap]),
            }
            assert!(Instant::now() < end);
        }
        assert_eq!(tap.flush(), Flushed::Closed);
        assert_eq!(tap.send(PeerId(0), &[OutFrame::whole(&[0; 60], Offload::NONE)]), 1);
    });
}

/// RTM_DELLINK, and its acknowledgement.
fn delete_link(name: &str) {
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketType, netdevice, recv, send, socket,
    };
    let unix = socket(AddressFamily::UNIX, SocketType::DGRAM, None).unwrap();
    let index = netdevice::name_to_index(unix, name).unwrap();
    let mut request = 32u32.to_ne_bytes().to_vec();
    request.extend(libc::RTM_DELLINK.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    request.extend([0; 12]);
    request.extend(index.to_ne_bytes());
    request.extend([0; 8]);
    let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap();
    send(&netlink, &request, SendFlags::empty()).unwrap();
    let mut answer = [0; 64];
    recv(&netlink, &mut answer[..], RecvFlags::empty()).unwrap();
    assert_eq!(answer[16..20], [0; 4]);
}
