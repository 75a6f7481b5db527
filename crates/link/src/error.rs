//! Why links end.

use std::io;

/// Why a link has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The peer closed its end.
    #[error("the guest disconnected")]
    Eof,
    /// A length word that no frame can have. There is no way to find the next frame.
    #[error("the guest sent a frame of {0} bytes, which no link carries")]
    Framing(u32),
    /// The peer is nobody to work with.
    #[error("the guest was refused: {0}")]
    Refused(&'static str),
    /// The system reported an error.
    #[error("the link failed: {0}")]
    Failed(io::ErrorKind),
}

impl From<&io::Error> for CloseReason {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Eof,
            kind => Self::Failed(kind),
        }
    }
}
