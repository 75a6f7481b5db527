//! QEMU's control socket: each command a connection of its own, since QEMU talks to one client at a
//! time. <https://www.qemu.org/docs/master/interop/qmp-spec.html>

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::process::Pid;
use serde_json::{Value, json};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest that QEMU may say before it answers.
const MAX_TALK: u64 = 1024 * 1024;

/// Has a machine do something, and returns what it answers.
pub fn execute(path: &Path, command: &str) -> io::Result<Value> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut talk = Talk { reader: BufReader::new((&stream).take(MAX_TALK)), stream: &stream };
    talk.hear("QMP")?;
    talk.execute("qmp_capabilities")?;
    talk.execute(command)
}

/// The process behind a control socket, if there is one.
pub fn holder(path: &Path) -> Option<Pid> {
    let stream = UnixStream::connect(path).ok()?;
    imp::peer(&stream)
}

struct Talk<'a> {
    reader: BufReader<io::Take<&'a UnixStream>>,
    stream: &'a UnixStream,
}

impl Talk<'_> {
    fn execute(&mut self, command: &str) -> io::Result<Value> {
        writeln!(self.stream, "{}", json!({ "execute": command }))?;
        self.hear("return")
    }

    /// The next message of a kind; what happens meanwhile is no answer.
    fn hear(&mut self, kind: &str) -> io::Result<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut message: Value = serde_json::from_str(&line)?;
            if let Some(answer) = message.get_mut(kind) {
                return Ok(answer.take());
            }
            if let Some(why) = message.get("error").and_then(|error| error.get("desc")) {
                return Err(io::Error::other(why.as_str().unwrap_or_default().to_owned()));
            }
        }
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use super::{Pid, UnixStream};

    pub(super) fn peer(stream: &UnixStream) -> Option<Pid> {
        rustix::net::sockopt::socket_peercred(stream).ok().map(|cred| cred.pid)
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::os::fd::AsRawFd;

    use super::{Pid, UnixStream};

    pub(super) fn peer(stream: &UnixStream) -> Option<Pid> {
        let mut pid: libc::pid_t = 0;
        let mut len = libc::socklen_t::try_from(size_of::<libc::pid_t>()).ok()?;
        // SAFETY: the option writes one `pid_t`, which both pointers describe.
        let done = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_LOCAL,
                libc::LOCAL_PEERPID,
                (&raw mut pid).cast(),
                &raw mut len,
            )
        };
        if done == 0 { Pid::from_raw(pid) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn events_are_no_answers_and_errors_have_their_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            for answer in [r#"{"return": {"running": true}}"#, r#"{"error": {"desc": "no way"}}"#] {
                let (stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(&stream).lines();
                writeln!(&stream, r#"{{"QMP": {{}}}}"#).unwrap();
                assert!(lines.next().unwrap().unwrap().contains("qmp_capabilities"));
                writeln!(&stream, r#"{{"return": {{}}}}"#).unwrap();
                assert!(lines.next().unwrap().unwrap().contains("query-status"));
                writeln!(&stream, r#"{{"event": "STOP"}}"#).unwrap();
                writeln!(&stream, "{answer}").unwrap();
            }
        });
        assert_eq!(execute(&path, "query-status").unwrap()["running"], true);
        assert_eq!(execute(&path, "query-status").unwrap_err().to_string(), "no way");
        server.join().unwrap();
        assert_eq!(holder(&path), None, "nobody listens any more");
    }
}
