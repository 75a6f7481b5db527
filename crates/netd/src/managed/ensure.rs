//! One daemon for each network: started under a lock by whoever finds none, and ready when its
//! sockets answer.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmlan_config::NetworkPaths;

use crate::log::last_line;

/// Longest time from the first look to a daemon that answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a daemon that ends may stand in the way of its successor.
const SUCCESSION: Duration = Duration::from_secs(5);

const LOOK: Duration = Duration::from_millis(5);

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    #[error("cannot make `{}`: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot write to `{}`: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("`{}`: somebody else has been starting this network for {} s", path.display(),
            PATIENCE.as_secs())]
    Locked { path: PathBuf },
    #[error("`{}`: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("cannot start the network's daemon: {0}")]
    Start(io::Error),
    /// With what it said last.
    #[error("the network's daemon has not come up: {said}; see {}", log.display())]
    Ended { said: String, log: PathBuf },
}

/// A connection to the network's daemon, which is started by `command` if there is none. The lock
/// is the directory's own, so that nothing of it is left behind.
pub fn ensure(
    paths: &NetworkPaths,
    command: impl Fn() -> io::Result<Command>,
) -> Result<UnixStream, EnsureError> {
    reap();
    // Most often it is there, and nobody has to wait for anybody.
    if let Some(stream) = connect(&paths.fd)? {
        return Ok(stream);
    }
    let end = Instant::now() + PATIENCE;
    let _lock = lock_until(&paths.dir, end)?;
    let begun = Instant::now();
    let said = fs::metadata(&paths.stderr).map_or(0, |log| log.len());
    let mut child: Option<Child> = None;
    loop {
        if let Some(stream) = connect(&paths.fd)? {
            STARTED.lock().unwrap_or_else(PoisonError::into_inner).extend(child);
            return Ok(stream);
        }
        let running = match &mut child {
            Some(child) => child.try_wait().map_err(EnsureError::Start)?.is_none(),
            None => false,
        };
        if !running {
            // The first may have met a daemon that was about to end.
            if child.is_some() && begun.elapsed() > SUCCESSION {
                return Err(why_ended(paths, said));
            }
            if child.is_some() {
                thread::sleep(Duration::from_millis(100));
            }
            child = Some(command().and_then(|mut c| c.spawn()).map_err(EnsureError::Start)?);
        }
        if Instant::now() > end {
            if let Some(mut child) = child {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
            return Err(why_ended(paths, said));
        }
        thread::sleep(LOOK);
    }
}

/// Daemons that this process has started, until their end has been seen.
static STARTED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// Sees which of the daemons that this process has started have ended, so that no zombie is left.
pub fn reap() {
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    // Of those that a process before a fork has started, nothing is heard here.
    started.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}

/// `None` while nobody listens.
fn connect(path: &Path) -> Result<Option<UnixStream>, EnsureError> {
    match UnixStream::connect(path) {
        Ok(stream) => Ok(Some(stream)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        Err(source) => Err(EnsureError::Connect { path: path.into(), source }),
    }
}

/// The right to start and end a network's processes, until the result is dropped.
pub fn lock(paths: &NetworkPaths) -> Result<File, EnsureError> {
    lock_until(&paths.dir, Instant::now() + PATIENCE)
}

fn lock_until(dir: &Path, end: Instant) -> Result<File, EnsureError> {
    let failed = |source| EnsureError::Directory { path: dir.into(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    let file = File::open(dir).map_err(failed)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(LOOK),
            Err(TryLockError::WouldBlock) => return Err(EnsureError::Locked { path: dir.into() }),
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
    }
}

/// Why the daemon has ended: what it has said since its log had this length, unless it could not
/// even say it.
pub fn why_ended(paths: &NetworkPaths, before: u64) -> EnsureError {
    if let Err(source) = try_write(&paths.dir) {
        return EnsureError::Write { path: paths.dir.clone(), source };
    }
    let text = fs::read_to_string(&paths.stderr).unwrap_or_default();
    let text = usize::try_from(before).ok().and_then(|before| text.get(before..)).unwrap_or(&text);
    let said = last_line(text).unwrap_or("it says nothing");
    let said = said.strip_prefix("vmlan: ").unwrap_or(said).to_owned();
    EnsureError::Ended { said, log: paths.stderr.clone() }
}

/// Finds out whether there is room for what a daemon writes.
fn try_write(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".try.{}", std::process::id()));
    let written = fs::write(&path, [0; 8192]);
    // It is not there if it could not be made.
    let _ = fs::remove_file(&path);
    written
}
