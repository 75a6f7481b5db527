//! `networks.yaml` on the disk: made with the default the first time, read, and replaced whole.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::edit::{self, EditError};
use crate::home::LimaHome;
use crate::networks::{Network, Networks};
use crate::platform::Platform;
use crate::source::{Report, Source};
use crate::template::default_networks;

/// Why `networks.yaml` cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("could not create `{}` directory: {source}; LIMA_HOME names another place", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("could not create `{}`: {source}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("could not read `{}`: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("could not replace `{}`: {source}", path.display())]
    Replace { path: PathBuf, source: io::Error },
    /// What it says is wrong.
    #[error("{0}")]
    Report(Box<Report>),
    #[error("could not change `{}`: {source}", path.display())]
    Edit { path: PathBuf, source: EditError },
}

/// A `networks.yaml` that has been read.
#[derive(Clone, Debug)]
pub struct NetworksFile {
    pub networks: Networks,
    pub warnings: Option<Report>,
    path: PathBuf,
    text: String,
    platform: Platform,
}

/// The right to change `networks.yaml`, which one process has at a time.
#[derive(Debug)]
pub struct Locked {
    pub file: NetworksFile,
    /// The directory, whose lock this is: a lock file would be left behind.
    _lock: File,
}

impl NetworksFile {
    /// Reads the file of a home, which gets the default one if it has none.
    pub fn load(home: &LimaHome, platform: &Platform) -> Result<Self, FileError> {
        let path = home.networks_yaml();
        create(&path, platform)?;
        Self::read(path, platform)
    }

    /// Waits until nobody else changes the file, and reads it.
    pub fn lock(home: &LimaHome, platform: &Platform) -> Result<Locked, FileError> {
        let path = home.networks_yaml();
        create(&path, platform)?;
        let dir = parent(&path);
        let lock = File::open(dir).and_then(|dir| dir.lock().map(|()| dir));
        let lock = lock.map_err(|source| FileError::Read { path: dir.into(), source })?;
        Ok(Locked { file: Self::read(path, platform)?, _lock: lock })
    }

    fn read(path: PathBuf, platform: &Platform) -> Result<Self, FileError> {
        let text = fs::read_to_string(&path);
        let text = text.map_err(|source| FileError::Read { path: path.clone(), source })?;
        let source = Source::new(&path, text.as_str());
        let read = Networks::parse(&source, platform);
        let read = read.map_err(|report| FileError::Report(Box::new(report)))?;
        let platform = platform.clone();
        Ok(Self { networks: read.networks, warnings: read.warnings, path, text, platform })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a network is defined; `None` if it is built in.
    pub fn line_of(&self, network: &Network) -> Option<usize> {
        let source = Source::new(&self.path, self.text.as_str());
        network.span.map(|span| source.position(span.start).0)
    }
}

impl Locked {
    /// Adds a network to the file.
    pub fn add(&mut self, network: &Network) -> Result<(), FileError> {
        self.change(|text| edit::add(text, network))
    }

    /// Removes networks from the file, all or none of them.
    pub fn remove(&mut self, names: &[&str]) -> Result<(), FileError> {
        self.change(|text| {
            let mut names = names.iter();
            names.try_fold(text.to_owned(), |text, name| edit::remove(&text, name))
        })
    }

    fn change(
        &mut self,
        change: impl FnOnce(&str) -> Result<String, EditError>,
    ) -> Result<(), FileError> {
        let path = &self.file.path;
        let text = change(&self.file.text);
        let text = text.map_err(|source| FileError::Edit { path: path.clone(), source })?;
        // What would not be read must not be written.
        let source = Source::new(path, text.as_str());
        let read = Networks::parse(&source, &self.file.platform);
        let read = read.map_err(|report| FileError::Report(Box::new(report)))?;
        replace(path, &text).map_err(|source| FileError::Replace { path: path.clone(), source })?;
        self.file.networks = read.networks;
        self.file.text = text;
        Ok(())
    }
}

/// Writes the default unless there is a file.
fn create(path: &Path, platform: &Platform) -> Result<(), FileError> {
    // A dangling symbolic link is something as well: reading it will say so.
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let dir = parent(path);
    let made = fs::create_dir_all(dir);
    made.map_err(|source| FileError::Directory { path: dir.into(), source })?;
    let written = temporary(dir, &default_networks(platform), Permissions::from_mode(0o644))
        .and_then(|file| match file.persist_noclobber(path) {
            Ok(_) => sync(dir),
            // Somebody else was faster.
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e.error),
        });
    written.map_err(|source| FileError::Create { path: path.into(), source })
}

/// Replaces a file's text at once, so that a reader sees the old or the new one.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    // People keep their files elsewhere and link to them: the link stays.
    let path = fs::canonicalize(path)?;
    let dir = parent(&path);
    let file = temporary(dir, text, fs::metadata(&path)?.permissions())?;
    file.persist(&path).map_err(|e| e.error)?;
    sync(dir)
}

/// A file that is complete and on the disk before it gets its name.
fn temporary(dir: &Path, text: &str, mode: Permissions) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix(".networks.yaml.").tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(mode)?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::platform;

    fn home() -> (tempfile::TempDir, LimaHome) {
        let dir = tempfile::tempdir().unwrap();
        let home = LimaHome::new(&dir.path().join("lima")).unwrap();
        (dir, home)
    }

    fn lab() -> Network {
        let gateway = Some(("10.7.0.1".parse().unwrap(), 24));
        Network::new("lab", crate::Mode::UserV2, gateway, None).unwrap()
    }

    fn files(home: &LimaHome) -> Vec<String> {
        let entries = fs::read_dir(parent(&home.networks_yaml())).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn the_default_is_made_once() {
        let (_dir, home) = home();
        let path = home.networks_yaml();
        NetworksFile::load(&home, &platform()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), default_networks(&platform()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(files(&home), ["networks.yaml"]);
        fs::write(&path, "networks: {}\n").unwrap();
        NetworksFile::load(&home, &platform()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "networks: {}\n");
    }

    #[test]
    fn changes_keep_the_mode_and_a_link() {
        let (dir, home) = home();
        let path = home.networks_yaml();
        fs::create_dir_all(parent(&path)).unwrap();
        let real = dir.path().join("dotfile");
        fs::write(&real, "# mine\nnetworks: {}\n").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&real, &path).unwrap();
        let mut locked = NetworksFile::lock(&home, &platform()).unwrap();
        locked.add(&lab()).unwrap();
        assert!(locked.file.networks.get("lab").is_some());
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert!(fs::read_to_string(&real).unwrap().starts_with("# mine\nnetworks: {lab: "));
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
        locked.remove(&["lab"]).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "# mine\nnetworks: {}\n");
        assert_eq!(files(&home), ["networks.yaml"]);
    }

    #[test]
    fn of_several_networks_all_or_none_are_removed() {
        let (_dir, home) = home();
        let mut locked = NetworksFile::lock(&home, &platform()).unwrap();
        let before = fs::read_to_string(home.networks_yaml()).unwrap();
        let error = locked.remove(&["host", "none"]).unwrap_err().to_string();
        assert!(error.ends_with("`networks` has no `none`"), "{error}");
        assert_eq!(fs::read_to_string(home.networks_yaml()).unwrap(), before);
        locked.remove(&["host", "shared"]).unwrap();
        let left: Vec<_> = locked.file.networks.names().collect();
        assert_eq!(left, ["bridged", "user-v2"]);
    }

    #[test]
    fn writers_wait_for_each_other() {
        let (_dir, home) = home();
        let add = |i: u8| {
            let home = &home;
            move || {
                let gateway = Some((std::net::Ipv4Addr::new(10, i, 0, 1), 24));
                let name = format!("net{i}");
                let network = Network::new(&name, crate::Mode::Host, gateway, None).unwrap();
                NetworksFile::lock(home, &platform()).unwrap().add(&network).unwrap();
            }
        };
        std::thread::scope(|scope| {
            for i in 0..16 {
                scope.spawn(add(i));
            }
        });
        let file = NetworksFile::load(&home, &platform()).unwrap();
        assert_eq!(file.networks.names().filter(|name| name.starts_with("net")).count(), 16);
    }

    #[test]
    fn what_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let home = LimaHome::new(&dir.path().join("home")).unwrap();
        fs::write(home.path(), "").unwrap();
        let error = NetworksFile::load(&home, &platform()).unwrap_err().to_string();
        assert!(error.starts_with("could not create `") && error.contains("_config"), "{error}");
    }
}
