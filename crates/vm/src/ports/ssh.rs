//! What ssh(1) can do where no agent answers: list the machine's TCP listeners, and lead to them
//! from the host by forwards of its own. One connection does it all; it is made again if it ends.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmlan_agent::message::{Listener, MAX_LISTENERS, Proto, Target};
use vmlan_agent::proc_net;

use super::forwards::{Failure, make_parent};
use super::manager::Input;
use super::{Local, Port, Ssh};
use crate::child::ended_within;
use crate::shell::quoted;

/// Asks in the machine every other second; a dot ends each list.
const LOOP: &str = "while cat /proc/net/tcp /proc/net/tcp6 2>/dev/null; echo .; do sleep 2; done";

/// Until a connection that has ended is made again.
const RETRY: Duration = Duration::from_secs(5);

/// Longest list.
const MAX_LIST: usize = 1 << 20;

/// For ssh to do as it is told, and the most that is read of what it says.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_SAID: u64 = 4096;

/// The connection, as long as the value lives.
#[derive(Debug)]
pub(super) struct Session {
    ssh: Ssh,
    socket: PathBuf,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    child: Mutex<Option<Child>>,
}

impl Session {
    /// Connects in a thread; `dir` is for the connection's socket.
    pub(super) fn start(ssh: Ssh, dir: &Path, input: SyncSender<Input>) -> io::Result<Self> {
        let socket = dir.join("ports.ssh");
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name("ports-ssh".into()).spawn({
            let (shared, ssh, socket) = (Arc::clone(&shared), ssh.clone(), socket.clone());
            move || follow(&ssh, &socket, &shared, &input)
        })?;
        Ok(Self { ssh, socket, shared, thread })
    }

    /// Has a place of the host lead to one in the machine.
    pub(super) fn open(&self, local: &Local, to: &Target) -> Result<(), Failure> {
        if !self.socket.exists() {
            return Err(Failure::NotYet);
        }
        if let Local::Unix(path) = local {
            make_room(path).map_err(Failure::Refused)?;
        }
        let opened = spec(local, to).and_then(|spec| self.control("forward", "-L", &spec));
        opened.map_err(|said| {
            self.failure(format!("ssh cannot forward {local}, it may be in use: {said}"))
        })
    }

    pub(super) fn close(&self, local: &Local, to: &Target) {
        let _ = spec(local, to).and_then(|spec| self.control("cancel", "-L", &spec));
    }

    /// Has a socket in the machine, of its user's, lead to one of the host.
    pub(super) fn open_back(&self, port: &Port) -> Result<(), Failure> {
        let (Target::Unix(guest), true) = (&port.guest, self.socket.exists()) else {
            return Err(Failure::NotYet);
        };
        let mut clear = command(&self.ssh, &self.socket);
        clear.arg(&self.ssh.host).arg(room_for(guest));
        // Whatever is in the way, the server says so.
        let _ = run(clear);
        self.control("forward", "-R", &back(port)).map_err(|said| {
            self.failure(format!("the machine's ssh server does not listen at {guest}: {said}"))
        })
    }

    pub(super) fn close_back(&self, port: &Port) {
        let _ = self.control("cancel", "-R", &back(port));
    }

    fn failure(&self, why: String) -> Failure {
        match UnixStream::connect(&self.socket) {
            Ok(_) => Failure::Refused(why),
            // The connection has ended meanwhile.
            Err(_) => Failure::NotYet,
        }
    }

    fn control(&self, what: &str, direction: &str, spec: &str) -> Result<(), String> {
        let mut command = command(&self.ssh, &self.socket);
        command.args(["-O", what, direction, spec]).arg(&self.ssh.host);
        run(command)
    }
}

/// Runs a command for as long as its patience lasts: the machine may be at the other end. Returns
/// what it says if it fails.
fn run(mut command: Command) -> Result<(), String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let Some(status) = ended_within(&mut child, PATIENCE).map_err(|e| e.to_string())? else {
        let _ = child.kill();
        let _ = child.wait();
        return Err("no answer".into());
    };
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MAX_SAID).read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said);
    Err(vmlan_netd::last_line(&said).unwrap_or("no reason given").escape_debug().to_string())
}

/// What the machine's shell does before its ssh server may listen at a path: a socket that is left
/// from another connection is in the way.
fn room_for(path: &str) -> String {
    let path = quoted(path);
    format!("mkdir -p \"$(dirname {path})\"; [ ! -S {path} ] || rm -f {path}")
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Some(child) = self.shared.child().as_mut() {
            let _ = child.kill();
        }
        // It is not waited for: it may be waiting for us.
        self.thread.thread().unpark();
        let _ = fs::remove_file(&self.socket);
    }
}

impl Shared {
    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `ssh`, with the connection's socket.
fn command(ssh: &Ssh, socket: &Path) -> Command {
    let mut path = OsString::from("ControlPath=");
    path.push(socket);
    let mut command = Command::new("ssh");
    command.args(["-F".as_ref(), ssh.config.as_os_str(), "-o".as_ref(), &path]);
    command
}

fn follow(ssh: &Ssh, socket: &Path, shared: &Shared, input: &SyncSender<Input>) {
    while !shared.stopping.load(Ordering::Relaxed) {
        let _ = fs::remove_file(socket);
        let mut command = command(ssh, socket);
        command.args(["-o", "ControlMaster=yes", "-o", "StreamLocalBindMask=0177", "-T"]);
        command.args(["-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15"]);
        command.arg(&ssh.host).arg(LOOP);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Ok(mut child) = command.spawn() {
            let output = child.stdout.take();
            *shared.child() = Some(child);
            if shared.stopping.load(Ordering::Relaxed)
                && let Some(child) = shared.child().as_mut()
            {
                let _ = child.kill();
            }
            let heard = output.map_or(Ok(()), |output| read(output, input));
            if let Some(mut child) = shared.child().take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            // What it has forwarded is gone with it.
            if heard.is_err() || input.send(Input::SshEnded).is_err() {
                return;
            }
        }
        if !shared.stopping.load(Ordering::Relaxed) {
            thread::park_timeout(RETRY);
        }
    }
}

/// Reads lists to the end of the connection; an error if nobody wants them any more.
fn read(mut output: impl Read, input: &SyncSender<Input>) -> Result<(), ()> {
    let mut list = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let n = match output.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Ok(()),
        };
        list.extend_from_slice(chunk.get(..n).unwrap_or_default());
        if list.ends_with(b"\n.\n") || list == b".\n" {
            let listeners = listeners(&String::from_utf8_lossy(&list));
            list.clear();
            input.send(Input::Listed(listeners)).map_err(drop)?;
            // Whoever says more than one list at a time waits.
            thread::park_timeout(Duration::from_millis(100));
        } else if list.len() > MAX_LIST {
            list.clear();
        }
    }
}

fn listeners(text: &str) -> Vec<Listener> {
    let mut all: Vec<_> = proc_net::listeners(text, Proto::Tcp).take(MAX_LISTENERS).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A socket that is left from another connection is in the way of a new one. Nothing else is removed.
fn make_room(path: &Path) -> Result<(), String> {
    make_parent(path);
    let Ok(there) = fs::symlink_metadata(path) else { return Ok(()) };
    if !there.file_type().is_socket() {
        return Err(format!("{}: something that is no socket is there", path.display()));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(format!("{}: somebody else listens there", path.display()));
    }
    fs::remove_file(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// `LOCAL:REMOTE` as `-L` wants it.
fn spec(local: &Local, to: &Target) -> Result<String, String> {
    let local = match local {
        Local::Tcp(addr) => addr.to_string(),
        Local::Unix(path) => path.display().to_string(),
        Local::Udp(_) => return Err("ssh forwards no datagrams".into()),
    };
    let to = match to {
        Target::Tcp(addr) => addr.to_string(),
        Target::Unix(path) => path.clone(),
        Target::Udp(_) => return Err("ssh forwards no datagrams".into()),
    };
    Ok(format!("{local}:{to}"))
}

/// `REMOTE:LOCAL` as `-R` wants it.
fn back(port: &Port) -> String {
    let guest = match &port.guest {
        Target::Unix(path) => path.clone(),
        Target::Tcp(addr) | Target::Udp(addr) => addr.to_string(),
    };
    format!("{guest}:{}", port.local)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn places_are_named_as_ssh_wants_them() {
        let tcp = |text: &str| Local::Tcp(text.parse().unwrap());
        let to = Target::Tcp("[::1]:80".parse().unwrap());
        assert_eq!(spec(&tcp("127.0.0.1:8080"), &to).unwrap(), "127.0.0.1:8080:[::1]:80");
        let to = Target::Unix("/run/x".into());
        assert_eq!(spec(&Local::Unix("/y".into()), &to).unwrap(), "/y:/run/x");
        assert!(spec(&Local::Udp("127.0.0.1:1".parse().unwrap()), &to).is_err());
    }

    #[test]
    fn a_socket_in_the_machine_is_named_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a 'b/$x");
        let guest = path.display().to_string();
        let room = || Command::new("sh").args(["-c", &room_for(&guest)]).status().unwrap();
        assert!(room().success());
        let _left = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(room().success() && !path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(room().success() && path.exists());
        let port =
            Port { local: Local::Unix("/y".into()), guest: Target::Unix(guest), reverse: true };
        assert_eq!(back(&port), format!("{}:/y", path.display()));
    }

    #[test]
    fn what_fails_says_why_and_nothing_is_waited_for_without_end() {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            run(command)
        };
        assert_eq!(sh("true"), Ok(()));
        assert_eq!(sh("echo first >&2; echo last >&2; false"), Err("last".into()));
        assert_eq!(sh("exec sleep 600"), Err("no answer".into()));
    }

    #[test]
    fn only_what_is_left_makes_room() {
        use std::os::unix::net::UnixListener;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/sock");
        assert_eq!(make_room(&path), Ok(()));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(make_room(&path).unwrap_err().contains("somebody else"));
        drop(listener);
        assert_eq!(make_room(&path), Ok(()));
        fs::write(&path, "precious").unwrap();
        assert!(make_room(&path).unwrap_err().contains("no socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn lists_are_read_one_by_one_and_none_without_end() {
        let line = "  0: 0100007F:1F90 00000000:0000 0A\n";
        let long = vec![b'x'; MAX_LIST + 1];
        let text = [line.as_bytes(), b".\n", &long].concat();
        let (input, inputs) = sync_channel(4);
        read(&text[..line.len() + 2], &input).unwrap();
        read(&text[line.len() + 2..], &input).unwrap();
        drop(input);
        let heard: Vec<_> = inputs.iter().collect();
        assert!(matches!(&heard[..], [Input::Listed(all)] if all.len() == 1), "{heard:?}");
    }
}
