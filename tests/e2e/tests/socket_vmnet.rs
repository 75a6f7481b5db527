//! vmlan in the place of `socket_vmnet`: real guests on a UNIX socket, whose network is a bridge of the
//! host's kernel, and peers that misbehave.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use vmlan_e2e::bridge_host::ADD_OUTSIDE;
use vmlan_e2e::frames::{BROADCAST, ethernet};
use vmlan_e2e::process::{Process, eventually};
use vmlan_e2e::qemu::QEMU;
use vmlan_e2e::{As, BridgeHost, Machine, RunningGuest};

const SOON: Duration = Duration::from_secs(30);

/// An emulated processor needs its time, and shares it with the other tests.
const PATIENT: Duration = Duration::from_secs(120);
const SOCKET: &str = "/run/net.sock";
const PIDFILE: &str = "/run/net.pid";

/// The names that vmlan goes by.
const NAMES: &str = "
    ln -s vmlan /usr/local/bin/socket_vmnet
    ln -s vmlan /usr/local/bin/socket_vmnet_client
";

/// A LAN behind the interface `up0`, with a machine that is DHCP server, router and another host.
const LAN: &str = "
    ln -s vmlan /usr/local/bin/socket_vmnet
    ip netns add other
    ip link add up0 type veth peer name lan0 netns other
    echo 0 >/proc/sys/net/ipv6/conf/up0/accept_ra
    ip link set up0 up
    ip -n other addr add 10.9.0.2/24 dev lan0
    ip -n other addr add fd09::2/64 dev lan0 nodad
    ip -n other link set lan0 up
    until [ -n \"$(ip -6 addr show dev up0 scope link -tentative)\" ]; do sleep 0.05; done
    mkdir -p /run/layers/dhcp
    ip netns exec other dnsmasq --conf-file=/dev/null --interface=lan0 --bind-interfaces --no-resolv \
        --no-hosts --port=0 --user=root --dhcp-range=10.9.0.50,10.9.0.99,1h \
        --dhcp-range=fd09::,ra-only,64 --enable-ra \
        --dhcp-leasefile=/run/layers/dhcp/leases --pid-file=/run/layers/dhcp/pid
";

/// A host on which the daemon runs with these flags.
struct Served {
    daemon: Process,
    host: BridgeHost,
    before: Vec<String>,
}

impl Served {
    #[track_caller]
    fn new(flags: &str) -> Self {
        Self::beside(&format!("{NAMES}{ADD_OUTSIDE}"), flags)
    }

    /// On a host with something around it.
    #[track_caller]
    fn beside(around: &str, flags: &str) -> Self {
        let host = BridgeHost::new();
        host.run(As::Root, around);
        let before = host.listing();
        let daemon = Self::start(&host, flags);
        Self { daemon, host, before }
    }

    #[track_caller]
    fn start(host: &BridgeHost, flags: &str) -> Process {
        let line =
            format!("exec socket_vmnet -p {PIDFILE} --socket-group=vmlan-admins {flags} {SOCKET}");
        let daemon = Process::spawn(host.command(As::Root, &line).stdin(Stdio::null()));
        // One that was killed has left its own.
        host.eventually(&format!("[ \"$(cat {PIDFILE})\" = {} ]", daemon.id()));
        daemon
    }

    fn guest(&self, name: &str) -> RunningGuest {
        self.host.guest(&format!("socket:{SOCKET}"), name)
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.host.path(SOCKET)).expect("the daemon listens");
        stream.set_read_timeout(Some(SOON)).expect("a deadline");
        stream.set_write_timeout(Some(SOON)).expect("a deadline");
        stream
    }

    /// Ends the daemon as Lima does, and sees that nothing is left.
    #[track_caller]
    fn stop(mut self) {
        self.host.run(As::Root, &format!("pkill -F {PIDFILE}"));
        assert!(self.daemon.wait(SOON).success(), "{}", self.daemon.stderr());
        self.host.await_listing(&self.before);
    }
}

/// A frame as it is on the socket.
fn framed(frame: &[u8]) -> Vec<u8> {
    let length = u32::try_from(frame.len()).expect("a short frame").to_be_bytes();
    [&length[..], frame].concat()
}

fn reaches(guest: &RunningGuest, address: &str) -> bool {
    guest.can(&format!("ping -I lima0 -c 1 -W 2 {address} >/dev/null"))
}

/// The IPv6 address that a guest's kernel has made of what the network's router advertises.
fn six(guest: &RunningGuest) -> String {
    let show = "ip -6 -o addr show dev lima0 scope global -tentative";
    eventually("an IPv6 address", SOON, || {
        let text = guest.run(show);
        let word = text.split_whitespace().find_map(|word| word.strip_suffix("/64"));
        word.map(str::to_owned)
    })
}

#[test]
fn guests_on_the_socket_are_on_the_bridge() {
    let served = Served::new("--vmnet-gateway=192.168.105.1");
    let host = &served.host;
    assert_eq!(
        host.run(As::Root, &format!("stat -c '%a %U %G' {SOCKET}")),
        "770 root vmlan-admins\n"
    );
    let keeper = host.run(As::Root, &format!("cat {PIDFILE}"));
    assert_eq!(keeper.trim(), served.daemon.id().to_string());
    // Whoever has the frames has no rights, and the other one few.
    let server = host.run(As::Root, &format!("pgrep -P {keeper}"));
    let status = |pid: &str, field: &str| {
        let line = host.run(As::Root, &format!("grep {field}: /proc/{}/status", pid.trim()));
        line.split_whitespace().nth(1).expect("a value").to_owned()
    };
    assert_eq!((status(&server, "Uid"), status(&server, "Gid")), ("65534".into(), "65534".into()));
    for field in ["CapInh", "CapPrm", "CapEff"] {
        assert_eq!(status(&server, field), "0000000000000000", "{field}");
    }
    assert_eq!(status(&server, "NoNewPrivs"), "1");
    assert_eq!(status(&keeper, "CapEff"), "0000000000000020", "only CAP_KILL");

    let guests = ["one", "two"].map(|name| served.guest(name));
    let [one, two] = &guests;
    assert!(one.address.starts_with("192.168.105.") && one.address != two.address);
    for address in ["192.168.105.1", &two.address, "203.0.113.2"] {
        assert!(reaches(one, address), "{} to {address}", one.address);
    }
    host.run(As::User, &format!("ping -c 1 -W 2 {}", one.address));
    // The guest's kernel makes itself an IPv6 address of what is advertised.
    let six = guests.each_ref().map(six);
    assert!(six[0].starts_with("fd76:6d6c:c0a8:6900:"), "{}", six[0]);
    for address in ["fd76:6d6c:c0a8:6900::1", &six[1], "fd00:77::2"] {
        assert!(reaches(one, address), "{} to {address}", six[0]);
    }
    host.run(As::User, &format!("ping -c 1 -W 2 {}", six[0]));
    drop(guests);
    served.stop();
}

/// A machine's card: QEMU's own connection to the socket, or a descriptor that it was started with.
fn machine(served: &Served, by_client: bool, mac: &str) -> Machine {
    if by_client {
        let line = format!("exec socket_vmnet_client {SOCKET} {QEMU} \"$@\"");
        let mut command = served.host.command(As::Root, &line);
        command.arg(QEMU);
        return Machine::boot_by(command, "socket,fd=3", mac);
    }
    let path = served.host.path(SOCKET);
    Machine::boot(&format!("stream,server=off,addr.type=unix,addr.path={path}"), mac)
}

/// A machine's addresses, of both families, once it has them.
fn addresses(machine: &mut Machine) -> [String; 2] {
    machine.dhcp();
    let four = "ip -4 addr show dev eth0 | sed -n 's|.*inet \\([0-9.]*\\)/.*|\\1|p'";
    let show = "ip -6 addr show dev eth0 scope global | grep -v tentative";
    let six = format!("{show} | sed -n 's|.*inet6 \\([0-9a-f:]*\\)/64.*|\\1|p' | grep :");
    let six = format!("for i in $(seq 60); do {six} && break; sleep 1; done");
    [machine.sh(four, PATIENT), machine.sh(&six, PATIENT)]
}

#[track_caller]
fn machine_reaches(machine: &mut Machine, address: &str) {
    let six = if address.contains(':') { "-6" } else { "" };
    machine.sh(&format!("ping {six} -c 2 -W 5 {address}"), PATIENT);
}

#[test]
fn machines_on_the_socket_are_on_the_bridge() {
    let served = Served::new("");
    let guest = served.guest("one");
    let mut machines = std::thread::scope(|scope| {
        let booted =
            [(false, "52:54:00:00:00:01"), (true, "52:54:00:00:00:02")].map(|(how, mac)| {
                let served = &served;
                scope.spawn(move || machine(served, how, mac))
            });
        booted.map(|machine| machine.join().expect("a machine"))
    });
    let theirs = machines.each_mut().map(addresses);
    let guest_six = six(&guest);
    for (own, other) in [(0, 1), (1, 0)] {
        assert!(theirs[own][0].starts_with("192.168.105."), "{theirs:?}");
        assert!(theirs[own][1].starts_with("fd76:6d6c:c0a8:6900:"), "{theirs:?}");
        let hosts = ["192.168.105.1", "fd76:6d6c:c0a8:6900::1", "203.0.113.2", "fd00:77::2"];
        let guests = [&theirs[other][0], &theirs[other][1], &guest.address, &guest_six];
        for address in hosts.into_iter().chain(guests.map(String::as_str)) {
            machine_reaches(&mut machines[own], address);
        }
        for address in &theirs[own] {
            served.host.run(As::User, &format!("ping -c 2 -W 5 {address}"));
            assert!(guest.can(&format!("ping -I lima0 -c 2 -W 5 {address}")), "{address}");
        }
    }
    drop((machines, guest));
    served.stop();
}

#[test]
fn guests_on_the_socket_are_on_the_lan() {
    let served = Served::beside(LAN, "--vmnet-mode=bridged --vmnet-interface=up0");
    let guest = served.guest("one");
    let mut machine = machine(&served, false, "52:54:00:00:00:01");
    let (theirs, mine) = (addresses(&mut machine), [guest.address.clone(), six(&guest)]);
    for [four, six] in [&theirs, &mine] {
        assert!(four.starts_with("10.9.0.") && six.starts_with("fd09:"), "{four} {six}");
        for address in [four, six] {
            let ping = format!("ip netns exec other ping -c 2 -W 5 {address}");
            served.host.run(As::Root, &ping);
        }
    }
    for address in ["10.9.0.2", "fd09::2"].into_iter().chain(mine.iter().map(String::as_str)) {
        machine_reaches(&mut machine, address);
    }
    for address in ["10.9.0.2", "fd09::2"].into_iter().chain(theirs.iter().map(String::as_str)) {
        assert!(guest.can(&format!("ping -I lima0 -c 2 -W 5 {address}")), "{address}");
    }
    drop((machine, guest));
    // The interface of a host that has addresses there cannot have guests behind it.
    let host = &served.host;
    host.run(As::Root, "ip link add up1 type veth peer name x; ip addr add 10.8.0.1/24 dev up1");
    let line = "socket_vmnet --socket-group=root --vmnet-mode=bridged --vmnet-interface=up1 /run/s";
    let said = host.fail(As::Root, line);
    assert!(said.contains("up1 has addresses of the host's"), "{said}");
    host.run(As::Root, "ip link del up1");
    served.host.run(As::Root, "kill $(cat /run/layers/dhcp/pid)");
    served.stop();
}

#[test]
fn modes_and_their_addresses() {
    let served = Served::new(
        "--vmnet-mode=host --vmnet-gateway=10.9.0.1 --vmnet-dhcp-end=10.9.1.9 \
         --vmnet-mask=255.255.254.0 --vmnet-nat66-prefix=fd00:1:2:3::",
    );
    let guest = served.guest("one");
    assert!(guest.address.starts_with("10.9."), "{}", guest.address);
    assert!(reaches(&guest, "10.9.0.1"));
    assert!(!reaches(&guest, "203.0.113.2"));
    served.host.run(As::Root, "ip -6 addr | grep -q fd00:1:2:3::1/64");
    drop(guest);
    served.stop();
}

#[test]
fn a_killed_daemon_leaves_nothing_that_the_next_one_minds() {
    let mut served = Served::new("");
    let server = served.host.run(As::Root, &format!("pgrep -P {}", served.daemon.id()));
    // The server alone: its keeper takes everything away.
    served.host.run(As::Root, &format!("kill -9 {server}"));
    assert!(!served.daemon.wait(SOON).success());
    assert!(served.daemon.stderr().contains("has ended"), "{}", served.daemon.stderr());
    served.host.await_listing(&served.before);
    // The keeper: the server goes with it, and the next one takes over what is left.
    let mut killed = Served::start(&served.host, "");
    let server = served.host.run(As::Root, &format!("pgrep -P {}", killed.id()));
    killed.signal(Signal::KILL);
    killed.wait(SOON);
    let runs = format!("grep -q '^State:.[^Z]' /proc/{}/status 2>/dev/null", server.trim());
    served.host.eventually(&format!("! {runs}"));
    served.daemon = Served::start(&served.host, "");
    let guest = served.guest("one");
    assert!(reaches(&guest, "192.168.105.1"));
    drop(guest);
    served.stop();
}

#[test]
fn nobody_notices_those_who_misbehave() {
    let served = Served::new("");
    let guests = ["one", "two"].map(|name| served.guest(name));
    let [one, two] = &guests;
    // What it had not read is lost with the connection.
    let closed = |stream: &mut UnixStream| while let Ok(1..) = stream.read(&mut [0; 65536]) {};
    // Frames that are longer than any, or shorter.
    for length in [0u32, 13, 65_554, u32::MAX] {
        let mut stream = served.connect();
        stream.write_all(&length.to_be_bytes()).expect("a length can be sent");
        let _ = stream.write_all(&[0; 64]);
        closed(&mut stream);
    }
    // Half a frame, and nothing more.
    let mut half = served.connect();
    half.write_all(&framed(&[7; 1000])[..500]).expect("half a frame can be sent");
    // One that is gone in the middle of a frame.
    let mut gone = served.connect();
    gone.write_all(&[0, 0]).expect("half a length can be sent");
    drop(gone);
    // A guest that asks to be flooded and does not read.
    let slow: [u8; 6] = [2, 0, 0, 0, 0, 9];
    let mut deaf = served.connect();
    deaf.write_all(&framed(&ethernet(BROADCAST, slow, 0x88b5, b"here"))).expect("room");
    let mut flood = served.connect();
    let frame = framed(&ethernet(slow, [2, 0, 0, 0, 0, 8], 0x88b5, &[0; 1400]));
    for _ in 0..20_000 {
        flood.write_all(&frame).expect("whoever floods is read");
    }
    // Connections without end: the first few of one process are let in.
    let crowd: Vec<_> = (0..1000).map(|_| served.connect()).collect();
    let refused = crowd.iter().filter(|stream| {
        let mut stream = *stream;
        stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a deadline");
        matches!(stream.read(&mut [0; 65536]), Ok(0))
    });
    let refused = eventually("refusals", SOON, || {
        let refused = refused.clone().count();
        (refused >= 980).then_some(refused)
    });
    println!("{refused} of {} refused", crowd.len());

    // Nobody has noticed.
    for (guest, address) in [(one, "192.168.105.1"), (one, &*two.address), (two, "203.0.113.2")] {
        assert!(guest.can(&format!("ping -I lima0 -q -c 50 -i 0.01 -W 2 {address} | grep ' 0% '")));
    }
    let server = served.host.run(As::Root, &format!("pgrep -P {}", served.daemon.id()));
    let memory = format!("awk '/VmRSS/{{print $2}}' /proc/{}/status", server.trim());
    let memory: u32 = served.host.run(As::Root, &memory).trim().parse().expect("a number");
    assert!(memory < 64 * 1024, "{memory} KiB");
    let three = served.guest("three");
    assert!(reaches(&three, &two.address));
    drop((half, deaf, flood, crowd, guests, three));
    served.stop();
}

#[test]
fn the_client_gets_its_descriptor() {
    let served = Served::new("");
    let client = "socket_vmnet_client /run/net.sock python3 -c '
import socket
s = socket.socket(fileno=3)
s.sendall(b\"\\0\\0\\0\\x10\" + b\"\\xff\" * 6 + b\"\\2\\0\\0\\0\\0\\7\" + b\"\\x88\\xb5\" + b\"hi\")
print(s.family.name, s.type.name, s.getpeername())'";
    let said = served.host.run(As::User, client);
    assert_eq!(said, "AF_UNIX SOCK_STREAM /run/net.sock\n");
    let said = served.host.fail(As::Other, client);
    assert!(said.contains("/run/net.sock: Permission denied"), "{said}");
    served.stop();
}

#[test]
fn what_cannot_be_done_is_said() {
    let host = BridgeHost::new();
    host.run(As::Root, "ln -s vmlan /usr/local/bin/socket_vmnet");
    for (who, line, want) in [
        (As::User, "socket_vmnet /run/s", "only root can make such a network"),
        (As::Root, "socket_vmnet --vmnet-mode=x /run/s", "Unknown vmnet mode \"x\""),
        (As::Root, "socket_vmnet --socket-group=nobodys /run/s", "there is no group `nobodys`"),
        (As::Root, "socket_vmnet --socket-group=root /etc/passwd", "not a socket"),
    ] {
        let said = host.fail(who, line);
        assert!(said.contains(want), "{line}: {said}");
    }
    host.run(As::Root, "socket_vmnet --version | grep -q '^socket_vmnet' && socket_vmnet -h");
}
