//! Forwards that come and go with what listens in a machine: the agent in a guest with a real
//! kernel, its host side against a real daemon. Only the virtio port between them is a socket.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmlan_api::Client;
use vmlan_config::Source;
use vmlan_config::instance::InstanceConfig;

use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::{Process, run};
use vmlan_e2e::server::{echo, echo_udp, exchange, serve_one};
use vmlan_e2e::world::{GUEST, HOST};
use vmlan_e2e::{Netns, World};
use vmlan_vm::agent;
use vmlan_vm::ports::{Config, Local, PortEvent, Ports, Ssh};

const SSH: u16 = 60022;

/// How soon a server is to be reached after it has begun to listen, and not any more.
const PROMPTLY: Duration = Duration::from_secs(3);

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A guest with an agent, and what follows it on the host.
struct Scene {
    ports: Option<Ports>,
    events: Receiver<PortEvent>,
    agent: Option<Process>,
    dir: TempDir,
    world: World,
}

impl Scene {
    /// With these lines of `portForwards`, in which `DIR` is a directory of the test's.
    fn new(rules: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::on(World::new(), dir, rules, |_| {})
    }

    /// In this world, the configuration changed like that.
    fn on(world: World, dir: TempDir, rules: &str, change: impl FnOnce(&mut Config)) -> Self {
        let rules = rules.replace("DIR", &dir.path().display().to_string());
        let source = Source::new("lima.yaml", format!("portForwards:\n{rules}"));
        let read = InstanceConfig::parse(&source, dir.path()).expect("rules");
        let forwards = read.config.forwards.in_force(SSH);
        let mut config = Config {
            channel: dir.path().join("agent.sock"),
            forwards,
            guest: Ipv4Addr::new(192, 168, 5, 15),
            gateways: vec![HOST],
            control: Some(Client::new(&world.netd.control())),
            ssh: None,
            name: None,
            uid: 0,
        };
        let (tell, events) = channel();
        change(&mut config);
        let start = || Ports::start(config, move |event| drop(tell.send(event)));
        let ports = world.host.enter(start).expect("threads");
        ports.machine_is_ready();
        Self { ports: Some(ports), events, agent: None, dir, world }
    }

    fn with_agent(rules: &str) -> Self {
        let mut scene = Self::new(rules);
        scene.start_agent();
        scene
    }

    /// Puts the agent where a machine has it, with a socket for its port.
    fn start_agent(&mut self) {
        let path = self.dir.path().join("agent.sock");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket");
        let (stream, _) = listener.accept().expect("the host side looks for its agent");
        let program = self.dir.path().join("vmlan-agent");
        let binary = agent::binary(std::env::consts::ARCH).expect("an agent for this machine");
        fs::write(&program, binary).expect("a file in a temporary directory");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");
        let mut command = self.world.guest.command(&program);
        command.arg("-").stdin(Stdio::from(OwnedFd::from(stream)));
        self.agent = Some(Process::spawn(&mut command));
        self.until(|event| *event == PortEvent::AgentUp);
    }

    /// Waits for an event.
    #[track_caller]
    fn until(&self, is: impl Fn(&PortEvent) -> bool) -> PortEvent {
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) if is(&event) => return event,
                Ok(_) => {}
                Err(_) => panic!("it did not happen within {SOON:?}: {:?}", self.list()),
            }
        }
    }

    fn list(&self) -> Vec<vmlan_vm::ports::PortState> {
        self.ports.as_ref().map(Ports::list).unwrap_or_default()
    }

    fn guest(&self) -> &Netns {
        &self.world.guest
    }

    fn tcp(&self, at: &str) -> TcpListener {
        self.guest().listen(at.parse::<SocketAddr>().expect("an address"))
    }

    fn udp(&self, at: &str) -> UdpSocket {
        self.guest().udp(at.parse::<SocketAddr>().expect("an address"))
    }

    /// A connection of the host's, as soon as there is one.
    #[track_caller]
    fn connect(&self, to: &str) -> TcpStream {
        let to: SocketAddr = to.parse().expect("an address");
        within(PROMPTLY, to, || self.world.host.connect(to).ok())
    }
}

/// What comes within a time.
#[track_caller]
fn within<T>(time: Duration, what: impl std::fmt::Debug, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(start.elapsed() < time, "{what:?}: not within {time:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a word to an echo and hears it.
#[track_caller]
fn echoes(mut stream: TcpStream) {
    stream.set_read_timeout(Some(SOON)).expect("a deadline");
    stream.write_all(b"hello").expect("a word can be sent");
    stream.shutdown(Shutdown::Write).expect("a direction can be ended");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("an answer");
    assert_eq!(heard, b"hello");
}

#[test]
fn servers_on_any_address_are_reached_on_both_loopbacks() {
    let scene = Scene::with_agent("  []");
    for (port, at) in
        [(8001, "127.0.0.1"), (8002, "[::1]"), (8003, "0.0.0.0"), (8004, "[::]"), (8005, "[::]")]
    {
        // The last one is for IPv6 alone.
        let v6only = if port == 8005 { "1" } else { "0" };
        scene.guest().sysctl("net/ipv6/bindv6only", v6only);
        let server = scene.tcp(&format!("{at}:{port}"));
        echo(server);
        let udp = scene.udp(&format!("{at}:{port}"));
        echo_udp(udp);
    }
    for port in 8001..=8005 {
        for host in ["127.0.0.1", "[::1]"] {
            let to = format!("{host}:{port}");
            echoes(scene.connect(&to));
            let client = scene.world.host.udp(
                if host == "[::1]" { "[::1]:0" } else { "127.0.0.1:0" }
                    .parse::<SocketAddr>()
                    .unwrap(),
            );
            client.set_read_timeout(Some(Duration::from_millis(200))).expect("a deadline");
            let to: SocketAddr = to.parse().unwrap();
            within(PROMPTLY, to, || {
                client.send_to(b"hello", to).ok()?;
                let mut answer = [0; 16];
                let (n, from) = client.recv_from(&mut answer).ok()?;
                (answer.get(..n) == Some(b"hello") && from == to).then_some(())
            });
        }
    }
}

#[test]
fn a_forward_goes_with_its_server() {
    let scene = Scene::with_agent("  []");
    for at in ["127.0.0.1:8000", "0.0.0.0:8000"] {
        let server = scene.tcp(at);
        drop(scene.connect("127.0.0.1:8000"));
        drop(server);
        let to: SocketAddr = "127.0.0.1:8000".parse().expect("an address");
        within(PROMPTLY, at, || {
            let refused = scene.world.host.connect(to).is_err_and(|e| is_refused(&e));
            refused.then_some(())
        });
        within(PROMPTLY, at, || scene.list().is_empty().then_some(()));
    }
}

#[test]
fn a_lift_carries_all_bytes_and_every_end() {
    let scene = Scene::with_agent("  []");
    let server = serve_one(scene.tcp("127.0.0.1:8000"), |stream| stream);
    let client = scene.connect("127.0.0.1:8000");
    exchange(client, server.join().expect("a connection"), 16 << 20);

    let server = serve_one(scene.tcp("[::1]:8001"), |mut stream| {
        let mut word = [0; 5];
        stream.read_exact(&mut word).expect("a word");
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("linger");
    });
    let mut client = scene.connect("127.0.0.1:8001");
    client.write_all(b"hello").expect("a word can be sent");
    server.join().expect("a connection");
    let error = client.read(&mut [0; 1]).expect_err("the server has reset the connection");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn nobody_but_the_gateway_may_use_a_lift() {
    let scene = Scene::with_agent("  []");
    echo(scene.tcp("127.0.0.1:8000"));
    echo_udp(scene.udp("127.0.0.1:8000"));
    echoes(scene.connect("127.0.0.1:8000"));
    let lifts = within(PROMPTLY, "two lifts", || {
        let there: Vec<vmlan_api::network::Forward> =
            Client::new(&scene.world.netd.control()).get("/v1/forwards").expect("the daemon");
        let of = |protocol| {
            let found = there.iter().find(|forward| forward.protocol == protocol)?;
            found.target.parse::<SocketAddr>().ok()
        };
        Some([of("tcp")?, of("udp")?])
    });
    for lift in lifts {
        assert_eq!(lift.ip(), GUEST);
        assert_ne!(lift.port(), 8000);
    }
    // The guest's own programs are not the gateway.
    let inside = scene.guest().connect(lifts[0]);
    let heard = inside.and_then(|mut stream| stream.read(&mut [0; 16]));
    assert!(heard.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "{heard:?}");
    let inside = scene.udp("0.0.0.0:0");
    inside.set_read_timeout(Some(Duration::from_millis(300))).expect("a deadline");
    inside.send_to(b"hello", lifts[1]).expect("a datagram");
    assert!(inside.recv_from(&mut [0; 16]).is_err(), "a stranger is answered");
}

#[test]
fn a_port_that_is_taken_is_told_with_its_holder_and_had_when_it_is_free() {
    let scene = Scene::with_agent("  []");
    let holder = scene.world.host.listen(SocketAddr::from((LOOPBACK, 8000)));
    echo(scene.tcp("127.0.0.1:8000"));
    let conflict = scene.until(|event| matches!(event, PortEvent::Conflict { .. }));
    let PortEvent::Conflict { port, why } = conflict else { unreachable!("it is one") };
    assert_eq!(port.local, Local::Tcp((LOOPBACK, 8000).into()));
    assert!(why.contains("127.0.0.1:8000 is already in use by ports"), "{why}");
    let problems: Vec<_> = scene.list().into_iter().filter_map(|state| state.problem).collect();
    assert_eq!(problems, [why]);
    // The other one of localhost's addresses is free.
    echoes(scene.connect("[::1]:8000"));
    drop(holder);
    scene.until(|event| matches!(event, PortEvent::Opened(opened) if *opened == port));
    echoes(scene.connect("127.0.0.1:8000"));
}

#[test]
fn what_rules_fix_is_there_without_an_agent() {
    let mut scene = Scene::new(
        "- {guestPortRange: [8000, 8001], hostPortRange: [9000, 9001], static: true}\n\
         - {guestPort: 8002, proto: tcp, hostSocket: DIR/s.sock, static: true}\n",
    );
    echo(scene.tcp("0.0.0.0:8000"));
    echo(scene.tcp("127.0.0.1:8001"));
    echoes(scene.connect("127.0.0.1:9000"));
    within(PROMPTLY, "a socket", || UnixStream::connect(scene.dir.path().join("s.sock")).ok());
    // Its guest has nobody there that the network could reach.
    let mut lost = scene.connect("127.0.0.1:9001");
    assert!(!matches!(lost.read(&mut [0; 1]), Ok(1..)));
    scene.start_agent();
    within(PROMPTLY, "a lift", || {
        let mut stream = scene.connect("127.0.0.1:9001");
        stream.write_all(b"x").ok()?;
        stream.read_exact(&mut [0; 1]).ok()
    });
}

#[test]
fn sockets_lead_in_and_out() {
    let scene = Scene::with_agent(
        "- {guestSocket: DIR/guest.sock, hostSocket: DIR/new/host.sock}\n\
         - {guestSocket: DIR/door.sock, hostSocket: DIR/service.sock, reverse: true}\n\
         - {guestPort: 8000, hostSocket: DIR/port.sock}\n",
    );
    let path = |name: &str| scene.dir.path().join(name);
    // Both ends see the same files here: only the streams pass through the network.
    let inside = UnixListener::bind(path("guest.sock")).expect("a socket");
    let mut outside =
        within(PROMPTLY, "a socket", || UnixStream::connect(path("new/host.sock")).ok());
    talk(&mut outside, &mut inside.accept().expect("a client").0);
    let service = UnixListener::bind(path("service.sock")).expect("a socket");
    let mut client = within(PROMPTLY, "a door", || UnixStream::connect(path("door.sock")).ok());
    talk(&mut client, &mut service.accept().expect("a client").0);
    let server = scene.tcp("127.0.0.1:8000");
    let mut client = within(PROMPTLY, "a socket", || UnixStream::connect(path("port.sock")).ok());
    talk(&mut client, &mut server.accept().expect("a client").0);
    // Nobody there is an end, not silence.
    drop(inside);
    let mut lost = UnixStream::connect(path("new/host.sock")).expect("a forward");
    lost.set_read_timeout(Some(SOON)).expect("a deadline");
    assert!(!matches!(lost.read(&mut [0; 1]), Ok(1..)));
}

/// A world with a server for ssh in the guest, and how ssh reaches it: without waiting for agents.
fn world_with_ssh(dir: &Path) -> (World, Ssh, Process) {
    let world = World::with(&["--forward", "127.0.0.1:60022=192.168.5.15:22"]);
    let at = |name: &str| dir.join(name).display().to_string();
    run(Command::new("ssh-keygen").args(["-qt", "ed25519", "-N", "", "-f", &at("key")]), SOON);
    run(Command::new("dropbearkey").args(["-t", "ed25519", "-f", &at("host")]), SOON);
    fs::create_dir_all(dir.join("root/.ssh")).expect("a directory");
    fs::set_permissions(dir.join("root"), fs::Permissions::from_mode(0o700)).expect("its mode");
    fs::copy(dir.join("key.pub"), dir.join("root/.ssh/authorized_keys")).expect("a key");
    let config = format!(
        "Host guest\n Hostname 127.0.0.1\n Port 60022\n User root\n IdentityFile {}\n \
         IdentitiesOnly yes\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n \
         BatchMode yes\n LogLevel ERROR\n",
        at("key")
    );
    fs::write(dir.join("ssh.config"), config).expect("a file");
    let mut server = world.guest.command("sh");
    // The mounts are those of a mount namespace that `ip` has made.
    server.args(["-c", r#"mount --bind "$0/root" /root && exec dropbear -FEsr "$0/host" -p "$1""#]);
    server.arg(dir).arg("192.168.5.15:22");
    let server = Process::spawn(&mut server);
    let config = dir.join("ssh.config");
    (world, Ssh { config, host: "guest".into(), after: Duration::ZERO }, server)
}

#[test]
fn without_an_agent_ssh_leads_to_what_the_network_cannot_reach() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (world, ssh, _server) = world_with_ssh(dir.path());
    let mut scene = Scene::on(world, dir, "  []", |config| config.ssh = Some(ssh));
    scene.until(|event| *event == PortEvent::SshStandsIn);
    for at in ["127.0.0.1:8001", "[::1]:8002", "0.0.0.0:8003", "[::]:8004"] {
        echo(scene.tcp(at));
    }
    for port in 8001..=8004 {
        for host in ["127.0.0.1", "[::1]"] {
            let to: SocketAddr = format!("{host}:{port}").parse().expect("an address");
            echoes(within(SOON, to, || scene.world.host.connect(to).ok()));
        }
    }
    // An agent does it better: the ports change hands, and datagrams come too.
    scene.start_agent();
    echo_udp(scene.udp("127.0.0.1:8001"));
    let udp = Local::Udp((LOOPBACK, 8001).into());
    within(SOON, "every port without ssh", || {
        let list = scene.list();
        let is_there = list.iter().any(|state| state.port.local == udp);
        (is_there && list.iter().all(|state| state.problem.is_none())).then_some(())
    });
    echoes(scene.connect("127.0.0.1:8001"));
    assert!(!scene.dir.path().join("ports.ssh").exists());
}

#[test]
fn on_somebody_elses_network_ssh_does_it_all() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (world, ssh, _server) = world_with_ssh(dir.path());
    let scene = Scene::on(world, dir, "  []", |config| {
        config.control = None;
        config.ssh = Some(ssh);
    });
    let server = scene.tcp("0.0.0.0:8001");
    let connect = || scene.world.host.connect(SocketAddr::from((LOOPBACK, 8001)));
    let client = within(SOON, "a forward", || connect().ok());
    exchange(client, server.accept().expect("a client").0, 1 << 20);
    drop(server);
    within(SOON, "its end", || connect().is_err_and(|e| is_refused(&e)).then_some(()));
}

#[test]
fn forwards_outlive_the_agent_and_end_with_the_host_side() {
    let mut scene = Scene::with_agent("  []");
    echo(scene.tcp("127.0.0.1:8000"));
    echoes(scene.connect("127.0.0.1:8000"));
    drop(scene.agent.take());
    scene.until(|event| *event == PortEvent::AgentDown);
    scene.start_agent();
    within(PROMPTLY, "a new lift", || {
        let mut stream = scene.connect("127.0.0.1:8000");
        stream.write_all(b"x").ok()?;
        stream.read_exact(&mut [0; 1]).ok()
    });
    drop(scene.ports.take());
    let to: SocketAddr = "127.0.0.1:8000".parse().expect("an address");
    assert!(scene.world.host.connect(to).is_err_and(|e| is_refused(&e)));
}

#[test]
fn a_machine_that_lies_gets_nothing_that_rules_ignore() {
    let scene = Scene::new("- {guestPort: 7000, ignore: true}\n");
    let path = scene.dir.path().join("agent.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let (mut machine, _) = listener.accept().expect("the host side looks for its agent");
    machine.set_write_timeout(Some(SOON)).expect("a deadline");
    let mut orders = [0; 1024];
    assert!(machine.read(&mut orders).expect("orders") > 0);
    let listeners = |ports: std::ops::Range<u32>, ip: &str| {
        let all: Vec<_> =
            ports.map(|port| format!(r#"{{"proto":"tcp","at":"{ip}:{port}"}}"#)).collect();
        all.join(",")
    };
    let state = |listeners: &str, lifts: &str| {
        format!("{{\"state\":{{\"heard\":1,\"listeners\":[{listeners}],\"lifts\":[{lifts}]}}}}\n")
    };
    // A line without an end, nonsense, places of the host, and more than there may be.
    machine.write_all(&vec![b'['; 1 << 20]).expect("it is read, if slowly");
    machine.write_all(b"\n{}\n\xff\n").expect("it is read");
    let lies = listeners(7000..7001, "0.0.0.0") + "," + &listeners(22..23, "127.0.0.1");
    machine.write_all(state(&lies, "").as_bytes()).expect("it is read");
    scene.until(|event| *event == PortEvent::AgentUp);
    let all = listeners(10_000..12_000, "0.0.0.0");
    machine
        .write_all(state(&all, r#"{"to":{"tcp":"127.0.0.1:1"},"port":0}"#).as_bytes())
        .expect("");
    within(SOON, "as many as may be", || (scene.list().len() >= 1000).then_some(()));
    let list = scene.list();
    // Both addresses of localhost; the allowance is spent, and the rest comes slowly.
    assert!(list.len() <= 2000, "{}", list.len());
    for state in list {
        let Local::Tcp(local) = state.port.local else { panic!("{state:?}") };
        assert!(local.ip().is_loopback() && (10_000..11_000).contains(&local.port()), "{local}");
    }
    // It changes its mind all the time: events do not come faster than the allowance.
    while scene.events.try_recv().is_ok() {}
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        let _ = machine.write_all(state("", "").as_bytes());
        let _ = machine.write_all(state(&all, "").as_bytes());
    }
    let count = scene.events.try_iter().count();
    assert!(count < 1500, "{count} changes in {:?}", start.elapsed());
}

/// Rules of every kind, for ports of their own.
const RULES: &str = "
- {guestIP: 127.0.0.2, guestPortRange: [3000, 3009], hostPortRange: [2000, 2009], ignore: true}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [3010, 3019], ignore: true}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [3000, 3029], hostPortRange: [2000, 2029]}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [3020, 3029], ignore: true}
- {guestPortRange: [3030, 3039], hostPortRange: [2030, 2039], hostIP: 10.1.1.1}
- {guestPortRange: [300, 304]}
- {guestPortRange: [305, 309], guestIPMustBeZero: false}
- {guestPortRange: [310, 314], hostIP: 0.0.0.0}
- {guestPortRange: [315, 319], guestIPMustBeZero: false, hostIP: 0.0.0.0}
- {guestIP: 192.168.5.15, guestPortRange: [4000, 4009], hostIP: 10.1.1.1}
- {guestIP: '::1', guestPortRange: [4010, 4019], hostIP: '::'}
- {guestIP: '::', guestPortRange: [4020, 4029], hostIP: 10.1.1.1}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [4030, 4039], hostIP: 10.1.1.1}
- {guestIPMustBeZero: true, guestPortRange: [4040, 4049]}
- {guestIP: 0.0.0.0, guestIPMustBeZero: false, guestPortRange: [4040, 4049], ignore: true}
- {guestIPMustBeZero: true, guestPort: 8888, hostIP: 0.0.0.0}
- {guestIP: 0.0.0.0, guestPort: 8889, hostPort: 9}
";

/// A server in the guest, and where on the host it is to be reached, if at all.
const CASES: &str = "
    127.0.0.2:3000 ->
    127.0.0.3:3001 -> 127.0.0.1:2001
    0.0.0.0:3002 -> 127.0.0.1:2002
    0.0.0.0:3010 ->
    127.0.0.1:3011 ->
    127.0.0.2:3020 -> 127.0.0.1:2020
    127.0.0.1:3021 -> 127.0.0.1:2021
    0.0.0.0:3022 -> 127.0.0.1:2022
    [::]:3023 -> 127.0.0.1:2023
    [::1]:3024 -> 127.0.0.1:2024
    127.0.0.1:3030 -> 10.1.1.1:2030
    0.0.0.0:3031 -> 10.1.1.1:2031
    [::]:3032 -> 10.1.1.1:2032
    [::1]:3033 -> 10.1.1.1:2033
    127.0.0.1:300 -> 127.0.0.1:300
    0.0.0.0:301 -> 127.0.0.1:301
    [::]:302 -> 127.0.0.1:302
    [::1]:303 -> 127.0.0.1:303
    192.168.5.15:304 ->
    127.0.0.1:305 -> 127.0.0.1:305
    0.0.0.0:306 -> 127.0.0.1:306
    [::]:307 -> 127.0.0.1:307
    [::1]:308 -> 127.0.0.1:308
    192.168.5.15:309 ->
    127.0.0.1:310 -> 0.0.0.0:310
    0.0.0.0:311 -> 0.0.0.0:311
    [::]:312 -> 0.0.0.0:312
    [::1]:313 -> 0.0.0.0:313
    192.168.5.15:314 ->
    127.0.0.1:315 -> 0.0.0.0:315
    0.0.0.0:316 -> 0.0.0.0:316
    [::]:317 -> 0.0.0.0:317
    [::1]:318 -> 0.0.0.0:318
    192.168.5.15:319 ->
    192.168.5.15:4000 -> 10.1.1.1:4000
    [::1]:4010 -> [::]:4010
    127.0.0.1:4020 -> 10.1.1.1:4020
    127.0.0.2:4021 -> 10.1.1.1:4021
    192.168.5.15:4022 -> 10.1.1.1:4022
    0.0.0.0:4023 -> 10.1.1.1:4023
    [::]:4024 -> 10.1.1.1:4024
    [::1]:4025 -> 10.1.1.1:4025
    127.0.0.1:4030 -> 10.1.1.1:4030
    127.0.0.2:4031 -> 10.1.1.1:4031
    192.168.5.15:4032 -> 10.1.1.1:4032
    0.0.0.0:4033 -> 10.1.1.1:4033
    [::]:4034 -> 10.1.1.1:4034
    [::1]:4035 -> 10.1.1.1:4035
    0.0.0.0:4040 -> 127.0.0.1:4040
    [::]:4041 -> 127.0.0.1:4041
    127.0.0.1:4043 ->
    192.168.5.15:4044 ->
    0.0.0.0:8888 -> 0.0.0.0:8888
    0.0.0.0:8889 -> 127.0.0.1:9
    192.168.5.15:8890 ->
    127.0.0.2:8891 ->
    127.0.0.1:22 ->
    0.0.0.0:60022 ->
";

#[test]
fn every_rule_leads_where_it_says_and_nowhere_else() {
    let scene = Scene::new(RULES);
    scene.world.host.ip("address add 10.1.1.1/32 dev lo");
    let mut scene = scene;
    let mut expected = Vec::new();
    let cases: Vec<(&str, Option<SocketAddr>)> = CASES
        .lines()
        .filter_map(|line| line.split_once("->"))
        .map(|(guest, host)| {
            let host = host.trim();
            (guest.trim(), (!host.is_empty()).then(|| host.parse().expect("an address")))
        })
        .collect();
    for (guest, host) in &cases {
        let (tcp, udp) = (scene.tcp(guest), scene.udp(guest));
        say_who(tcp, udp, guest);
        if let Some(host) = host {
            expected.push(Local::Tcp(*host));
            expected.push(Local::Udp(*host));
            if host.ip() == LOOPBACK {
                let twin = SocketAddr::from((Ipv6Addr::LOCALHOST, host.port()));
                expected.push(Local::Tcp(twin));
                expected.push(Local::Udp(twin));
            }
        }
    }
    expected.sort();
    scene.start_agent();
    within(PROMPTLY, "every forward", || (scene.list().len() >= expected.len()).then_some(()));
    // Whatever is one too many would be there after another look.
    let list = within(PROMPTLY, "every forward open", || {
        let list = scene.list();
        list.iter().all(|state| state.problem.is_none()).then_some(list)
    });
    let open: Vec<Local> = list.into_iter().map(|state| state.port.local).collect();
    assert_eq!(open, expected);
    for (guest, host) in &cases {
        let Some(host) = host else { continue };
        let to = match host.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => {
                SocketAddr::from(([198, 51, 100, 1], host.port()))
            }
            IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, host.port()).into(),
            _ => *host,
        };
        let mut who = String::new();
        let mut stream = scene.world.host.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        stream.read_to_string(&mut who).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!(who, *guest, "{to}");
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let client = scene.world.host.udp(any.parse::<SocketAddr>().expect("an address"));
        client.set_read_timeout(Some(SOON)).expect("a deadline");
        client.send_to(b"who?", to).expect("a datagram");
        let mut answer = [0; 64];
        let (n, from) = client.recv_from(&mut answer).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!((&answer[..n], from), (guest.as_bytes(), to));
    }
}

/// Tells every client who it has reached.
fn say_who(tcp: TcpListener, udp: UdpSocket, name: &'static str) {
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let _ = stream.write_all(name.as_bytes());
        }
    });
    thread::spawn(move || {
        while let Ok((_, from)) = udp.recv_from(&mut [0; 64]) {
            let _ = udp.send_to(name.as_bytes(), from);
        }
    });
}

/// Both directions, each with its end.
#[track_caller]
fn talk(client: &mut (impl Read + Write + Ends), server: &mut (impl Read + Write + Ends)) {
    client.write_all(b"question").expect("bytes can be sent");
    client.end();
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).expect("a question");
    assert_eq!(heard, b"question");
    server.write_all(b"answer").expect("bytes can be sent");
    server.end();
    heard.clear();
    client.read_to_end(&mut heard).expect("an answer");
    assert_eq!(heard, b"answer");
}

trait Ends {
    fn end(&self);
}

impl Ends for TcpStream {
    fn end(&self) {
        self.shutdown(Shutdown::Write).expect("a direction can be ended");
    }
}

impl Ends for UnixStream {
    fn end(&self) {
        self.shutdown(Shutdown::Write).expect("a direction can be ended");
    }
}

fn is_refused(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::ConnectionRefused
}
