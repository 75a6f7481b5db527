//! The images of a new machine, loaded with progress: on a terminal a line that changes, elsewhere a
//! line when it begins and one when it is done.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmlan_config::instance::{Image, Remote};
use vmlan_vm::image::{Cache, Progress, is_url};
use vmlan_vm::instance::Base;

use super::Interrupt;
use crate::Failure;

/// Between two looks of the line.
const REFRESH: Duration = Duration::from_millis(200);

/// Between two looks for an interruption.
const LOOK: Duration = Duration::from_millis(50);

/// What a shell makes of an end by Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Where images come from.
#[derive(Debug)]
pub(super) struct Images<'a> {
    cache: PathBuf,
    /// A relative path is one beside the `lima.yaml`.
    beside: &'a Path,
}

impl<'a> Images<'a> {
    pub(super) fn new(lima_yaml: &'a Path) -> Result<Self, Failure> {
        let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let cache = Cache::place(var).ok_or_else(|| {
            Failure::Failed("neither XDG_CACHE_HOME nor HOME is the path of a directory".into())
        })?;
        Ok(Self { cache, beside: lima_yaml.parent().unwrap_or_else(|| Path::new("")) })
    }

    /// All files of an image.
    pub(super) fn fetch(&self, image: &Image) -> Result<Base, Failure> {
        let kernel = image.kernel.as_ref();
        let initrd = kernel.and_then(|kernel| kernel.initrd.as_ref());
        let initrd = initrd.map(|file| self.file(file)).transpose()?;
        let kernel = match kernel {
            Some(kernel) => Some((self.file(&kernel.file)?, kernel.cmdline.clone())),
            None => None,
        };
        Ok(Base { disk: self.file(&image.disk)?, kernel, initrd, cache: self.cache.clone() })
    }

    fn file(&self, remote: &Remote) -> Result<PathBuf, Failure> {
        let mut remote = remote.clone();
        let is_path = !remote.location.contains("://");
        if is_path {
            let home = std::env::home_dir().unwrap_or_default();
            let path = match remote.location.strip_prefix("~/") {
                Some(rest) => home.join(rest),
                None => std::path::absolute(self.beside.join(&remote.location))
                    .map_err(|e| Failure::Failed(format!("{}: {e}", remote.location)))?,
            };
            remote.location = path.to_string_lossy().into_owned();
        }
        let mut shown = Shown::new(&remote.location);
        let fetched =
            Cache::new(self.cache.clone()).fetch(&remote, &mut |progress| shown.show(progress));
        shown.end(fetched.is_ok());
        fetched.map_err(|e| Failure::Failed(e.to_string()))
    }
}

/// While this is there, an interruption ends the program: what is loaded of an image stays, and
/// nothing else has been made yet.
#[derive(Debug)]
pub(super) struct EndOnInterrupt {
    over: Arc<AtomicBool>,
}

impl EndOnInterrupt {
    pub(super) fn new(interrupt: &Interrupt) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (is_over, interrupt) = (Arc::clone(&over), interrupt.clone());
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                if interrupt.came() {
                    if std::io::stderr().is_terminal() {
                        let _ = write!(std::io::stderr(), "\r\x1b[K");
                    }
                    crate::tell(
                        "interrupted; what is loaded of the image is kept, and nothing else has \
                         been made",
                    );
                    std::process::exit(INTERRUPTED);
                }
                thread::sleep(LOOK);
            }
        });
        Self { over }
    }
}

impl Drop for EndOnInterrupt {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// How far a download is.
struct Shown<'a> {
    location: &'a str,
    on_terminal: bool,
    last: Option<(Instant, Progress)>,
    /// Something is on the line.
    is_line: bool,
}

impl<'a> Shown<'a> {
    fn new(location: &'a str) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        Self { location, on_terminal, last: None, is_line: false }
    }

    fn show(&mut self, progress: Progress) {
        if self.last.is_none() && is_url(self.location) && !self.on_terminal {
            crate::tell(&format!("loading {}", self.location));
        }
        let due = self.last.is_none_or(|(at, _)| at.elapsed() >= REFRESH);
        if self.on_terminal && due {
            let name = self.location.rsplit('/').next().unwrap_or(self.location);
            // There is nobody to show it when standard error is gone.
            let _ = write!(std::io::stderr(), "\r\x1b[Kloading {name}: {}", of(progress));
            self.is_line = true;
        }
        if due || self.last.is_none() {
            self.last = Some((Instant::now(), progress));
        } else if let Some((_, last)) = &mut self.last {
            *last = progress;
        }
    }

    fn end(&mut self, done: bool) {
        if self.is_line {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        if let Some((_, progress)) = self.last.filter(|_| done && is_url(self.location)) {
            crate::tell(&format!("loaded {}: {}", self.location, of(progress)));
        }
    }
}

fn of(progress: Progress) -> String {
    const MIB: u64 = 1 << 20;
    let Progress { done, total } = progress;
    match total.filter(|total| *total > 0) {
        Some(total) => {
            format!("{} of {} MiB, {} %", done / MIB, total / MIB, done.min(total) * 100 / total)
        }
        None => format!("{} MiB", done / MIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far() {
        let text = of(Progress { done: 50 << 20, total: Some(200 << 20) });
        assert_eq!(text, "50 of 200 MiB, 25 %");
        assert_eq!(of(Progress { done: 3 << 20, total: None }), "3 MiB");
        assert_eq!(of(Progress { done: 0, total: Some(0) }), "0 MiB");
    }
}
