//! The guest's side: PID 1 of the guest's PID namespace. It prepares the other namespaces, starts
//! the command, reaps what the command leaves, and tells the supervisor how the command fares. When
//! it ends, the kernel ends everything else in the namespace.
//!
//! It stays in the caller's process group, and so does the command: a terminal's Ctrl-C and Ctrl-Z
//! reach the command directly, once, together with the rest of a pipeline.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use super::channel::{Channel, Message};
use super::keep::Keeper;
use super::lan::Tenant;
use super::sys::{self, Change, Fork, Inherited, Signals};
use super::witness::Witness;
use super::{Guest, files, ids, kernel, rights, tell};

/// How often a file that the host has removed is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Life as init. `line` leads to the supervisor.
pub(super) fn main(line: &Channel, guest: &Guest, inherited: Inherited) -> ! {
    let started =
        prepare(line, guest).and_then(|kept| Init::start(line.as_fd(), guest, inherited, kept));
    match started {
        Ok(init) => init.serve(line),
        Err(why) => {
            let _ = line.send(&Message::Failed(why));
            sys::exit(1)
        }
    }
}

/// Makes the guest's surroundings and waits for leave to start the command.
fn prepare(line: &Channel, guest: &Guest) -> Result<(Option<Keeper>, Vec<Tenant>), String> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| format!("cannot be tied to the supervisor: {e}"))?;
    expect(line, &Message::Mapped)?;
    quiet_ipv6();
    let mut tenants = Vec::new();
    for card in &guest.cards {
        let config = &card.config;
        if card.given {
            let namespace = fs::File::open("/proc/self/ns/net")
                .map_err(|e| format!("cannot open the guest's network namespace: {e}"))?;
            line.send_with(&Message::Card, Some(namespace.as_fd())).map_err(gone)?;
            expect(line, &Message::Card)?;
        } else {
            let tap = rights::tap(&config.name)?;
            let _ = sys::leave_to_namespace(tap.as_fd());
            line.send_with(&Message::Card, Some(tap.as_fd())).map_err(gone)?;
        }
        vmlan_link::tap::configure_interface(config).map_err(|e| e.to_string())?;
        if let Some(lan) = &card.lan {
            tenants.push(Tenant::new(lan, config)?);
        }
    }
    let places = files::replace(&guest.resolvers, &guest.hidden).map_err(|e| rights::mount(&e))?;
    if let Err(e) = kernel::fresh_proc() {
        tell(&format!(
            "/proc shows the processes of this container, which does not allow another: {e}"
        ));
    }
    let _ = kernel::fresh_sys();
    allow_ping();
    let keeper = Keeper::new(places).ok();
    await_addresses();
    line.send(&Message::Ready).map_err(gone)?;
    expect(line, &Message::Go)?;
    Ok((keeper, tenants))
}

fn expect(line: &Channel, what: &Message) -> Result<(), String> {
    match line.recv().map_err(gone)? {
        Some((message, _)) if message == *what => Ok(()),
        // There is nobody left to read this.
        _ => Err("the supervisor has given up".into()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the last of the error")]
fn gone(error: io::Error) -> String {
    format!("cannot reach the supervisor: {error}")
}

/// Addresses are the guest's own and at once usable: no duplicate detection, no autoconfiguration
/// beside them. Without IPv6 in the kernel there is nothing to write to.
fn quiet_ipv6() {
    for key in ["accept_dad", "accept_ra"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/default/{key}"), "0");
    }
}

/// Without duplicate detection, addresses are still tentative until a worker of the kernel's has
/// looked at them, which mostly has happened by now.
fn await_addresses() {
    for _ in 0..200 {
        let list = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
        let flags = list.lines().filter_map(|line| line.split_ascii_whitespace().nth(4));
        let flags = flags.filter_map(|flags| u32::from_str_radix(flags, 16).ok());
        if flags.fold(0, |all, flags| all | flags) & libc::IFA_F_TENTATIVE == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets the command open ICMP echo sockets, which is how ping works without privilege. Where /proc
/// cannot be written to, ping may still have capabilities of its own.
fn allow_ping() {
    let gid = rustix::process::getegid().as_raw();
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", format!("{gid} {gid}"));
}

struct Init {
    signals: Signals,
    keeper: Option<Keeper>,
    tenants: Vec<Tenant>,
    command: i32,
    witness: Witness,
}

impl Init {
    fn start(
        line: BorrowedFd<'_>,
        guest: &Guest,
        inherited: Inherited,
        (keeper, tenants): (Option<Keeper>, Vec<Tenant>),
    ) -> Result<Self, String> {
        let failed = |e| format!("cannot start the command: {e}");
        let signals = Signals::new().map_err(failed)?;
        // Not to be found by those who look for vmlan: a signal by name is for the supervisor.
        sys::set_title(c"netns-init");
        // What has come so far came before there was a command; the supervisor forwards it.
        while signals.next().is_some() {}
        let command = match sys::fork().map_err(failed)? {
            Fork::Parent(command) => command,
            Fork::Child => become_command(guest, inherited),
        };
        sys::detach_standard_streams(true);
        let kept = keeper.iter().flat_map(Keeper::fds).chain(tenants.iter().filter_map(Tenant::fd));
        sys::close_all_but(&[line, signals.as_fd()].into_iter().chain(kept).collect::<Vec<_>>());
        Ok(Self { signals, keeper, tenants, command, witness: Witness::new() })
    }

    fn serve(mut self, line: &Channel) -> ! {
        let mut complete = true;
        loop {
            let mut fds =
                vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(line, PollFlags::IN)];
            fds.extend(self.keeper.iter().map(|keeper| PollFd::new(keeper, PollFlags::PRI)));
            let asking = self.tenants.iter().filter_map(Tenant::fd);
            fds.extend(asking.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            let due = self.tenants.iter().map(Tenant::next).min();
            let due = due.map(|due| due.saturating_duration_since(Instant::now()));
            let look = (!complete).then_some(LOOK);
            let wait = due.into_iter().chain(look).min();
            let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
            let _ = rustix::event::poll(&mut fds, wait.as_ref());
            self.take_signals(line);
            self.tenants.iter_mut().for_each(Tenant::keep);
            match line.try_recv() {
                Ok(Some((Message::Signal(signal), _))) => self.forward(signal, line),
                Ok(Some(_)) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) | Err(_) => sys::exit(1),
            }
            complete = self.keeper.as_mut().is_none_or(Keeper::restore);
        }
    }

    fn take_signals(&mut self, line: &Channel) {
        while let Some(signal) = self.signals.next() {
            if signal == libc::SIGCHLD {
                self.reap(line);
            }
            self.witness.see(signal, Instant::now());
        }
    }

    fn reap(&self, line: &Channel) {
        while let Ok(Some((pid, change))) = sys::wait(-1, false) {
            if pid != self.command {
                continue;
            }
            let _ = line.send(&Message::Command(change));
            if matches!(change, Change::Exited(_) | Change::Killed(_)) {
                sys::exit(0);
            }
        }
    }

    /// Passes on a signal that the supervisor was sent, unless the command has had it.
    fn forward(&mut self, signal: i32, line: &Channel) {
        self.take_signals(line);
        let in_group = sys::process_group(self.command) == sys::process_group(0);
        if !(in_group && self.witness.was_for_all(signal, Instant::now())) {
            let _ = sys::kill(self.command, signal);
        }
    }
}

/// The forked child's last steps.
fn become_command(guest: &Guest, inherited: Inherited) -> ! {
    if !guest.root
        && let Err(e) = ids::give_up_capabilities()
    {
        tell(&format!("cannot give up capabilities: {e}"));
        sys::exit(125)
    }
    inherited.restore();
    let error = sys::exec(&guest.command);
    let name = guest.command.first().map(|name| name.to_string_lossy()).unwrap_or_default();
    let (code, why) = match error.kind() {
        io::ErrorKind::NotFound => (127, "command not found".to_owned()),
        // Without the number, which is nothing to the user.
        _ => (126, error.to_string().split(" (os").next().unwrap_or_default().to_owned()),
    };
    tell(&format!("{name}: {why}"));
    sys::exit(code)
}
