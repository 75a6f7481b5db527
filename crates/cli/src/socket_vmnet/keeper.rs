//! Root's part: makes the network, starts the server, and then the socket and the pid file, which are
//! there only while guests can really connect. It sees no frame. At the end, whoever ends first, it
//! takes everything away again.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmlan_link::scm;
use vmlan_netd::{PidFile, SocketPath};

use super::Args;
use super::settings::Settings;
use super::system::{self, Network};

/// How long the server may take to come up. macOS' framework is asked again and again meanwhile.
const START: Duration = Duration::from_secs(60);

/// How long it may take to end.
const END: Duration = Duration::from_secs(3);

/// What keeper and server say to each other, a byte each: here is the network; it is up; here is the
/// socket; it is served.
pub(super) const UPLINK: u8 = b'u';
pub(super) const READY: u8 = b'r';
pub(super) const SOCKET: u8 = b's';
pub(super) const SERVING: u8 = b'y';

pub(super) fn run(args: &Args, settings: &Settings) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("only root can make such a network; run it with sudo".into());
    }
    let group = crate::sudoers::group_id(&args.socket_group);
    let group = group.ok_or_else(|| {
        let name = &args.socket_group;
        format!("there is no group `{name}`; name another with --socket-group")
    })?;
    if let Some(path) = &args.pidfile {
        PidFile::check(path).map_err(|e| format!("--pidfile {e}"))?;
    }
    if UnixStream::connect(&settings.socket).is_ok() {
        return Err(format!("{}: already in use by another process", settings.socket.display()));
    }
    let signals = vmlan_netd::termination().map_err(|e| format!("signals: {e}"))?;

    let mut network = Network::make(settings)?;
    let mut server = Server::start(network.take())?;
    server.expect(READY, &signals)?;
    let (path, pidfile) = open(args, settings, group, &mut server, &signals)?;
    system::keep_least(&[Some(&settings.socket), args.pidfile.as_ref()]);
    crate::tell(&format!("ready, guests connect at {}", settings.socket.display()));
    let ended = server.await_end(&signals);
    // Whoever waits for the end looks for the pid file.
    drop((network, path));
    drop(pidfile);
    ended
}

/// Makes what guests are to find, as soon as they may.
fn open(
    args: &Args,
    settings: &Settings,
    group: u32,
    server: &mut Server,
    signals: &UnixStream,
) -> Result<(SocketPath, Option<PidFile>), String> {
    let bound = vmlan_netd::listen_for_group(&settings.socket, group);
    let (socket, path) = bound.map_err(|e| e.to_string())?;
    server.say(SOCKET, socket.as_fd())?;
    server.expect(SERVING, signals)?;
    let pidfile = args.pidfile.as_deref().map(PidFile::write).transpose();
    Ok((path, pidfile.map_err(|e| format!("--pidfile {e}"))?))
}

/// The process that serves. It ends when its line to this one does.
struct Server {
    child: Child,
    line: UnixStream,
}

impl Server {
    fn start(uplink: Option<OwnedFd>) -> Result<Self, String> {
        let failed = |e: io::Error| format!("cannot start what serves the guests: {e}");
        let (line, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(system::program().map_err(failed)?);
        // After the program's name and the subcommand's.
        let args = super::arguments(std::env::args_os().collect());
        command
            .args(["socket_vmnet", "--serve"])
            .args(args.iter().skip(2))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .current_dir("/")
            // Signals of a terminal are for the keeper.
            .process_group(0);
        system::confine(&mut command);
        let child = command.spawn().map_err(failed)?;
        let mut server = Self { child, line };
        if let Some(uplink) = uplink {
            server.say(UPLINK, uplink.as_fd())?;
        }
        Ok(server)
    }

    fn say(&mut self, word: u8, fd: BorrowedFd<'_>) -> Result<(), String> {
        let sent = scm::send_fds(&self.line, &[word], &[fd]);
        sent.map(drop).map_err(|_| self.failure())
    }

    /// Waits for the server's word.
    fn expect(&mut self, word: u8, signals: &UnixStream) -> Result<(), String> {
        let end = Instant::now() + START;
        while !wait(&self.line, signals, Some(end))? {
            if is_readable(signals) {
                return Err("stopped before it was ready".into());
            }
            if Instant::now() >= end {
                return Err(format!("the network did not come up within {} s", START.as_secs()));
            }
        }
        let mut said = [0];
        match self.line.read(&mut said) {
            Ok(1) if said == [word] => Ok(()),
            _ => Err(self.failure()),
        }
    }

    /// Until somebody wants it to end, or it does.
    fn await_end(mut self, signals: &UnixStream) -> Result<(), String> {
        while !wait(&self.line, signals, None)? {
            if is_readable(signals) {
                return Ok(());
            }
        }
        Err(self.failure())
    }

    /// It has said itself why.
    fn failure(&mut self) -> String {
        match self.child.wait() {
            Ok(status) => format!("what serves the guests has ended: {status}"),
            Err(e) => format!("what serves the guests has ended: {e}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.line.shutdown(Shutdown::Write);
        let end = Instant::now() + END;
        let mut rest = [0; 16];
        // Its end of the line closes with it.
        while Instant::now() < end {
            let fds = &mut [PollFd::new(&self.line, PollFlags::IN)];
            let left = timespec(end.saturating_duration_since(Instant::now()));
            if matches!(poll(fds, Some(&left)), Ok(1..))
                && !matches!(self.line.read(&mut rest), Ok(1..))
            {
                break;
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the server has said something, or has ended. With a signal, it is told at once.
fn wait(line: &UnixStream, signals: &UnixStream, end: Option<Instant>) -> Result<bool, String> {
    let mut fds = [PollFd::new(line, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    let left = end.map(|end| timespec(end.saturating_duration_since(Instant::now())));
    match poll(&mut fds, left.as_ref()) {
        Ok(_) => Ok(!fds[0].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(format!("cannot wait: {e}")),
    }
}

fn is_readable(signals: &UnixStream) -> bool {
    let now = timespec(Duration::ZERO);
    matches!(poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&now)), Ok(1..))
}

fn timespec(time: Duration) -> Timespec {
    Timespec::try_from(time).unwrap_or_default()
}
