//! The directories of instances below `$LIMA_HOME`. One is there whole or not at all: it is made
//! beside its place under a name that no instance has, and renamed.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmlan_config::{LimaHome, SocketPathError, host_name};

use super::files::Files;
use crate::disk;

/// Longest wait for somebody else who is at the same instance.
const PATIENCE: Duration = Duration::from_secs(60);

const LOOK: Duration = Duration::from_millis(20);

/// Bytes that are copied between two looks at whether to go on.
const CHUNK: usize = 1 << 20;

/// Why an instance cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("`{0}` is not a name for an instance: {1}")]
    Name(String, String),
    #[error("instance `{0}` exists already")]
    Exists(String),
    #[error("{0}; a shorter name, or a shorter LIMA_HOME, makes it fit")]
    Path(#[from] SocketPathError),
    #[error("instance `{name}`: somebody else has been at it for {} s", PATIENCE.as_secs())]
    Locked { name: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}; nothing is left of the instance")]
    Image(io::Error),
    #[error("interrupted; nothing is left of the instance")]
    Interrupted,
}

/// The instances of a home.
#[derive(Clone, Debug)]
pub struct Store {
    home: LimaHome,
}

/// An instance that has a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub name: String,
    pub files: Files,
}

/// What a new instance is made of. An image may be shared with the cache that it is in.
#[derive(Clone, Debug)]
pub struct Base {
    pub disk: PathBuf,
    pub kernel: Option<(PathBuf, String)>,
    pub initrd: Option<PathBuf>,
    /// Files below this directory are never changed.
    pub cache: PathBuf,
}

/// An instance on its way. Nothing is left of it unless it is finished.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    instance: Instance,
    lock: File,
    finished: bool,
}

impl Store {
    pub fn new(home: LimaHome) -> Self {
        Self { home }
    }

    pub fn home(&self) -> &LimaHome {
        &self.home
    }

    /// What an instance of this name would be, whether it is there or not.
    pub fn named(&self, name: &str) -> Result<Instance, StoreError> {
        host_name(name).map_err(|e| StoreError::Name(name.into(), e.to_string()))?;
        let lower = name.to_ascii_lowercase();
        if lower.ends_with(".yaml") || lower.ends_with(".yml") {
            let why = "it would be taken for a file".into();
            return Err(StoreError::Name(name.into(), why));
        }
        Ok(Instance { name: name.into(), files: Files::new(&self.home.instance(name)) })
    }

    /// The instance of this name, if there is one.
    pub fn find(&self, name: &str) -> Result<Option<Instance>, StoreError> {
        self.named(name).map(|instance| Some(instance).filter(Instance::is_there))
    }

    /// All instances, by name.
    pub fn all(&self) -> Result<Vec<Instance>, StoreError> {
        let failed = |source| StoreError::Io { path: self.home.path().into(), source };
        let entries = match fs::read_dir(self.home.path()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
            // Names that begin otherwise are not instances'.
            all.extend(self.find(&name).unwrap_or_default());
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Begins a new instance. Two that begin the same one wait for each other, and the second is
    /// told that it exists.
    pub fn begin(&self, name: &str) -> Result<Draft, StoreError> {
        let instance = self.named(name)?;
        instance.files.check()?;
        let dir = self.home.path().join(format!(".{name}.new"));
        let failed = |source| StoreError::Io { path: dir.clone(), source };
        let end = Instant::now() + PATIENCE;
        loop {
            if instance.is_there() {
                return Err(StoreError::Exists(name.into()));
            }
            fs::create_dir_all(&dir).map_err(failed)?;
            fs::set_permissions(&dir, Permissions::from_mode(0o700)).map_err(failed)?;
            let Ok(lock) = File::open(&dir) else { continue };
            match lock.try_lock() {
                Ok(()) if is_at(&lock, &dir) => {
                    let draft = Draft { dir: dir.clone(), instance, lock, finished: false };
                    // Of one whose process was killed.
                    empty(&dir).map_err(failed)?;
                    return Ok(draft);
                }
                // Renamed meanwhile.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if Instant::now() > end => {
                    return Err(StoreError::Locked { name: name.into() });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOOK),
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
        }
    }

    /// Removes the directory of an instance that does not run.
    pub fn delete(&self, instance: &Instance) -> Result<(), StoreError> {
        let gone = self.home.path().join(format!(".{}.gone", instance.name));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { path, source }
        };
        if gone.exists() {
            fs::remove_dir_all(&gone).map_err(failed(&gone))?;
        }
        fs::rename(&instance.files.dir, &gone).map_err(failed(&instance.files.dir))?;
        fs::remove_dir_all(&gone).map_err(failed(&gone))
    }
}

impl Instance {
    /// The directory has been made, and has not gone.
    pub fn is_there(&self) -> bool {
        self.files.lima_yaml().is_file()
    }

    /// The right to start, stop, change or delete the instance, until the result is dropped.
    pub fn lock(&self) -> Result<File, StoreError> {
        let path = self.files.lock();
        let failed = |source| StoreError::Io { path: path.clone(), source };
        let end = Instant::now() + PATIENCE;
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() > end => {
                    return Err(StoreError::Locked { name: self.name.clone() });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOOK),
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
        }
    }
}

impl Draft {
    /// The instance that this will be.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Writes the instance's files and puts them in their place. `interrupted` is looked at while
    /// that takes long.
    pub fn finish(
        mut self,
        lima_yaml: &str,
        base: &Base,
        interrupted: &AtomicBool,
    ) -> Result<Instance, StoreError> {
        disk::check(&base.disk).map_err(StoreError::Image)?;
        let files = Files::new(&self.dir);
        let failed = |path: PathBuf| move |source| StoreError::Io { path, source };
        let copies = [
            Some((&base.disk, files.base_disk())),
            base.kernel.as_ref().map(|(file, _)| (file, files.kernel())),
            base.initrd.as_ref().map(|file| (file, files.initrd())),
        ];
        for (from, to) in copies.into_iter().flatten() {
            let kept = from.starts_with(&base.cache) && fs::hard_link(from, &to).is_ok();
            if !kept && !copy(from, &to, interrupted).map_err(failed(to))? {
                return Err(StoreError::Interrupted);
            }
        }
        if let Some((_, cmdline)) = &base.kernel {
            write(&files.kernel_cmdline(), cmdline).map_err(failed(files.kernel_cmdline()))?;
        }
        write(&files.lima_yaml(), lima_yaml).map_err(failed(files.lima_yaml()))?;
        let version = self.dir.join("lima-version");
        write(&version, env!("CARGO_PKG_VERSION")).map_err(failed(version))?;
        self.lock.sync_all().map_err(failed(self.dir.clone()))?;
        let place = self.instance.files.dir.clone();
        fs::rename(&self.dir, &place).map_err(|source| match source.kind() {
            // Something of that name that is no instance.
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                StoreError::Exists(self.instance.name.clone())
            }
            _ => StoreError::Io { path: place, source },
        })?;
        self.finished = true;
        Ok(self.instance.clone())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            // What is left is emptied by the next one.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => id(held) == id(there),
        _ => false,
    }
}

fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

/// Copies a file, sharing what the file system can share, and without the holes. False if it was
/// interrupted.
fn copy(from: &Path, to: &Path, interrupted: &AtomicBool) -> io::Result<bool> {
    let mut source = File::open(from)?;
    let mut target = File::create_new(to)?;
    if imp::share(&source, &target) {
        return Ok(true);
    }
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let n = source.read(&mut chunk)?;
        let data = chunk.get(..n).unwrap_or_default();
        if n == 0 {
            break;
        }
        if data.iter().any(|byte| *byte != 0) {
            target.seek(SeekFrom::Start(at))?;
            target.write_all(data)?;
        }
        at += n as u64;
    }
    target.sync_all().map(|()| true)
}

#[cfg(target_os = "linux")]
mod imp {
    use super::File;

    /// Has both files have the same blocks until one is written to.
    pub(super) fn share(source: &File, target: &File) -> bool {
        rustix::fs::ioctl_ficlone(target, source).is_ok()
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::File;

    pub(super) fn share(_source: &File, _target: &File) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lab {
        dir: tempfile::TempDir,
        store: Store,
    }

    fn lab() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        let store = Store::new(LimaHome::new(&dir.path().join("home")).unwrap());
        Lab { dir, store }
    }

    fn base(lab: &Lab) -> Base {
        let disk = lab.dir.path().join("image");
        let mut content = vec![0; 3 * CHUNK];
        content[2 * CHUNK + 5] = 7;
        fs::write(&disk, content).unwrap();
        let cache = lab.dir.path().join("cache");
        Base { disk, kernel: None, initrd: None, cache }
    }

    fn names(lab: &Lab) -> Vec<String> {
        let mut all: Vec<_> = fs::read_dir(lab.store.home().path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort();
        all
    }

    #[test]
    fn an_instance_is_there_whole() {
        let lab = lab();
        let base = base(&lab);
        let never = AtomicBool::new(false);
        let draft = lab.store.begin("web").unwrap();
        assert_eq!(lab.store.find("web").unwrap(), None);
        let instance = draft.finish("cpus: 1\n", &base, &never).unwrap();
        assert_eq!(lab.store.all().unwrap(), std::slice::from_ref(&instance));
        let disk = fs::read(instance.files.base_disk()).unwrap();
        assert_eq!(disk, fs::read(&base.disk).unwrap());
        assert!(matches!(lab.store.begin("web"), Err(StoreError::Exists(_))));
        assert_eq!(names(&lab), ["web"]);
        lab.store.delete(&instance).unwrap();
        assert_eq!(names(&lab), Vec::<String>::new());
    }

    #[test]
    fn nothing_is_left_of_what_was_not_finished() {
        let lab = lab();
        let mut base = base(&lab);
        drop(lab.store.begin("web").unwrap());
        let interrupted = AtomicBool::new(true);
        let result = lab.store.begin("web").unwrap().finish("", &base, &interrupted);
        assert!(matches!(result, Err(StoreError::Interrupted)));
        base.disk = "/nonexistent/image".into();
        let never = AtomicBool::new(false);
        let error = lab.store.begin("web").unwrap().finish("", &base, &never).unwrap_err();
        assert!(matches!(error, StoreError::Image(_)));
        assert_eq!(names(&lab), Vec::<String>::new());
        // A process that was killed has left its draft.
        fs::create_dir_all(lab.store.home().path().join(".web.new/sock")).unwrap();
        fs::write(lab.store.home().path().join(".web.new/basedisk"), "half").unwrap();
        drop(lab.store.begin("web").unwrap());
        assert_eq!(names(&lab), Vec::<String>::new());
    }

    #[test]
    fn who_begins_the_same_waits_and_finds_it_there() {
        let lab = lab();
        let base = base(&lab);
        let draft = lab.store.begin("web").unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| lab.store.begin("web"));
            draft.finish("", &base, &AtomicBool::new(false)).unwrap();
            assert!(matches!(second.join().unwrap(), Err(StoreError::Exists(_))));
        });
        assert_eq!(names(&lab), ["web"]);
    }

    #[test]
    fn an_image_of_the_cache_is_shared() {
        use std::os::unix::fs::MetadataExt;
        let lab = lab();
        let mut base = base(&lab);
        base.cache = lab.dir.path().into();
        let draft = lab.store.begin("web").unwrap();
        let instance = draft.finish("", &base, &AtomicBool::new(false)).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&instance.files.base_disk()), inode(&base.disk));
    }

    #[test]
    fn names_are_checked() {
        let lab = lab();
        for wrong in ["", "_config", ".x", "a b", "x.yaml", "x.YML", "a/b", "-x"] {
            assert!(matches!(lab.store.named(wrong), Err(StoreError::Name(..))), "{wrong}");
        }
        let long = lab.store.begin(&"x".repeat(70)).unwrap_err().to_string();
        let fits = lab.store.home().path().as_os_str().len() + 70 + 18 < 108;
        assert!(fits || long.contains("a shorter name"), "{long}");
    }
}
