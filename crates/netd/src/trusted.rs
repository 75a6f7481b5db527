//! A listening UNIX socket that hands out only connections of this user and of root.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::peer;
use crate::unix_path::{self, BindError, SocketPath};

#[derive(Debug)]
pub(crate) struct TrustedListener {
    socket: UnixListener,
    _path: SocketPath,
}

impl TrustedListener {
    pub(crate) fn bind(registry: &Registry, path: &Path, token: Token) -> Result<Self, BindError> {
        let failed = |source| BindError::Io { path: path.into(), source };
        let (socket, path) = unix_path::listen(path)?;
        let fd = socket.as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE).map_err(failed)?;
        Ok(Self { socket, _path: path })
    }

    /// The next connection, which does not block; whoever is not trusted, or lost meanwhile, sees
    /// it close.
    pub(crate) fn accept(&self) -> Option<UnixStream> {
        loop {
            match self.socket.accept() {
                Ok((stream, _)) => {
                    let trusted = peer::is_trusted(&stream).unwrap_or(false);
                    if trusted && stream.set_nonblocking(true).is_ok() {
                        return Some(stream);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}
