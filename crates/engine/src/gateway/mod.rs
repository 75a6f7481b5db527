//! What the gateway answers itself: ARP, neighbour discovery, DHCP, router advertisements, echo to
//! its own addresses, DNS. Each service is a file: a packet in, an answer out.

pub(crate) mod icmp;

use smoltcp::wire::EthernetFrame;

use crate::config::Config;
use crate::io::{Io, PortId, Token};
use crate::net::Net;
use crate::packet::Packet;
use crate::stats::Drop;
use crate::time::Instant;

/// Asks the network for the MAC address of a guest that has not spoken yet.
pub(crate) fn solicit(_net: &mut Net, _io: &mut Io<'_>, _ip: std::net::IpAddr) {}

#[derive(Debug)]
pub(crate) struct Gateway {}

impl Gateway {
    pub(crate) fn new(_config: &Config, _now: Instant) -> Self {
        Self {}
    }

    pub(crate) fn arp(
        &mut self,
        _net: &mut Net,
        _io: &mut Io<'_>,
        _port: PortId,
        _eth: &EthernetFrame<&[u8]>,
    ) -> Result<(), Drop> {
        Ok(())
    }

    /// Whether a packet is for a service of the gateway's own rather than for a flow.
    pub(crate) fn wants(&self, _net: &Net, _packet: &Packet<'_>) -> bool {
        false
    }

    pub(crate) fn handle(
        &mut self,
        _net: &mut Net,
        _io: &mut Io<'_>,
        _packet: &Packet<'_>,
    ) -> Result<(), Drop> {
        Ok(())
    }

    pub(crate) fn dns_answer(
        &mut self,
        _net: &mut Net,
        _io: &mut Io<'_>,
        _token: Token,
        _message: &[u8],
    ) {
    }

    pub(crate) fn handle_timeout(&mut self, _net: &mut Net, _io: &mut Io<'_>) {}

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        None
    }
}
