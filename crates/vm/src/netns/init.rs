//! The guest's side: PID 1 of the guest's PID namespace. It prepares the other namespaces, starts
//! the command, reaps what the command leaves, and tells the supervisor how the command fares. When
//! it ends, the kernel ends everything else in the namespace.
//!
//! It stays in the caller's process group, and so does the command: a terminal's Ctrl-C and Ctrl-Z
//! reach the command directly, once, together with the rest of a pipeline. Init itself, with every
//! signal blocked, is a witness: a signal that the supervisor was sent and that init has seen too
//! went to the whole group and needs no forwarding.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

use super::channel::{Channel, Message};
use super::sys::{self, Change, Fork, Inherited, Signals};
use super::{Guest, files, rights, tell};

/// How long a signal that init has seen may be the one that the supervisor tells of.
const WITNESS: Duration = Duration::from_secs(1);

/// Life as init. `channel` leads to the supervisor.
pub(super) fn main(channel: Channel, guest: &Guest, inherited: Inherited) -> ! {
    match prepare(&channel, guest) {
        Ok(true) => {}
        Ok(false) => sys::exit(1),
        Err(why) => {
            let _ = channel.send(&Message::Failed(why));
            sys::exit(1)
        }
    }
    match Init::start(channel, guest, inherited) {
        Ok(mut init) => init.serve(),
        Err((channel, error)) => {
            let _ = channel.send(&Message::Failed(format!("cannot start the command: {error}")));
            sys::exit(1)
        }
    }
}

/// Makes the guest's surroundings. False when the supervisor is gone or has given up.
fn prepare(channel: &Channel, guest: &Guest) -> Result<bool, String> {
    let told = |e: io::Error| format!("cannot reach the supervisor: {e}");
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| format!("cannot be tied to the supervisor: {e}"))?;
    if !matches!(channel.recv().map_err(told)?, Some((Message::Mapped, _))) {
        return Ok(false);
    }
    quiet_ipv6();
    let card = rights::tap(&guest.card.name)?;
    channel.send_with(&Message::Card, Some(card.as_fd())).map_err(told)?;
    drop(card);
    vmlan_link::tap::configure_interface(&guest.card).map_err(|e| e.to_string())?;
    files::replace(guest.resolver).map_err(|e| rights::mount(&e))?;
    if let Err(e) = files::fresh_proc() {
        tell(&format!(
            "/proc shows the processes of this container, which does not allow another: {e}"
        ));
    }
    allow_ping();
    channel.send(&Message::Ready).map_err(told)?;
    Ok(matches!(channel.recv().map_err(told)?, Some((Message::Go, _))))
}

/// Addresses are the guest's own and at once usable: no duplicate detection, no autoconfiguration
/// beside them. Without IPv6 in the kernel there is nothing to write to.
fn quiet_ipv6() {
    for key in ["accept_dad", "accept_ra"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/default/{key}"), "0");
    }
}

/// Lets the command open ICMP echo sockets, which is how ping works without privilege. Where /proc
/// cannot be written to, ping may still have capabilities of its own.
fn allow_ping() {
    let gid = rustix::process::getegid().as_raw();
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", format!("{gid} {gid}"));
}

struct Init {
    channel: Channel,
    signals: Signals,
    command: i32,
    /// When init itself was last sent each signal.
    seen: [Option<Instant>; 65],
}

impl Init {
    fn start(
        channel: Channel,
        guest: &Guest,
        inherited: Inherited,
    ) -> Result<Self, (Channel, io::Error)> {
        let signals = match Signals::new() {
            Ok(signals) => signals,
            Err(error) => return Err((channel, error)),
        };
        sys::set_title(c"netns-init");
        // What has come so far came before there was a command; the supervisor forwards it.
        while signals.next().is_some() {}
        let command = match sys::fork() {
            Ok(Fork::Parent(command)) => command,
            Ok(Fork::Child) => become_command(&guest.command, inherited),
            Err(error) => return Err((channel, error)),
        };
        sys::detach_standard_streams(true);
        sys::close_all_but(&[channel.as_fd(), signals.as_fd()]);
        Ok(Self { channel, signals, command, seen: [None; 65] })
    }

    fn serve(&mut self) -> ! {
        loop {
            let mut fds = [
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&self.channel, PollFlags::IN),
            ];
            let _ = rustix::event::poll(&mut fds, None);
            self.take_signals();
            match self.channel.try_recv() {
                Ok(Some((Message::Signal(signal), _))) => self.forward(signal),
                Ok(Some(_)) => {}
                Ok(None) => sys::exit(1),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => sys::exit(1),
            }
        }
    }

    fn take_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            if signal == libc::SIGCHLD {
                self.reap();
            }
            if let Some(seen) = usize::try_from(signal).ok().and_then(|s| self.seen.get_mut(s)) {
                *seen = Some(Instant::now());
            }
        }
    }

    fn reap(&self) {
        while let Ok(Some((pid, change))) = sys::wait(-1, false) {
            if pid != self.command {
                continue;
            }
            let _ = self.channel.send(&Message::Command(change));
            if matches!(change, Change::Exited(_) | Change::Killed(_)) {
                sys::exit(0);
            }
        }
    }

    /// Passes on a signal that the supervisor was sent, unless the command has had it.
    fn forward(&mut self, signal: i32) {
        self.take_signals();
        let seen = usize::try_from(signal).ok().and_then(|s| self.seen.get_mut(s)?.take());
        let went_to_group = seen.is_some_and(|at| at.elapsed() < WITNESS);
        let in_group = sys::process_group(self.command) == sys::process_group(0);
        if !(went_to_group && in_group) {
            let _ = sys::kill(self.command, signal);
        }
    }
}

/// The forked child's last steps.
fn become_command(command: &[CString], inherited: Inherited) -> ! {
    inherited.restore();
    let error = sys::exec(command);
    let name = command.first().map(|name| name.to_string_lossy()).unwrap_or_default();
    let (code, why) = match error.kind() {
        io::ErrorKind::NotFound => (127, "command not found".to_owned()),
        // Without the number, which is nothing to the user.
        _ => (126, error.to_string().split(" (os").next().unwrap_or_default().to_owned()),
    };
    tell(&format!("{name}: {why}"));
    sys::exit(code)
}
