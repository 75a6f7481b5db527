//! TCP: the guest's connections are ended here and carried on by sockets of the host.
use crate::config::Config;
use std::net::{IpAddr, SocketAddr};

use vmlan_wire::FrameBatch;

use crate::io::{Io, PortId, Readiness, SockId, Token};
use crate::net::Net;
use crate::packet::Packet;
use crate::snapshot::FlowInfo;
use crate::stats::Drop;
use crate::time::Instant;

#[derive(Debug)]
pub(crate) struct Tcp {}

impl Tcp {
    pub(crate) fn new(_config: &Config, _now: Instant) -> Self {
        Self {}
    }

    pub(crate) fn segment(
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

    /// A frame that continues the train of the frame before: taken without a second look.
    pub(crate) fn take_next(
        &mut self,
        _net: &mut Net,
        _io: &mut Io<'_>,
        _port: PortId,
        _batch: &FrameBatch,
        _index: usize,
    ) -> bool {
        false
    }

    pub(crate) fn end_of_batch(&mut self, _net: &mut Net, _io: &mut Io<'_>, _batch: &FrameBatch) {}

    pub(crate) fn port_writable(&mut self, _net: &mut Net, _io: &mut Io<'_>, _port: PortId) {}

    pub(crate) fn guest_found(&mut self, _net: &mut Net, _io: &mut Io<'_>, _ip: IpAddr) {}

    /// A connection that a forward accepted: opens one to the guest.
    pub(crate) fn open_inbound(&mut self, _net: &mut Net, _io: &mut Io<'_>, _inbound: Inbound) {}

    /// The token under which the next accepted connection will live.
    pub(crate) fn reserve(&mut self) -> Option<Token> {
        None
    }
}

/// A connection accepted on the host, to be opened towards a guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inbound {
    /// From [`Tcp::reserve`].
    pub(crate) token: Token,
    pub(crate) sock: SockId,
    pub(crate) guest: SocketAddr,
    /// The address the guest shall see as the client's; the gateway's with a free port if `None`.
    pub(crate) client: Option<SocketAddr>,
}
