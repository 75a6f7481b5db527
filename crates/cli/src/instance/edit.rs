//! `vmlan edit`: an instance's `lima.yaml`, by flags or in an editor. What is wrong is not kept.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use vmlan_vm::instance::{Instance, Status, Store, inspect};

use super::change::Changes;
use super::resolved::Resolved;
use crate::Failure;

/// Change a machine that is stopped.
///
/// Without a flag, its lima.yaml is opened in $VISUAL or $EDITOR. The machine is as it says from its
/// next start on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance.
    #[arg(default_value = super::DEFAULT)]
    name: String,

    #[command(flatten)]
    changes: Changes,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let store = super::store()?;
    let instance = super::find(&store, &args.name)?;
    let _lock = instance.lock()?;
    if inspect(&instance).status != Status::Stopped {
        return Err(Failure::Failed(format!(
            "instance `{name}` runs; stop it first, with: vmlan stop {name}",
            name = instance.name
        )));
    }
    let path = instance.files.lima_yaml();
    let failed = |e: std::io::Error| Failure::Failed(format!("{}: {e}", path.display()));
    let before = fs::read_to_string(&path).map_err(failed)?;
    let is = Resolved::new(store.home(), &instance, &path, &before, false).ok();
    let disk = is.map_or(0, |is| is.config.disk);
    let after = match args.changes.is_empty() {
        true => by_editor(&store, &instance, &before, disk)?,
        false => {
            let after = args.changes.apply(&before)?;
            check(&store, &instance, &path, &after, disk)?;
            after
        }
    };
    if after != before {
        vmlan_config::file::replace(&path, &after).map_err(failed)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a machine can become what the text says. Its disk was of this size: less would cut what is
/// on it.
fn check(
    store: &Store,
    instance: &Instance,
    path: &Path,
    text: &str,
    disk: u64,
) -> Result<(), Failure> {
    let new = Resolved::new(store.home(), instance, path, text, true)?.config.disk;
    if new < disk {
        return Err(Failure::Failed(format!(
            "{}: field `disk` cannot become less than {} MiB: a disk only grows",
            path.display(),
            disk >> 20
        )));
    }
    Ok(())
}

/// What comes of the text in an editor. A text that is wrong stays beside the right one, so that the
/// work is not lost.
fn by_editor(
    store: &Store,
    instance: &Instance,
    before: &str,
    disk: u64,
) -> Result<String, Failure> {
    let path = instance.files.dir.join("lima.edited.yaml");
    let failed = |e: std::io::Error| Failure::Failed(format!("{}: {e}", path.display()));
    if !path.exists() {
        fs::write(&path, before).map_err(failed)?;
    }
    edit(&path)?;
    let after = fs::read_to_string(&path).map_err(failed)?;
    if let Err(e) = check(store, instance, &path, &after, disk) {
        crate::tell(&format!(
            "nothing has been changed: `vmlan edit` goes on with {}",
            path.display()
        ));
        return Err(e);
    }
    fs::remove_file(&path).map_err(failed)?;
    Ok(after)
}

fn edit(path: &Path) -> Result<(), Failure> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| OsString::from("vi"));
    // It may have arguments.
    let mut script = editor.clone();
    script.push(" \"$1\"");
    let status = Command::new("sh").arg("-c").arg(script).arg("sh").arg(path).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Failed(format!("{}: {status}", editor.to_string_lossy()))),
        Err(e) => Err(Failure::Failed(format!("{}: {e}", editor.to_string_lossy()))),
    }
}
