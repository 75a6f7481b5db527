//! The process that `vmlan network start` and `vmlan tunnel` leave behind: it brings up the network's
//! daemon again when that one dies, as long as the network is wished for without a guest. With a
//! guest there, the guest does the same.

use std::thread;
use std::time::{Duration, Instant};

use vmlan_config::NetworkPaths;
use vmlan_netd::{PidFile, PidFileError, managed};

use super::daemon::Daemon;
use crate::{Failure, tell};

/// Bring up a network's daemon again whenever it dies.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    name: String,
}

/// Longest time until the process watches.
const PATIENCE: Duration = Duration::from_secs(10);

/// Times between attempts, of which each doubles the next.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// A daemon that lived longer than this was well.
const WELL: Duration = Duration::from_secs(5);

/// Starts the process unless there is one.
pub(crate) fn start(daemon: &Daemon, name: &str) -> Result<(), String> {
    let pidfile = &daemon.paths.watcher;
    let is_there = || PidFile::holder(pidfile).map(|pid| pid.is_some()).map_err(|e| e.to_string());
    if is_there()? {
        return Ok(());
    }
    let command = daemon.background().map_err(|e| e.to_string());
    let mut child = command?.args(["network", "watch", name]).spawn().map_err(|e| e.to_string())?;
    let end = Instant::now() + PATIENCE;
    while !is_there()? {
        // It gives way to another one.
        let gone = child.try_wait().map_err(|e| e.to_string())?.is_some();
        if (gone && !is_there()?) || Instant::now() > end {
            let log = daemon.paths.stderr.display();
            return Err(format!("cannot watch the network's daemon; see {log}"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Ends the process if there is one.
pub(super) fn end(paths: &NetworkPaths) -> Result<(), String> {
    if !paths.watcher.exists() {
        return Ok(());
    }
    managed::end(&paths.watcher).map_err(|e| e.to_string())?;
    let _lock = managed::lock(paths).map_err(|e| e.to_string())?;
    if PidFile::holder(&paths.watcher).is_ok_and(|pid| pid.is_none()) {
        // It may be gone by itself.
        let _ = std::fs::remove_file(&paths.watcher);
    }
    Ok(())
}

pub(super) fn run(args: &Args) -> Result<String, Failure> {
    vmlan_netd::leave_caller();
    let (home, file) = super::load()?;
    let daemon = Daemon::of(&home, super::find(&file, &args.name)?).map_err(Failure::Failed)?;
    let failed = |e: PidFileError| Failure::Failed(e.to_string());
    let lock = managed::lock(&daemon.paths).map_err(|e| Failure::Failed(e.to_string()))?;
    let _pidfile = PidFile::write(&daemon.paths.watcher).map_err(failed)?;
    drop(lock);
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = Instant::now();
        PidFile::await_end(&daemon.paths.pidfile).map_err(failed)?;
        if !daemon.is_configured() || !daemon.paths.wishes.exists() {
            return Ok(String::new());
        }
        pause = if begun.elapsed() > WELL { FIRST_PAUSE } else { (pause * 2).min(LAST_PAUSE) };
        match daemon.ensure() {
            Ok(_) => {}
            Err(why) => tell(&why.to_string()),
        }
        // Until it has written its pid file, or before it is tried again.
        thread::sleep(pause);
        managed::reap();
    }
}
