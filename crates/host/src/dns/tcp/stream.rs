//! The far end of a guest's stream: queries in, answers out, each after its length.

use std::os::fd::OwnedFd;
use std::time::Instant as Moment;

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::{CHUNK, PREFIX};
use crate::dns::message::MAX_QUERY;
use crate::sys;

/// Queries of one stream on their way.
const MAX_QUERIES: usize = 8;

/// Bytes of answers that the guest has not read yet, before more of its queries are looked at.
const MAX_OUTPUT: usize = 64 << 10;

/// The service's end of a guest's stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) fd: OwnedFd,
    pub(super) generation: u32,
    /// Queries that are not complete, or have to wait.
    pub(super) input: Vec<u8>,
    pub(super) output: Vec<u8>,
    pub(super) queries: usize,
    /// The guest will ask no more.
    pub(super) ended: bool,
    pub(super) used: Moment,
}

impl Stream {
    pub(super) fn has_room(&self) -> bool {
        self.queries < MAX_QUERIES && self.output.len() < MAX_OUTPUT
    }

    /// Nothing is left to be asked or told.
    pub(super) fn is_done(&self) -> bool {
        self.ended && self.queries == 0 && self.output.is_empty() && !self.is_complete()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.first_len().is_some_and(|len| self.input.len() >= len)
    }

    /// The length of the first query, prefix included.
    fn first_len(&self) -> Option<usize> {
        let prefix = self.input.get(..PREFIX)?.try_into().ok()?;
        Some(PREFIX + usize::from(u16::from_be_bytes(prefix)))
    }

    /// The first query with its prefix, if it is complete.
    pub(super) fn next_message(&mut self) -> Option<Vec<u8>> {
        let len = self.first_len().filter(|&len| len <= self.input.len())?;
        let rest = self.input.split_off(len);
        Some(std::mem::replace(&mut self.input, rest))
    }

    pub(super) fn put(&mut self, message: &[u8]) {
        let Ok(len) = u16::try_from(message.len()) else { return };
        self.output.extend(len.to_be_bytes());
        self.output.extend_from_slice(message);
    }

    /// Reads once. False if there is nothing now; an error if the stream is of no more use.
    pub(super) fn read(&mut self) -> Result<bool, ()> {
        if self.first_len().is_some_and(|len| len > PREFIX + MAX_QUERY) {
            return Err(());
        }
        let mut chunk = [0; CHUNK];
        match rustix::net::recv(&self.fd, &mut chunk, RecvFlags::empty()) {
            Ok((0, _)) => self.ended = true,
            Ok((len, _)) => self.input.extend_from_slice(chunk.get(..len).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(_) => return Err(()),
        }
        Ok(true)
    }

    pub(super) fn flush(&mut self) -> Result<(), ()> {
        while !self.output.is_empty() {
            match rustix::net::send(&self.fd, &self.output, sys::SEND_FLAGS) {
                Ok(len) => drop(self.output.drain(..len)),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(_) => return Err(()),
            }
        }
        Ok(())
    }
}
