//! A file that is read again when it has changed, replaced by another or led to another place by a
//! symbolic link.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// More than any file of the name service is long.
const MAX_FILE: u64 = 16 << 20;

#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    /// `None` before the first look.
    stamp: Option<Option<Stamp>>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
}

impl Watched {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.into(), stamp: None }
    }

    /// What the file says, if that has changed since the last call. A file that is not there says
    /// nothing.
    pub(crate) fn changed(&mut self) -> Option<String> {
        let stamp = Stamp::of(&self.path);
        if self.stamp == Some(stamp) {
            return None;
        }
        self.stamp = Some(stamp);
        let mut bytes = Vec::new();
        if stamp.is_some()
            && let Ok(file) = File::open(&self.path)
        {
            // What was read before a failure counts.
            let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
        }
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Stamp {
    /// `None` for what is no file: to open a pipe could take for ever.
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
            size: found.size(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_kind_of_change_is_seen_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let mut watched = Watched::new(&path);
        let mut changed = || watched.changed();
        assert_eq!(changed().as_deref(), Some(""));
        assert_eq!(changed(), None);
        fs::write(&path, "one").unwrap();
        assert_eq!(changed().as_deref(), Some("one"));
        assert_eq!(changed(), None);
        let other = dir.path().join("other");
        fs::write(&other, "two").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(changed().as_deref(), Some("two"));
        fs::write(&other, "six").unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        assert_eq!(changed().as_deref(), Some("six"));
        fs::remove_file(&other).unwrap();
        assert_eq!(changed().as_deref(), Some(""));
        assert_eq!(changed(), None);
    }
}
