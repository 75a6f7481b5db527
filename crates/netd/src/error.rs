//! Why a daemon cannot start or go on. Each error is one line that names what it is about.

use std::io;
use std::path::PathBuf;

use vmlan_api::ForwardError;

use crate::unix_path::BindError;

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("{}: {source}", path.display())]
    Capture { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Port(#[from] vmlan_host::PortError),
    #[error("the network has no port left for another guest")]
    NoPort,
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

impl DaemonError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
