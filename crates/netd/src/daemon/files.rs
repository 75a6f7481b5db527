//! What a daemon keeps in files, for itself after a restart and for the one that follows it if it is
//! killed.

use std::io;
use std::path::Path;

use super::Daemon;
use crate::DaemonError;
use crate::additions::AdditionsFile;
use crate::leases::LeaseFile;
use crate::returning::ReturningFile;
use crate::state::{StateFile, Wishes};

impl Daemon {
    /// Takes over the leases in the file at `path`, and keeps it up to date.
    pub fn keep_leases(&mut self, path: &Path) -> Result<(), DaemonError> {
        let now = self.core.clock.now();
        let file = LeaseFile::load(path, &mut self.core.engine, now);
        self.leases = Some(file.map_err(failed(path))?);
        Ok(())
    }

    /// Takes over what the file at `path` says of guests that were there when the daemon before this one
    /// was killed, for when they come back, and keeps it up to date. To be called after leases are
    /// taken over. With the network's end there is no file.
    pub fn keep_guests(&mut self, path: &Path) -> Result<(), DaemonError> {
        let now = self.core.clock.now();
        let file = ReturningFile::load(path, &mut self.core.engine, now);
        self.returning = Some(file.map_err(failed(path))?);
        Ok(())
    }

    /// Opens the tunnels that the file at `path` names, and keeps it up to date: what the network is
    /// kept for without a guest. A port that somebody else has by now is told of.
    pub fn keep_wishes(&mut self, path: &Path) -> Result<(), DaemonError> {
        let file = StateFile::<Wishes>::load(path).map_err(failed(path))?;
        self.core.held = file.saved().held;
        for port in &file.saved().tunnels {
            if let Err(why) = self.tunnels.open(*port) {
                eprintln!("vmlan: a tunnel is gone: {why}");
            }
        }
        self.wishes = Some(file);
        Ok(())
    }

    /// Does what the file at `path` says of the forwards and zones that clients of the control API had
    /// added to a daemon that was killed, and keeps it up to date. One that cannot be opened again
    /// is told of. With the network's end there is no file.
    pub fn keep_additions(&mut self, path: &Path) -> Result<(), DaemonError> {
        let file = StateFile::load(path).map_err(failed(path))?;
        self.additions = Some(AdditionsFile::new(file, &mut self.core));
        Ok(())
    }

    /// Brings the files up to date.
    pub(super) fn save(&mut self) {
        if let Some(leases) = &mut self.leases {
            leases.update(&self.core.engine, self.core.now());
        }
        if let Some(returning) = &mut self.returning {
            returning.update(&self.core.engine, self.core.now());
        }
        self.save_wishes();
        if let Some(additions) = &mut self.additions {
            additions.update(&mut self.core);
        }
    }

    fn save_wishes(&mut self) {
        let Some(file) = &mut self.wishes else { return };
        let now = (self.core.held, self.tunnels.changes());
        if self.wished != now {
            self.wished = now;
            file.update(Wishes { held: self.core.held, tunnels: self.tunnels.ports() });
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DaemonError {
    let path = path.into();
    move |source| DaemonError::File { path, source }
}
