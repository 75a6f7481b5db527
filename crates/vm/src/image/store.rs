//! The files of the cache that belong to one location.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

use super::{ImageError, Progress};

/// What is known about a location, locked for as long as this lives.
pub(super) struct Entry {
    dir: PathBuf,
    key: String,
    lock: File,
}

/// What was loaded from a location.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// What the server, or the file system, tells versions of the file apart by.
    pub(super) validator: Option<String>,
    /// Those of the file as it was loaded.
    pub(super) digests: Vec<String>,
    /// The digest of what is in the cache: the same, unpacked.
    content: String,
}

impl Entry {
    /// Waits until nobody else loads from this location; how far that is, is progress too.
    pub(super) fn lock(
        dir: &Path,
        location: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, ImageError> {
        let write = |source| ImageError::Write { path: dir.into(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(write)?;
        let key: String = hex(&Sha256::digest(location)).chars().take(32).collect();
        let path = dir.join(format!("{key}.lock"));
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(write)?;
        let entry = Self { dir: dir.into(), key, lock };
        loop {
            match entry.lock.try_lock() {
                Ok(()) => return Ok(entry),
                Err(TryLockError::Error(source)) => return Err(write(source)),
                Err(TryLockError::WouldBlock) => {
                    let done = entry.part().metadata().map_or(0, |meta| meta.len());
                    progress(Progress { done, total: None });
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }

    /// What was loaded from here, if it is there still and as it was.
    pub(super) fn whole(&self) -> Option<Record> {
        let record = Record::read(&self.file("json"))?;
        let digests = digests(&self.content(&record)).ok()?;
        digests.contains(&format!("sha256:{}", record.content)).then_some(record)
    }

    /// The file that a record is about.
    pub(super) fn content(&self, record: &Record) -> PathBuf {
        self.dir.join(format!("sha256-{}", record.content))
    }

    /// What is loaded so far.
    pub(super) fn part(&self) -> PathBuf {
        self.file("part")
    }

    /// The validator of the file of which there is a part.
    pub(super) fn part_validator(&self) -> Option<String> {
        fs::read_to_string(self.file("part.validator")).ok()
    }

    /// Begins a part anew: of a file with this validator, and yet empty.
    pub(super) fn begin_part(&self, validator: Option<&str>) -> Result<(), ImageError> {
        self.forget_part();
        let path = self.file("part.validator");
        let result = validator.map_or(Ok(()), |validator| fs::write(&path, validator));
        result.map_err(|source| ImageError::Write { path, source })
    }

    pub(super) fn forget_part(&self) {
        let _ = fs::remove_file(self.file("part.validator"));
        let _ = fs::remove_file(self.part());
    }

    /// Where a file is unpacked to.
    pub(super) fn unpacked(&self) -> PathBuf {
        self.file("unpacked")
    }

    /// Keeps `file`, which is in this directory, as what was loaded from here.
    pub(super) fn keep(
        &self,
        file: &Path,
        location: &str,
        validator: Option<String>,
        loaded: Vec<String>,
    ) -> Result<PathBuf, ImageError> {
        let own = if file == self.part() { loaded.clone() } else { digests(file)? };
        let content = own.iter().find_map(|digest| digest.strip_prefix("sha256:"));
        let content = content.unwrap_or_default().to_owned();
        let record = Record { validator, digests: loaded, content };
        let path = self.content(&record);
        let kept = fs::set_permissions(file, Permissions::from_mode(0o444))
            .and_then(|()| fs::rename(file, &path))
            .and_then(|()| self.remember(&record, location));
        kept.map_err(|source| ImageError::Write { path: path.clone(), source })?;
        self.forget_part();
        Ok(path)
    }

    /// Writes the record, and lets go of the content that the old one was about. A machine that was
    /// made from it has a link of its own.
    fn remember(&self, record: &Record, location: &str) -> io::Result<()> {
        let path = self.file("json");
        let old = Record::read(&path);
        let text = json!({
            "location": location,
            "validator": record.validator,
            "digests": record.digests,
            "content": record.content,
        });
        let new = self.file("json.new");
        fs::write(&new, format!("{text:#}\n"))?;
        fs::rename(&new, &path)?;
        let Some(old) = old.filter(|old| old.content != record.content) else { return Ok(()) };
        let mut others = fs::read_dir(&self.dir)?.filter_map(Result::ok).map(|file| file.path());
        let json = |path: &PathBuf| path.extension().is_some_and(|name| name == "json");
        let same = |path: PathBuf| Record::read(&path).is_some_and(|r| r.content == old.content);
        if !others.by_ref().filter(json).any(same) {
            let _ = fs::remove_file(self.content(&old));
        }
        Ok(())
    }

    fn file(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{}.{what}", self.key))
    }
}

impl Record {
    fn read(path: &Path) -> Option<Self> {
        let read: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let content = read["content"].as_str()?;
        // It becomes the name of a file.
        let named = content.len() == 64 && content.bytes().all(|b| b.is_ascii_hexdigit());
        let digests = read["digests"].as_array()?.iter().filter_map(Value::as_str);
        named.then(|| Self {
            validator: read["validator"].as_str().map(Into::into),
            digests: digests.map(Into::into).collect(),
            content: content.into(),
        })
    }
}

/// All digests of a file that vmlan knows, as they are written in `lima.yaml`.
pub(super) fn digests(path: &Path) -> Result<Vec<String>, ImageError> {
    let read = |source| ImageError::Read { path: path.into(), source };
    let mut file = File::open(path).map_err(read)?;
    let (mut sha256, mut sha512) = (Sha256::new(), Sha512::new());
    let mut buffer = vec![0; 1 << 18];
    loop {
        let n = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(read(e)),
        };
        sha256.update(&buffer[..n]);
        sha512.update(&buffer[..n]);
    }
    let sha256 = format!("sha256:{}", hex(&sha256.finalize()));
    Ok(vec![sha256, format!("sha512:{}", hex(&sha512.finalize()))])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
