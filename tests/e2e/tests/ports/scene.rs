//! A guest with an agent, and what follows it on the host.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmlan_api::Client;
use vmlan_config::Source;
use vmlan_config::instance::InstanceConfig;
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::Process;
use vmlan_e2e::world::HOST;
use vmlan_e2e::{Netns, World};
use vmlan_vm::agent;
use vmlan_vm::ports::{Config, PortEvent, Ports};

const SSH: u16 = 60022;

/// How soon a server is to be reached after it has begun to listen, and not any more.
pub(crate) const PROMPTLY: Duration = Duration::from_secs(3);

pub(crate) const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A guest with an agent, and what follows it on the host.
pub(crate) struct Scene {
    pub(crate) ports: Option<Ports>,
    pub(crate) events: Receiver<PortEvent>,
    pub(crate) agent: Option<Process>,
    pub(crate) dir: TempDir,
    pub(crate) world: World,
}

impl Scene {
    /// With these lines of `portForwards`, in which `DIR` is a directory of the test's.
    pub(crate) fn new(rules: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::on(World::new(), dir, rules, |_| {})
    }

    /// In this world, the configuration changed like that.
    pub(crate) fn on(
        world: World,
        dir: TempDir,
        rules: &str,
        change: impl FnOnce(&mut Config),
    ) -> Self {
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

    pub(crate) fn with_agent(rules: &str) -> Self {
        let mut scene = Self::new(rules);
        scene.start_agent();
        scene
    }

    /// Puts the agent where a machine has it, with a socket for its port.
    pub(crate) fn start_agent(&mut self) {
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
    pub(crate) fn until(&self, is: impl Fn(&PortEvent) -> bool) -> PortEvent {
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

    pub(crate) fn list(&self) -> Vec<vmlan_vm::ports::PortState> {
        self.ports.as_ref().map(Ports::list).unwrap_or_default()
    }

    pub(crate) fn guest(&self) -> &Netns {
        &self.world.guest
    }

    pub(crate) fn tcp(&self, at: &str) -> TcpListener {
        self.guest().listen(at.parse::<SocketAddr>().expect("an address"))
    }

    pub(crate) fn udp(&self, at: &str) -> UdpSocket {
        self.guest().udp(at.parse::<SocketAddr>().expect("an address"))
    }

    /// A connection of the host's, as soon as there is one.
    #[track_caller]
    pub(crate) fn connect(&self, to: &str) -> TcpStream {
        let to: SocketAddr = to.parse().expect("an address");
        within(PROMPTLY, to, || self.world.host.connect(to).ok())
    }
}

/// What comes within a time.
#[track_caller]
pub(crate) fn within<T>(
    time: Duration,
    what: impl std::fmt::Debug,
    mut ask: impl FnMut() -> Option<T>,
) -> T {
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
pub(crate) fn echoes(mut stream: TcpStream) {
    stream.set_read_timeout(Some(SOON)).expect("a deadline");
    stream.write_all(b"hello").expect("a word can be sent");
    stream.shutdown(Shutdown::Write).expect("a direction can be ended");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("an answer");
    assert_eq!(heard, b"hello");
}

pub(crate) fn is_refused(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::ConnectionRefused
}
