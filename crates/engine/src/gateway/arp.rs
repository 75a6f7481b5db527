//! ARP (RFC 826): the gateway, host and DNS addresses are answered with the gateway's MAC, and what
//! guests say about themselves is learned. Conflicts are judged as in RFC 5227: an address of the
//! gateway's never moves, one of a guest's only when it is free.

use std::net::Ipv4Addr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetFrame};
use vmlan_wire::{Mac, Offload, OutFrame};

use crate::io::{Io, PortId};
use crate::net::Net;
use crate::packet::ETHERNET_HEADER;
use crate::stats::Drop;

const ARP_LEN: usize = 28;

pub(super) fn handle(
    net: &mut Net,
    io: &mut Io<'_>,
    port: PortId,
    eth: &EthernetFrame<&[u8]>,
) -> Result<(), Drop> {
    let packet = ArpPacket::new_checked(eth.payload()).map_err(|_| Drop::Malformed)?;
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: mac,
        source_protocol_addr: sender,
        target_protocol_addr: target,
        ..
    }) = ArpRepr::parse(&packet)
    else {
        return Err(Drop::UnknownProtocol);
    };
    if mac != eth.src_addr() {
        return Err(Drop::Spoofed);
    }
    // A probe teaches nothing: its sender has no address yet.
    if !sender.is_unspecified() {
        if !net.config.ipv4.is_host(sender) || net.config.is_own(sender.into()) {
            return Err(Drop::Source);
        }
        if !net.claim(sender.into(), mac, port, io.now) {
            return Err(Drop::Source);
        }
    }
    match operation {
        ArpOperation::Request if net.config.is_own(target.into()) => {
            send(net, io, ArpOperation::Reply, target, (mac, sender));
        }
        ArpOperation::Request | ArpOperation::Reply => {}
        ArpOperation::Unknown(_) => return Err(Drop::UnknownProtocol),
    }
    Ok(())
}

/// Asks the guests who has `target`.
pub(super) fn request(net: &mut Net, io: &mut Io<'_>, target: Ipv4Addr) {
    let sender = net.config.gateway;
    send(net, io, ArpOperation::Request, sender, (Mac::BROADCAST, target));
}

/// Asks whether anybody has `target`, without a sender's address: nobody learns anything from it
/// (RFC 5227 section 1.1, "ARP Probe").
pub(super) fn probe(net: &mut Net, io: &mut Io<'_>, target: Ipv4Addr) {
    send(net, io, ArpOperation::Request, Ipv4Addr::UNSPECIFIED, (Mac::BROADCAST, target));
}

/// Sends a guest a probe for nobody's address: it costs it nothing and tells it nothing.
pub(super) fn ask(net: &mut Net, io: &mut Io<'_>, to: Mac) {
    let nobody = Ipv4Addr::UNSPECIFIED;
    send(net, io, ArpOperation::Request, nobody, (to, nobody));
}

fn send(
    net: &mut Net,
    io: &mut Io<'_>,
    operation: ArpOperation,
    sender: Ipv4Addr,
    (to, target): (Mac, Ipv4Addr),
) {
    let from = net.config.gateway_mac;
    let mut frame = [0; ETHERNET_HEADER + ARP_LEN];
    let Some((header, body)) = frame.split_first_chunk_mut::<ETHERNET_HEADER>() else { return };
    header[..6].copy_from_slice(&to.0);
    header[6..12].copy_from_slice(&from.0);
    header[12..].copy_from_slice(&[0x08, 0x06]);
    ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: from,
        source_protocol_addr: sender,
        target_hardware_addr: if to.is_unicast() { to } else { Mac([0; 6]) },
        target_protocol_addr: target,
    }
    .emit(&mut ArpPacket::new_unchecked(body));
    if net.transmit(io, to, &[OutFrame::whole(&frame, Offload::NONE)]) == 0 {
        net.stats.drop(Drop::LinkFull);
    }
}
