//! IP fragments: cutting what does not fit a link, and putting together what guests cut.

use vmlan_wire::Mac;

use crate::io::Links;
use crate::net::{IpHeader, Net};
use crate::packet::Packet;
use crate::stats::{Drop, Stats};
use crate::time::Instant;

/// Sends a packet that does not fit the MTU in fragments, unless it may not be cut.
pub(crate) fn send(
    net: &mut Net,
    _links: &mut dyn Links,
    _to: Mac,
    _ip: &IpHeader,
    _transport: &[u8],
    _body: &[u8],
) -> bool {
    net.stats.drop(Drop::TooBig);
    false
}

/// Puts guests' fragments together.
#[derive(Debug)]
pub(crate) struct Reassembler {}

/// A packet put together.
#[derive(Debug)]
pub(crate) struct Whole {}

impl Whole {
    /// The whole packet, with the addresses of its last fragment.
    pub(crate) fn packet<'a>(&'a self, _last: &Packet<'a>) -> Option<Packet<'a>> {
        None
    }
}

impl Reassembler {
    pub(crate) fn new(_seed: [u8; 16]) -> Self {
        Self {}
    }

    /// Adds a fragment; the packet if it was the last that was missing.
    pub(crate) fn add(
        &mut self,
        _packet: &Packet<'_>,
        _now: Instant,
        stats: &mut Stats,
    ) -> Option<Whole> {
        stats.drop(Drop::Fragment);
        None
    }

    pub(crate) fn handle_timeout(&mut self, _now: Instant, _stats: &mut Stats) {}

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        None
    }
}
