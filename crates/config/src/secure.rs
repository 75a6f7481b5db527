//! Whether the paths in `networks.yaml` are safe to be used as root: a user who could replace any
//! part of them could become root by it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::networks::Networks;
use crate::source::{Diagnostic, Span};

/// What makes a path unsafe.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    #[error("path `{}` is not an absolute path", .0.display())]
    Relative(PathBuf),
    #[error("path `{}` contains whitespace", .0.display())]
    Whitespace(PathBuf),
    #[error("path `{}` goes up again by `..`", .0.display())]
    Up(PathBuf),
    #[error("{kind} `{}` is a symlink", path.display())]
    Symlink { kind: &'static str, path: PathBuf },
    #[error("{kind} `{}` is not owned by `root` (uid: 0), but by uid {uid}", path.display())]
    Owner { kind: &'static str, path: PathBuf, uid: u32 },
    #[error(
        "{kind} `{}` is group-writable and group is not `root` (gid: 0), but is gid: {gid}",
        path.display()
    )]
    GroupWritable { kind: &'static str, path: PathBuf, gid: u32 },
    #[error(
        "{kind} `{}` is group-writable and group is neither `root` (gid: 0) nor `daemon` (gid: \
         {daemon}), but is gid: {gid}",
        path.display()
    )]
    DaemonWritable { kind: &'static str, path: PathBuf, daemon: u32, gid: u32 },
    #[error("{kind} `{}` is world-writable", path.display())]
    WorldWritable { kind: &'static str, path: PathBuf },
    #[error("dir `{}` is not executable by the `daemon` (gid: {daemon}) group", path.display())]
    NotExecutable { path: PathBuf, daemon: u32 },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Whose files are safe.
#[derive(Clone, Copy, Debug)]
struct Trust<'a> {
    /// Parents from here on are not looked at.
    above: &'a Path,
    owner: u32,
    /// The group that must be able to use `varRun`, where there is one.
    daemon: Option<u32>,
}

/// Looks at every path that root will use. `daemon` is the group that the daemons run in on macOS.
pub fn check_paths(networks: &Networks, daemon: Option<u32>) -> Vec<Diagnostic> {
    check(networks, Trust { above: Path::new("/"), owner: 0, daemon })
}

/// Looks at one program that root will run.
pub fn check_program(path: &Path) -> Result<(), PathError> {
    safe(path, Trust { above: Path::new("/"), owner: 0, daemon: None })
}

fn check(networks: &Networks, trust: Trust<'_>) -> Vec<Diagnostic> {
    let paths = &networks.paths;
    let strict = Trust { daemon: None, ..trust };
    let mut found = Vec::new();
    if let Some(program) = &paths.socket_vmnet {
        found.extend(safe(&program.value, strict).err().map(|e| match e.is_missing() {
            true => {
                let path = program.value.display();
                let message =
                    format!("networks.yaml: `{path}` (`paths.socketVMNet`) has to be installed");
                let help = "install it there, or write where it is";
                Diagnostic::error(message, program.span).help(help)
            }
            false => failed("socketVMNet", &e, program.span),
        }));
    }
    if let Some(var_run) = &paths.var_run {
        // It is made at the first start: only what is there already counts.
        let base = var_run.value.ancestors().find(|path| fs::symlink_metadata(path).is_ok());
        let result = lexical(&var_run.value).and_then(|()| base.map_or(Ok(()), |b| safe(b, trust)));
        found.extend(result.err().map(|e| failed("varRun", &e, var_run.span)));
    }
    if let Some(sudoers) = &paths.sudoers {
        // A directory that only root can look into is as safe as can be.
        let error = safe(&sudoers.value, strict).err();
        let error = error.filter(|e| !e.is_missing() && !e.is_hidden());
        found.extend(error.map(|e| failed("sudoers", &e, sudoers.span)));
    }
    found
}

fn failed(field: &str, error: &PathError, span: Option<Span>) -> Diagnostic {
    let message = format!("networks.yaml field `paths.{field}` error: {error}");
    let diagnostic = Diagnostic::error(message, span);
    match error.mend() {
        Some(mend) => diagnostic.help(mend),
        None => diagnostic,
    }
}

impl PathError {
    fn is_hidden(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// What would be right, or the command that makes it so.
    fn mend(&self) -> Option<String> {
        let command =
            |program: &str, path: &Path| format!("mend it with: sudo {program} {}", path.display());
        Some(match self {
            Self::Relative(_) => "write the whole path, from `/`".into(),
            Self::Whitespace(_) => "choose a path without whitespace".into(),
            Self::Up(_) => "write the path without `..`".into(),
            Self::Symlink { path, .. } => match fs::canonicalize(path) {
                Ok(real) => format!("write the path that it leads to: {}", real.display()),
                Err(_) => format!("put in its place what is meant: {}", path.display()),
            },
            Self::Owner { path, .. } => command("chown root", path),
            Self::GroupWritable { path, .. } | Self::DaemonWritable { path, .. } => {
                command("chmod g-w", path)
            }
            Self::WorldWritable { path, .. } => command("chmod o-w", path),
            Self::NotExecutable { path, .. } => command("chmod go+x", path),
            Self::Io { .. } => return None,
        })
    }

    /// There is nothing at the path.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What can be seen without looking at the disk.
fn lexical(path: &Path) -> Result<(), PathError> {
    if !path.is_absolute() {
        return Err(PathError::Relative(path.into()));
    }
    if path.to_string_lossy().contains(char::is_whitespace) {
        return Err(PathError::Whitespace(path.into()));
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(PathError::Up(path.into()));
    }
    Ok(())
}

fn safe(path: &Path, trust: Trust<'_>) -> Result<(), PathError> {
    lexical(path)?;
    let parts: Vec<_> = path.ancestors().take_while(|part| *part != trust.above).collect();
    parts.into_iter().rev().try_for_each(|part| component(part, trust))
}

fn component(path: &Path, trust: Trust<'_>) -> Result<(), PathError> {
    let meta = fs::symlink_metadata(path);
    let meta = meta.map_err(|source| PathError::Io { path: path.into(), source })?;
    let kind = if meta.is_dir() { "dir" } else { "file" };
    let path = || path.to_path_buf();
    let (mode, gid) = (meta.mode(), meta.gid());
    if meta.is_symlink() {
        return Err(PathError::Symlink { kind: "file", path: path() });
    }
    if meta.uid() != trust.owner {
        return Err(PathError::Owner { kind, path: path(), uid: meta.uid() });
    }
    if mode & 0o020 != 0 && gid != 0 && trust.daemon != Some(gid) {
        return Err(match trust.daemon {
            Some(daemon) => PathError::DaemonWritable { kind, path: path(), daemon, gid },
            None => PathError::GroupWritable { kind, path: path(), gid },
        });
    }
    if mode & 0o002 != 0 {
        return Err(PathError::WorldWritable { kind, path: path() });
    }
    if let Some(daemon) = trust.daemon.filter(|_| meta.is_dir()) {
        let needed = if gid == daemon { 0o010 } else { 0o001 };
        if mode & needed == 0 {
            return Err(PathError::NotExecutable { path: path(), daemon });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "secure_tests.rs"]
mod tests;
