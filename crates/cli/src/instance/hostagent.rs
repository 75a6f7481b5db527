//! `vmlan hostagent`: the process beside a running machine, which `vmlan start` starts.

use std::fs;
use std::process::ExitCode;

use vmlan_vm::instance::host;

use super::resolved::Resolved;
use crate::Failure;

/// Run a machine that has been made; `vmlan start` does.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance.
    name: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let store = super::store()?;
    let instance = super::find(&store, &args.name)?;
    let path = instance.files.lima_yaml();
    let text = fs::read_to_string(&path);
    let text = text.map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))?;
    let resolved = Resolved::new(store.home(), &instance, &path, &text, false)?;
    let spec = resolved.spec(store.home(), instance)?;
    host::run(&spec).map_err(Failure::Failed)?;
    Ok(ExitCode::SUCCESS)
}
