//! What the network is kept for while no guest is on it, in a file: so that a daemon that was killed
//! has a successor that does the same. Without a wish there is no file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wishes {
    /// Somebody wants the network to be there.
    #[serde(default)]
    pub(crate) held: bool,
    /// Ports of the tunnels that somebody has opened.
    #[serde(default)]
    pub(crate) tunnels: Vec<u16>,
}

#[derive(Debug)]
pub(crate) struct WishFile {
    path: PathBuf,
    saved: Wishes,
}

impl WishFile {
    /// The wishes in the file at `path`, if there is one. One that says nothing sensible is told of
    /// and will be replaced.
    pub(crate) fn load(path: &Path) -> io::Result<Self> {
        let saved = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                eprintln!("vmlan: {}: {error}; there are no tunnels", path.display());
                Wishes::default()
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Wishes::default(),
            Err(e) => return Err(e),
        };
        Ok(Self { path: path.into(), saved })
    }

    pub(crate) fn wishes(&self) -> &Wishes {
        &self.saved
    }

    /// Saves what has changed: a few bytes, at somebody's command.
    pub(crate) fn update(&mut self, wishes: Wishes) {
        if wishes == self.saved {
            return;
        }
        if let Err(error) = self.save(&wishes) {
            eprintln!("vmlan: tunnels are not saved: {}: {error}", self.path.display());
        }
        self.saved = wishes;
    }

    fn save(&self, wishes: &Wishes) -> io::Result<()> {
        if *wishes == Wishes::default() {
            return match fs::remove_file(&self.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        }
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".new");
        fs::write(&temporary, serde_json::to_vec(wishes)?)?;
        fs::rename(&temporary, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_outlive_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wishes.json");
        let mut file = WishFile::load(&path).unwrap();
        assert_eq!(*file.wishes(), Wishes::default());
        let wishes = Wishes { held: true, tunnels: vec![1080] };
        file.update(wishes.clone());
        assert_eq!(*WishFile::load(&path).unwrap().wishes(), wishes);
        file.update(Wishes::default());
        assert!(!path.exists());
        fs::write(&path, "{").unwrap();
        assert_eq!(*WishFile::load(&path).unwrap().wishes(), Wishes::default());
        fs::write(&path, "{\"tunnels\":[7]}").unwrap();
        assert_eq!(WishFile::load(&path).unwrap().wishes().tunnels, [7]);
    }
}
