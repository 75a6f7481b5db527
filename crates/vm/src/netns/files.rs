//! The guest's own name-service files in place of the host's, with the sockets of the host's
//! resolvers hidden, and whatever else is not for the guest.
//!
//! The files live in a tmpfs that has no place in the guest's tree of its own: it is mounted over
//! /proc while they are made and bound to where they belong.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::etc;

/// Directories of resolvers that answer on sockets: names would come from the host past the
/// guest's own resolver. Directories, because a daemon that restarts makes its socket anew.
const RESOLVERS: [&str; 3] = ["/run/nscd", "/run/systemd/resolve", "/run/avahi-daemon"];

/// systemd-resolved's files, targets of the /etc/resolv.conf of many systems.
const RESOLVED_FILES: [&str; 2] = ["stub-resolv.conf", "resolv.conf"];

const STAGE: &str = "/proc";

const NO_EXTRAS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Why the guest's tree cannot be as it should.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {what}: {source}")]
pub(super) struct MountError {
    pub(super) what: String,
    pub(super) source: io::Error,
}

/// Gives the calling process's mount namespace the guest's files, and makes the directories
/// `hidden` empty. Returns the places where the host could uncover its own again.
pub(super) fn replace(
    resolvers: &[IpAddr],
    hidden: &[PathBuf],
) -> Result<Vec<PathBuf>, MountError> {
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let read = |path: &str| fs::read(path).unwrap_or_default();
    let text = |path: &str| String::from_utf8_lossy(&read(path)).into_owned();
    let resolv_conf = etc::resolv_conf(&text("/etc/resolv.conf"), resolvers);
    let mut files = vec![
        ("resolv.conf", resolv_conf.clone()),
        ("hosts", etc::hosts(&text("/etc/hosts"), &hostname)),
    ];
    // Not every C library has it.
    if Path::new("/etc/nsswitch.conf").exists() {
        files.push(("nsswitch.conf", etc::nsswitch(&text("/etc/nsswitch.conf"))));
    }

    let step = |what: &str| {
        let what = what.to_owned();
        move |source| MountError { what, source }
    };
    // The host's mounts go on arriving, the guest's go nowhere.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).map_err(io::Error::from).map_err(step("/"))?;
    mount("tmpfs", STAGE, "tmpfs", NO_EXTRAS, "mode=755,size=1m").map_err(step("a tmpfs"))?;
    let staged = stage(&files, &resolv_conf).map_err(step("a tmpfs"));
    let bound = staged.and_then(|stage| bind_all(&stage, &files, hidden));
    let unstaged = rustix::mount::unmount(STAGE, UnmountFlags::DETACH);
    unstaged.map_err(io::Error::from).map_err(step("a tmpfs"))?;
    bound
}

/// Writes everything to the tmpfs, for everybody to read whatever the caller's umask.
fn stage(files: &[(&str, String)], resolv_conf: &str) -> io::Result<PathBuf> {
    let stage = PathBuf::from(STAGE);
    for directory in ["etc", "work", "empty", "resolve"] {
        let directory = stage.join(directory);
        fs::create_dir(&directory)?;
        fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    }
    let write = |path: PathBuf, text: &str| {
        fs::write(&path, text)?;
        fs::set_permissions(path, Permissions::from_mode(0o644))
    };
    for (name, text) in files {
        write(stage.join("etc").join(name), text)?;
    }
    for name in RESOLVED_FILES {
        write(stage.join("resolve").join(name), resolv_conf)?;
    }
    Ok(stage)
}

fn bind_all(
    stage: &Path,
    files: &[(&str, String)],
    hidden: &[PathBuf],
) -> Result<Vec<PathBuf>, MountError> {
    let mut places = Vec::new();
    for directory in RESOLVERS.iter().map(Path::new).chain(hidden.iter().map(PathBuf::as_path)) {
        let source = if directory.ends_with("systemd/resolve") { "resolve" } else { "empty" };
        if directory.is_dir() {
            bind(&stage.join(source), directory)?;
            places.push(directory.into());
        }
    }
    let targets = files.iter().map(|(name, _)| Path::new("/etc").join(name));
    if targets.clone().all(|target| target.exists()) {
        for ((name, _), target) in files.iter().zip(targets) {
            bind(&stage.join("etc").join(name), &target)?;
            places.push(target);
        }
        return Ok(places);
    }
    // A file that is not there, or a symbolic link to nowhere, has no place to be bound to.
    let options = format!("lowerdir=/etc,upperdir={STAGE}/etc,workdir={STAGE}/work");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("overlay", "/etc", "overlay", flags, &options)
        .map_err(|source| MountError { what: "an overlay over /etc".into(), source })?;
    Ok(places)
}

fn bind(source: &Path, target: &Path) -> Result<(), MountError> {
    rustix::mount::mount_bind(source, target)
        .map_err(|source| MountError { what: target.display().to_string(), source: source.into() })
}

fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> io::Result<()> {
    let options = CString::new(options)?;
    Ok(rustix::mount::mount(source, target, kind, flags, options.as_c_str())?)
}
