//! Signals that end the daemon. They arrive as bytes in a pipe, which the loop polls like any
//! other descriptor on every system.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// A descriptor that becomes readable with SIGTERM, SIGINT or SIGHUP.
pub(crate) fn termination() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// Whether a signal has come.
pub(crate) fn came(mut pipe: &UnixStream) -> bool {
    let mut buf = [0; 16];
    matches!(pipe.read(&mut buf), Ok(n) if n > 0)
}
