//! Programs that may not come to their end.

use std::io;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

/// How a program has ended; `None` if it has not within this time. What then becomes of it is the
/// caller's to say.
pub fn ended_within(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + patience;
    loop {
        match child.try_wait()? {
            None if Instant::now() < end => thread::sleep(Duration::from_millis(5)),
            ended => return Ok(ended),
        }
    }
}
