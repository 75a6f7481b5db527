//! A query at a nameserver, on a connection of its own.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant as Moment;

use mio::Registry;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketType, ipproto, sockopt};
use vmlan_engine::Readiness;

use super::{CHUNK, PREFIX};
use crate::dns::message;
use crate::sockets::register;
use crate::sys;
use crate::token::Internal;

/// A query at a nameserver.
#[derive(Debug)]
pub(super) struct Upstream {
    /// `None` between one nameserver and the next.
    pub(super) fd: Option<OwnedFd>,
    pub(super) generation: u32,
    pub(super) stream: usize,
    pub(super) stream_generation: u32,
    pub(super) server: Option<SocketAddr>,
    /// With its length; what is unsent starts at `written`.
    pub(super) query: Vec<u8>,
    pub(super) written: usize,
    pub(super) answer: Vec<u8>,
    pub(super) next: usize,
    pub(super) tried: usize,
    pub(super) sent_at: Moment,
    pub(super) asked_at: Moment,
}

/// How far a query has come.
#[derive(Clone, Copy)]
pub(super) enum Progress {
    Waiting,
    Answered,
    Failed,
}

impl Upstream {
    pub(super) fn connect(
        &mut self,
        registry: &Registry,
        server: SocketAddr,
        internal: Internal,
        now: Moment,
    ) -> Result<(), Errno> {
        self.fd = None;
        self.generation = internal.generation;
        self.server = Some(server);
        self.written = 0;
        self.answer.clear();
        self.sent_at = now;
        let fd = sys::socket(sys::family(server), SocketType::STREAM, Some(ipproto::TCP))?;
        match rustix::net::connect(&fd, &server) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        register(registry, &fd, internal.token()).ok_or(Errno::NOBUFS)?;
        self.fd = Some(fd);
        Ok(())
    }

    /// Writes and reads as far as it goes.
    pub(super) fn advance(&mut self, ready: Readiness) -> Progress {
        let Some(fd) = &self.fd else { return Progress::Waiting };
        if ready.error && !matches!(sockopt::socket_error(fd), Ok(Ok(()))) {
            return Progress::Failed;
        }
        while let Some(rest) = self.query.get(self.written..).filter(|rest| !rest.is_empty()) {
            match rustix::net::send(fd, rest, sys::SEND_FLAGS) {
                Ok(len) => self.written += len,
                Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => return Progress::Waiting,
                Err(_) => return Progress::Failed,
            }
        }
        let mut chunk = [0; CHUNK];
        loop {
            if let Some(&[high, low]) = self.answer.get(..PREFIX) {
                let len = PREFIX + usize::from(u16::from_be_bytes([high, low]));
                if self.answer.len() >= len {
                    self.answer.truncate(len);
                    return if self.is_answer() { Progress::Answered } else { Progress::Failed };
                }
            }
            match rustix::net::recv(fd, &mut chunk, RecvFlags::empty()) {
                Ok((0, _)) => return Progress::Failed,
                Ok((len, _)) => {
                    self.answer.extend_from_slice(chunk.get(..len).unwrap_or_default());
                }
                Err(Errno::AGAIN | Errno::INTR) => return Progress::Waiting,
                Err(_) => return Progress::Failed,
            }
        }
    }

    fn is_answer(&self) -> bool {
        let answer = self.answer.get(PREFIX..).unwrap_or_default();
        let query = self.query.get(PREFIX..).unwrap_or_default();
        answer.get(..2) == query.get(..2) && message::answers(answer, query)
    }
}
