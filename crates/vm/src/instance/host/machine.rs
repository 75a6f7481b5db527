//! The process of a machine.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::super::files::Files;
use super::super::size;
use super::plan::Plan;
use super::state::State;
use super::{Message, Spec, spawn};
use crate::qemu::accel::{Accel, Choice};
use crate::qemu::{self, Kernel, qmp};

/// For QEMU to answer on its control socket, or to end because it cannot start.
const PATIENCE: Duration = Duration::from_secs(20);

const LOOK: Duration = Duration::from_millis(5);

/// A running machine. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Machine {
    files: Files,
    pid: Option<Pid>,
    accel: Choice,
    /// What the log held before.
    said: u64,
}

impl Machine {
    pub(super) fn start(
        spec: &Spec,
        plan: Plan,
        state: &Arc<State>,
        tell: &Sender<Message>,
    ) -> Result<Self, String> {
        let files = spec.instance.files.clone();
        let Plan { program, accel, cards, fds, joined, .. } = plan;
        let kernel = kernel(&files);
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
        for fd in &fds {
            rustix::io::fcntl_setfd(fd, FdFlags::empty()).map_err(|e| e.to_string())?;
        }
        let mut command = Command::new(&program.path);
        command.args(machine.arguments()).current_dir(&files.dir);
        // What it says is in the host agent's log.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().map_err(|e| format!("{}: {e}", program.path.display()))?;
        drop(fds);
        let pid = Pid::from_child(&child);
        let machine = Self { files, pid: Some(pid), accel, said };
        state.set_driver(child.id(), machine.accel.accel.name());
        machine.wait_started(child, tell.clone())?;
        for (card, joining) in joined {
            joining.keep(card, state, tell.clone())?;
        }
        Ok(machine)
    }

    /// What runs the guest's instructions, for people.
    pub(super) fn accel(&self) -> String {
        match (&self.accel.accel, &self.accel.why) {
            (Accel::Tcg, Some(why)) => format!("emulated, because {why}"),
            (Accel::Tcg, None) => "emulated".into(),
            (accel, _) => format!("by {}", accel.name()),
        }
    }

    /// Presses the power button.
    pub(super) fn power_down(&mut self) -> std::io::Result<()> {
        qmp::execute(&self.files.qmp(), "system_powerdown").map(drop)
    }

    pub(super) fn kill(&mut self) {
        if let Some(pid) = self.pid {
            // It may have ended by itself; until it is waited for, the number is nobody else's.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    pub(super) fn serial_log(&self) -> PathBuf {
        self.files.serial_log()
    }

    /// The last line that QEMU has said.
    pub(super) fn last_words(&self) -> Option<String> {
        let mut log = File::open(self.files.host_log()).ok()?;
        log.seek(SeekFrom::Start(self.said)).ok()?;
        let mut text = String::new();
        log.read_to_string(&mut text).ok()?;
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.trim().to_owned())
    }

    /// Waits until QEMU answers, and has its end told.
    fn wait_started(&self, child: Child, tell: Sender<Message>) -> Result<(), String> {
        let (ended, end) = std::sync::mpsc::channel();
        let mut child = child;
        spawn("qemu", move || {
            let status: Option<ExitStatus> = child.wait().ok();
            let _ = ended.send(status);
            let _ = tell.send(Message::Ended(status));
        })
        .map_err(|e| format!("cannot start a thread: {e}"))?;
        let until = Instant::now() + PATIENCE;
        loop {
            if qmp::holder(&self.files.qmp()).is_some() {
                return Ok(());
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

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn kernel(files: &Files) -> Option<Kernel> {
    let file = Some(files.kernel()).filter(|path| path.exists())?;
    let cmdline = fs::read_to_string(files.kernel_cmdline()).unwrap_or_default();
    let initrd = Some(files.initrd()).filter(|path| path.exists());
    Some(Kernel { file, initrd, cmdline })
}
