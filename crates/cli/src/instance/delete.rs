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

    /// Also if they run, and whether they are there or not.
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let store = super::store()?;
    for name in &args.names {
        let instance = match store.find(name)? {
            Some(instance) => instance,
            None if args.force => continue,
            None => return Err(Failure::Failed(format!("there is no instance `{name}`"))),
        };
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
