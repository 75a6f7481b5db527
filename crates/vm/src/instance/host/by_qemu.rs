//! A machine by QEMU: a process of its own, whose parent this one is.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::super::files::Files;
use super::super::size;
use super::driver::{End, Machine};
use super::plan::{Card, Wire};
use super::state::State;
use super::{Message, Spec, spawn};
use crate::disk;
use crate::kernel::Kernel;
use crate::qemu::accel::{self, Accel, Choice};
use crate::qemu::program::Program;
use crate::qemu::{self, Again, qmp};

/// For QEMU to answer on its control socket, or to end because it cannot start.
const PATIENCE: Duration = Duration::from_secs(20);

const LOOK: Duration = Duration::from_millis(5);

/// Between two looks whether a machine stands still for want of room.
const ROOM: Duration = Duration::from_secs(5);

/// A QEMU that can run the machine, and with which accelerator.
#[derive(Debug)]
pub(super) struct Driver {
    program: Program,
    accel: Choice,
}

/// A running QEMU.
#[derive(Debug)]
pub(super) struct Qemu {
    files: Files,
    pid: Option<Pid>,
    accel: Choice,
    /// What the log held before.
    said: u64,
}

impl Driver {
    pub(super) fn find(spec: &Spec) -> Result<Self, String> {
        let program = Program::find(spec.config.arch).map_err(|e| e.to_string())?;
        let accel = accel::choose(&program, spec.config.arch, spec.accel);
        Ok(Self { program, accel })
    }

    pub(super) fn connects_again(&self) -> bool {
        self.program.again() != Again::Never
    }

    /// What QEMU is told of a card, and the descriptor that it inherits for it.
    fn card(&self, card: Card) -> Result<(qemu::Card, Option<OwnedFd>), String> {
        let (wire, fd) = match card.wire {
            Wire::Datagram { socket, .. } => {
                (qemu::Wire::Datagram(socket.as_raw_fd()), Some(socket))
            }
            #[cfg(target_os = "linux")]
            Wire::Tap(tap) => (qemu::Wire::Tap(tap.as_raw_fd()), Some(tap)),
            Wire::Stream(path) => (qemu::Wire::Stream { path, again: self.program.again() }, None),
            Wire::Slirp { ssh } => (qemu::Wire::User { ssh }, None),
            Wire::VzNat => return Err("QEMU has no vzNAT".into()),
        };
        Ok((qemu::Card { mac: card.mac, wire }, fd))
    }

    pub(super) fn start(
        self,
        spec: &Spec,
        cards: Vec<Card>,
        state: &State,
        tell: &Sender<Message>,
    ) -> Result<Qemu, String> {
        let files = spec.instance.files.clone();
        let cards: Result<Vec<_>, _> = cards.into_iter().map(|card| self.card(card)).collect();
        let (cards, fds): (Vec<_>, Vec<_>) = cards?.into_iter().unzip();
        let Self { program, accel } = self;
        let kernel = Kernel::of(&files);
        let firmware = match kernel {
            Some(_) => None,
            None => program.firmware(spec.config.arch).map_err(|e| e.to_string())?,
        };
        let machine = qemu::Machine {
            name: spec.instance.name.clone(),
            arch: spec.config.arch,
            accel: accel.accel,
            cpus: size::cpus(&spec.config, accel.accel),
            memory: size::memory(&spec.config),
            format: disk::format_of(&files.disk()).map_err(|e| e.to_string())?,
            disk: files.disk(),
            seed: files.seed(),
            kernel,
            firmware,
            cards,
            qmp: files.qmp(),
            pidfile: files.qemu_pid(),
            agent: files.agent(),
            serial: files.serial(),
            serial_log: files.serial_log(),
        };
        state.set_size(machine.cpus, machine.memory);
        let said = fs::metadata(files.host_log()).map_or(0, |log| log.len());
        // Nothing else is started by this process before they are closed again.
        for fd in fds.iter().flatten() {
            rustix::io::fcntl_setfd(fd, FdFlags::empty()).map_err(|e| e.to_string())?;
        }
        let mut command = Command::new(&program.path);
        command.args(machine.arguments()).current_dir(&files.dir);
        // What it says is in the host agent's log.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().map_err(|e| format!("{}: {e}", program.path.display()))?;
        drop(fds);
        let pid = Pid::from_child(&child);
        let qemu = Qemu { files, pid: Some(pid), accel, said };
        state.set_driver(child.id(), qemu.accel.accel.name());
        qemu.wait_started(child, tell.clone())?;
        Ok(qemu)
    }
}

impl Machine for Qemu {
    fn how(&self) -> String {
        match (&self.accel.accel, &self.accel.why) {
            (Accel::Tcg, Some(why)) => format!("emulated, because {why}"),
            (Accel::Tcg, None) => "emulated".into(),
            (accel, _) => format!("by {}", accel.name()),
        }
    }

    fn power_down(&mut self) -> io::Result<()> {
        qmp::execute(&self.files.qmp(), "system_powerdown").map(drop)
    }

    fn kill(&mut self) {
        if let Some(pid) = self.pid {
            // It may have ended by itself; until it is waited for, the number is nobody else's.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn last_words(&self) -> Option<String> {
        let mut log = File::open(self.files.host_log()).ok()?;
        log.seek(SeekFrom::Start(self.said)).ok()?;
        let mut text = String::new();
        log.read_to_string(&mut text).ok()?;
        vmlan_netd::last_line(&text).map(ToOwned::to_owned)
    }
}

impl Qemu {
    /// Waits until QEMU answers, and has its end told.
    fn wait_started(&self, child: Child, tell: Sender<Message>) -> Result<(), String> {
        let (ended, end) = std::sync::mpsc::channel();
        let (mut child, tell_end) = (child, tell.clone());
        spawn("qemu", move || {
            let status: Option<ExitStatus> = child.wait().ok();
            let _ = ended.send(status);
            let _ = tell_end.send(Message::Ended(end_of(status)));
        })
        .map_err(|e| format!("cannot start a thread: {e}"))?;
        let until = Instant::now() + PATIENCE;
        loop {
            if qmp::holder(&self.files.qmp()).is_some() {
                return watch_pauses(&self.files, tell)
                    .map_err(|e| format!("cannot start a thread: {e}"));
            }
            if end.try_recv().is_ok() {
                let said = self.last_words().unwrap_or_else(|| "it does not say why".into());
                return Err(format!("QEMU does not start: {said}"));
            }
            if Instant::now() > until {
                return Err("QEMU does not answer on its control socket".into());
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// QEMU stops a machine whose disk finds no room on the host; it goes on as soon as there is some.
fn watch_pauses(files: &Files, tell: Sender<Message>) -> io::Result<()> {
    let qmp = files.qmp();
    spawn("pauses", move || {
        let mut was_paused = false;
        loop {
            thread::sleep(ROOM);
            let status = match qmp::execute(&qmp, "query-status") {
                Ok(status) => status,
                // The machine has ended.
                Err(e)
                    if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
                {
                    return;
                }
                Err(_) => continue,
            };
            let is_paused = status["status"] == "io-error";
            if is_paused != was_paused && tell.send(Message::Paused(is_paused)).is_err() {
                return;
            }
            was_paused = is_paused;
            if is_paused {
                // Without room, it is stopped again at once.
                let _ = qmp::execute(&qmp, "cont");
            }
        }
    })
}

/// The disk names its image by the place where that is to stay.
pub(super) fn make_disk(disk: &Path, base: &Path, size: u64) -> io::Result<()> {
    let format = disk::format_of(base)?;
    disk::overlay(disk, base, format, size)
}

fn end_of(status: Option<ExitStatus>) -> End {
    let failed = status.is_none_or(|status| !status.success());
    let how = match status {
        Some(status) if status.success() => "by itself".to_owned(),
        Some(status) => format!("with {status}"),
        None => "somehow".to_owned(),
    };
    End { how, failed }
}
