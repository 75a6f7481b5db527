//! What a guest says by ICMP about a connection that the gateway is opening towards it: its
//! firewall refuses, or it forwards and the host behind it is not there. As systems do, the attempt
//! ends (RFC 1122 section 4.2.3.9); a connection that stands is not shaken by it (RFC 5927).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::flow::{Cx, State};
use super::seq::Seq;
use super::{Tcp, ports};
use crate::flow::Key;
use crate::io::{Close, Failure, Io};
use crate::net::Net;
use crate::packet::{IPV4_HEADER, IPV6_HEADER, Packet};

/// Type, code, checksum and a field that matters to other types.
const HEADER: usize = 8;

const TCP: u8 = 6;

impl Tcp {
    /// True if a message of ICMP was about a connection that is being opened.
    pub(crate) fn unreachable(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
    ) -> bool {
        let Some(failure) = failure(packet) else { return false };
        let Some((key, seq)) = packet.payload.get(HEADER..).and_then(|q| quoted(q, packet.is_v6()))
        else {
            return false;
        };
        let Some(index) = self.by_key.get(&key).copied() else { return false };
        let Some(flow) = self.flows.get_mut(index as usize) else { return false };
        // Nobody but the guest that was called knows the number.
        let ours =
            flow.state == State::SynSent && flow.mac == packet.src_mac && flow.snd.una == seq;
        if !ours || !packet.checksum_ok() {
            return false;
        }
        flow.dial = flow.dial.map(|_| failure);
        flow.die(&mut Cx { net, io, pool: &mut self.pool }, Close::Reset);
        self.settle(net, io, index);
        true
    }
}

/// What "unreachable" means (RFC 792, RFC 1812 section 5.2.7.1, RFC 4443 section 3.1).
fn failure(packet: &Packet<'_>) -> Option<Failure> {
    let [kind, code, ..] = *packet.payload else { return None };
    match (packet.is_v6(), kind, code) {
        (false, 3, 3) | (true, 1, 4) => Some(Failure::Refused),
        (false, 3, 9 | 10 | 13) | (true, 1, 1 | 5) => Some(Failure::Prohibited),
        (false, 3, 0) | (true, 1, 0) => Some(Failure::NetUnreachable),
        // "Fragmentation needed" is about the path.
        (false, 3, 4) => None,
        (false, 3, _) | (true, 1, _) => Some(Failure::HostUnreachable),
        _ => None,
    }
}

/// The flow of a segment of ours, and its sequence number.
fn quoted(quote: &[u8], v6: bool) -> Option<(Key, Seq)> {
    let (gateway, guest, tcp): (IpAddr, IpAddr, _) = if v6 {
        let (h, tcp) = quote.split_first_chunk::<IPV6_HEADER>()?;
        let address = |at: usize| {
            let octets: [u8; 16] = h.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(octets))
        };
        (h[0] >> 4 == 6 && h[6] == TCP).then_some(())?;
        (address(8)?.into(), address(24)?.into(), tcp)
    } else {
        let (h, tcp) = quote.split_first_chunk::<IPV4_HEADER>()?;
        // We send no options.
        (h[0] == 0x45 && h[9] == TCP).then_some(())?;
        let address = |at: usize| Ipv4Addr::new(h[at], h[at + 1], h[at + 2], h[at + 3]);
        (address(12).into(), address(16).into(), tcp)
    };
    let (from, to) = ports(tcp);
    let remote = SocketAddr::new(gateway, from?);
    let guest = SocketAddr::new(guest, to?);
    let seq: [u8; 4] = tcp.get(4..8)?.try_into().ok()?;
    Some((Key { guest, remote }, Seq(u32::from_be_bytes(seq))))
}
