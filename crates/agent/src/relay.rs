//! Two streams made one. Bytes go from socket to pipe to socket without coming here; the end of a
//! stream passes in each direction on its own, and a reset resets the other one. A direction is
//! read only when all of its bytes have been written, so that what is held has an end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags};

use crate::poll::{Poll, Source};

/// Bytes at once, as many as a pipe holds.
const CHUNK: usize = 64 * 1024;

/// Rounds of a direction before others have their turn.
const BUDGET: usize = 16;

/// Whether a relay goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relayed {
    GoesOn,
    Ended,
}

#[derive(Debug)]
pub(crate) struct Relay {
    ends: [Source; 2],
    /// From the end with the same number to the other one.
    ways: [Way; 2],
    /// The second end is not connected yet.
    connecting: bool,
}

#[derive(Debug)]
struct Way {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes in the pipe.
    held: usize,
    /// The source has ended.
    ended: bool,
    /// So has, therefore, what was written.
    passed: bool,
}

impl Relay {
    /// The ends get the tokens `first` and `first + 1`. The second one may be connecting.
    pub(crate) fn new(ends: [OwnedFd; 2], first: u64, connecting: bool) -> io::Result<Self> {
        let [a, b] = ends;
        for end in [&a, &b] {
            // Those of UNIX sockets have nothing of the kind.
            let _ = sockopt::set_tcp_nodelay(end, true);
            let _ = sockopt::set_socket_keepalive(end, true);
        }
        Ok(Self {
            ends: [Source::new(a, first), Source::new(b, first + 1)],
            ways: [Way::new()?, Way::new()?],
            connecting,
        })
    }

    /// Moves what can be moved and asks about the rest.
    pub(crate) fn go_on(&mut self, poll: &Poll) -> Relayed {
        match self.try_go_on(poll) {
            Ok(outcome) => outcome,
            Err(_) => {
                for end in &self.ends {
                    // No FIN, but a RST: this is not how the other side's stream ended.
                    let _ = sockopt::set_socket_linger(end.as_fd(), Some(Duration::ZERO));
                }
                Relayed::Ended
            }
        }
    }

    fn try_go_on(&mut self, poll: &Poll) -> io::Result<Relayed> {
        let [a, b] = &mut self.ends;
        if self.connecting {
            match sockopt::socket_error(b.as_fd())? {
                Err(errno) => return Err(errno.into()),
                Ok(()) if rustix::net::getpeername(b.as_fd()).is_err() => {
                    b.ask(poll, EventFlags::OUT)?;
                    return Ok(Relayed::GoesOn);
                }
                Ok(()) => self.connecting = false,
            }
        }
        let [out, back] = &mut self.ways;
        out.go_on_for(BUDGET, a, b)?;
        back.go_on_for(BUDGET, b, a)?;
        if out.passed && back.passed {
            return Ok(Relayed::Ended);
        }
        a.ask(poll, out.of_source() | back.of_sink())?;
        b.ask(poll, back.of_source() | out.of_sink())?;
        Ok(Relayed::GoesOn)
    }
}

impl Way {
    fn new() -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { reader, writer, held: 0, ended: false, passed: false })
    }

    fn go_on_for(&mut self, rounds: usize, source: &Source, sink: &Source) -> io::Result<()> {
        for _ in 0..rounds {
            if self.held != 0 {
                let Some(n) = splice(&self.reader, sink, self.held)? else { return Ok(()) };
                self.held = self.held.saturating_sub(n);
            } else if self.ended {
                if !self.passed {
                    self.passed = true;
                    rustix::net::shutdown(sink.as_fd(), Shutdown::Write)?;
                }
                return Ok(());
            } else {
                match splice(source, &self.writer, CHUNK)? {
                    None => return Ok(()),
                    Some(0) => self.ended = true,
                    Some(n) => self.held = n,
                }
            }
        }
        Ok(())
    }

    fn of_source(&self) -> EventFlags {
        if self.held == 0 && !self.ended { EventFlags::IN } else { EventFlags::empty() }
    }

    fn of_sink(&self) -> EventFlags {
        // An end that was seen in the last of the rounds is still to be passed on.
        let has_more = self.held != 0 || self.ended && !self.passed;
        if has_more { EventFlags::OUT } else { EventFlags::empty() }
    }
}

/// Moves bytes; None if none can be moved now.
fn splice(from: impl AsFd, to: impl AsFd, len: usize) -> io::Result<Option<usize>> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    match rustix::pipe::splice(from, None, to, None, len, flags) {
        Ok(n) => Ok(Some(n)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn an_end_seen_in_the_last_round_is_passed_on_in_the_next() {
        let (mut near, from) = UnixStream::pair().unwrap();
        let (to, mut far) = UnixStream::pair().unwrap();
        let poll = Poll::new().unwrap();
        let mut relay = Relay::new([from.into(), to.into()], 0, false).unwrap();
        near.write_all(b"word").unwrap();
        near.shutdown(std::net::Shutdown::Write).unwrap();
        // As when earlier bytes have taken all rounds but one.
        let [a, b] = &relay.ends;
        relay.ways[0].go_on_for(2, a, b).unwrap();
        relay.ways[0].go_on_for(1, a, b).unwrap();
        assert!(relay.ways[0].ended && !relay.ways[0].passed);
        assert_eq!(relay.ways[0].of_sink(), EventFlags::OUT);
        assert_eq!(relay.go_on(&poll), Relayed::GoesOn);
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"word");
        assert_eq!(relay.ways[0].of_sink(), EventFlags::empty());
    }
}
