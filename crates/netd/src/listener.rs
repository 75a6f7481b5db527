//! Where guests connect: UNIX stream sockets that make a link of each connection.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant as SystemInstant};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use vmlan_link::Link;

use crate::token::Owner;
use crate::unix_path::{self, BindError, SocketPath};

/// How long a listener rests when the process has no descriptor left for its next guest.
const REST: Duration = Duration::from_millis(200);

/// Makes a link of a connection.
pub(crate) type Attach = fn(UnixStream) -> io::Result<Box<dyn Link>>;

#[derive(Debug, Default)]
pub(crate) struct Listeners {
    list: Vec<Listener>,
}

#[derive(Debug)]
struct Listener {
    socket: UnixListener,
    attach: Attach,
    /// Of one that was made here.
    _path: Option<SocketPath>,
    /// Set while connections wait that could not be accepted.
    retry: Option<SystemInstant>,
}

impl Listeners {
    pub(crate) fn add(
        &mut self,
        registry: &Registry,
        path: &Path,
        attach: Attach,
    ) -> Result<(), BindError> {
        let (socket, socket_path) = unix_path::listen(path)?;
        let added = self.adopt(registry, socket, Some(socket_path), attach);
        added.map_err(|source| BindError::Io { path: path.into(), source })
    }

    /// Takes over a socket that listens already.
    pub(crate) fn adopt(
        &mut self,
        registry: &Registry,
        socket: UnixListener,
        path: Option<SocketPath>,
        attach: Attach,
    ) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let index = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        let token = Owner::Listener(index).token();
        let fd = socket.as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        self.list.push(Listener { socket, attach, _path: path, retry: None });
        Ok(())
    }

    /// The next guest that waits at a listener, and what makes its link.
    pub(crate) fn accept(&mut self, index: u32) -> Option<(UnixStream, Attach)> {
        let listener = self.list.get_mut(index as usize)?;
        listener.retry = None;
        loop {
            match listener.socket.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_ok() {
                        return Some((stream, listener.attach));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    // No descriptor or no memory. The connection stays in the backlog, and no
                    // further event will tell of it.
                    listener.retry = Some(SystemInstant::now() + REST);
                    return None;
                }
            }
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<SystemInstant> {
        self.list.iter().filter_map(|l| l.retry).min()
    }

    /// Listeners that have rested long enough.
    pub(crate) fn rested(&self, now: SystemInstant) -> Option<u32> {
        let index = self.list.iter().position(|l| l.retry.is_some_and(|at| at <= now))?;
        u32::try_from(index).ok()
    }
}
