//! A TAP device in a network namespace that somebody else has made, as `--netns` asks for.
//!
//! Entering a namespace is for a whole process, and for one with several threads it is not even
//! allowed. So a child is forked that enters, makes the device, and passes it back; to be called
//! before the caller has threads.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::configure::{ConfigureError, InterfaceConfig, configure_interface};
use super::device;
use crate::scm;

/// Why there is no TAP in the namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("cannot open the network namespace {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is not a network namespace", path.display())]
    NotNetns { path: PathBuf },
    #[error(
        "no right to enter the network namespace {}: it belongs to another user, \
         or to root outside of this user namespace",
        path.display()
    )]
    Forbidden { path: PathBuf },
    #[error("cannot enter the network namespace {}: {source}", path.display())]
    Enter { path: PathBuf, source: io::Error },
    #[error(
        "{name:?} cannot be the name of an interface: \
         1 to 15 characters without spaces, '/', ':' and '%'"
    )]
    Name { name: String },
    #[error("there is an interface {name} in the network namespace already")]
    Taken { name: String },
    #[error("no right to open /dev/net/tun; allow it with: sudo chmod 666 /dev/net/tun")]
    DeviceForbidden,
    #[error("there is no TAP driver (/dev/net/tun: {0}); load it with: sudo modprobe tun")]
    NoDevice(io::Error),
    #[error("no right to make interfaces in the network namespace {}", path.display())]
    CreateForbidden { path: PathBuf },
    #[error("cannot make the interface {name}: {source}")]
    Create { name: String, source: io::Error },
    #[error(transparent)]
    Configure(#[from] ConfigureError),
    #[error("cannot run a process in the network namespace: {0}")]
    Process(io::Error),
}

/// Makes a TAP with the name of `config` in the network namespace at `path`, and sets it up as
/// `config` says if `configure`. The interface lives as long as the descriptor, and so does the
/// namespace: the end of the processes in it does not end the link.
pub fn open_in_netns(
    path: &Path,
    config: &InterfaceConfig,
    configure: bool,
) -> Result<OwnedFd, NetnsError> {
    if !device::is_valid_name(&config.name) {
        return Err(NetnsError::Name { name: config.name.clone() });
    }
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| NetnsError::Open { path: path.into(), source: e.into() })?;
    if !is_netns(namespace.as_fd()) {
        return Err(NetnsError::NotNetns { path: path.into() });
    }
    let owner = owner(namespace.as_fd()).map_err(|source| enter_error(path, source))?;
    let owner = Some(owner).filter(|owner| !is_own(owner.as_fd()));
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|e| NetnsError::Process(e.into()))?;
    // SAFETY: the child runs only `child` below and then leaves by `_exit`; the C library makes its
    // allocator usable after a fork of a process with threads, too.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => return Err(NetnsError::Process(io::Error::last_os_error())),
        0 => {
            drop(ours);
            child(namespace.as_fd(), owner.as_ref(), config, configure, theirs.as_fd());
            // SAFETY: ends the child without running anything that belongs to the parent.
            unsafe { libc::_exit(0) };
        }
        _ => drop(theirs),
    }
    let answer = receive(ours.as_fd());
    if let Some(pid) = Pid::from_raw(pid) {
        while waitpid(Some(pid), WaitOptions::empty()).is_err_and(|e| e == Errno::INTR) {}
    }
    answer.map_err(NetnsError::Process)?.map_err(|failure| failure.explain(path, config))
}

fn child(
    namespace: BorrowedFd<'_>,
    owner: Option<&OwnedFd>,
    config: &InterfaceConfig,
    configure: bool,
    parent: BorrowedFd<'_>,
) {
    // The parent sees it when nothing arrives.
    let _ = match make(namespace, owner, config, configure) {
        Ok(device) => scm::send_fds(parent, &[Stage::Done as u8], &[device.as_fd()]),
        Err(failure) => scm::send_fds(parent, &failure.to_bytes(), &[]),
    };
}

fn make(
    namespace: BorrowedFd<'_>,
    owner: Option<&OwnedFd>,
    config: &InterfaceConfig,
    configure: bool,
) -> Result<OwnedFd, Failure> {
    let enter = |fd, kind| {
        move_into_link_name_space(fd, Some(kind)).map_err(|e| Failure::new(Stage::Enter, &e.into()))
    };
    if let Some(owner) = owner {
        enter(owner.as_fd(), LinkNameSpaceType::User)?;
    }
    enter(namespace, LinkNameSpaceType::Network)?;
    let device = device::create(&config.name).map_err(|e| Failure::new(Stage::Create, &e))?;
    if configure {
        configure_interface(config).map_err(|e| Failure {
            stage: Stage::Configure,
            errno: e.errno(),
            what: e.what().to_owned(),
        })?;
    }
    Ok(device)
}

/// How far the child came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    Done,
    Enter,
    Create,
    Configure,
}

/// What the child tells when it could not do it.
#[derive(Debug)]
struct Failure {
    stage: Stage,
    errno: i32,
    what: String,
}

impl Failure {
    /// A message of the child's.
    const MAX: usize = 256;

    fn new(stage: Stage, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
        Self { stage, errno, what: String::new() }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.stage as u8];
        bytes.extend_from_slice(&self.errno.to_ne_bytes());
        bytes.extend_from_slice(self.what.as_bytes());
        bytes.truncate(Self::MAX);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (stage, rest) = bytes.split_first()?;
        let (errno, what) = rest.split_first_chunk()?;
        let stages = [Stage::Enter, Stage::Create, Stage::Configure];
        Some(Self {
            stage: stages.into_iter().find(|s| *s as u8 == *stage)?,
            errno: i32::from_ne_bytes(*errno),
            what: String::from_utf8_lossy(what).into_owned(),
        })
    }

    fn explain(self, path: &Path, config: &InterfaceConfig) -> NetnsError {
        let (source, name) = (io::Error::from_raw_os_error(self.errno), config.name.clone());
        match (self.stage, self.errno) {
            (Stage::Done | Stage::Enter, _) => enter_error(path, source),
            // EINVAL: there is one of another kind.
            (Stage::Create, libc::EBUSY | libc::EEXIST | libc::EINVAL) => {
                NetnsError::Taken { name }
            }
            (Stage::Create, libc::EACCES) => NetnsError::DeviceForbidden,
            (Stage::Create, libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
                NetnsError::NoDevice(source)
            }
            (Stage::Create, libc::EPERM) => NetnsError::CreateForbidden { path: path.into() },
            (Stage::Create, _) => NetnsError::Create { name, source },
            (Stage::Configure, _) => ConfigureError::new(self.what, source).into(),
        }
    }
}

fn receive(child: BorrowedFd<'_>) -> io::Result<Result<OwnedFd, Failure>> {
    let mut data = [0; Failure::MAX];
    let (n, fds) = loop {
        match scm::recv_fds(child, &mut data) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    match (fds.into_iter().next(), data.get(..n).and_then(Failure::from_bytes)) {
        (Some(device), _) => Ok(Ok(device)),
        (None, Some(failure)) => Ok(Err(failure)),
        (None, None) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn enter_error(path: &Path, source: io::Error) -> NetnsError {
    let path = path.into();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => NetnsError::Forbidden { path },
        _ => NetnsError::Enter { path, source },
    }
}

fn is_netns(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: the operation has no argument, and fails on what is no namespace.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

/// The user namespace that owns a network namespace.
fn owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the operation has no argument and returns a new descriptor.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_USERNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a user namespace is the caller's own, which cannot be entered again.
fn is_own(namespace: BorrowedFd<'_>) -> bool {
    let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let own = rustix::fs::stat("/proc/self/ns/user").map(id);
    own.is_ok() && own == rustix::fs::fstat(namespace).map(id)
}
