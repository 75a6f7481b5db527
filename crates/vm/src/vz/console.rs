//! The agent's port at a path, as QEMU has it: one connection at a time is joined to the machine's
//! end. What the machine says while nobody is connected waits in its socket, and then it waits itself.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

/// Bytes on their way in each direction.
const ROOM: usize = 16 * 1024;

/// Listens at `path` and joins who connects there to `port`, until that one is closed on its other
/// side.
pub fn serve(path: &Path, port: UnixStream) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    port.set_nonblocking(true)?;
    let work = move || {
        loop {
            let joined = listener.accept().and_then(|(client, _)| join(&client, &port));
            match joined {
                Ok(Gone::Client) => {}
                Ok(Gone::Machine) => return,
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    };
    thread::Builder::new().name("console".into()).spawn(work).map(drop)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    Client,
    Machine,
}

fn join(client: &UnixStream, machine: &UnixStream) -> io::Result<Gone> {
    client.set_nonblocking(true)?;
    let (mut out, mut back) = (Pipe::default(), Pipe::default());
    loop {
        let mut fds = [(client, &out, &back), (machine, &back, &out)]
            .map(|(socket, from, to)| PollFd::new(socket, interest(from, to)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let [of_client, of_machine] = fds.map(|fd| fd.revents());
        if of_client.contains(PollFlags::IN) && !out.fill(client)? {
            return Ok(Gone::Client);
        }
        if of_machine.contains(PollFlags::IN) && !back.fill(machine)? {
            return Ok(Gone::Machine);
        }
        if out.drain(machine).is_err() || has_gone(of_machine) {
            return Ok(Gone::Machine);
        }
        if back.drain(client).is_err() || has_gone(of_client) {
            return Ok(Gone::Client);
        }
    }
}

/// What is waited for at a socket, by what has been read from it and what is to be written to it.
fn interest(from: &Pipe, to: &Pipe) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, from.is_empty());
    flags.set(PollFlags::OUT, !to.is_empty());
    flags
}

/// It has hung up, and there is nothing left to read.
fn has_gone(ready: PollFlags) -> bool {
    ready.intersects(PollFlags::HUP | PollFlags::ERR) && !ready.contains(PollFlags::IN)
}

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    bytes: Vec<u8>,
    written: usize,
}

impl Pipe {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Reads what is there; false at the end.
    fn fill(&mut self, mut from: &UnixStream) -> io::Result<bool> {
        self.bytes.resize(ROOM, 0);
        self.written = 0;
        let read = from.read(&mut self.bytes);
        self.bytes.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(n) => Ok(n > 0),
            Err(e) if would_wait(&e) => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn drain(&mut self, mut to: &UnixStream) -> io::Result<()> {
        while let Some(rest) = self.bytes.get(self.written..).filter(|rest| !rest.is_empty()) {
            match to.write(rest) {
                Ok(n) => self.written += n,
                Err(e) if would_wait(&e) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_come_one_after_the_other_and_miss_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let (mut machine, port) = UnixStream::pair().unwrap();
        serve(&path, port).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        machine.write_all(b"early\n").unwrap();
        let mut first = UnixStream::connect(&path).unwrap();
        let mut line = [0; 6];
        first.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"early\n");
        first.write_all(b"hello\n").unwrap();
        machine.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"hello\n");
        drop(first);

        let mut second = UnixStream::connect(&path).unwrap();
        second.write_all(b"again\n").unwrap();
        machine.read_exact(&mut line).unwrap();
        machine.write_all(b"later\n").unwrap();
        second.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"later\n");

        // More than fits on the way, both ways at once.
        let much = vec![7; 1 << 20];
        thread::scope(|scope| {
            scope.spawn(|| (&machine).write_all(&much).unwrap());
            scope.spawn(|| (&second).write_all(&much).unwrap());
            scope.spawn(|| (&machine).read_exact(&mut vec![0; 1 << 20]).unwrap());
            (&second).read_exact(&mut vec![0; 1 << 20]).unwrap();
        });

        drop(machine);
        assert_eq!(second.read(&mut line).unwrap(), 0, "the machine has gone");
    }
}
