//! The end of a process that somebody else started, known by its pid file.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::{PidFile, PidFileError};

/// How long a process may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);

const LOOK: Duration = Duration::from_millis(5);

/// Ends the process whose pid file this is, and waits until it is gone. False if there is none.
pub fn end(pidfile: &Path) -> Result<bool, PidFileError> {
    let Some(pid) = PidFile::holder(pidfile)? else { return Ok(false) };
    // It may have ended by itself.
    let _ = kill_process(pid, Signal::TERM);
    let patience = Instant::now() + PATIENCE;
    while PidFile::holder(pidfile)? == Some(pid) {
        if Instant::now() > patience {
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(LOOK);
    }
    Ok(true)
}
