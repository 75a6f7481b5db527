//! Passing descriptors between processes over a UNIX socket (`SCM_RIGHTS`, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors in one message.
pub const MAX_FDS: usize = 16;

/// Sends `data`, which may not be empty, with `fds`. On a stream socket, fewer bytes than given may
/// be taken; the descriptors go with the first of them.
pub fn send_fds(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = fds.len() <= MAX_FDS && control.push(SendAncillaryMessage::ScmRights(fds));
    if data.is_empty() || !fits {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    #[cfg(target_vendor = "apple")]
    let flags = SendFlags::empty();
    #[cfg(not(target_vendor = "apple"))]
    let flags = SendFlags::NOSIGNAL;
    Ok(sendmsg(socket, &[IoSlice::new(data)], &mut control, flags)?)
}

/// Receives a message with the descriptors that came with it, up to [`MAX_FDS`]. Zero bytes mean
/// that the peer has closed. The descriptors are closed on exec.
pub fn recv_fds(socket: impl AsFd, data: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::empty();
    let received = recvmsg(socket, &mut [IoSliceMut::new(data)], &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    #[cfg(not(target_os = "linux"))]
    for fd in &fds {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    }
    Ok((received.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_message() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"shared").unwrap();
        send_fds(&a, b"two of them", &[file.as_fd(), a.as_fd()]).unwrap();
        let mut data = [0; 32];
        let (n, mut fds) = recv_fds(&b, &mut data).unwrap();
        assert_eq!((&data[..n], fds.len()), (&b"two of them"[..], 2));
        for fd in &fds {
            let flags = rustix::io::fcntl_getfd(fd).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        let mut got = File::from(fds.remove(0));
        got.rewind().unwrap();
        let mut text = String::new();
        got.read_to_string(&mut text).unwrap();
        assert_eq!(text, "shared");
        drop((a, fds));
        assert_eq!(recv_fds(&b, &mut data).unwrap().0, 0);
    }

    #[test]
    fn a_message_needs_a_byte_and_not_too_many_descriptors() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert!(send_fds(&a, b"", &[a.as_fd()]).is_err());
        assert!(send_fds(&a, b"x", &[a.as_fd(); MAX_FDS + 1]).is_err());
    }
}
