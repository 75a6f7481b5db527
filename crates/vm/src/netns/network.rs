//! The process that serves one of the guest's network cards, a child of the supervisor. It
//! is a process of its own, in a session of its own, so that a Ctrl-Z that stops the supervisor
//! with the command does not stop the network under it, and no limit or descriptor that the engine
//! needs is seen by the command.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use super::channel::{Channel, Message};
use super::sys::{self, Change, Fork};
use super::tell;

/// Serves the card of this index, until [`Supervisor`] says that the guest is gone.
pub type Serve<'a> = &'a dyn Fn(usize, OwnedFd, &Supervisor) -> Result<(), String>;

/// How long the process may take to finish before it is killed.
const FINISH: Duration = Duration::from_secs(3);

/// The network process's line to the supervisor. As a descriptor it becomes readable when the guest
/// is gone.
#[derive(Debug)]
pub struct Supervisor(Channel);

impl Supervisor {
    /// Tells that the guest can be served and that what the user asked for is there.
    pub fn ready(&self) -> io::Result<()> {
        self.0.send(&Message::Ready)
    }
}

impl AsFd for Supervisor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A process that lived shorter than this is not started again.
const TOO_SHORT: Duration = Duration::from_secs(1);

/// A network card of the guest's, and the process that serves it as long as there is one.
#[derive(Debug)]
pub(super) struct Place {
    index: usize,
    card: OwnedFd,
    network: Option<Network>,
    started: Instant,
}

impl Place {
    pub(super) fn start(index: usize, card: OwnedFd, serve: Serve<'_>) -> io::Result<Self> {
        let network = Some(Network::start(index, card.try_clone()?, serve)?);
        Ok(Self { index, card, network, started: Instant::now() })
    }

    /// Waits until the network serves.
    pub(super) fn wait_ready(&self) -> Result<(), String> {
        self.network.as_ref().map_or(Ok(()), Network::wait_ready)
    }

    /// What becomes readable when the process ends.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().map(|network| network.line.as_fd())
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.network.as_ref().map(|network| network.pid)
    }

    /// Starts the process again if it has died: the guest keeps its card, and connections that the
    /// new process does not know are reset as they go on.
    pub(super) fn look_after(&mut self, serve: Serve<'_>) {
        let Some(why) = self.network.as_ref().and_then(Network::ended) else { return };
        self.network = None;
        let restarted = if self.started.elapsed() < TOO_SHORT {
            Err("at its start".to_owned())
        } else {
            self.card
                .try_clone()
                .and_then(|card| Network::start(self.index, card, serve))
                .map_err(|e| e.to_string())
                .and_then(|network| network.wait_ready().map(|()| network))
        };
        match restarted {
            Ok(network) => {
                tell(&format!("{why}; another has taken its place"));
                self.network = Some(network);
                self.started = Instant::now();
            }
            Err(again) => {
                tell(&format!("{why}; the guest has no network any more ({again})"));
            }
        }
    }
}

/// Lets the networks deliver what the guest has sent, then ends them.
pub(super) fn finish(places: Vec<Place>) {
    let networks: Vec<_> = places.into_iter().filter_map(|place| place.network).collect();
    for network in &networks {
        let _ = network.line.send(&Message::Finish);
    }
    let end = Instant::now() + FINISH;
    for network in networks {
        network.await_end(end);
    }
}

/// The supervisor's hold on the process.
#[derive(Debug)]
struct Network {
    pid: i32,
    line: Channel,
}

impl Network {
    fn start(index: usize, card: OwnedFd, serve: Serve<'_>) -> io::Result<Self> {
        let (ours, theirs) = Channel::pair()?;
        let supervisor = rustix::process::getpid();
        match sys::fork()? {
            Fork::Parent(pid) => Ok(Self { pid, line: ours }),
            Fork::Child => {
                drop(ours);
                let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
                if rustix::process::getppid() != Some(supervisor) {
                    sys::exit(1)
                }
                let _ = rustix::process::setsid();
                sys::close_all_but(&[theirs.as_fd(), card.as_fd()]);
                sys::set_title(c"vmlan-network");
                let supervisor = Supervisor(theirs);
                match serve(index, card, &supervisor) {
                    Ok(()) => sys::exit(0),
                    Err(why) => {
                        let _ = supervisor.0.send(&Message::Failed(why));
                        sys::exit(1)
                    }
                }
            }
        }
    }

    /// Waits until the network serves. The error is what the process said.
    fn wait_ready(&self) -> Result<(), String> {
        match self.line.recv() {
            Ok(Some((Message::Ready, _))) => Ok(()),
            Ok(Some((Message::Failed(why), _))) => Err(why),
            Ok(_) => Err(format!("the network's process {}", self.reap())),
            Err(e) => Err(format!("cannot reach the network's process: {e}")),
        }
    }

    /// Why the process has ended by itself, if it has.
    fn ended(&self) -> Option<String> {
        match self.line.try_recv() {
            Ok(Some((Message::Failed(why), _))) => {
                self.reap();
                Some(why)
            }
            Ok(Some(_)) => None,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Ok(None) | Err(_) => Some(format!("the network's process {}", self.reap())),
        }
    }

    /// Waits for the process to end, and kills it at `end`.
    fn await_end(&self, end: Instant) {
        while self.ended().is_none() {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            let mut line = [PollFd::new(&self.line, PollFlags::IN)];
            if left.is_zero() || rustix::event::poll(&mut line, timeout.as_ref()) == Ok(0) {
                let _ = sys::kill(self.pid, libc::SIGKILL);
                self.reap();
                return;
            }
        }
    }

    fn reap(&self) -> String {
        match sys::reap(self.pid) {
            Some(Change::Exited(code)) => format!("ended with code {code}"),
            Some(Change::Killed(signal)) => format!("was killed by signal {signal}"),
            _ => "is gone".into(),
        }
    }
}
