//! Listeners of stream forwards, TCP and UNIX.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketType, ipproto, sockopt};
use vmlan_engine::io::{Accepted, Failure, ListenAddr};
use vmlan_engine::{SockId, Token};

use crate::explain;
use crate::failure::failure;
use crate::sockets::{Kind, Socket, Sockets};
use crate::stream::Stream;
use crate::sys;

/// The system cuts it to what it allows (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// Connections that were gone before they were accepted and are passed over in one call.
const MAX_ABORTED: usize = 16;

/// A listening socket; a UNIX one takes its file with it.
#[derive(Debug)]
pub(crate) struct Listener {
    file: Option<SocketFile>,
}

/// The file of a UNIX socket, removed with it unless somebody has put another in its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Sockets {
    pub(crate) fn open_listener(
        &mut self,
        token: Token,
        at: &ListenAddr,
    ) -> Result<SockId, String> {
        let (fd, file) = match at {
            ListenAddr::Tcp(addr) => {
                let fd = listen_tcp(*addr).map_err(|errno| explain::bind_failure(at, errno))?;
                (fd, None)
            }
            ListenAddr::Unix(path) => {
                let (fd, file) = listen_unix(path)?;
                (fd, Some(file))
            }
            ListenAddr::Udp(_) => {
                return Err(format!("{} is not a stream listener", explain::name(at)));
            }
        };
        self.insert(token, fd, Kind::Listener(Listener { file }))
            .ok_or_else(|| explain::bind_failure(at, Errno::NOMEM))
    }

    pub(crate) fn accept_one(&mut self, listener: SockId, token: Token) -> Accepted {
        let Some(Socket { fd, kind: Kind::Listener(kind), .. }) = self.get(listener) else {
            return Accepted::Failed(Failure::Other);
        };
        let unix = kind.file.is_some();
        let mut accepted = Err(Errno::AGAIN);
        for _ in 0..MAX_ABORTED {
            accepted = sys::accept(fd);
            // A connection that broke in the backlog; the error is its own, not the listener's.
            let passing = matches!(
                accepted,
                Err(Errno::CONNABORTED
                    | Errno::INTR
                    | Errno::PROTO
                    | Errno::NETDOWN
                    | Errno::NETUNREACH
                    | Errno::HOSTDOWN
                    | Errno::HOSTUNREACH
                    | Errno::NOPROTOOPT
                    | Errno::OPNOTSUPP)
            );
            if !passing {
                break;
            }
        }
        match accepted {
            Ok((fd, peer)) => match self.insert(token, fd, Kind::Stream(Stream::accepted())) {
                Some(sock) => Accepted::Stream { sock, peer: if unix { None } else { peer } },
                None => Accepted::Failed(Failure::Exhausted),
            },
            Err(Errno::AGAIN) => Accepted::Blocked,
            Err(errno) => Accepted::Failed(failure(errno)),
        }
    }
}

fn listen_tcp(at: SocketAddr) -> Result<OwnedFd, Errno> {
    let fd = sys::socket(sys::family(at), SocketType::STREAM, Some(ipproto::TCP))?;
    // Connections of an earlier life in TIME_WAIT are no reason to refuse.
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    // Accepted connections inherit it.
    sockopt::set_tcp_nodelay(&fd, true)?;
    rustix::net::bind(&fd, &at)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

fn listen_unix(path: &Path) -> Result<(OwnedFd, SocketFile), String> {
    let at = ListenAddr::Unix(path.to_owned());
    let explained = |errno| explain::bind_failure(&at, errno);
    let addr = SocketAddrUnix::new(path).map_err(explained)?;
    remove_stale(path, &addr)?;
    let fd = sys::socket(rustix::net::AddressFamily::UNIX, SocketType::STREAM, None)
        .map_err(explained)?;
    sys::bind_unix_private(&fd, &addr, path).map_err(explained)?;
    let found = fs::symlink_metadata(path)
        .map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
    let file = SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino() };
    rustix::net::listen(&fd, BACKLOG).map_err(explained)?;
    Ok((fd, file))
}

/// Makes room for a UNIX socket: a socket that nobody answers on is removed, everything else is
/// somebody's and stays.
fn remove_stale(path: &Path, addr: &SocketAddrUnix) -> Result<(), String> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let shown = path.display();
    if !found.file_type().is_socket() {
        return Err(format!("cannot listen on {shown}: a file that is no socket is there"));
    }
    let probe = sys::socket(rustix::net::AddressFamily::UNIX, SocketType::STREAM, None)
        .map_err(|errno| format!("cannot listen on {shown}: {}", explain::words(errno)))?;
    match rustix::net::connect(&probe, addr) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(|error| {
            format!(
                "cannot listen on {shown}: a stale socket is there and cannot be removed: {error}"
            )
        }),
        Ok(()) => {
            let holder = sys::peer_process(&probe).map(|by| format!(" by {by}"));
            Err(format!("{shown} is already in use{}", holder.unwrap_or_default()))
        }
        Err(Errno::AGAIN) => Err(format!("{shown} is already in use")),
        Err(errno) => Err(format!(
            "cannot listen on {shown}: a socket is there and does not tell whether it is in use: {}",
            explain::words(errno)
        )),
    }
}
