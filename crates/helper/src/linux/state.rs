//! What the helper has to know from one run to the next, in files of root's below /run/lima: whose
//! each network is and what has to be undone. One run at a time, by a lock; the last one takes the
//! directory away again.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::doing;
use super::firewall::Chain;
use crate::args::{Bridge, Command, Network, PREFIX};

const DIR: &str = "/run/lima";

/// Says, by its content, whether the helper has made the directory.
const LOCK: &str = "vmlan-helper.lock";
const MADE: &str = "made\n";

/// A network's state is in a file of its bridge's name with this at the end.
const SUFFIX: &str = ".state";

/// At the end of the name of a file that is being written.
const NEW: &str = ".new";

/// The directory, locked.
#[derive(Debug)]
pub(super) struct Store {
    dir: OwnedFd,
    lock: File,
}

/// What is known of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// The user who has started it.
    pub(super) owner: u32,
    pub(super) network: Network,
    /// Chains of other firewalls that let the network's packets through.
    pub(super) chains: Vec<Chain>,
    /// The interface of a bridged network was down before.
    pub(super) was_down: bool,
}

impl Store {
    pub(super) fn open() -> Result<Self, String> {
        loop {
            let made = match rustix::fs::mkdir(DIR, Mode::from_raw_mode(0o755)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(e) => return Err(doing(format!("make {DIR}"))(e)),
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = match rustix::fs::open(DIR, flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                dir => dir.map_err(doing(format!("open {DIR}")))?,
            };
            check(&dir)?;
            if let Some(store) = Self::lock(dir, made)? {
                return Ok(store);
            }
        }
    }

    /// `None` if somebody has taken the directory away in the meantime.
    fn lock(dir: OwnedFd, made: bool) -> Result<Option<Self>, String> {
        let what = || format!("lock {DIR}/{LOCK}");
        // Programs that are run have it too: one that outlives this process is waited for.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW;
        let lock = match rustix::fs::openat(&dir, LOCK, flags, Mode::from_raw_mode(0o600)) {
            Err(Errno::NOENT) => return Ok(None),
            lock => lock.map_err(doing(what()))?,
        };
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(doing(what()))?;
        let same = match rustix::fs::statat(&dir, LOCK, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat.st_ino == rustix::fs::fstat(&lock).map_err(doing(what()))?.st_ino,
            Err(_) => false,
        };
        if !same {
            return Ok(None);
        }
        let mut lock = File::from(lock);
        if made {
            lock.write_all(MADE.as_bytes()).map_err(doing(what()))?;
        }
        let store = Self { dir, lock };
        store.sweep()?;
        Ok(Some(store))
    }

    /// Removes what one that was killed has not finished writing.
    fn sweep(&self) -> Result<(), String> {
        let is_half = |name: &&String| name.starts_with(PREFIX) && name.ends_with(NEW);
        self.names()?.iter().filter(is_half).try_for_each(|name| self.remove_text(name))
    }

    pub(super) fn read(&self, bridge: &Bridge) -> Result<Option<State>, String> {
        let name = format!("{}{SUFFIX}", bridge.as_str());
        let Some(text) = self.text(&name)? else { return Ok(None) };
        let state = State::parse(&text);
        state.map(Some).ok_or_else(|| {
            format!("{DIR}/{name} is not what vmlan-helper writes; remove it, and what it names")
        })
    }

    pub(super) fn write(&self, bridge: &Bridge, state: &State) -> Result<(), String> {
        self.write_text(&format!("{}{SUFFIX}", bridge.as_str()), &state.text())
    }

    pub(super) fn remove(&self, bridge: &Bridge) -> Result<(), String> {
        self.remove_text(&format!("{}{SUFFIX}", bridge.as_str()))
    }

    /// The networks that there are.
    pub(super) fn networks(&self) -> Result<Vec<Network>, String> {
        let names = self.names()?;
        let bridges = names.iter().filter_map(|name| name.strip_suffix(SUFFIX));
        let bridges = bridges.filter_map(|name| Bridge::parse(name).ok());
        let states = bridges.map(|bridge| self.read(&bridge));
        states.filter_map(|state| Some(state.transpose()?.map(|s| s.network))).collect()
    }

    /// The text of a file, if there is one.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, String> {
        let what = || format!("read {DIR}/{name}");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            file => file.map_err(doing(what()))?,
        };
        let mut text = String::new();
        File::from(file).take(1 << 20).read_to_string(&mut text).map_err(doing(what()))?;
        Ok(Some(text))
    }

    /// Replaces a file whole.
    pub(super) fn write_text(&self, name: &str, text: &str) -> Result<(), String> {
        let what = || format!("write {DIR}/{name}");
        let new = format!("{name}{NEW}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o644);
        let file = rustix::fs::openat(&self.dir, &new, flags | OFlags::CLOEXEC, mode);
        File::from(file.map_err(doing(what()))?)
            .write_all(text.as_bytes())
            .map_err(doing(what()))?;
        rustix::fs::renameat(&self.dir, &new, &self.dir, name).map_err(doing(what()))
    }

    pub(super) fn remove_text(&self, name: &str) -> Result<(), String> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(doing(format!("remove {DIR}/{name}"))(e)),
        }
    }

    fn names(&self) -> Result<Vec<String>, String> {
        let what = || format!("list {DIR}");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // A descriptor of its own, which begins at the beginning.
        let dir =
            rustix::fs::openat(&self.dir, ".", flags, Mode::empty()).map_err(doing(what()))?;
        let mut buffer = Vec::with_capacity(8192);
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let name = entry.map_err(doing(what()))?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Whether nothing of the helper's is left but the lock.
    fn is_unused(&self) -> bool {
        let ours = |name: &String| name.starts_with(PREFIX) && name != LOCK;
        self.names().is_ok_and(|names| !names.iter().any(ours))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !self.is_unused() {
            return;
        }
        let made = self.text(LOCK).is_ok_and(|text| text.as_deref() == Some(MADE));
        // Others' files may be there, and keep the directory.
        let _ = rustix::fs::unlinkat(&self.dir, LOCK, AtFlags::empty());
        if made && rustix::fs::unlinkat(CWD, DIR, AtFlags::REMOVEDIR).is_err() {
            let _ = self.write_text(LOCK, MADE);
        }
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

/// Nobody but root may be able to put anything there.
fn check(dir: impl AsFd) -> Result<(), String> {
    let stat = rustix::fs::fstat(dir).map_err(doing(format!("look at {DIR}")))?;
    if stat.st_uid != 0 || !FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err(format!("{DIR} does not belong to root; remove it"));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(format!(
            "{DIR} can be written to by others than root; mend it with: sudo chmod go-w {DIR}"
        ));
    }
    Ok(())
}

impl State {
    fn text(&self) -> String {
        let mut text = format!("owner {}\nnetwork {}\n", self.owner, self.network);
        for chain in &self.chains {
            text.push_str(&format!("chain {chain}\n"));
        }
        if self.was_down {
            text.push_str("interface down\n");
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let (mut owner, mut network) = (None, None);
        let (mut chains, mut was_down) = (Vec::new(), false);
        for line in text.lines() {
            match line.split_once(' ')? {
                ("owner", value) => owner = Some(value.parse().ok()?),
                ("network", value) => {
                    // The name of the bridge is that of the file.
                    let line = format!("start --bridge=vmlan-0 {value}");
                    let args: Vec<_> = line.split(' ').map(str::to_owned).collect();
                    let Ok(Command::Start { network: read, .. }) = Command::parse(&args) else {
                        return None;
                    };
                    network = Some(read);
                }
                ("chain", value) => chains.push(Chain::parse(value)?),
                ("interface", "down") => was_down = true,
                _ => return None,
            }
        }
        Some(Self { owner: owner?, network: network?, chains, was_down })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let text = "owner 1000\nnetwork --mode=host --gateway=192.168.106.1/24 \
                    --gateway6=fd76:6d6c:c0a8:6a00::1/64\nchain ip filter FORWARD\n";
        let state = State::parse(text).unwrap();
        assert_eq!((state.owner, state.chains.len()), (1000, 1));
        assert_eq!(state.text(), text);
        let text = "owner 0\nnetwork --mode=bridged --interface=eth0\ninterface down\n";
        assert_eq!(State::parse(text).unwrap().text(), text);
        for wrong in ["", "owner 1\n", "owner x\nnetwork x\n", "else 1\n", "owner\n"] {
            assert_eq!(State::parse(wrong), None, "{wrong}");
        }
    }
}
