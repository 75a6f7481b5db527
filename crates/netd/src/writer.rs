//! A file whose text changes now and then, and is never half of one. A thread of its own writes,
//! because a disk may take its time; it starts with the first change.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Most of a file that is read; a full network of 65,536 addresses has less.
const MAX_FILE: u64 = 8 * 1024 * 1024;

const STACK: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    /// What is told where it cannot be written.
    complaint: &'static str,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// The newest text that is still to be written.
    text: Arc<Mutex<Option<Vec<u8>>>>,
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
}

/// What is in the file at `path`; nothing if there is none.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Left by a daemon that was killed while it wrote.
    let _ = fs::remove_file(temporary(path));
    let mut text = Vec::new();
    match File::open(path) {
        Ok(file) => {
            file.take(MAX_FILE).read_to_end(&mut text)?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    Ok(text)
}

impl Writer {
    pub(crate) fn new(path: &Path, complaint: &'static str) -> Self {
        Self { path: path.into(), complaint, running: None }
    }

    /// Has a text take the place of the last. Where it is empty, there is no file.
    pub(crate) fn put(&mut self, text: Vec<u8>) {
        if self.running.is_none() {
            self.running = start(self.path.clone(), self.complaint).ok();
        }
        if let Some(running) = &self.running {
            *running.text.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
            // If it is full, the thread will still look.
            let _ = running.wake.try_send(());
        }
    }

    /// Waits until what was put is on the disk.
    pub(crate) fn finish(&mut self) {
        if let Some(Running { wake, thread, .. }) = self.running.take() {
            drop(wake);
            // It has told what went wrong.
            let _ = thread.join();
        }
    }
}

fn start(path: PathBuf, complaint: &'static str) -> io::Result<Running> {
    let text = Arc::new(Mutex::new(None::<Vec<u8>>));
    let (wake, woken) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("writer".into()).stack_size(STACK);
    let newest = Arc::clone(&text);
    let thread = thread.spawn(move || {
        let mut failed = false;
        while woken.recv().is_ok() {
            let text = newest.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(text) = text else { continue };
            let result = if text.is_empty() { remove(&path) } else { replace(&path, &text) };
            if let Err(error) = &result
                && !failed
            {
                eprintln!("vmlan: {complaint}: {}: {error}", path.display());
            }
            failed = result.is_err();
        }
    })?;
    Ok(Running { text, wake, thread })
}

/// The new file is complete on the disk before it takes the old one's place.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    temporary.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_text_is_in_the_file_and_an_empty_one_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(temporary(&path), "half").unwrap();
        assert!(read(&path).unwrap().is_empty());
        let mut writer = Writer::new(&path, "not saved");
        for n in 0..100 {
            writer.put(n.to_string().into());
        }
        writer.finish();
        assert_eq!(read(&path).unwrap(), b"99");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        for _ in 0..2 {
            writer.put(Vec::new());
            writer.finish();
            assert!(!path.exists());
        }
    }
}
