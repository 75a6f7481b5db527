//! A link over a descriptor that somebody else has opened and passed on: whatever it turns out to
//! be.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::FileType;
use rustix::net::{AddressFamily, SocketType};

use crate::Link;
use crate::datagram::DatagramLink;
use crate::packet::PacketLink;
use crate::stream::StreamLink;

/// Why a descriptor cannot be a guest's link.
#[derive(Debug, thiserror::Error)]
pub enum FdError {
    #[error("it is a socket that is listening; a connected one is wanted")]
    Listening,
    #[error("it is a socket of another kind than UNIX stream, datagram or seqpacket")]
    Family,
    #[error("it is a stream socket that is not connected")]
    NotConnected,
    #[error("it is neither a socket nor a TAP device")]
    Kind,
    #[error("it cannot be used: {0}")]
    System(#[from] io::Error),
}

/// Makes the right link of a descriptor, for a network with this MTU: a connected UNIX socket, a
/// bound UNIX datagram socket, or on Linux a TAP device.
pub fn open(fd: OwnedFd, mtu: u16) -> Result<Box<dyn Link>, FdError> {
    let stat = rustix::fs::fstat(&fd).map_err(io::Error::from)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Socket => socket(fd, mtu),
        FileType::CharacterDevice => device(fd),
        _ => Err(FdError::Kind),
    }
}

fn socket(fd: OwnedFd, mtu: u16) -> Result<Box<dyn Link>, FdError> {
    let kind = rustix::net::sockopt::socket_type(&fd).map_err(io::Error::from)?;
    let local = rustix::net::getsockname(&fd).map_err(io::Error::from)?;
    if local.address_family() != AddressFamily::UNIX {
        return Err(FdError::Family);
    }
    let connected = rustix::net::getpeername(&fd).is_ok();
    if !connected && is_listening(&fd) {
        return Err(FdError::Listening);
    }
    match (kind, connected) {
        (SocketType::STREAM, true) => Ok(Box::new(StreamLink::new(fd)?)),
        (SocketType::DGRAM | SocketType::SEQPACKET, true) => {
            Ok(Box::new(PacketLink::new(fd, mtu)?))
        }
        (SocketType::DGRAM, false) => Ok(Box::new(DatagramLink::new(fd, mtu)?)),
        (SocketType::STREAM | SocketType::SEQPACKET, false) => Err(FdError::NotConnected),
        _ => Err(FdError::Family),
    }
}

#[cfg(not(target_vendor = "apple"))]
fn is_listening(fd: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_acceptconn(fd).unwrap_or(false)
}

/// The system does not tell: such a socket is only known not to be connected.
#[cfg(target_vendor = "apple")]
fn is_listening(_fd: &OwnedFd) -> bool {
    false
}

#[cfg(target_os = "linux")]
fn device(fd: OwnedFd) -> Result<Box<dyn Link>, FdError> {
    use std::os::fd::AsFd;

    use crate::tap::TapLink;

    if !TapLink::is_tap(fd.as_fd()) {
        return Err(FdError::Kind);
    }
    Ok(Box::new(TapLink::new(fd)?))
}

#[cfg(not(target_os = "linux"))]
fn device(_fd: OwnedFd) -> Result<Box<dyn Link>, FdError> {
    Err(FdError::Kind)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use rustix::net::{SocketFlags, socketpair};

    use super::*;

    fn kind(fd: impl Into<OwnedFd>) -> String {
        match open(fd.into(), 1500) {
            Ok(link) => format!("{link:?}").split(' ').next().unwrap().to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_descriptor_becomes_the_link_that_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let flags = SocketFlags::CLOEXEC;
        let seqpacket =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        assert_eq!(kind(UnixStream::pair().unwrap().0), "StreamLink");
        assert_eq!(kind(UnixDatagram::pair().unwrap().0), "PacketLink");
        assert_eq!(kind(seqpacket.0), "PacketLink");
        assert_eq!(kind(UnixDatagram::bind(dir.path().join("d")).unwrap()), "DatagramLink");
    }

    #[test]
    fn what_is_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("l")).unwrap();
        assert_eq!(kind(listener), FdError::Listening.to_string());
        let fresh = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        assert_eq!(kind(fresh), FdError::NotConnected.to_string());
        assert_eq!(
            kind(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()),
            FdError::Family.to_string()
        );
        for path in ["/dev/null", "/etc/hosts"] {
            assert_eq!(kind(std::fs::File::open(path).unwrap()), FdError::Kind.to_string());
        }
    }
}
