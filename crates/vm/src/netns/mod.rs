//! Namespace guests: a command of the caller's, in user, network, mount and PID namespaces of its
//! own, on a network that vmlan serves.
//!
//! Three processes or more surround the command. The *supervisor* is the caller's own process: it
//! waits, passes signals on and ends as the command ends. *Init* is PID 1 of the guest and the
//! command's parent. A *network* serves one of the guest's network cards. When the supervisor dies,
//! however it dies, the kernel kills the others, and with init everything in the guest; the
//! namespaces and the network cards go with their last process.
//!
//! This is a network for a command, not a wall against it: a process of the same user outside may
//! do anything to it, and it sees the host's files.

mod channel;
mod etc;
mod files;
mod ids;
mod init;
mod keep;
mod kernel;
mod lan;
mod network;
mod rights;
mod supervisor;
mod sys;
mod terminal;
mod witness;

use std::ffi::CString;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use vmlan_link::tap::InterfaceConfig;

pub use lan::Lan;
pub use network::{Serve, Supervisor};

use channel::{Channel, Message};
use network::Place;
use supervisor::Watch;
use sys::{Fork, Inherited};
use terminal::Terminal;

/// What runs in the guest, and as what.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The command and its arguments; at least one.
    pub command: Vec<CString>,
    /// Run it as root of the guest instead of as the caller.
    pub root: bool,
    /// The guest's network cards; at least one. Each has a process that serves it.
    pub cards: Vec<Card>,
    /// The name servers in resolv.conf.
    pub resolvers: Vec<IpAddr>,
    /// Directories of the host's that are empty to the guest, where they exist.
    pub hidden: Vec<PathBuf>,
}

/// A network card of a guest's.
#[derive(Clone, Debug)]
pub struct Card {
    /// Its addresses and routes.
    pub config: InterfaceConfig,
    /// It is not a TAP that the guest makes: whoever serves is given the guest's network namespace,
    /// and puts an interface of this name there before it is ready.
    pub given: bool,
    /// Its addresses come from the network that the host is on, which the guest asks.
    pub lan: Option<Lan>,
}

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Exited(u8),
    Killed(i32),
}

/// Why the command was not started: one line with the cause and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RunError(String);

/// Runs a guest to its end. The calling process must have a single thread, and gives up its
/// standard input and output to the command.
pub fn run(guest: &Guest, serve: Serve<'_>) -> Result<Ending, RunError> {
    let failed = |what: &'static str| move |e| RunError(format!("{what}: {e}"));
    let inherited = Inherited::block().map_err(failed("cannot block signals"))?;
    let (line, init_line) = Channel::pair().map_err(failed("cannot make a socket"))?;
    let init = match sys::fork_into_namespaces() {
        Ok(Fork::Parent(pid)) => pid,
        Ok(Fork::Child) => {
            drop(line);
            init::main(&init_line, guest, inherited)
        }
        Err(e) => return Err(RunError(rights::namespaces(&e))),
    };
    drop(init_line);
    // What the caller has opened is the command's: a pipe shall end when the command closes it.
    let terminal = Terminal::open();
    sys::detach_standard_streams(false);
    let keep = [Some(line.as_fd()), terminal.fd().map(AsFd::as_fd)];
    sys::close_all_but(&keep.into_iter().flatten().collect::<Vec<_>>());

    let started = prepare(init, &line, guest, serve).and_then(|places| {
        let watch = Watch::new(init, terminal, places, serve)
            .map_err(|e| format!("cannot watch the command: {e}"))?;
        line.send(&Message::Go).map_err(|e| format!("cannot start the command: {e}"))?;
        Ok(watch)
    });
    match started {
        Ok(watch) => Ok(watch.see_out(&line)),
        Err(why) => {
            let _ = sys::kill(init, libc::SIGKILL);
            sys::reap(init);
            Err(RunError(why))
        }
    }
}

/// Makes guest and networks ready for the command.
fn prepare(
    init: i32,
    line: &Channel,
    guest: &Guest,
    serve: Serve<'_>,
) -> Result<Vec<Place>, String> {
    ids::map(init, guest.root).map_err(|e| rights::mapping(&e))?;
    line.send(&Message::Mapped).map_err(|e| format!("cannot reach the guest's init: {e}"))?;
    let mut places = Vec::new();
    for (index, card) in guest.cards.iter().enumerate() {
        let (Message::Card, Some(fd)) = expect(line)? else {
            return Err("the guest's init has no network card to give".into());
        };
        let place = Place::start(index, fd, serve);
        let place = place.map_err(|e| format!("cannot start the network's process: {e}"))?;
        if card.given {
            place.wait_ready()?;
            line.send(&Message::Card).map_err(|e| format!("cannot reach the guest's init: {e}"))?;
        }
        places.push(place);
    }
    expect(line)?;
    let made = places.iter().zip(&guest.cards).filter(|(_, card)| !card.given);
    made.map(|(place, _)| place).try_for_each(Place::wait_ready)?;
    Ok(places)
}

/// The next thing that init says while it prepares.
fn expect(line: &Channel) -> Result<(Message, Option<OwnedFd>), String> {
    match line.recv() {
        Ok(Some((Message::Failed(why), _))) => Err(why),
        Ok(Some(said)) => Ok(said),
        Ok(None) => Err("the guest's init was killed before the command could start".into()),
        Err(e) => Err(format!("cannot reach the guest's init: {e}")),
    }
}

/// One line on standard error, in one write.
fn tell(text: &str) {
    // There is nobody to tell when standard error is gone.
    let _ = io::stderr().write_all(format!("vmlan: {text}\n").as_bytes());
}

impl Ending {
    /// Ends this process as the command has ended, so that whoever waits for it sees the same.
    pub fn pass_on(self) -> ! {
        match self {
            Self::Exited(code) => sys::exit(code),
            Self::Killed(signal) => {
                // The command has dumped its core, if it was to.
                let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
                let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
                let _ = sys::suffer(signal);
                // Only where this is PID 1 of a container, which signals do not end.
                sys::exit(u8::try_from(128 + signal).unwrap_or(u8::MAX))
            }
        }
    }
}
