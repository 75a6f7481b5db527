//! Leases in a file, so that guests keep their addresses when the daemon is restarted, even after
//! a kill -9. A thread of its own writes, because a disk may take its time; it starts with the
//! first change.
//!
//! Each line has an address, the MAC address that it belongs to, and until when in Unix time.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmlan_engine::{Engine, Instant, SavedLease};
use vmlan_wire::Mac;

/// Most of a file that is read; a full network of 65,536 addresses has less.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// Changes are saved no more often than this, however often guests make them.
const PAUSE: Duration = Duration::from_secs(1);

const STACK: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct LeaseFile {
    path: PathBuf,
    /// The engine's count of changes that the file has, or will have.
    saved: u64,
    next: Instant,
    writer: Option<Writer>,
}

#[derive(Debug)]
struct Writer {
    /// The newest text that is still to be written.
    text: Arc<Mutex<Option<String>>>,
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl LeaseFile {
    /// Gives the engine the leases in the file at `path`, if there is one.
    pub(crate) fn load(path: &Path, engine: &mut Engine, now: Instant) -> io::Result<Self> {
        let mut text = String::new();
        match File::open(path) {
            Ok(file) => {
                file.take(MAX_FILE).read_to_string(&mut text)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let unix = unix_now();
        for line in text.lines() {
            if let Some((lease, until)) = parse(line) {
                let until = now + until.saturating_sub(unix);
                engine.restore_lease(SavedLease { until, ..lease }, now);
            }
        }
        let saved = engine.lease_changes();
        Ok(Self { path: path.into(), saved, next: now, writer: None })
    }

    /// Saves the engine's leases if they have changed and it is time.
    pub(crate) fn update(&mut self, engine: &Engine, now: Instant) {
        if self.next_timeout(engine).is_some_and(|at| at <= now) {
            self.save(engine, now);
        }
    }

    /// When [`LeaseFile::update`] has to be called.
    pub(crate) fn next_timeout(&self, engine: &Engine) -> Option<Instant> {
        (engine.lease_changes() != self.saved).then_some(self.next)
    }

    /// Saves what has changed and waits until it is on the disk.
    pub(crate) fn finish(mut self, engine: &Engine, now: Instant) {
        if self.next_timeout(engine).is_some() {
            self.save(engine, now);
        }
        if let Some(Writer { wake, thread, .. }) = self.writer.take() {
            drop(wake);
            // It has told what went wrong.
            let _ = thread.join();
        }
    }

    fn save(&mut self, engine: &Engine, now: Instant) {
        self.saved = engine.lease_changes();
        self.next = now + PAUSE;
        let unix = unix_now();
        let lines = engine.saved_leases().into_iter().map(|l| line(&l, unix + l.until.since(now)));
        let text = lines.collect();
        if self.writer.is_none() {
            self.writer = Writer::start(self.path.clone()).ok();
        }
        if let Some(writer) = &self.writer {
            writer.put(text);
        }
    }
}

impl Writer {
    fn start(path: PathBuf) -> io::Result<Self> {
        let text = Arc::new(Mutex::new(None::<String>));
        let (wake, woken) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("leases".into()).stack_size(STACK);
        let newest = Arc::clone(&text);
        let thread = thread.spawn(move || {
            let mut failed = false;
            while woken.recv().is_ok() {
                let text = newest.lock().unwrap_or_else(PoisonError::into_inner).take();
                let Some(text) = text else { continue };
                let result = replace(&path, &text);
                if let Err(error) = &result
                    && !failed
                {
                    eprintln!("vmlan: leases are not saved: {}: {error}", path.display());
                }
                failed = result.is_err();
            }
        })?;
        Ok(Self { text, wake, thread })
    }

    fn put(&self, text: String) {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        // If it is full, the thread will still look.
        let _ = self.wake.try_send(());
    }
}

/// The new file is complete on the disk before it takes the old one's place.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn line(lease: &SavedLease, until: Duration) -> String {
    let mac = lease.mac.0.map(|byte| format!("{byte:02x}")).join(":");
    format!("{} {mac} {}\n", lease.ip, until.as_secs())
}

/// A lease and until when, in Unix time.
fn parse(line: &str) -> Option<(SavedLease, Duration)> {
    let mut words = line.split_whitespace();
    let ip = words.next()?.parse().ok()?;
    let mut mac = [0; 6];
    let mut bytes = words.next()?.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(bytes.next()?, 16).ok()?;
    }
    let until = Duration::from_secs(words.next()?.parse().ok()?);
    let lease = SavedLease { ip, mac: Mac(mac), until: Instant::ZERO };
    (bytes.next().is_none() && words.next().is_none()).then_some((lease, until))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine() -> Engine {
        let config = crate::network("192.168.5.0/24".parse().unwrap(), None).unwrap();
        Engine::new(config, Instant::ZERO)
    }

    #[test]
    fn lines_come_back_as_they_went() {
        let lease = SavedLease {
            ip: "fd76:6d6c:c0a8:500::15".parse().unwrap(),
            mac: Mac([0x52, 0x54, 0, 0xab, 1, 2]),
            until: Instant::ZERO,
        };
        let text = line(&lease, Duration::from_secs(1_800_000_000));
        assert_eq!(parse(&text), Some((lease, Duration::from_secs(1_800_000_000))));
        for bad in [
            "",
            "x",
            "192.168.5.15 52:54:00:00:00 9",
            "1.2.3.4 0:0:0:0:0:0:0 9",
            "1.2.3.4 0:0:0:0:0:0 9 9",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn leases_go_through_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        let later = unix_now() + Duration::from_secs(1000);
        let text = format!(
            "192.168.5.20 52:54:00:00:00:01 {}\nnonsense\n192.168.5.21 52:54:00:00:00:02 1\n",
            later.as_secs()
        );
        fs::write(&path, text).unwrap();
        let mut first = engine();
        let mut file = LeaseFile::load(&path, &mut first, Instant::ZERO).unwrap();
        let want: Vec<_> = vec!["192.168.5.20".parse::<std::net::IpAddr>().unwrap()];
        let addresses = |e: &Engine| e.saved_leases().iter().map(|l| l.ip).collect::<Vec<_>>();
        assert_eq!(addresses(&first), want);
        // Nothing has changed since, and so nothing is written.
        file.update(&first, Instant::ZERO);
        assert!(file.writer.is_none());
        file.saved = 0;
        file.finish(&first, Instant::ZERO);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
        let mut second = engine();
        LeaseFile::load(&path, &mut second, Instant::ZERO).unwrap();
        assert_eq!(addresses(&second), want);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
