//! Sockets towards places inside the guest, and those where its programs find the host.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vmlan_agent::message::Target;

/// A stream that is connected or connecting.
pub(crate) fn connect(to: &Target) -> io::Result<OwnedFd> {
    let family = match to {
        Target::Tcp(addr) if addr.is_ipv4() => AddressFamily::INET,
        Target::Tcp(_) => AddressFamily::INET6,
        Target::Unix(_) => AddressFamily::UNIX,
        Target::Udp(_) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    let connected = match to {
        Target::Tcp(addr) | Target::Udp(addr) => rustix::net::connect(&socket, addr),
        Target::Unix(path) => rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_str())?),
    };
    match connected {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}

/// Listens at a path, for its owner alone. A socket that nobody listens at makes room.
pub(crate) fn door(path: &str, uid: u32) -> io::Result<OwnedFd> {
    let path = Path::new(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(path, Some(uid), None)?;
    Ok(listener.into())
}
