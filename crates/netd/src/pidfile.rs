//! The pid file: written when the daemon is ready and not before, complete or not at all, and
//! removed at the end. The process keeps a lock on it, so that a number that was left behind and is
//! somebody else's by now is no process of ours.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, getpid};

/// Why there can be no pid file.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    #[error("{}: process {pid} is running", path.display())]
    Running { path: PathBuf, pid: i32 },
    #[error("{}: there is something that is not a pid file", .0.display())]
    NotOurs(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A written pid file. Dropping it removes the file, if it still names this process.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    _lock: File,
}

impl PidFile {
    /// Sees whether a pid file may be written: the process in an existing one must be gone.
    pub fn check(path: &Path) -> Result<(), PidFileError> {
        match Self::holder(path)? {
            Some(pid) => {
                Err(PidFileError::Running { path: path.into(), pid: pid.as_raw_nonzero().get() })
            }
            None => Ok(()),
        }
    }

    /// The running process whose pid file this is.
    pub fn holder(path: &Path) -> Result<Option<Pid>, PidFileError> {
        let Some((file, pid)) = read(path)? else { return Ok(None) };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(pid),
            Err(TryLockError::Error(source)) => Err(PidFileError::Io { path: path.into(), source }),
        }
    }

    /// Waits until the process whose pid file this is has ended; at once if there is none.
    pub fn await_end(path: &Path) -> Result<(), PidFileError> {
        let Some((file, _)) = read(path)? else { return Ok(()) };
        file.lock_shared().map_err(|source| PidFileError::Io { path: path.into(), source })
    }

    /// Writes this process's number to `path`.
    pub fn write(path: &Path) -> Result<Self, PidFileError> {
        let failed = |source| PidFileError::Io { path: path.into(), source };
        Self::check(path)?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", getpid().as_raw_nonzero()));
        let written = File::create(&temporary).and_then(|mut file| {
            writeln!(file, "{}", getpid().as_raw_nonzero())?;
            file.lock()?;
            fs::rename(&temporary, path)?;
            Ok(file)
        });
        match written {
            Ok(lock) => Ok(Self { path: path.into(), _lock: lock }),
            Err(error) => {
                // The first error is the one to tell.
                let _ = fs::remove_file(&temporary);
                Err(failed(error))
            }
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if matches!(read(&self.path), Ok(Some((_, pid))) if pid == Some(getpid())) {
            // Nothing can be done about a failure while everything ends.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// An existing file and the number in it; an empty one has none.
fn read(path: &Path) -> Result<Option<(File, Option<Pid>)>, PidFileError> {
    let mut text = String::new();
    let opened = File::open(path).and_then(|mut file| {
        file.read_to_string(&mut text)?;
        Ok(file)
    });
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(PidFileError::NotOurs(path.into()));
        }
        Err(source) => return Err(PidFileError::Io { path: path.into(), source }),
    };
    let text = text.trim();
    if text.is_empty() {
        return Ok(Some((file, None)));
    }
    match text.parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw) {
        Some(pid) => Ok(Some((file, Some(pid)))),
        None => Err(PidFileError::NotOurs(path.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let file = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_running_process_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let _file = PidFile::write(&path).unwrap();
        let error = PidFile::write(&path).unwrap_err().to_string();
        assert!(error.ends_with(&format!("process {} is running", std::process::id())), "{error}");
        assert_eq!(PidFile::holder(&path).unwrap(), Some(getpid()));
    }

    #[test]
    fn a_number_that_is_somebody_elses_by_now_is_replaced_and_a_strange_file_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "1\n").unwrap();
        assert_eq!(PidFile::holder(&path).unwrap(), None);
        PidFile::await_end(&path).unwrap();
        drop(PidFile::write(&path).unwrap());
        for strange in ["precious", "-1", "0", "12 13"] {
            fs::write(&path, strange).unwrap();
            assert!(matches!(PidFile::write(&path), Err(PidFileError::NotOurs(_))));
            assert_eq!(fs::read_to_string(&path).unwrap(), strange);
        }
    }

    #[test]
    fn a_file_taken_over_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let file = PidFile::write(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert!(path.exists());
    }
}
