//! A daemon under test, and a guest that speaks QEMU's framing.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// For steps that take microseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn vmlan() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vmlan"))
}

/// A running `vmlan netd` with a directory of its own.
pub(crate) struct Netd {
    child: Child,
    pub(crate) dir: TempDir,
}

impl Netd {
    /// Starts a daemon and waits until it says that it is ready. `{}` in an argument stands for
    /// the daemon's directory.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(args, Stdio::null(), "")
    }

    /// Starts a daemon that may have this many files open.
    pub(crate) fn start_with_files(args: &[&str], files: u32) -> Self {
        Self::spawn(args, Stdio::null(), &format!("ulimit -n {files};"))
    }

    /// Starts a daemon that gets `fd` as its descriptor 4.
    pub(crate) fn start_with_fd(args: &[&str], fd: OwnedFd) -> Self {
        Self::spawn(args, fd.into(), "")
    }

    fn spawn(args: &[&str], stdin: Stdio, before: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let args = args.iter().map(|a| a.replace("{}", dir.path().to_str().unwrap()));
        // The shell makes descriptor 3 what this test reads, and 4 what it was given.
        let script = format!(r#"{before} exec "$0" "$@" 4<&0 3>&1 >/dev/null </dev/null"#);
        let mut child = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_vmlan")])
            .args(["netd", "--ready-fd", "3"])
            .args(args)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        // Ends because the daemon closes the descriptor when it is ready, or exits.
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        if said != "ready\n" {
            let mut error = String::new();
            child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
            panic!("the daemon is not ready: {said:?} {error}");
        }
        Self { child, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line on standard error.
    pub(crate) fn stderr_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        eventually(|| self.child.try_wait().unwrap())
    }

    /// Processor time used so far, in the system's ticks of usually 10 ms.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        [11, 12].map(|i| fields[i].parse::<u64>().unwrap()).iter().sum()
    }

    /// A field of /proc/PID/status in KiB.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Netd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until there is an answer.
pub(crate) fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "no answer within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A guest on a stream socket.
pub(crate) struct Guest {
    pub(crate) stream: UnixStream,
    pub(crate) mac: [u8; 6],
    pub(crate) ip: [u8; 4],
}

pub(crate) const GATEWAY: [u8; 4] = [192, 168, 5, 2];

impl Guest {
    /// The guest 192.168.5.`number`.
    pub(crate) fn connect(path: &Path, number: u8) -> Self {
        Self::over(UnixStream::connect(path).unwrap(), number)
    }

    pub(crate) fn over(stream: UnixStream, number: u8) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, mac: [0x52, 0x54, 0, 0, 0, number], ip: [192, 168, 5, number] }
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        let len = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.stream.write_all(&[&len, frame].concat()).unwrap();
    }

    pub(crate) fn recv(&mut self) -> Vec<u8> {
        let mut len = [0; 4];
        self.stream.read_exact(&mut len).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        self.stream.read_exact(&mut frame).unwrap();
        frame
    }

    /// The next frame with this ethertype.
    pub(crate) fn recv_type(&mut self, ethertype: u16) -> Vec<u8> {
        loop {
            let frame = self.recv();
            if frame[12..14] == ethertype.to_be_bytes() {
                return frame;
            }
        }
    }

    /// An ARP packet of this guest's in a frame to `to`.
    pub(crate) fn arp(&self, to: [u8; 6], operation: u8, mac: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        [&to[..], &self.mac, &[8, 6], &head, &self.mac, &self.ip, &mac, &ip].concat()
    }

    /// Asks who has an address and returns the MAC of who answers.
    pub(crate) fn resolve(&mut self, ip: [u8; 4]) -> [u8; 6] {
        self.send(&self.arp([0xff; 6], 1, [0; 6], ip));
        loop {
            let frame = self.recv_type(0x0806);
            if frame[21] == 2 && frame[28..32] == ip {
                return frame[22..28].try_into().unwrap();
            }
        }
    }
}
