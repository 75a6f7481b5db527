//! The process beside a running machine: what runs it (`driver`), and its place on its networks. It
//! is there as long as the machine is, and what it made for it goes with it.
//!
//! Everything that happens comes as a `Message` to one loop. A thread each waits for QEMU
//! (`by_qemu`; of a machine of macOS' own, the framework tells, `by_vz`), for signals, for the
//! guest's ssh, for the daemon of each network (`card`), and for questions on `ha.sock` (`api`).

mod api;
mod by_qemu;
mod by_vz;
mod card;
mod driver;
mod forwards;
mod plan;
mod state;
mod uplink;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use vmlan_api::Client;
use vmlan_config::instance::{InstanceConfig, VmType};
use vmlan_config::{Attachment, HostResolver, LimaHome};
#[cfg(target_os = "linux")]
use vmlan_netd::vmnet::Helper;
use vmlan_netd::{PidFile, SocketVmnet};

use super::event::{Events, Status};
use super::files::Files;
use super::info::Health;
use super::ssh;
use super::store::Instance;
use crate::qemu::accel::Accel;
use driver::{Driver, End, Machine};
use state::State;
use uplink::Uplink;

/// What the process is to run.
#[derive(Debug)]
pub struct Spec {
    pub home: LimaHome,
    pub instance: Instance,
    pub config: InstanceConfig,
    pub driver: VmType,
    pub resolver: HostResolver,
    /// The first one is `eth0`.
    pub cards: Vec<Card>,
    /// The accelerator that was asked for.
    pub accel: Option<Accel>,
}

/// A network card, and what it is connected to.
#[derive(Debug)]
pub struct Card {
    pub attachment: Attachment,
    pub network: Network,
}

/// What a card is connected to.
#[derive(Debug)]
pub enum Network {
    /// A network with a daemon of vmlan's.
    Managed(Arc<dyn Lan>),
    /// One whose guests are on a bridge, where root's helper makes the card.
    #[cfg(target_os = "linux")]
    Bridged { lan: Arc<dyn Lan>, helper: Helper },
    /// A network of socket_vmnet's on macOS, and what it is called in listings.
    Vmnet { label: String, network: SocketVmnet },
    /// The socket of somebody else's daemon.
    Socket(PathBuf),
    /// QEMU's own network. The names that it is to have come from a resolver of vmlan's.
    Slirp(vmlan_dns::Options),
    /// macOS' own network, for machines of its own framework.
    VzNat,
}

impl Network {
    fn lan(&self) -> Option<&Arc<dyn Lan>> {
        match self {
            Self::Managed(lan) => Some(lan),
            #[cfg(target_os = "linux")]
            Self::Bridged { lan, .. } => Some(lan),
            Self::Vmnet { .. } | Self::Socket(_) | Self::Slirp(_) | Self::VzNat => None,
        }
    }
}

/// A network with a daemon that comes with its first guest.
pub trait Lan: std::fmt::Debug + Send + Sync {
    /// What it is called in listings.
    fn label(&self) -> String;
    /// A connection to where guests join; the daemon is started if there is none.
    fn connect(&self) -> Result<UnixStream, String>;
    /// Whether it is still to be there.
    fn is_configured(&self) -> bool;
    fn control(&self) -> Client;
    /// The last guest of a network that nobody else can join has gone.
    fn leave(&self) {}
}

/// How long a machine may take to end by itself: while it boots, and later.
const SHORT: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(180);

/// How often a machine that is to end is told so. It may not listen yet.
const REMIND: Duration = Duration::from_secs(4);

/// What is said of a machine that cannot write.
const PAUSED: &str = "the machine is paused: its disk finds no room on the host, or cannot be \
    written; it goes on when it can be, and `vmlan stop --force` ends it";

/// What happens.
#[derive(Debug)]
enum Message {
    /// SIGTERM or SIGINT; the second one means at once.
    Signal,
    /// Somebody asks over the socket.
    Stop {
        force: bool,
    },
    Ended(End),
    /// The guest lets its user in.
    Ready,
    /// QEMU has stopped the machine since its disk finds no room on the host, or not any more.
    Paused(bool),
    /// A network is there again, or why it is not.
    Network {
        card: usize,
        result: Result<(), String>,
    },
}

/// Runs a machine to its end. What is told on standard output are events.
pub fn run(spec: &Spec) -> Result<(), String> {
    vmlan_netd::leave_caller();
    let stdout = rustix::io::dup(std::io::stdout()).map_err(|e| e.to_string())?;
    let events = Arc::new(Events::new(fs::File::from(stdout)));
    let result = try_run(spec, &events);
    let errors = result.as_ref().err().cloned().into_iter().collect();
    events.tell(Status { exiting: true, errors, ..Status::default() });
    result
}

fn try_run(spec: &Spec, events: &Arc<Events>) -> Result<(), String> {
    let files = spec.instance.files.clone();
    let _pidfile = PidFile::write(&files.host_pid()).map_err(|e| e.to_string())?;
    files.clean();
    let result = live(spec, events, &files);
    files.clean();
    for card in &spec.cards {
        if let Some(lan) = card.network.lan() {
            lan.leave();
        }
    }
    result
}

/// From the first socket to the machine's end.
fn live(spec: &Spec, events: &Arc<Events>, files: &Files) -> Result<(), String> {
    let (tell, messages) = mpsc::channel();
    watch_signals(tell.clone()).map_err(|e| format!("cannot handle signals: {e}"))?;
    let state = Arc::new(State::default());
    api::serve(&files.host_socket(), Arc::clone(&state), tell.clone())?;

    let driver = Driver::find(spec)?;
    let mut plan = plan::make(spec, &driver, &state, events)?;
    let ports = plan.ports.take();
    let uplinks = plan.users.drain(..).map(|(card, user)| Uplink::keep(card, user, tell.clone()));
    let uplinks = uplinks.collect::<Result<Vec<_>, _>>()?;
    let mut machine = driver.start(spec, plan, &state, &tell)?;
    let said = format!("booting, {}", machine.how());
    events.tell(Status { progress: Some(said), ..Status::default() });
    wait_for_ssh(spec, state.ssh_port(), tell);
    if let Some(ports) = ports {
        state.set_ports(forwards::start(ports, &state, events)?);
    }
    let result = attend(&mut *machine, &messages, &state, events, &files.serial_log());
    drop(machine);
    drop(uplinks);
    state.finish();
    result
}

/// Does what has to be done until the machine has ended.
fn attend(
    machine: &mut dyn Machine,
    messages: &Receiver<Message>,
    state: &State,
    events: &Events,
    serial_log: &Path,
) -> Result<(), String> {
    let mut stopping: Option<Stopping> = None;
    loop {
        let message = match &mut stopping {
            None => messages.recv().map_err(|e| e.to_string())?,
            Some(stopping) => match messages.recv_timeout(stopping.wait()) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => {
                    if stopping.go_on(machine) {
                        let warning = Some("the machine has not shut down, and is ended".into());
                        events.tell(Status { warning, ..Status::default() });
                    }
                    continue;
                }
                Err(e) => return Err(e.to_string()),
            },
        };
        match message {
            Message::Ended(end) => {
                return ended(machine, state, stopping.is_some(), &end, serial_log);
            }
            Message::Signal if stopping.is_some() => machine.kill(),
            Message::Stop { force: true } => {
                stopping.get_or_insert_with(|| Stopping::new(state));
                machine.kill();
            }
            Message::Signal | Message::Stop { .. } => {
                if stopping.is_none() {
                    let mut begun = Stopping::new(state);
                    let _ = begun.go_on(machine);
                    stopping = Some(begun);
                }
            }
            Message::Ready if stopping.is_none() => {
                state.set_ready();
                let ssh_local_port = state.ssh_port();
                let degraded = state.health() == Health::Degraded;
                events.tell(Status {
                    running: true,
                    degraded,
                    ssh_local_port,
                    ..Status::default()
                });
            }
            Message::Ready => {}
            Message::Paused(is) => {
                let why = is.then(|| PAUSED.to_owned());
                state.set_paused(why.clone());
                if is {
                    events.tell(Status { warning: why, ..Status::default() });
                }
            }
            Message::Network { card, result } => {
                let problem = result.err();
                state.set_problem(card, problem.clone());
                if card == 0 {
                    state.network_is_new();
                }
                if let Some(warning) = problem {
                    let degraded = state.health() == Health::Degraded;
                    let warning = Some(warning);
                    events.tell(Status {
                        running: degraded,
                        degraded,
                        warning,
                        ..Status::default()
                    });
                }
            }
        }
    }
}

fn ended(
    machine: &dyn Machine,
    state: &State,
    stopped: bool,
    end: &End,
    serial_log: &Path,
) -> Result<(), String> {
    let was_booting = state.health() == Health::Booting;
    let End { how, failed } = end;
    let said = machine.last_words().map(|said| format!(": {said}")).unwrap_or_default();
    match (stopped, was_booting) {
        (true, _) => Ok(()),
        (false, true) => {
            let log = serial_log.display();
            Err(format!("the machine has ended {how} before it answered by ssh{said}; see {log}"))
        }
        (false, false) if *failed => Err(format!("the machine has ended {how}{said}")),
        // Shut down from inside.
        (false, false) => Ok(()),
    }
}

/// A machine that is to end.
#[derive(Debug)]
struct Stopping {
    until: Instant,
    remind: Instant,
}

impl Stopping {
    fn new(state: &State) -> Self {
        let patience = if state.health() == Health::Booting { SHORT } else { LONG };
        state.set_stopping();
        Self { until: Instant::now() + patience, remind: Instant::now() }
    }

    fn wait(&self) -> Duration {
        self.until.min(self.remind).saturating_duration_since(Instant::now())
    }

    /// Presses the power button again, or pulls the plug, and then says so.
    fn go_on(&mut self, machine: &mut dyn Machine) -> bool {
        let now = Instant::now();
        self.remind = now + REMIND;
        let pull = now >= self.until || machine.power_down().is_err();
        if pull {
            machine.kill();
        }
        pull
    }
}

fn watch_signals(tell: Sender<Message>) -> std::io::Result<()> {
    use std::io::Read;

    use signal_hook::consts::{SIGINT, SIGTERM};
    let (mut read, write) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    spawn("signals", move || {
        let mut byte = [0];
        while matches!(read.read(&mut byte), Ok(1)) {
            if tell.send(Message::Signal).is_err() {
                return;
            }
        }
    })
}

/// Tells when the guest lets its user in.
fn wait_for_ssh(spec: &Spec, port: u16, tell: Sender<Message>) {
    const LOOK: Duration = Duration::from_millis(100);
    let (files, name) = (spec.instance.files.clone(), spec.instance.name.clone());
    // Without the thread, the machine never becomes ready, and whoever waits for it says so.
    let _ = spawn("ssh", move || {
        loop {
            if ssh::greets(port) && ssh::logs_in(&files, &name) {
                // The machine may have ended.
                let _ = tell.send(Message::Ready);
                return;
            }
            thread::sleep(LOOK);
        }
    });
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(work).map(drop)
}
