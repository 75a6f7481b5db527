//! A home with a network, guests on it, and the daemon's process.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::Home;

const PATIENCE: Duration = Duration::from_secs(20);

const LAB: &str = "networks:\n  lab: {mode: user-v2, gateway: 10.71.0.1}\n";

/// A home whose daemons end with it.
pub(crate) struct Lab(pub(crate) Home);

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(LAB)
    }

    /// A home whose networks.yaml says this; a network called `lab` among it.
    pub(crate) fn with(networks: &str) -> Self {
        Self(Home::with(networks))
    }

    pub(crate) fn pid(&self) -> Option<Pid> {
        self.pid_of("lab")
    }

    fn pid_of(&self, network: &str) -> Option<Pid> {
        self.read(network, "usernet_")
    }

    fn read(&self, network: &str, kind: &str) -> Option<Pid> {
        let path = self.0.path(&format!("_networks/{network}/{kind}{network}.pid"));
        Pid::from_raw(fs::read_to_string(path).ok()?.trim().parse().ok()?)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Command {
        let mut command = self.run_alone(&["--network", "lima:lab"]);
        command.args(args);
        command
    }

    /// The same without a network.
    pub(crate) fn run_alone(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmlan"));
        command.arg("run").args(args).env("LIMA_HOME", self.0.path(""));
        command
    }

    /// Standard output of a command in a guest.
    #[track_caller]
    pub(crate) fn output(&self, args: &[&str]) -> String {
        let output = self.run(args).stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {} {error}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Files of the network that are not meant to stay.
    pub(crate) fn left(&self) -> Vec<String> {
        let dir = fs::read_dir(self.0.path("_networks/lab")).unwrap();
        let names = dir.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> =
            names.filter(|n| !n.ends_with(".log") && n != "leases.json").collect();
        names.sort();
        names
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.0.path("_networks")).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            // What brings the daemon back goes first.
            for pid in [self.read(&name, "watch_"), self.pid_of(&name)].into_iter().flatten() {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// A shell in a guest.
pub(crate) struct Guest {
    pub(crate) child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Guest {
    pub(crate) fn start(lab: &Lab, args: &[&str]) -> Self {
        Self::from(lab.run(args))
    }

    /// The same of a command line without the guest's own command.
    pub(crate) fn from(mut command: Command) -> Self {
        command.args(["--", "sh"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut guest = Self { child, input, output };
        assert_eq!(guest.line("echo here"), "here");
        guest
    }

    /// The line that a command of the shell says.
    pub(crate) fn line(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn addresses(&mut self) -> String {
        self.line("echo $(ip -br address show eth0)")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Answers one connection, in the background.
pub(crate) const SERVE: &str = "busybox nc -l -p 8000 -e echo hello >/dev/null 2>&1 & echo started";
