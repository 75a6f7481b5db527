//! Router advertisements (RFC 4861 section 6, RFC 8106): the network's prefix for SLAAC, the
//! gateway as default router, MTU, DNS servers and search domains. Sent when a guest asks and
//! every few minutes.
//!
//! The gateway stays the default router where the host itself has no IPv6: the host alias and the
//! other guests are reachable, and for the rest the guest is told the truth packet by packet.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use hickory_proto::rr::Name;
use smoltcp::wire::{
    Icmpv6Packet, IpProtocol, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr,
    NdiscRouterFlags,
};
use vmlan_wire::Mac;

use super::limit::Limiter;
use super::nd::{ALL_NODES, HOP_LIMIT};
use crate::config::{Config, eui64};
use crate::hash::SeededState;
use crate::io::Io;
use crate::net::{IpHeader, Net};
use crate::packet::Packet;
use crate::stats::Drop;
use crate::time::Instant;

const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// Seconds that the gateway stays default router, and its DNS servers are good for.
const ROUTER_LIFETIME: u16 = 1800;
const VALID_LIFETIME: u64 = 86_400;
const PREFERRED_LIFETIME: u64 = 14_400;

/// Seconds between advertisements that nobody asked for (RFC 4861's defaults).
const MIN_INTERVAL: u64 = 200;
const MAX_INTERVAL: u64 = 600;

/// IPv6 does not run on links with less (RFC 8200 section 5).
const IPV6_MIN_MTU: u16 = 1280;

#[derive(Debug)]
pub(super) struct Ra {
    /// The whole message but for its checksum.
    message: Vec<u8>,
    next: Instant,
    limit: Limiter,
    random: SeededState,
}

impl Ra {
    pub(super) fn new(config: &Config, now: Instant) -> Self {
        let mut ra = Self {
            message: message(config),
            next: now,
            limit: Limiter::new(Duration::from_millis(250), 4),
            random: SeededState::new(config.seed),
        };
        ra.schedule(now);
        ra
    }

    /// Advertises other search domains at once, and takes back those of before (RFC 8106 section
    /// 5.2) for as long as these last.
    pub(super) fn set_search(&mut self, config: &Config, before: &[String], now: Instant) {
        self.message = message(config);
        let gone = before.iter().filter(|name| !config.search.contains(name)).cloned();
        let names = search_names(&gone.collect::<Vec<_>>());
        if !names.is_empty() {
            push_option(&mut self.message, 31, 0, &names);
        }
        self.next = now;
    }

    /// Answers a solicitation, to the guest that asked alone.
    pub(super) fn solicited(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), Drop> {
        if !self.limit.allow(packet.port, io.now) {
            return Err(Drop::Limit);
        }
        let dst = match packet.src {
            IpAddr::V6(src) if !src.is_unspecified() => src,
            _ => ALL_NODES,
        };
        self.send(net, io, packet.src_mac, dst);
        Ok(())
    }

    pub(super) fn handle_timeout(&mut self, net: &mut Net, io: &mut Io<'_>) {
        if io.now < self.next || net.switch.ports().next().is_none() {
            return;
        }
        self.schedule(io.now);
        self.send(net, io, ALL_NODES_MAC, ALL_NODES);
    }

    pub(super) fn next_timeout(&self) -> Instant {
        self.next
    }

    fn schedule(&mut self, now: Instant) {
        let random = self.random.hash_one(self.next.micros());
        let wait = MIN_INTERVAL + random % (MAX_INTERVAL - MIN_INTERVAL);
        self.next = now + Duration::from_secs(wait);
    }

    fn send(&self, net: &mut Net, io: &mut Io<'_>, to: Mac, dst: Ipv6Addr) {
        // In the name of whoever is the router: it is by this address that guests send.
        let router = eui64([0xfe80, 0, 0, 0], net.config.router().mac);
        let mut ip = IpHeader::new(router.into(), dst.into(), IpProtocol::Icmpv6);
        ip.ttl = HOP_LIMIT;
        let Some((head, options)) = self.message.split_first_chunk::<16>() else { return };
        net.send_ip(io, to, &ip, head, options);
    }
}

fn message(config: &Config) -> Vec<u8> {
    let router = config.router();
    let lifetime = if router.leads_out { ROUTER_LIFETIME } else { 0 };
    let seconds = smoltcp::time::Duration::from_secs;
    let repr = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        // Addresses come from the prefix; DHCPv6 has the other things, and addresses for those
        // who ask.
        flags: NdiscRouterFlags::OTHER,
        router_lifetime: seconds(u64::from(lifetime)),
        reachable_time: seconds(0),
        retrans_time: seconds(0),
        lladdr: Some(router.mac.into()),
        mtu: (config.mtu >= IPV6_MIN_MTU).then(|| u32::from(config.mtu)),
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: seconds(VALID_LIFETIME),
            preferred_lifetime: seconds(PREFERRED_LIFETIME),
            prefix: config.ipv6.prefix,
        }),
    };
    let mut message = vec![0; repr.buffer_len()];
    repr.emit(&mut Icmpv6Packet::new_unchecked(&mut message[..]));
    push_option(&mut message, 25, ROUTER_LIFETIME, &config.ipv6.dns().octets());
    let names = search_names(&config.search);
    if !names.is_empty() {
        push_option(&mut message, 31, ROUTER_LIFETIME, &names);
    }
    message
}

/// Appends an RDNSS (25) or DNSSL (31) option: type, length in eights, reserved, lifetime, value
/// padded with zeros (RFC 8106 section 5).
fn push_option(message: &mut Vec<u8>, kind: u8, lifetime: u16, value: &[u8]) {
    let Ok(units) = u8::try_from((8 + value.len()).div_ceil(8)) else { return };
    let end = message.len() + 8 * usize::from(units);
    message.extend_from_slice(&[kind, units, 0, 0]);
    message.extend_from_slice(&u32::from(lifetime).to_be_bytes());
    message.extend_from_slice(value);
    message.resize(end, 0);
}

/// Domain names as in DNS messages, uncompressed; those that are none are left out.
pub(super) fn search_names(search: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in search.iter().filter_map(|n| Name::from_ascii(n).ok()) {
        for label in name.iter() {
            let Ok(len) = u8::try_from(label.len()) else { continue };
            out.push(len);
            out.extend_from_slice(label);
        }
        out.push(0);
    }
    out
}
