//! What supervisor, init and network process tell each other: one small message in each packet of
//! a socket pair, a descriptor beside it where one is handed over. The end of the stream is the
//! death of the other side.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::sys::Change;

/// Longest message: a line of text for the user.
const MAX: usize = 2048;

/// One end of a channel.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// To init: your user and group are mapped.
    Mapped,
    /// To the supervisor, with a descriptor: a network card of the guest's, or the network namespace
    /// that is to be given one. To init: it has been given.
    Card,
    /// To the supervisor: everything is prepared.
    Ready,
    /// To init: start the command.
    Go,
    /// To init: the supervisor was sent this signal.
    Signal(i32),
    /// To the supervisor: what became of the command.
    Command(Change),
    /// To the supervisor: it cannot be done, for this reason.
    Failed(String),
    /// To the network process: the guest is gone, finish.
    Finish,
}

impl Channel {
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (a, b) = rustix::net::socketpair(kind.0, kind.1, kind.2, None)?;
        Ok((Self(a), Self(b)))
    }

    pub(super) fn send(&self, message: &Message) -> io::Result<()> {
        self.send_with(message, None)
    }

    /// Sends a message, and with it a descriptor.
    pub(super) fn send_with(
        &self,
        message: &Message,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let bytes = message.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            beside.push(SendAncillaryMessage::ScmRights(fds));
        }
        let bytes = [IoSlice::new(&bytes)];
        retry(|| rustix::net::sendmsg(&self.0, &bytes, &mut beside, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// The next message. `None` once the other side is gone.
    pub(super) fn recv(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        self.recv_flags(RecvFlags::empty())
    }

    /// The next message if there is one already.
    pub(super) fn try_recv(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        self.recv_flags(RecvFlags::DONTWAIT)
    }

    fn recv_flags(&self, flags: RecvFlags) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        let mut bytes = [0; MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let received = retry(|| {
            rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut beside, flags)
        });
        let len = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(e) => return Err(e.into()),
        };
        let fd = beside.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let bytes = bytes.get(..len).unwrap_or(&[]);
        if bytes.is_empty() {
            return Ok(None);
        }
        let message = Message::decode(bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some((message, fd)))
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let numbered = |kind: u8, number: i32| {
            let mut bytes = vec![kind];
            bytes.extend(number.to_ne_bytes());
            bytes
        };
        match self {
            Self::Mapped => vec![b'm'],
            Self::Card => vec![b'c'],
            Self::Ready => vec![b'r'],
            Self::Go => vec![b'g'],
            Self::Finish => vec![b'f'],
            Self::Signal(signal) => numbered(b's', *signal),
            Self::Command(Change::Exited(code)) => numbered(b'E', (*code).into()),
            Self::Command(Change::Killed(signal)) => numbered(b'K', *signal),
            Self::Command(Change::Stopped(signal)) => numbered(b'S', *signal),
            Self::Command(Change::Continued) => numbered(b'C', 0),
            Self::Failed(why) => {
                let mut bytes = vec![b'!'];
                bytes.extend(why.bytes().take(MAX - 1));
                bytes
            }
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        let number = || Some(i32::from_ne_bytes(rest.try_into().ok()?));
        Some(match kind {
            b'm' => Self::Mapped,
            b'c' => Self::Card,
            b'r' => Self::Ready,
            b'g' => Self::Go,
            b'f' => Self::Finish,
            b's' => Self::Signal(number()?),
            b'E' => Self::Command(Change::Exited(u8::try_from(number()?).ok()?)),
            b'K' => Self::Command(Change::Killed(number()?)),
            b'S' => Self::Command(Change::Stopped(number()?)),
            b'C' => Self::Command(Change::Continued),
            b'!' => Self::Failed(String::from_utf8_lossy(rest).into_owned()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (a, b) = Channel::pair().unwrap();
        let messages = [
            Message::Mapped,
            Message::Ready,
            Message::Go,
            Message::Finish,
            Message::Signal(64),
            Message::Command(Change::Exited(255)),
            Message::Command(Change::Killed(9)),
            Message::Command(Change::Stopped(20)),
            Message::Command(Change::Continued),
            Message::Failed("no".into()),
        ];
        for message in messages {
            a.send(&message).unwrap();
            assert_eq!(b.recv().unwrap().unwrap().0, message);
        }
        assert_eq!(b.try_recv().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert!(b.recv().unwrap().is_none());
    }

    #[test]
    fn a_descriptor_goes_along() {
        let (a, b) = Channel::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        a.send_with(&Message::Card, Some(write.as_fd())).unwrap();
        drop(write);
        let (message, fd) = b.recv().unwrap().unwrap();
        assert_eq!(message, Message::Card);
        rustix::io::write(fd.unwrap(), b"x").unwrap();
        assert_eq!(rustix::io::read(read, &mut [0; 8]).unwrap(), 1);
    }

    #[test]
    fn a_long_reason_is_cut() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Message::Failed("é".repeat(5000))).unwrap();
        let (message, _) = b.recv().unwrap().unwrap();
        assert!(matches!(message, Message::Failed(why) if why.len() <= MAX + 2));
    }
}
