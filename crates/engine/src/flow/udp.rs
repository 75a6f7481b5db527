//! UDP: one host socket for each guest endpoint.
use vmlan_wire::FrameBatch;

use crate::config::Config;
use crate::io::{Io, Readiness, Token};
use crate::net::Net;
use crate::packet::{Packet, Place};
use crate::snapshot::FlowInfo;
use crate::stats::Drop;
use crate::time::Instant;

#[derive(Debug)]
pub(crate) struct Udp {}

impl Udp {
    pub(crate) fn new(_config: &Config, _now: Instant) -> Self {
        Self {}
    }

    pub(crate) fn datagram(
        &mut self,
        _net: &mut Net,
        _io: &mut Io<'_>,
        _packet: &Packet<'_>,
        _place: Place<'_>,
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

    /// Sends what consecutive frames of a batch had for one flow.
    pub(crate) fn end_of_batch(&mut self, _net: &mut Net, _io: &mut Io<'_>, _batch: &FrameBatch) {}
}
