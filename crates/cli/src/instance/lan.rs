//! The networks of a machine as its host agent sees them: those of `networks.yaml`, and the one that
//! is the machine's alone.

use std::os::unix::net::UnixStream;

use vmlan_api::Client;
use vmlan_config::{LimaHome, Network};
use vmlan_netd::managed;
use vmlan_vm::instance::Files;
use vmlan_vm::instance::host::Lan;

use crate::network::daemon::Daemon;

/// A network of `networks.yaml`.
#[derive(Debug)]
pub(super) struct Configured(Daemon);

/// The default network of one machine.
#[derive(Debug)]
pub(super) struct Own(Daemon);

impl Configured {
    pub(super) fn new(home: &LimaHome, network: &Network) -> Result<Self, String> {
        Daemon::of(home, network).map(Self)
    }
}

impl Own {
    pub(super) fn new(files: &Files) -> Self {
        Self(Daemon::own(files.network()))
    }
}

impl Lan for Configured {
    fn label(&self) -> String {
        format!("lima:{}", self.0.name)
    }

    fn connect(&self) -> Result<UnixStream, String> {
        self.0.ensure().map_err(|e| e.to_string())
    }

    fn is_configured(&self) -> bool {
        self.0.is_configured()
    }

    fn control(&self) -> Client {
        Client::new(&self.0.paths.endpoint)
    }
}

impl Lan for Own {
    fn label(&self) -> String {
        "default".into()
    }

    fn connect(&self) -> Result<UnixStream, String> {
        self.0.ensure().map_err(|e| e.to_string())
    }

    fn is_configured(&self) -> bool {
        true
    }

    fn control(&self) -> Client {
        Client::new(&self.0.paths.endpoint)
    }

    fn leave(&self) {
        // It would end by itself in a moment.
        let _ = managed::end(&self.0.paths.pidfile);
    }
}
