//! The daemon under test: `vmlan netd` in a namespace, waited for until it says ready. A test that
//! fails shows what the daemon and the host's kernel know of the connections.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::binary::vmlan;
use crate::netns::{Netns, SOON};
use crate::process::{Process, run};

/// A running `vmlan netd`.
#[derive(Debug)]
pub struct Netd {
    process: Process,
    control: TempDir,
    /// Asks the host's kernel for its connections.
    sockets: Command,
}

impl Netd {
    /// Starts `vmlan netd ARGUMENTS` in `host` and waits for its word on the ready fd.
    #[track_caller]
    pub fn start(host: &Netns, arguments: &[String]) -> Self {
        let control = tempfile::tempdir().expect("a temporary directory");
        // The standard descriptors are refused: the pipe has to be another one.
        let mut command = host.command("sh");
        command.args(["-c", r#"exec "$0" netd --ready-fd 3 "$@" 3>&1 >&2"#]);
        command.arg(vmlan()).args(arguments);
        command.arg("--control").arg(control.path().join("control"));
        let mut process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        let mut ready = process.child().stdout.take().expect("stdout is a pipe");
        let (tell, told) = mpsc::channel();
        thread::spawn(move || tell.send(ready.read(&mut [0; 16]).unwrap_or(0)));
        let mut sockets = host.command("ss");
        sockets.arg("-tunaoime");
        match told.recv_timeout(SOON) {
            Ok(1..) => Self { process, control, sockets },
            Ok(0) => panic!("netd ended with {}", process.wait(SOON)),
            Err(_) => panic!("netd did not say ready within {SOON:?}"),
        }
    }

    /// The daemon's process number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends the daemon as a service manager does.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.wait(SOON)
    }

    /// How often something was dropped for this reason.
    #[track_caller]
    pub fn dropped(&self, reason: &str) -> u64 {
        let stats = run(&mut self.ask("/stats"), SOON);
        let after =
            stats.split_once(&format!("\"{reason}\":")).map(|(_, after)| after.trim_start());
        let digits =
            after.map(|a| a.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
        digits.map_or(0, |digits| digits.parse().expect("a count"))
    }

    /// The path of the control socket.
    pub fn control(&self) -> PathBuf {
        self.control.path().join("control")
    }

    /// An answer of the control API.
    fn ask(&self, path: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "5", "--unix-socket"]);
        curl.arg(self.control()).arg(format!("http://vmlan{path}"));
        curl
    }
}

impl Drop for Netd {
    fn drop(&mut self) {
        if !thread::panicking() || !self.process.is_running() {
            return;
        }
        for mut command in [self.ask("/stats"), self.ask("/v1/flows")] {
            let _ = command.status();
            eprintln!();
        }
        let _ = self.sockets.status();
    }
}
