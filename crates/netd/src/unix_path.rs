//! UNIX sockets at paths: made where nobody else is, readable by their owner alone, and taken away
//! again at the end.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::umask;

/// Longest path that fits `sun_path` with its terminating zero.
const MAX_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Whether a path can be a socket's at all.
pub fn check(path: &Path) -> Result<(), BindError> {
    match path.as_os_str().len() {
        0 => Err(BindError::Empty),
        len if len > MAX_PATH => Err(BindError::TooLong { path: path.into(), len }),
        _ => Ok(()),
    }
}

/// Who may connect: the owner, or with it a group.
const OWNER: Mode = Mode::RUSR.union(Mode::WUSR);
const GROUP: Mode = Mode::RWXG.union(Mode::XUSR);

/// Why a socket could not be made at a path.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("a socket's path is empty")]
    Empty,
    #[error("{}: {len} bytes, and a socket's path has at most {MAX_PATH}", path.display())]
    TooLong { path: PathBuf, len: usize },
    #[error("{}: already in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("{}: there is something that is not a socket", .0.display())]
    NotASocket(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A socket's path. Dropping it removes the socket, unless somebody has put another one there.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let ours = |m: &fs::Metadata| (m.dev(), m.ino()) == self.id;
        if fs::symlink_metadata(&self.path).is_ok_and(|m| ours(&m)) {
            // Nothing can be done about a failure while everything ends.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens for streams at `path`.
pub(crate) fn listen(path: &Path) -> Result<(UnixListener, SocketPath), BindError> {
    bind(path, OWNER, listener)
}

/// Listens for streams of a group's members at `path`.
pub fn listen_for_group(path: &Path, group: u32) -> Result<(UnixListener, SocketPath), BindError> {
    let (listener, bound) = bind(path, OWNER.union(GROUP), listener)?;
    let changed = std::os::unix::fs::lchown(path, None, Some(group));
    changed.map_err(|source| BindError::Io { path: path.into(), source })?;
    Ok((listener, bound))
}

fn listener(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Binds a datagram socket to `path`.
pub(crate) fn datagram(path: &Path) -> Result<(UnixDatagram, SocketPath), BindError> {
    bind(path, OWNER, |path| {
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })
}

fn bind<S>(
    path: &Path,
    mode: Mode,
    make: impl Fn(&Path) -> io::Result<S>,
) -> Result<(S, SocketPath), BindError> {
    check(path)?;
    let failed = |source| BindError::Io { path: path.into(), source };
    make_way(path)?;
    // The mode of a socket is set as it is made, or somebody could connect in between.
    let before = umask(Mode::RWXU.union(Mode::RWXG).union(Mode::RWXO).difference(mode));
    let made = make(path);
    umask(before);
    let socket = made.map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(path.into()),
        _ => failed(e),
    })?;
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    let path = SocketPath { path: path.into(), id: (meta.dev(), meta.ino()) };
    Ok((socket, path))
}

/// Removes the socket of a process that is gone.
fn make_way(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Io { path: path.into(), source };
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    if !meta.file_type().is_socket() {
        return Err(BindError::NotASocket(path.into()));
    }
    // A datagram socket's connect leaves no trace at the other end, whatever its kind is.
    let probe = UnixDatagram::unbound().map_err(failed)?;
    match probe.connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(failed(e)),
        // Connected, or alive and of another type.
        _ => Err(BindError::InUse(path.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_is_private_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_listener, socket) = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_group_s_socket_is_the_group_s() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let group = fs::metadata(dir.path()).unwrap().gid();
        let (_listener, _path) = listen_for_group(&path, group).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.permissions().mode() & 0o777, meta.gid()), (0o770, group));
    }

    #[test]
    fn a_socket_of_somebody_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, socket) = listen(&path).unwrap();
        // The name is moved away rather than removed, so that its inode number stays taken.
        fs::rename(&path, dir.path().join("t")).unwrap();
        let (_other, _kept) = listen(&path).unwrap();
        drop(socket);
        assert!(path.exists());
        drop(listener);
    }

    #[test]
    fn a_live_socket_of_any_type_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let (stream, dgram) = (dir.path().join("s"), dir.path().join("d"));
        let _stream = listen(&stream).unwrap();
        let _dgram = datagram(&dgram).unwrap();
        for path in [&stream, &dgram] {
            assert!(matches!(listen(path), Err(BindError::InUse(_))));
            assert!(matches!(datagram(path), Err(BindError::InUse(_))));
        }
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _bound = listen(&path).unwrap();
    }

    #[test]
    fn what_is_not_a_socket_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_long_path_is_refused_with_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(120));
        let error = listen(&path).unwrap_err().to_string();
        assert!(error.contains(&MAX_PATH.to_string()), "{error}");
        let free = MAX_PATH - dir.path().as_os_str().len() - 1;
        assert!(listen(&dir.path().join("x".repeat(free))).is_ok());
    }
}
