//! The network's daemon, asked to open and to close ports.

use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use vmlan_api::network::{Forward, Forwards, Listen, Listens};
use vmlan_api::{Client, ClientError};

use super::Local;

/// Why a port is not open.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The daemon's word.
    Refused(String),
    /// There is no daemon, or the machine is not on its network yet.
    NotYet,
}

#[derive(Debug)]
pub(super) struct Network {
    pub(super) client: Client,
    pub(super) name: Option<String>,
}

impl Network {
    pub(super) fn open(&self, local: &Local, guest: SocketAddr) -> Result<(), Failure> {
        if let Local::Unix(path) = local {
            make_parent(path);
        }
        let Listen { protocol, listen } = named(local);
        let forward = Forward {
            protocol,
            listen,
            target: guest.to_string(),
            keep_source: false,
            guest: self.name.clone(),
        };
        let all = Forwards { forwards: vec![forward.clone()] };
        match self.client.post("/v1/forwards", &all) {
            Err(ClientError::Refused { status: 409, text }) => self.take_over(local, &all, text),
            done => done.map_err(failure),
        }
    }

    /// The port may be ours from before: then it leads where it should from now on.
    fn take_over(&self, local: &Local, all: &Forwards, text: String) -> Result<(), Failure> {
        let there: Vec<Forward> = self.client.get("/v1/forwards").map_err(failure)?;
        let mut wanted = all.forwards.iter();
        let is_ours = wanted.any(|wanted| {
            wanted.guest.is_some()
                && there.iter().any(|other| {
                    (&other.guest, &other.protocol, &other.listen)
                        == (&wanted.guest, &wanted.protocol, &wanted.listen)
                })
        });
        if !is_ours {
            return Err(Failure::Refused(text));
        }
        self.close(local);
        self.client.post("/v1/forwards", all).map_err(failure)
    }

    /// Closes a port, if it is open.
    pub(super) fn close(&self, local: &Local) {
        let _ = self.client.post("/v1/forwards/remove", &Listens { forwards: vec![named(local)] });
    }
}

/// The directory of a socket. What is wrong with it is told by whoever listens there.
pub(super) fn make_parent(path: &Path) {
    if let Some(dir) = path.parent() {
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    }
}

fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::Refused { status: 404, .. } | ClientError::NoDaemon | ClientError::Io(_) => {
            Failure::NotYet
        }
        ClientError::Refused { text, .. } => Failure::Refused(text),
    }
}

fn named(local: &Local) -> Listen {
    let (protocol, listen) = match local {
        Local::Tcp(addr) => ("tcp", addr.to_string()),
        Local::Udp(addr) => ("udp", addr.to_string()),
        Local::Unix(path) => ("unix", path.display().to_string()),
    };
    Listen { protocol: protocol.into(), listen }
}
