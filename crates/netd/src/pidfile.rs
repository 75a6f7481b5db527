//! The pid file: written when the daemon is ready and not before, complete or not at all, and
//! removed at the end.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, getpid, test_kill_process};

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
}

impl PidFile {
    /// Sees whether a pid file may be written: the process in an existing one must be gone.
    pub fn check(path: &Path) -> Result<(), PidFileError> {
        match read(path)? {
            Some(pid) if is_alive(pid) => {
                Err(PidFileError::Running { path: path.into(), pid: pid.as_raw_nonzero().get() })
            }
            _ => Ok(()),
        }
    }

    /// Writes this process's number to `path`.
    pub fn write(path: &Path) -> Result<Self, PidFileError> {
        let failed = |source| PidFileError::Io { path: path.into(), source };
        Self::check(path)?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", getpid().as_raw_nonzero()));
        let written = fs::File::create(&temporary).and_then(|mut file| {
            writeln!(file, "{}", getpid().as_raw_nonzero())?;
            fs::rename(&temporary, path)
        });
        if let Err(error) = written {
            // The first error is the one to tell.
            let _ = fs::remove_file(&temporary);
            return Err(failed(error));
        }
        Ok(Self { path: path.into() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if read(&self.path).is_ok_and(|pid| pid == Some(getpid())) {
            // Nothing can be done about a failure while everything ends.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn read(path: &Path) -> Result<Option<Pid>, PidFileError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(PidFileError::NotOurs(path.into()));
        }
        Err(source) => return Err(PidFileError::Io { path: path.into(), source }),
    };
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw) {
        Some(pid) => Ok(Some(pid)),
        None => Err(PidFileError::NotOurs(path.into())),
    }
}

fn is_alive(pid: Pid) -> bool {
    pid != getpid() && test_kill_process(pid) != Err(Errno::SRCH) && !is_zombie(pid)
}

/// Whether the process has ended and only its parent has not noticed; not known without /proc.
fn is_zombie(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    // The state follows the name, which may have any character in it.
    stat.is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
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
        fs::write(&path, "1\n").unwrap();
        let error = PidFile::write(&path).unwrap_err().to_string();
        assert!(error.ends_with("process 1 is running"), "{error}");
    }

    #[test]
    fn a_stale_file_is_replaced_and_a_strange_one_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        fs::write(&path, format!("{}\n", child.id())).unwrap();
        drop(PidFile::write(&path).unwrap());
        for strange in ["precious", "-1", "0", "12 13"] {
            fs::write(&path, strange).unwrap();
            assert!(matches!(PidFile::write(&path), Err(PidFileError::NotOurs(_))));
            assert_eq!(fs::read_to_string(&path).unwrap(), strange);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_that_nobody_has_waited_for_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        fs::write(&path, format!("{}\n", child.id())).unwrap();
        assert!(matches!(PidFile::check(&path), Err(PidFileError::Running { .. })));
        drop(child.stdin.take());
        let pid = Pid::from_child(&child);
        let options =
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
        PidFile::check(&path).unwrap();
        child.wait().unwrap();
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
