//! Whether a whole message waits in the connection. The protocol's handler reads a message to its
//! end and writes an answer to its end, so that it is called only when neither can make it wait.
//!
//! One message is read here: QEMU enables a network card's rings before it has said which features it
//! takes, which the handler refuses.

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::CloseReason;
use crate::ready::is_writable;

/// Request, flags and length of what follows, 32 bits each.
const HEADER: usize = 12;

/// The longest message that the handler takes.
const MAX_BODY: u32 = 0x1000;

/// `VHOST_USER_SET_VRING_ENABLE`, the length of its body, and the flags of a message.
const SET_VRING_ENABLE: u32 = 18;
const ENABLE_BODY: usize = 8;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// What waits in a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Whole,
    /// A whole message that [`read_enable`] reads.
    Enable,
    /// Nothing, or a part of a message. An event follows when more comes.
    None,
}

/// Looks at what waits.
pub(super) fn next(connection: BorrowedFd<'_>) -> Result<Request, CloseReason> {
    let failed = |errno: Errno| CloseReason::from(&io::Error::from(errno));
    let mut header = [0; HEADER];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let len = match rustix::net::recv(connection, &mut header, flags) {
        Ok((0, _)) => return Err(CloseReason::Eof),
        Ok((len, _)) => len,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Request::None),
        Err(error) => return Err(failed(error)),
    };
    if len < HEADER {
        return Ok(Request::None);
    }
    let [code, _, body] = words(header);
    if body > MAX_BODY {
        return Err(CloseReason::Framing(body));
    }
    let there = rustix::io::ioctl_fionread(connection).map_err(failed)?;
    if there < HEADER as u64 + u64::from(body) {
        return Ok(Request::None);
    }
    // A socket is writable as long as most of its buffer is free: there is room for any answer.
    if !is_writable(connection) {
        return Err(CloseReason::Refused("its monitor does not read what it has asked for"));
    }
    Ok(if code == SET_VRING_ENABLE { Request::Enable } else { Request::Whole })
}

/// Reads a message that enables a ring, or disables it, and answers it if it is to be answered. The
/// result is the ring and whether it is to be used; `None` if the message is not one.
pub(super) fn read_enable(
    mut connection: &UnixStream,
    acknowledges: bool,
) -> io::Result<Option<(u32, bool)>> {
    let mut header = [0; HEADER];
    let mut body = [0; ENABLE_BODY];
    connection.read_exact(&mut header)?;
    let [code, flags, len] = words(header);
    if usize::try_from(len) != Ok(ENABLE_BODY) {
        return Ok(None);
    }
    connection.read_exact(&mut body)?;
    let [ring, on] = words(body);
    if on > 1 {
        return Ok(None);
    }
    if acknowledges && flags & NEED_REPLY != 0 {
        let mut reply = Vec::new();
        for word in [code, VERSION | REPLY, len, 0, 0] {
            reply.extend_from_slice(&word.to_ne_bytes());
        }
        connection.write_all(&reply)?;
    }
    Ok(Some((ring, on == 1)))
}

/// A message is made of words in the machine's own byte order.
fn words<const BYTES: usize, const WORDS: usize>(bytes: [u8; BYTES]) -> [u32; WORDS] {
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|i| words.get(i).map_or(0, |word| u32::from_ne_bytes(*word)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn header(body: u32) -> Vec<u8> {
        [1, 1, body].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
    }

    #[test]
    fn a_message_is_there_when_all_of_it_is() {
        let (mut monitor, link) = UnixStream::pair().unwrap();
        let mut message = header(8);
        message.extend([0; 8]);
        for byte in &message {
            assert_eq!(next(link.as_fd()), Ok(Request::None));
            monitor.write_all(&[*byte]).unwrap();
        }
        assert_eq!(next(link.as_fd()), Ok(Request::Whole));
        drop(monitor);
        assert_eq!(next(link.as_fd()), Ok(Request::Whole), "it can still be read");
    }

    #[test]
    fn a_length_that_no_message_has_ends_the_connection() {
        let (mut monitor, link) = UnixStream::pair().unwrap();
        monitor.write_all(&header(MAX_BODY + 1)).unwrap();
        assert_eq!(next(link.as_fd()), Err(CloseReason::Framing(MAX_BODY + 1)));
    }

    #[test]
    fn who_does_not_read_answers_gets_no_more() {
        let (mut monitor, mut link) = UnixStream::pair().unwrap();
        link.set_nonblocking(true).unwrap();
        monitor.write_all(&header(0)).unwrap();
        assert_eq!(next(link.as_fd()), Ok(Request::Whole));
        while link.write(&[0; 4096]).is_ok() {}
        assert!(matches!(next(link.as_fd()), Err(CloseReason::Refused(_))));
    }

    #[test]
    fn the_end_is_seen() {
        let (monitor, link) = UnixStream::pair().unwrap();
        drop(monitor);
        assert_eq!(next(link.as_fd()), Err(CloseReason::Eof));
    }
}
