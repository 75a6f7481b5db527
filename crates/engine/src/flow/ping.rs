//! ICMP echo through unprivileged ping sockets.
use crate::config::Config;
use crate::io::{Io, Readiness, Token};
use crate::net::Net;
use crate::packet::Packet;
use crate::snapshot::FlowInfo;
use crate::stats::Drop;
use crate::time::Instant;

#[derive(Debug)]
pub(crate) struct Ping {}

impl Ping {
    pub(crate) fn new(_config: &Config, _now: Instant) -> Self {
        Self {}
    }

    pub(crate) fn message(
        &mut self,
        _net: &mut Net,
        _io: &mut Io<'_>,
        _packet: &Packet<'_>,
    ) -> Result<(), Drop> {
        Ok(())
    }

    pub(crate) fn host_ready(
        &mut self,
        _net: &mut Net,
        _io: &mut Io<'_>,
        _token: Token,
        _ready: Readiness,
    ) {
    }

    pub(crate) fn handle_timeout(&mut self, _net: &mut Net, _io: &mut Io<'_>) {}

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        None
    }

    pub(crate) fn shutdown(&mut self, _net: &mut Net, _io: &mut Io<'_>) {}

    pub(crate) fn snapshot(&self) -> Vec<FlowInfo> {
        Vec::new()
    }
}
