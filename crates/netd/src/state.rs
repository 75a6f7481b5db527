//! What somebody has asked of the daemon, in files: so that one that was killed has a successor that
//! does the same. Where nothing is asked for there is no file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmlan_api::network::Forward;
use vmlan_api::zone::Zone;

/// What the network is kept for while no guest is on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wishes {
    /// Somebody wants the network to be there.
    #[serde(default)]
    pub(crate) held: bool,
    /// Ports of the tunnels that somebody has opened.
    #[serde(default)]
    pub(crate) tunnels: Vec<u16>,
}

/// What clients of the control API have added while the network is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Additions {
    #[serde(default)]
    pub(crate) forwards: Vec<AddedForward>,
    #[serde(default)]
    pub(crate) zones: Vec<Zone>,
}

/// A forward, and what its [`crate::core::Label`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddedForward {
    #[serde(flatten)]
    pub(crate) forward: Forward,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) local: Option<String>,
    /// The card of the guest that it goes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mac: Option<String>,
}

/// A file that has the state of something, unless that is as it is by default.
#[derive(Debug)]
pub(crate) struct StateFile<T> {
    path: PathBuf,
    saved: T,
}

impl<T: Default + PartialEq + Serialize + DeserializeOwned> StateFile<T> {
    /// What is in the file at `path`, if there is one. One that says nothing sensible is told of and
    /// will be replaced.
    pub(crate) fn load(path: &Path) -> io::Result<Self> {
        let saved = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                eprintln!("vmlan: {}: {error}; what it said is lost", path.display());
                T::default()
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => T::default(),
            Err(e) => return Err(e),
        };
        Ok(Self { path: path.into(), saved })
    }

    pub(crate) fn saved(&self) -> &T {
        &self.saved
    }

    /// Saves what has changed: a few bytes, at somebody's command.
    pub(crate) fn update(&mut self, state: T) {
        if state == self.saved {
            return;
        }
        if let Err(error) = self.save(&state) {
            eprintln!("vmlan: {}: {error}; it is not saved", self.path.display());
        }
        self.saved = state;
    }

    fn save(&self, state: &T) -> io::Result<()> {
        if *state == T::default() {
            return match fs::remove_file(&self.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        }
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".new");
        let written = fs::write(&temporary, serde_json::to_vec(state)?);
        let written = written.and_then(|()| fs::rename(&temporary, &self.path));
        if written.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(path: &Path) -> StateFile<Wishes> {
        StateFile::load(path).unwrap()
    }

    #[test]
    fn wishes_outlive_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wishes.json");
        let mut file = load(&path);
        assert_eq!(*file.saved(), Wishes::default());
        let wishes = Wishes { held: true, tunnels: vec![1080] };
        file.update(wishes.clone());
        assert_eq!(*load(&path).saved(), wishes);
        file.update(Wishes::default());
        assert!(!path.exists());
        fs::write(&path, "{").unwrap();
        assert_eq!(*load(&path).saved(), Wishes::default());
        fs::write(&path, "{\"tunnels\":[7]}").unwrap();
        assert_eq!(load(&path).saved().tunnels, [7]);
    }

    #[test]
    fn additions_come_back_as_they_went() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("additions.json");
        let text = r#"{"forwards":[{"protocol":"tcp","listen":"127.0.0.1:80","target":"10.0.0.4:80",
            "keepSource":true,"local":":80","mac":"52:55:55:00:00:01"}],
            "zones":[{"Name":"test.","Records":null,"DefaultIP":"10.0.0.1"}]}"#;
        fs::write(&path, text).unwrap();
        let mut file: StateFile<Additions> = StateFile::load(&path).unwrap();
        let additions = file.saved().clone();
        assert_eq!((additions.forwards.len(), additions.zones.len()), (1, 1));
        file.update(Additions::default());
        assert!(!path.exists());
        file.update(additions.clone());
        assert_eq!(*StateFile::<Additions>::load(&path).unwrap().saved(), additions);
        // Where nothing can be written, nothing is left either.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        file.update(Additions { zones: Vec::new(), ..additions });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
