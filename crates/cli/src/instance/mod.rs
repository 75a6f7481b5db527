//! Machines: `vmlan start` and its like. What they share is here: which instance is meant, and what
//! its `lima.yaml` says ([`resolved`]).

pub(crate) mod change;
pub(crate) mod delete;
pub(crate) mod edit;
mod follow;
pub(crate) mod hostagent;
mod image;
mod lan;
pub(crate) mod list;
mod resolved;
pub(crate) mod shell;
pub(crate) mod show_ssh;
pub(crate) mod start;
pub(crate) mod stop;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmlan_config::LimaHome;
use vmlan_vm::instance::{Instance, Store, StoreError};

use crate::Failure;

/// The instance that is meant when none is named.
const DEFAULT: &str = "default";

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

fn store() -> Result<Store, Failure> {
    Ok(Store::new(LimaHome::from_env()?))
}

/// An instance that has to be there.
fn find(store: &Store, name: &str) -> Result<Instance, Failure> {
    if let Some(instance) = store.find(name)? {
        return Ok(instance);
    }
    if list::is_guest(name) {
        return Err(Failure::Failed(format!(
            "`{name}` is a guest that `vmlan start` has not made: it ends where it was started"
        )));
    }
    let names: Vec<String> = store.all()?.into_iter().map(|instance| instance.name).collect();
    let there = match &names[..] {
        [] => "none has been made yet, see: vmlan start --help".into(),
        names => format!("there is {}", names.join(", ")),
    };
    Err(Failure::Failed(format!("there is no instance `{name}`: {there}")))
}

/// Whether somebody has pressed Ctrl-C or the like since this was made.
#[derive(Clone, Debug)]
struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn watch() -> Result<Self, Failure> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))
                .map_err(|e| Failure::Failed(format!("cannot handle signals: {e}")))?;
        }
        Ok(Self(flag))
    }

    /// Once for each time.
    fn came(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}
