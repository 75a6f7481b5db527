//! What guests may not tell each other: that an address of the gateway's is theirs. Looked at for
//! frames between guests, which the gateway's services never see.
//!
//! ARP (RFC 826) and neighbour discovery (RFC 4861) are where such a lie is believed.

use std::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{EthernetFrame, EthernetProtocol};

use crate::config::Config;

/// Sender protocol address in an ARP packet.
const ARP_SENDER: usize = 14;

const ICMPV6: u8 = 58;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// Whether a frame claims an address of the gateway's for its sender.
pub(crate) fn impersonates(config: &Config, eth: &EthernetFrame<&[u8]>) -> bool {
    match eth.ethertype() {
        EthernetProtocol::Arp => {
            let sender = eth.payload().get(ARP_SENDER..).and_then(|p| p.first_chunk::<4>());
            sender.is_some_and(|ip| config.is_own(Ipv4Addr::from(*ip).into()))
        }
        EthernetProtocol::Ipv6 => discovery(config, eth.payload()).unwrap_or(false),
        _ => false,
    }
}

/// A message of neighbour discovery straight behind the IPv6 header; receivers take no other
/// (RFC 6980).
fn discovery(config: &Config, ip: &[u8]) -> Option<bool> {
    let own = |at: usize| {
        let octets = ip.get(at..)?.first_chunk::<16>()?;
        Some(config.is_own(Ipv6Addr::from(*octets).into()))
    };
    let kind = *ip.get(40)?;
    if *ip.get(6)? != ICMPV6 || !(133..=137).contains(&kind) {
        return None;
    }
    Some(own(8)? || kind == NEIGHBOR_ADVERTISEMENT && own(48)?)
}
