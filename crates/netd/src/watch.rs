//! Descriptors of others in the daemon's loop: a command's pidfd, a signalfd, the signal pipe.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry};

use crate::token::Owner;

/// What the loop does after a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Next {
    Continue,
    /// The guests are gone: [`Daemon::run`](crate::Daemon::run) passes on what they have still
    /// sent, as their systems would have without a network of vmlan's, then does as for `Stop`.
    Finish,
    /// [`Daemon::run`](crate::Daemon::run) shuts the network down and returns.
    Stop,
}

type Handler = Box<dyn FnMut() -> Next>;

#[derive(Default)]
pub(crate) struct Watches {
    handlers: Vec<Handler>,
}

impl std::fmt::Debug for Watches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watches").field("len", &self.handlers.len()).finish()
    }
}

impl Watches {
    pub(crate) fn add<F: AsFd + 'static>(
        &mut self,
        registry: &Registry,
        fd: F,
        mut handler: impl FnMut(&F) -> Next + 'static,
    ) -> io::Result<()> {
        let index = u32::try_from(self.handlers.len()).map_err(io::Error::other)?;
        let raw = fd.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&raw), Owner::Watch(index).token(), Interest::READABLE)?;
        self.handlers.push(Box::new(move || handler(&fd)));
        Ok(())
    }

    pub(crate) fn handle(&mut self, index: u32) -> Next {
        match self.handlers.get_mut(index as usize) {
            Some(handler) => handler(),
            None => Next::Continue,
        }
    }
}
