//! Child processes with a deadline, which never outlive the test.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A command that runs beside the test. Killed on drop; what it wrote to stderr is shown if the
/// test fails.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pidfd: OwnedFd,
    stderr: File,
}

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        let stderr = tempfile::tempfile().expect("a temporary file for stderr");
        let child = command
            .stderr(stderr.try_clone().expect("a second handle of stderr's file"))
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let pidfd = pidfd_open(pid_of(&child), PidfdFlags::empty()).expect("the child is there");
        Self { name, child, pidfd, stderr }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The pipes that the command was given.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(pid_of(&self.child), signal).expect("the child is there");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).expect("a short time");
            match poll(&mut fds, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) => panic!("{} did not end within {within:?}", self.name),
                other => {
                    other.expect("a pidfd can be polled");
                    return self.child.wait().expect("a child can be waited for");
                }
            }
        }
    }

    /// What the process has written to stderr so far.
    pub fn stderr(&self) -> String {
        let mut text = String::new();
        // The offset is shared with the process: read by position.
        let length = self.stderr.metadata().map_or(0, |m| m.len());
        let mut reader = ReadAt { file: &self.stderr, at: 0 };
        let _ = reader.by_ref().take(length).read_to_string(&mut text);
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("--- stderr of {}\n{}---", self.name, self.stderr());
        }
    }
}

struct ReadAt<'a> {
    file: &'a File,
    at: u64,
}

impl Read for ReadAt<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let read = self.file.read_at(buf, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Runs a command to its end and returns its output, whatever its exit code.
#[track_caller]
pub fn capture(command: &mut Command, within: Duration) -> Output {
    let name = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
    let pid = pid_of(&child);
    let (done, result) = mpsc::channel();
    let waiter = thread::spawn(move || done.send(child.wait_with_output()));
    match result.recv_timeout(within) {
        Ok(output) => {
            let _ = waiter.join();
            output.expect("a child's output can be read")
        }
        Err(_) => {
            let _ = kill_process(pid, Signal::KILL);
            let _ = waiter.join();
            panic!("{name} did not end within {within:?}");
        }
    }
}

/// Runs a command that has to succeed and returns what it wrote to stdout.
#[track_caller]
pub fn run(command: &mut Command, within: Duration) -> String {
    let output = capture(command, within);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} failed with {} (signal {:?})\n{stdout}{}",
        output.status,
        output.status.signal(),
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// Asks until there is an answer.
#[track_caller]
pub fn eventually<T>(what: impl Debug, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what:?} did not come within {within:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}
