//! Disk images: files of this machine as they are, others downloaded once for all machines made from
//! them.
//!
//! What is in the cache never changes: a file there is named by the digest of its content, and is
//! there whole or not at all. Beside it stand, named by the digest of a location, the record of what
//! was loaded from there and, after a download that ended early, the part that is there already.

mod download;
mod store;
mod unpack;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub use vmlan_config::instance::{Digest, Remote};

use self::store::Entry;
use self::unpack::Packing;

/// How much of a file is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    /// If the server said so.
    pub total: Option<u64>,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "the disk with {dir} is full: {done} bytes of {location} were there. Make room, or let XDG_CACHE_HOME name a directory on another disk",
        dir = dir.display()
    )]
    Full { dir: PathBuf, location: String, done: u64 },
    #[error(
        "`{0}` is neither the path of a file nor a URL that begins with https://, http:// or file://"
    )]
    Location(String),
    #[error("{url}: the server answers with status {status}")]
    Status { url: String, status: u16 },
    #[error("cannot load {url}: {source}")]
    Connect { url: String, source: Box<ureq::Error> },
    #[error(
        "loading {url} ended at byte {done}: {source}. What is there is kept: the next try goes on from it"
    )]
    Cut { url: String, done: u64, source: io::Error },
    #[error(
        "{location} is damaged or another file: its digest is {got}, and {expected} is expected"
    )]
    Digest { location: String, expected: String, got: String },
    #[error("{location} is damaged: it cannot be unpacked: {source}")]
    Unpack { location: String, source: io::Error },
    #[error("{url} is longer than {limit} bytes, or no text")]
    Text { url: String, limit: u64 },
}

/// A directory with images.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where images are kept unless told otherwise: `vmlan/images` where the platform has its caches.
    pub fn place(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
        let absolute = |path: &PathBuf| path.is_absolute();
        let home = var("HOME").filter(absolute);
        let of_home = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        let caches = var("XDG_CACHE_HOME").filter(absolute);
        Some(caches.or_else(|| Some(home?.join(of_home)))?.join("vmlan/images"))
    }

    /// The file with an image, loaded and unpacked if need be, whose digest is as expected. Two that
    /// want the same at once load it once. Without an expected digest the server is asked whether
    /// the file has changed; if it cannot be asked, what was loaded last is good enough.
    pub fn fetch(
        &self,
        of: &Remote,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, ImageError> {
        match Place::of(&of.location)? {
            Place::File(path) => self.local(&path, of.digest.as_ref(), progress),
            Place::Url(url) => self.remote(url, of.digest.as_ref(), progress),
        }
    }

    fn local(
        &self,
        path: &Path,
        digest: Option<&Digest>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, ImageError> {
        let read = |source| ImageError::Read { path: path.into(), source };
        let path = path.canonicalize().map_err(read)?;
        let meta = path.metadata().map_err(read)?;
        if meta.is_dir() {
            return Err(read(io::ErrorKind::IsADirectory.into()));
        }
        let location = path.display().to_string();
        if let Some(digest) = digest {
            check(&location, digest, &store::digests(&path)?)?;
        }
        let Some(packing) = Packing::of(&location) else { return Ok(path) };
        let entry = Entry::lock(&self.dir, &location, progress)?;
        let modified =
            meta.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let version = format!("{} {:?}", meta.len(), modified);
        if let Some(record) =
            entry.whole().filter(|record| record.validator.as_ref() == Some(&version))
        {
            return Ok(entry.content(&record));
        }
        let unpacked = packing.unpack(&path, &entry.unpacked(), &location)?;
        entry.keep(&unpacked, &location, Some(version), Vec::new())
    }

    fn remote(
        &self,
        url: &str,
        digest: Option<&Digest>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, ImageError> {
        let entry = Entry::lock(&self.dir, url, progress)?;
        if let Some(record) = entry.whole() {
            let good = match digest {
                Some(digest) => record.digests.contains(&digest.to_string()),
                None => !download::has_changed(url, record.validator.as_deref()),
            };
            if good {
                return Ok(entry.content(&record));
            }
        }
        let (validator, digests) = loop {
            let loaded = download::load(url, &entry, digest.is_some(), progress)?;
            let digests = store::digests(&entry.part())?;
            match digest.map_or(Ok(()), |digest| check(url, digest, &digests)) {
                Ok(()) => break (loaded.validator, digests),
                Err(e) => {
                    entry.forget_part();
                    // The parts may have been those of different files.
                    if !loaded.joined {
                        return Err(e);
                    }
                }
            }
        };
        let file = match Packing::of(url) {
            None => entry.part(),
            Some(packing) => {
                let unpacked = packing.unpack(&entry.part(), &entry.unpacked(), url);
                // Packed or damaged, it is of no use any more.
                entry.forget_part();
                unpacked?
            }
        };
        entry.keep(&file, url, validator, digests)
    }
}

/// A text from a server, at most `limit` bytes.
pub fn fetch_text(url: &str, limit: u64) -> Result<String, ImageError> {
    match Place::of(url)? {
        Place::Url(url) => download::text(url, limit),
        Place::File(_) => Err(ImageError::Location(url.into())),
    }
}

/// Whether a location is one that [`fetch_text`] takes.
pub fn is_url(location: &str) -> bool {
    matches!(Place::of(location), Ok(Place::Url(_)))
}

/// What a location means.
enum Place<'a> {
    File(PathBuf),
    Url(&'a str),
}

impl<'a> Place<'a> {
    fn of(location: &'a str) -> Result<Self, ImageError> {
        let other = || ImageError::Location(location.into());
        match location.split_once("://") {
            Some(("http" | "https", rest)) if !rest.is_empty() => Ok(Self::Url(location)),
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(path.into())),
            Some(_) => Err(other()),
            None if location.is_empty() => Err(other()),
            None => match (location.strip_prefix("~/"), std::env::home_dir()) {
                (Some(rest), Some(home)) => Ok(Self::File(home.join(rest))),
                _ => Ok(Self::File(location.into())),
            },
        }
    }
}

fn check(location: &str, expected: &Digest, digests: &[String]) -> Result<(), ImageError> {
    let expected = expected.to_string();
    if digests.contains(&expected) {
        return Ok(());
    }
    let kind = expected.split(':').next().unwrap_or_default();
    let got = digests.iter().find(|digest| digest.starts_with(kind)).cloned().unwrap_or_default();
    Err(ImageError::Digest { location: location.into(), expected, got })
}

/// What came of writing to a file in the cache. When there is no room, what is there already goes:
/// nobody is helped by a full disk.
fn written<T>(
    result: io::Result<T>,
    path: &Path,
    file: &File,
    location: &str,
) -> Result<T, ImageError> {
    result.map_err(|source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            let done = file.metadata().map_or(0, |meta| meta.len());
            let _ = fs::remove_file(path);
            let dir = path.parent().unwrap_or(path).into();
            ImageError::Full { dir, location: location.into(), done }
        }
        _ => ImageError::Write { path: path.into(), source },
    })
}

#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;
