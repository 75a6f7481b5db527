//! A network of socket_vmnet's on macOS: started by sudo with its first user, with the command lines
//! that `vmlan sudoers` has written down, brought back if it dies, and stopped with its last. Users
//! are processes, each with a lock that goes with it; the network itself is between the guests and
//! the socket.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use vmlan_config::socket_vmnet::Commands;

use crate::PidFile;
use crate::log::last_line;

/// For a daemon to be there, and to be gone.
const START: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(5);

const LOOK: Duration = Duration::from_millis(20);

/// While the system comes up, vmnet.framework fails at first. It is tried again after these times.
const AGAIN: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// Why a network is not there.
#[derive(Debug, thiserror::Error)]
pub enum SocketVmnetError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "sudo does not let you start this network ({0}); see what it needs with: vmlan sudoers --check"
    )]
    Forbidden(String),
    #[error("{program} has ended each time that it was started: {said}; see {}", log.display())]
    Ended { program: String, said: String, log: PathBuf },
    #[error("{program} is not ready after {} s; see {}", START.as_secs(), log.display())]
    Silent { program: String, log: PathBuf },
}

/// A network that can be started.
#[derive(Clone, Debug)]
pub struct SocketVmnet {
    commands: Commands,
    /// Held by whoever starts or stops it.
    lock: PathBuf,
    /// Shared by its users.
    users: PathBuf,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// A use of a network. The last one that is dropped stops it.
#[derive(Debug)]
pub struct User {
    network: SocketVmnet,
    users: File,
}

impl SocketVmnet {
    /// `dir` is where logs are, and other users of the same home are found.
    pub fn new(commands: Commands, name: &str, dir: &Path) -> Self {
        let file = |end: &str| dir.join(format!("{name}_socket_vmnet.{end}"));
        Self {
            commands,
            lock: file("lock"),
            users: file("users"),
            stdout: file("stdout.log"),
            stderr: file("stderr.log"),
        }
    }

    /// Where guests connect, with QEMU's framing.
    pub fn socket(&self) -> &Path {
        &self.commands.socket
    }

    /// Brings the network up if it is not there.
    pub fn join(&self) -> Result<User, SocketVmnetError> {
        if let Some(dir) = self.lock.parent() {
            fs::create_dir_all(dir).map_err(failed(dir))?;
        }
        let _lock = self.lock()?;
        let users = open(&self.users)?;
        users.lock_shared().map_err(failed(&self.users))?;
        self.ensure()?;
        Ok(User { network: self.clone(), users })
    }

    fn lock(&self) -> Result<File, SocketVmnetError> {
        let lock = open(&self.lock)?;
        lock.lock().map_err(failed(&self.lock))?;
        Ok(lock)
    }

    fn is_there(&self) -> bool {
        matches!(PidFile::holder(&self.commands.pidfile), Ok(Some(_)))
    }

    fn ensure(&self) -> Result<(), SocketVmnetError> {
        if self.is_there() && UnixStream::connect(self.socket()).is_ok() {
            return Ok(());
        }
        self.run(&self.commands.mkdir)?;
        let mut pauses = AGAIN.into_iter();
        loop {
            let Some(said) = self.start()? else { return Ok(()) };
            if said.starts_with("sudo:") {
                return Err(SocketVmnetError::Forbidden(said));
            }
            match pauses.next() {
                Some(pause) => thread::sleep(pause),
                None => {
                    let (program, log) = (self.program(), self.stderr.clone());
                    return Err(SocketVmnetError::Ended { program, said, log });
                }
            }
        }
    }

    /// Starts the daemon and waits until guests can connect; its last words if it ends instead.
    fn start(&self) -> Result<Option<String>, SocketVmnetError> {
        let log = |path: &Path| File::create(path).map_err(failed(path));
        let mut command = as_root(&self.commands.start);
        command.current_dir(&self.commands.var_run).stdin(Stdio::null());
        command.stdout(log(&self.stdout)?).stderr(log(&self.stderr)?);
        let mut child = command.spawn().map_err(failed(Path::new(&self.program())))?;
        let end = Instant::now() + START;
        loop {
            if self.is_there() && UnixStream::connect(self.socket()).is_ok() {
                reap(child);
                return Ok(None);
            }
            if !matches!(child.try_wait(), Ok(None)) {
                return Ok(Some(last_words(&fs::read_to_string(&self.stderr).unwrap_or_default())));
            }
            if Instant::now() > end {
                reap(child);
                let (program, log) = (self.program(), self.stderr.clone());
                return Err(SocketVmnetError::Silent { program, log });
            }
            thread::sleep(LOOK);
        }
    }

    fn stop(&self) -> Result<(), SocketVmnetError> {
        if self.is_there() {
            self.run(&self.commands.stop)?;
        }
        let end = Instant::now() + END;
        while self.is_there() && Instant::now() < end {
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Runs a command that ends by itself.
    fn run(&self, words: &[String]) -> Result<(), SocketVmnetError> {
        let mut command = as_root(words);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let output = command.output().map_err(failed(Path::new(command.get_program())))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(SocketVmnetError::Forbidden(last_words(&said)))
    }

    fn program(&self) -> String {
        self.commands.start.first().cloned().unwrap_or_default()
    }
}

impl User {
    /// Brings the network back if it has died.
    pub fn keep(&self) -> Result<(), SocketVmnetError> {
        if self.network.is_there() {
            return Ok(());
        }
        let _lock = self.network.lock()?;
        self.network.ensure()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // Whoever joins meanwhile waits, and starts it anew.
        let Ok(_lock) = self.network.lock() else { return };
        let _ = self.users.unlock();
        match self.users.try_lock() {
            Ok(()) => {
                if let Err(e) = self.network.stop() {
                    // Where it is read, in the log of whoever has used it.
                    eprintln!("vmlan: the network cannot be stopped: {e}");
                }
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

/// As sudoers has it; root needs no sudo.
fn as_root(words: &[String]) -> Command {
    if rustix::process::geteuid().is_root() {
        let mut words = words.iter();
        let mut command = Command::new(words.next().map_or("", String::as_str));
        command.args(words);
        return command;
    }
    let mut command = Command::new("sudo");
    command.args(["--user", "root", "--group", "wheel", "--non-interactive"]).args(words);
    command
}

fn open(path: &Path) -> Result<File, SocketVmnetError> {
    File::options().create(true).append(true).open(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> SocketVmnetError {
    let path = path.to_owned();
    move |source| SocketVmnetError::Io { path, source }
}

fn last_words(said: &str) -> String {
    last_line(said).unwrap_or("it does not say why").to_owned()
}

/// Has the number of a process that runs on be free as soon as it ends.
fn reap(mut child: Child) {
    // Without the thread, that is when this process ends.
    let _ = thread::Builder::new().name("sudo".into()).spawn(move || child.wait());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What socket_vmnet does for whoever starts it, without a network.
    const DAEMON: &str = "
import fcntl, os, signal, socket, sys
pidfile = open(sys.argv[1], 'w')
fcntl.flock(pidfile, fcntl.LOCK_EX)
print(os.getpid(), file=pidfile, flush=True)
if os.path.exists(sys.argv[2]): os.remove(sys.argv[2])
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[2])
listener.listen()
signal.pause()
";

    struct Lab {
        _dir: tempfile::TempDir,
        commands: Commands,
        home: PathBuf,
    }

    fn lab(start: &str) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let var_run = dir.path().join("run");
        let (socket, pidfile) = (var_run.join("socket"), var_run.join("pid"));
        let text = |path: &Path| path.display().to_string();
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let commands = Commands {
            mkdir: words(&["/bin/mkdir", "-m", "775", "-p", &text(&var_run)]),
            start: words(&["python3", "-c", start, &text(&pidfile), &text(&socket)]),
            stop: words(&["/usr/bin/pkill", "-F", &text(&pidfile)]),
            socket,
            pidfile,
            var_run,
        };
        let home = dir.path().join("home");
        Lab { _dir: dir, commands, home }
    }

    fn network(lab: &Lab) -> SocketVmnet {
        SocketVmnet::new(lab.commands.clone(), "shared", &lab.home)
    }

    #[test]
    fn it_is_there_from_the_first_user_to_the_last_and_comes_back() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let lab = lab(DAEMON);
        let first = network(&lab).join().unwrap();
        let holder = || PidFile::holder(&lab.commands.pidfile).unwrap();
        let pid = holder().unwrap();
        let second = network(&lab).join().unwrap();
        assert_eq!(holder(), Some(pid), "there is one daemon");
        first.keep().unwrap();
        drop(first);
        assert_eq!(holder(), Some(pid), "somebody uses it still");

        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        PidFile::await_end(&lab.commands.pidfile).unwrap();
        second.keep().unwrap();
        assert!(holder().is_some_and(|new| new != pid));
        UnixStream::connect(network(&lab).socket()).unwrap();
        drop(second);
        assert_eq!(holder(), None);
    }

    #[test]
    fn what_cannot_be_started_is_told_with_its_last_words() {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let lab = lab("import sys; sys.exit('sudo: a password is required')");
        let error = network(&lab).join().unwrap_err().to_string();
        assert!(error.contains("a password") && error.contains("vmlan sudoers"), "{error}");
    }
}
