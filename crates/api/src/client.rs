//! A client of the control API, as `vmlan`'s own commands are.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::http::Head;

/// Longest wait for a daemon that is there, unless said otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest head of an answer.
const MAX_HEAD: usize = 16 * 1024;

/// Why the control API did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("the network has no daemon")]
    NoDaemon,
    #[error("the network's daemon: {text}")]
    Refused { status: u16, text: String },
    #[error("the network's daemon does not answer: {0}")]
    Io(#[from] io::Error),
}

impl ClientError {
    /// Whether the daemon ended before its answer did.
    fn is_end(&self) -> bool {
        use io::ErrorKind::{ConnectionReset, UnexpectedEof};
        match self {
            Self::NoDaemon => true,
            Self::Io(error) => matches!(error.kind(), ConnectionReset | UnexpectedEof),
            Self::Refused { .. } => false,
        }
    }
}

/// Where a daemon has its control API. Each request is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    patience: Duration,
}

impl Client {
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), patience: PATIENCE }
    }

    /// One that waits so long for an answer.
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Whether a daemon listens there.
    pub fn is_there(&self) -> bool {
        UnixStream::connect(&self.path).is_ok()
    }

    /// What is at `target`. A daemon that ends meanwhile is asked no more: its successor is, if there
    /// is one.
    pub fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        match self.get_once(target) {
            Err(error) if error.is_end() => self.get_once(target).map_err(|error| match error {
                error if error.is_end() => ClientError::NoDaemon,
                error => error,
            }),
            answer => answer,
        }
    }

    fn get_once<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        let (_, answer) = self.request("GET", target, &[])?;
        serde_json::from_slice(&whole(answer)?).map_err(|e| io::Error::from(e).into())
    }

    /// Has something done that says nothing when it went well.
    pub fn post(&self, target: &str, body: &impl Serialize) -> Result<(), ClientError> {
        let body = serde_json::to_vec(body).map_err(io::Error::from)?;
        let (_, answer) = self.request("POST", target, &body)?;
        whole(answer).map(drop)
    }

    /// Has something done and hears what came of it.
    pub fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        target: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(io::Error::from)?;
        let (_, answer) = self.request(method, target, &body)?;
        serde_json::from_slice(&whole(answer)?).map_err(|e| io::Error::from(e).into())
    }

    /// The connection behind an answer that goes on, and what of it has been read.
    pub fn open(&self, method: &str, target: &str) -> Result<(UnixStream, Vec<u8>), ClientError> {
        let (_, (stream, rest)) = self.request(method, target, &[])?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok((stream, rest))
    }

    /// A stream to a guest's port, from the gateway.
    pub fn dial(&self, guest: SocketAddr) -> Result<UnixStream, ClientError> {
        let target = format!("/tunnel?ip={}&port={}", guest.ip(), guest.port());
        let mut stream = self.send("GET", &target, &[])?;
        // As gvisor-tap-vsock has it, what goes well is answered without HTTP.
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).map_err(unheard)?;
        if answer != *b"OK" {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        }
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(stream)
    }

    fn send(&self, method: &str, target: &str, body: &[u8]) -> Result<UnixStream, ClientError> {
        let mut stream = UnixStream::connect(&self.path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon,
            _ => ClientError::Io(e),
        })?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: vmlan\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n",
            body.len(),
        );
        stream.write_all(&[head.as_bytes(), body].concat()).map_err(unheard)?;
        Ok(stream)
    }

    /// Sends a request and reads the head of its answer; an error is read whole.
    fn request(
        &self,
        method: &str,
        target: &str,
        body: &[u8],
    ) -> Result<(Head, (UnixStream, Vec<u8>)), ClientError> {
        let mut stream = self.send(method, target, body)?;
        let mut input = Vec::new();
        let mut chunk = [0; 4096];
        let head = loop {
            match stream.read(&mut chunk) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => input.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(unheard(e)),
            }
            match Head::parse(&input)? {
                Some(head) => break head,
                None if input.len() > MAX_HEAD => {
                    return Err(io::Error::from(io::ErrorKind::InvalidData).into());
                }
                None => {}
            }
        };
        let rest = input.split_off(head.len.min(input.len()));
        if head.status == 200 {
            return Ok((head, (stream, rest)));
        }
        let text = whole((stream, rest))?;
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        Err(ClientError::Refused { status: head.status, text })
    }
}

/// A daemon that ends resets those that it has not listened to yet.
fn unheard(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ClientError::NoDaemon,
        _ => ClientError::Io(error),
    }
}

/// The rest of an answer: the daemon closes the connection after it.
fn whole((mut stream, mut rest): (UnixStream, Vec<u8>)) -> Result<Vec<u8>, ClientError> {
    stream.read_to_end(&mut rest)?;
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Answers one connection after another with these bytes, then is gone.
    fn daemon(answers: &'static [&'static [u8]]) -> (tempfile::TempDir, Client) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                if !answer.is_empty() {
                    let _ = stream.read(&mut [0; 4096]);
                }
                // What is not read of the request makes it a reset.
                let _ = stream.write_all(answer);
            }
        });
        let client = Client::new(&path);
        (dir, client)
    }

    const HALF: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n[1,";
    const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n[1]";

    #[test]
    fn a_daemon_that_ends_is_not_there_and_its_successor_is() {
        for (answers, want) in [
            (&[WHOLE][..], Some(vec![1])),
            (&[HALF, WHOLE], Some(vec![1])),
            (&[b"", WHOLE], Some(vec![1])),
            (&[HALF, b""], None),
            (&[b""], None),
            (&[], None),
        ] {
            let (_dir, client) = daemon(answers);
            match (client.get::<Vec<u8>>("/"), want) {
                (Ok(answer), Some(want)) => assert_eq!(answer, want),
                (Err(ClientError::NoDaemon), None) => {}
                (other, want) => panic!("{answers:?}: {other:?} {want:?}"),
            }
        }
    }
}
