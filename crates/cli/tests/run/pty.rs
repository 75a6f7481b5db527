//! A terminal with somebody at it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

const PATIENCE: Duration = Duration::from_secs(30);

/// A program on a terminal of its own, of whose session it is the leader.
pub(crate) struct Pty {
    child: Child,
    terminal: Option<File>,
    /// What was printed and not yet expected.
    output: String,
}

impl Pty {
    pub(crate) fn start(command: &Command) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave: OwnedFd = rustix::fs::open(&name, flags, Mode::empty()).unwrap();
        // What is typed must not come between what is printed.
        let mut modes = tcgetattr(&slave).unwrap();
        modes.local_modes -= LocalModes::ECHO;
        tcsetattr(&slave, OptionalActions::Now, &modes).unwrap();
        // The user's programs open it by /dev/tty as well.
        rustix::fs::fchmod(&slave, Mode::from_raw_mode(0o666)).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let mut leader = Command::new("setsid");
        leader.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            leader.env(key, value.unwrap());
        }
        leader.env("TERM", "dumb").current_dir("/");
        let child = leader.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        Self { child, terminal: Some(File::from(master)), output: String::new() }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// How the terminal treats what is typed.
    #[allow(dead_code, reason = "not every test looks")]
    pub(crate) fn modes(&self) -> LocalModes {
        tcgetattr(self.terminal.as_ref().unwrap()).unwrap().local_modes
    }

    pub(crate) fn type_in(&mut self, keys: &str) {
        self.terminal.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is printed; returns what came before it.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.output.find(text) {
                let rest = self.output.split_off(at + text.len());
                return std::mem::replace(&mut self.output, rest);
            }
            assert!(Instant::now() < end && self.read(), "no {text:?} in {:?}", self.output);
        }
    }

    /// Prints what comes until the program ends.
    pub(crate) fn finish(mut self) -> (String, ExitStatus) {
        while self.read() {}
        (std::mem::take(&mut self.output), self.child.wait().unwrap())
    }

    pub(crate) fn resize(&mut self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.terminal.as_ref().unwrap(), size).unwrap();
    }

    /// Closes the terminal's window.
    pub(crate) fn hang_up(&mut self) {
        self.terminal = None;
    }

    pub(crate) fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// False at the end of all output.
    fn read(&mut self) -> bool {
        let terminal = self.terminal.as_mut().unwrap();
        let timeout = Timespec::try_from(PATIENCE).unwrap();
        if poll(&mut [PollFd::new(&*terminal, PollFlags::IN)], Some(&timeout)) == Ok(0) {
            return false;
        }
        let mut buf = [0; 4096];
        match terminal.read(&mut buf) {
            Ok(n) => self.output.push_str(&String::from_utf8_lossy(&buf[..n])),
            Err(_) => return false,
        }
        true
    }
}

impl Drop for Pty {
    /// A shell's jobs would outlive it.
    fn drop(&mut self) {
        for process in session(self.pid()) {
            let _ = kill_process(process, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes of a session.
fn session(leader: i32) -> Vec<Pid> {
    let in_session = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let sid: i32 = stat.rsplit(')').next()?.split_whitespace().nth(3)?.parse().ok()?;
        Some(leader == sid)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| in_session(pid) == Some(true)).filter_map(Pid::from_raw).collect()
}
