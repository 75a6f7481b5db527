//! Who has started the helper, what it says on standard input, and whether a namespace is its own.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketType, sockopt,
};

use super::doing;

/// How long a caller may keep root waiting.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest request.
const MAX: usize = 128;

/// The user that started the helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) uid: u32,
}

impl Caller {
    /// sudo says who; without sudo it is root.
    pub(super) fn find() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root can do this: vmlan runs it by sudo".into());
        }
        let uid = match std::env::var_os("SUDO_UID") {
            None => 0,
            Some(text) => {
                let text = text.to_str().and_then(|text| text.parse().ok());
                text.ok_or("SUDO_UID is no number of a user")?
            }
        };
        Ok(Self { uid })
    }

    pub(super) fn is_root(self) -> bool {
        self.uid == 0
    }
}

/// The socket that is standard input: one packet in, one packet out.
#[derive(Debug)]
pub(super) struct Line(OwnedFd);

impl Line {
    /// Takes standard input, which must be the caller's own socket.
    pub(super) fn open(caller: Caller) -> Result<Self, String> {
        let wrong = "standard input is not the socket that vmlan hands over";
        let fd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3);
        let fd = fd.map_err(|_| wrong)?;
        let is_line = sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&fd) == Ok(SocketType::SEQPACKET);
        if !is_line {
            return Err(wrong.into());
        }
        let peer = sockopt::socket_peercred(&fd).map_err(|_| wrong)?;
        if peer.uid.as_raw() != caller.uid {
            return Err("standard input is another user's socket".into());
        }
        for timeout in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&fd, timeout, Some(PATIENCE)).map_err(|_| wrong)?;
        }
        Ok(Self(fd))
    }

    /// The caller's request, with a descriptor if one came along.
    pub(super) fn hear(&self) -> Result<(String, Option<OwnedFd>), String> {
        // One byte more, so that what is too long is seen to be.
        let mut bytes = [0; MAX + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut beside,
            RecvFlags::CMSG_CLOEXEC,
        );
        let n = received.map_err(doing("hear what is wanted"))?.bytes;
        let fd = beside.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let text = bytes.get(..n).filter(|text| (1..=MAX).contains(&text.len()));
        let text = text.and_then(|text| std::str::from_utf8(text).ok());
        Ok((text.ok_or("nothing that is asked for can be read")?.to_owned(), fd))
    }

    /// Tells that it is done, with what was asked for.
    pub(super) fn tell(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), String> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            beside.push(SendAncillaryMessage::ScmRights(fds));
        }
        let text = [IoSlice::new(text.as_bytes())];
        rustix::net::sendmsg(&self.0, &text, &mut beside, SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(doing("tell that it is done"))
    }
}

/// Refuses what is not a network namespace of the caller's own making: one that belongs to a user
/// namespace which the caller has made, and is not the host's.
pub(super) fn check_namespace(caller: Caller, namespace: BorrowedFd<'_>) -> Result<(), String> {
    if namespace_kind(namespace) != Some(libc::CLONE_NEWNET) {
        return Err("the descriptor is no network namespace".into());
    }
    let own = rustix::fs::stat("/proc/self/ns/net").map_err(doing("look at /proc/self/ns/net"))?;
    let asked = rustix::fs::fstat(namespace).map_err(doing("look at the namespace"))?;
    if (own.st_dev, own.st_ino) == (asked.st_dev, asked.st_ino) {
        return Err("the network namespace is the host's own".into());
    }
    let owner = owner_of(namespace).map_err(doing("see whose the network namespace is"))?;
    if owner != caller.uid {
        return Err(format!(
            "the network namespace belongs to the user {owner}, not to {}",
            caller.uid
        ));
    }
    Ok(())
}

fn namespace_kind(fd: BorrowedFd<'_>) -> Option<i32> {
    // SAFETY: the operation has no argument, and fails on what is no namespace.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
    (kind >= 0).then_some(kind)
}

/// The user who made the user namespace that a namespace belongs to.
fn owner_of(namespace: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the operation has no argument and returns a new descriptor.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_USERNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let users = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut uid: libc::uid_t = 0;
    // SAFETY: the operation writes a `uid_t`, and keeps no pointer.
    let result = unsafe {
        libc::ioctl(users.as_fd().as_raw_fd(), libc::NS_GET_OWNER_UID, std::ptr::from_mut(&mut uid))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(uid) }
}
