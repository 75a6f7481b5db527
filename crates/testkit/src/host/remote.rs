//! Scripts: what the far ends of the simulated host's sockets do, on their own and in time.

use std::net::IpAddr;
use std::time::Duration;

use vmlan_engine::io::Failure;

use crate::pattern::Pattern;

/// What becomes of a connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Accept,
    Fail(Failure),
    /// Nothing ever comes back.
    Silence,
}

/// What the far end does when it has sent all that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Stays as it is until the test says otherwise.
    Hold,
    /// FIN at once.
    Fin,
    /// FIN after the guest's FIN.
    FinAfterEof,
    /// RST at once.
    Reset,
    /// FIN at once, and whatever comes afterwards is answered with RST: the process is gone.
    Close,
}

/// The far end of a stream. Made by [`Remote::accept`] and the like, then adorned.
#[derive(Clone, Debug)]
pub struct Remote {
    pub(crate) answer: Answer,
    pub(crate) delay: Duration,
    pub(crate) source: Source,
    pub(crate) ending: Ending,
    pub(crate) sink: Sink,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) pattern: Pattern,
    pub(crate) bytes: u64,
    /// So much arrives at a time.
    pub(crate) chunk: usize,
    pub(crate) every: Duration,
    /// Sends back what it reads instead of a pattern.
    pub(crate) echo: bool,
    /// Room for what arrives before the engine reads it.
    pub(crate) buffer: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sink {
    /// What must come.
    pub(crate) pattern: Option<Pattern>,
    /// So much is read at a time; 0 means nothing ever.
    pub(crate) chunk: usize,
    pub(crate) every: Duration,
    /// Room for what the engine sends before it is read: the socket's send buffer.
    pub(crate) buffer: usize,
    /// RST once so much has been read.
    pub(crate) reset_after: Option<u64>,
}

impl Remote {
    /// Takes the connection, reads everything, sends nothing, and sends FIN after the guest's.
    pub fn accept() -> Self {
        Self {
            answer: Answer::Accept,
            delay: Duration::ZERO,
            source: Source {
                pattern: Pattern(0),
                bytes: 0,
                chunk: usize::MAX,
                every: Duration::ZERO,
                echo: false,
                buffer: 256 << 10,
            },
            ending: Ending::FinAfterEof,
            sink: Sink {
                pattern: None,
                chunk: usize::MAX,
                every: Duration::ZERO,
                buffer: 256 << 10,
                reset_after: None,
            },
        }
    }

    pub fn refuse() -> Self {
        Self::fail(Failure::Refused)
    }

    pub fn fail(why: Failure) -> Self {
        Self { answer: Answer::Fail(why), ..Self::accept() }
    }

    pub fn black_hole() -> Self {
        Self { answer: Answer::Silence, ..Self::accept() }
    }

    /// Sends back whatever it reads, and FIN after FIN.
    pub fn echo() -> Self {
        let mut remote = Self::accept();
        remote.source.echo = true;
        remote
    }

    /// The outcome of the connection attempt is known only after `delay`.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends `bytes` of a pattern.
    #[must_use]
    pub fn sends(mut self, pattern: Pattern, bytes: u64) -> Self {
        (self.source.pattern, self.source.bytes) = (pattern, bytes);
        self
    }

    /// Sends in pieces of `chunk` bytes, one every so often.
    #[must_use]
    pub fn paced(mut self, chunk: usize, every: Duration) -> Self {
        (self.source.chunk, self.source.every) = (chunk, every);
        self
    }

    #[must_use]
    pub fn then(mut self, ending: Ending) -> Self {
        self.ending = ending;
        self
    }

    /// Expects a pattern from the guest.
    #[must_use]
    pub fn expects(mut self, pattern: Pattern) -> Self {
        self.sink.pattern = Some(pattern);
        self
    }

    /// Reads `chunk` bytes, once every so often. `chunk` of 0: never.
    #[must_use]
    pub fn reads(mut self, chunk: usize, every: Duration) -> Self {
        (self.sink.chunk, self.sink.every) = (chunk, every);
        self
    }

    /// Bounds the host socket's send buffer.
    #[must_use]
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.sink.buffer = bytes;
        self
    }

    /// Bounds the host socket's receive buffer.
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.source.buffer = bytes;
        self
    }

    /// Sends RST once it has read so much.
    #[must_use]
    pub fn reset_after(mut self, bytes: u64) -> Self {
        self.sink.reset_after = Some(bytes);
        self
    }
}

/// What is at a UDP or ping destination.
#[derive(Clone, Debug)]
pub enum Responder {
    /// Every datagram comes back (for ping: as echo reply).
    Echo { after: Duration },
    /// Takes everything and says nothing.
    Sink,
    /// Answers every datagram with so many of this size, filled with a pattern.
    Burst { count: usize, size: usize },
    /// A router or the host itself complains.
    Icmp { kind: u8, code: u8, mtu: u32, offender: Option<IpAddr> },
}
