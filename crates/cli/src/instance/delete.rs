//! `vmlan delete`: an instance with all that is in it.

use std::process::ExitCode;

use vmlan_vm::instance::{Status, inspect};

use super::stop;
use crate::Failure;

/// Delete machines and their disks.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instances.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    /// End those that run first, and do not mind those that are not there.
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let store = super::store()?;
    for name in &args.names {
        if args.force && store.find(name)?.is_none() {
            continue;
        }
        let instance = super::find(&store, name)?;
        let lock = instance.lock()?;
        if inspect(&instance).status != Status::Stopped {
            if !args.force {
                return Err(Failure::Failed(format!(
                    "instance `{name}` runs; stop it first, or delete it with --force"
                )));
            }
            stop::stop(&instance, true)?;
        }
        // A network that is about to end must not write there any more.
        stop::stop_orphan(&instance, true)?;
        store.delete(&instance)?;
        drop(lock);
    }
    Ok(ExitCode::SUCCESS)
}
