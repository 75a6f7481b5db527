//! Answers that wait to be taken, in one buffer that is used again and again.

use std::net::SocketAddr;

/// Answers and bytes of them that may wait; the owner takes them in every pass of his loop.
const MAX_ANSWERS: usize = 8192;
const MAX_BYTES: usize = 16 << 20;

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The network's own names.
    Static,
    HostsFile,
    /// The machine's own functions.
    Native,
    /// A nameserver.
    Upstream(SocketAddr),
    /// A nameserver, earlier.
    Cache,
    /// Nobody was asked.
    Resolver,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Static => f.write_str("static"),
            Self::HostsFile => f.write_str("hosts file"),
            Self::Native => f.write_str("native"),
            Self::Upstream(server) if server.port() == 53 => write!(f, "upstream {}", server.ip()),
            Self::Upstream(server) => write!(f, "upstream {server}"),
            Self::Cache => f.write_str("cache"),
            Self::Resolver => f.write_str("resolver"),
        }
    }
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a, T> {
    pub to: T,
    pub origin: Origin,
    pub message: &'a [u8],
}

/// Answers in the order in which they were found.
#[derive(Debug)]
pub struct Answers<T> {
    bytes: Vec<u8>,
    list: Vec<(T, Origin, usize)>,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self { bytes: Vec::new(), list: Vec::new() }
    }
}

impl<T: Copy> Answers<T> {
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Answer<'_, T>> {
        let mut start = 0;
        self.list.iter().map(move |&(to, origin, end)| {
            let message = self.bytes.get(start..end).unwrap_or_default();
            start = end;
            Answer { to, origin, message }
        })
    }

    pub fn clear(&mut self) {
        const KEPT: usize = 1 << 20;
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.list.clear();
    }

    /// Takes what `write` appends, if it says so. True if there is an answer.
    pub(crate) fn write(
        &mut self,
        to: T,
        origin: Origin,
        write: impl FnOnce(&mut Vec<u8>) -> bool,
    ) -> bool {
        let start = self.bytes.len();
        if !write(&mut self.bytes) {
            self.bytes.truncate(start);
            return false;
        }
        if self.list.len() >= MAX_ANSWERS || self.bytes.len() > MAX_BYTES {
            self.bytes.truncate(start);
        } else {
            self.list.push((to, origin, self.bytes.len()));
        }
        true
    }
}
