//! Signals that end the daemon. They arrive as bytes in a pipe, which the loop polls like any
//! other descriptor on every system.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// A descriptor that becomes readable with SIGTERM, SIGINT or SIGHUP; the last only if
/// it was not ignored before.
pub fn termination() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        if signal != SIGHUP || !is_ignored(signal) {
            pipe::register(signal, write.try_clone()?)?;
        }
    }
    Ok(read)
}

/// Makes this process one of its own: no terminal's signals reach it, and none is blocked because
/// it was for whoever started it.
pub fn leave_caller() {
    // Who leads a group already is in nobody's way.
    let _ = rustix::process::setsid();
    // SAFETY: the set is initialised by the first call, and lives through the second.
    unsafe {
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Whether the process was started with a signal ignored, as nohup(1) does.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: a `sigaction` of zeros is valid, and with a null pointer as the new one the call
    // only writes the present one to where the last argument points.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Whether a signal has come.
pub(crate) fn came(mut pipe: &UnixStream) -> bool {
    let mut buf = [0; 16];
    matches!(pipe.read(&mut buf), Ok(n) if n > 0)
}
