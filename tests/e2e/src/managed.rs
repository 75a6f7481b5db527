//! A network as users have it: configured in a home of its own, its daemon held on a host of the
//! test's, with machines and commands as guests.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::binary::vmlan;
use crate::netns::{Netns, SOON};
use crate::process::{Process, run};

/// The network `lab`, for as long as the value lives.
#[derive(Debug)]
pub struct Lab {
    home: TempDir,
    pub host: Netns,
}

impl Lab {
    /// Starts the network, configured with these lines of YAML.
    #[track_caller]
    pub fn start(fields: &[&str]) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let config = home.path().join("_config");
        fs::create_dir(&config).expect("a directory in a temporary one");
        let lines: String = fields.iter().map(|line| format!("    {line}\n")).collect();
        let text = format!("networks:\n  lab:\n    mode: user-v2\n{lines}");
        fs::write(config.join("networks.yaml"), text).expect("a file in a temporary directory");
        let lab = Self { home, host: Netns::new() };
        run(lab.vmlan().args(["network", "start", "lab"]), SOON);
        lab
    }

    /// A command of vmlan's for this home.
    pub fn vmlan(&self) -> Command {
        let mut command = self.host.command("env");
        command.arg(format!("LIMA_HOME={}", self.home.path().display())).arg(vmlan());
        command
    }

    /// Where machines connect.
    pub fn qemu_socket(&self) -> PathBuf {
        self.home.path().join("_networks/lab/lab_qemu.sock")
    }

    /// A shell in a namespace guest with this name.
    #[track_caller]
    pub fn shell(&self, name: &str) -> Shell {
        let mut command = self.vmlan();
        command.args(["run", "--network", "lima:lab", "--name", name, "--", "sh"]);
        Shell::start(&mut command)
    }

    pub fn path(&self) -> &Path {
        self.home.path()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.vmlan().args(["network", "stop", "lab"]).status();
        let pidfile = self.home.path().join("_networks/lab/usernet_lab.pid");
        let pid = fs::read_to_string(pidfile).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

/// A shell that the test drives. Ends with the value.
#[derive(Debug)]
pub struct Shell {
    _process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    #[track_caller]
    fn start(command: &mut Command) -> Self {
        let mut process = Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let input = process.child().stdin.take().expect("stdin is a pipe");
        let output = BufReader::new(process.child().stdout.take().expect("stdout is a pipe"));
        Self { _process: process, input, output }
    }

    /// Runs a line of shell that has to succeed and returns its output.
    #[track_caller]
    pub fn sh(&mut self, line: &str) -> String {
        writeln!(self.input, "{{ {line}\n}} </dev/null 2>&1; echo \"@@ $?\"").expect("a shell");
        let mut text = String::new();
        loop {
            let start = text.len();
            let n = self.output.read_line(&mut text).expect("a shell");
            assert!(n > 0, "the shell ended at `{line}`:\n{text}");
            if let Some(status) = text[start..].strip_prefix("@@ ") {
                assert_eq!(status.trim(), "0", "`{line}`:\n{}", &text[..start]);
                text.truncate(start);
                return text.trim().to_owned();
            }
        }
    }
}
