//! Forwards: listeners on the host whose connections and datagrams go to a guest.

use std::net::SocketAddr;

use crate::flow::Flows;
use crate::io::{Io, ListenAddr, Readiness, Token};
use crate::net::Net;
use crate::time::Instant;

/// A port or socket of the host that leads to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    pub listen: ListenAddr,
    pub guest: SocketAddr,
    /// The guest sees the client's own address instead of the gateway's.
    pub keep_source: bool,
}

/// A forward's number, never used twice in an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForwardId(pub u32);

#[derive(Debug, Default)]
pub(crate) struct Forwards {}

impl Forwards {
    pub(crate) fn add(
        &mut self,
        _forward: Forward,
        _flows: &mut Flows,
        _io: &mut Io<'_>,
    ) -> Result<ForwardId, String> {
        Ok(ForwardId(0))
    }

    pub(crate) fn remove(&mut self, _id: ForwardId, _flows: &mut Flows, _io: &mut Io<'_>) -> bool {
        false
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ForwardId, &Forward)> {
        std::iter::empty()
    }

    pub(crate) fn host_ready(
        &mut self,
        _net: &mut Net,
        _flows: &mut Flows,
        _io: &mut Io<'_>,
        _token: Token,
        _ready: Readiness,
    ) {
    }

    pub(crate) fn handle_timeout(&mut self, _net: &mut Net, _flows: &mut Flows, _io: &mut Io<'_>) {}

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        None
    }

    pub(crate) fn shutdown(&mut self, _flows: &mut Flows, _io: &mut Io<'_>) {}
}
