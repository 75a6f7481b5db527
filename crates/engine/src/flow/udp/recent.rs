//! The way of the last datagram, remembered: the next one from the same place to the same place
//! needs no second parse, no look into tables and no decision, for a while.

use std::time::Duration;

use vmlan_wire::checksum::Sum;
use vmlan_wire::frame::Checksum;
use vmlan_wire::{Frame, FrameBatch};

use super::gather::{Destination, Owner};
use super::{HEADER, Udp};
use crate::io::{Io, PortId};
use crate::net::Net;
use crate::packet::{ETHERNET_HEADER, IPV4_HEADER, IPV6_HEADER, Packet, Place};
use crate::time::Instant;

/// The tables are told that a guest is alive at least this often.
const VALID: Duration = Duration::from_millis(200);

const V4: usize = ETHERNET_HEADER + IPV4_HEADER + HEADER;
const V6: usize = ETHERNET_HEADER + IPV6_HEADER + HEADER;

#[derive(Debug)]
pub(super) struct Recent {
    port: PortId,
    head: Head,
    to: Destination,
    until: Instant,
    /// [`Udp::changes`] when it was remembered.
    changes: u32,
}

/// The headers of a datagram without options and fragments.
#[derive(Debug)]
enum Head {
    V4([u8; V4]),
    V6([u8; V6]),
}

impl Recent {
    fn new(
        port: PortId,
        frame: &[u8],
        to: Destination,
        changes: u32,
        now: Instant,
    ) -> Option<Self> {
        let head = match frame.get(12..15)? {
            [0x08, 0x00, 0x45] => Head::V4(*frame.first_chunk()?),
            [0x86, 0xdd, _] => Head::V6(*frame.first_chunk()?),
            _ => return None,
        };
        Some(Self { port, head, to, until: now + VALID, changes })
    }

    /// The length of the payload, if the frame is like the last one and nothing is wrong with it.
    fn payload_of(&self, frame: &Frame<'_>) -> Option<usize> {
        let (start, ip_len, alike) = match &self.head {
            Head::V4(known) => {
                let head: &[u8; V4] = frame.data.first_chunk()?;
                // All but length, identification and checksum; and the ports.
                let alike = head[..16] == known[..16]
                    && head[20..24] == known[20..24]
                    && head[26..38] == known[26..38];
                let mut sum = Sum::new();
                sum.add(&head[14..34]);
                let total = usize::from(u16::from_be_bytes([head[16], head[17]]));
                (ETHERNET_HEADER + IPV4_HEADER, total, alike && sum.is_valid())
            }
            Head::V6(known) => {
                let head: &[u8; V6] = frame.data.first_chunk()?;
                // All but the length; and the ports.
                let alike = head[..18] == known[..18] && head[20..58] == known[20..58];
                let len = usize::from(u16::from_be_bytes([head[18], head[19]]));
                (ETHERNET_HEADER + IPV6_HEADER, IPV6_HEADER + len, alike)
            }
        };
        let udp = frame.data.get(start..ETHERNET_HEADER + ip_len)?;
        let [_, _, _, _, l0, l1, c0, c1, ..] = *udp else { return None };
        let length = u16::from_be_bytes([l0, l1]);
        if !alike || usize::from(length) != udp.len() {
            return None;
        }
        if frame.offload.checksum == Checksum::Complete {
            let mut sum = Sum::new();
            sum.add(match &self.head {
                Head::V4(_) => frame.data.get(26..34)?,
                Head::V6(_) => frame.data.get(22..54)?,
            });
            sum.add_u16(17);
            sum.add_u16(length);
            sum.add(udp);
            let none = [c0, c1] == [0, 0] && matches!(self.head, Head::V4(_));
            if !none && !sum.is_valid() {
                return None;
            }
        }
        Some(udp.len() - HEADER)
    }
}

impl Udp {
    /// A frame that may be another datagram of the last flow: true if it was one and has been
    /// taken.
    pub(crate) fn take_next(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        port: PortId,
        batch: &FrameBatch,
        index: usize,
    ) -> bool {
        let Some(recent) = &self.recent else { return false };
        let Some(frame) = batch.get(index) else { return false };
        if recent.port != port || recent.until <= io.now || recent.changes != self.changes(net) {
            return false;
        }
        let Some(len) = recent.payload_of(&frame) else { return false };
        let to = recent.to;
        if let Owner::Flow(flow) = to.owner {
            let Some(flow) = self.flows.get_mut(flow) else { return false };
            flow.sent_again(len, io.now);
        }
        if !self.gather.fits(&to) {
            self.end_of_batch(net, io, batch);
        }
        let start = match self.recent.as_ref().map(|r| &r.head) {
            Some(Head::V6(_)) => V6,
            _ => V4,
        };
        self.gather.push(to, index, start, len);
        true
    }

    /// Remembers the way of a datagram that has just been passed on.
    pub(super) fn remember(
        &mut self,
        net: &Net,
        packet: &Packet<'_>,
        place: Place<'_>,
        to: Destination,
        now: Instant,
    ) {
        let plain = if packet.is_v6() { IPV6_HEADER } else { IPV4_HEADER };
        let frame = place.index.and_then(|index| place.batch.get(index));
        let changes = self.changes(net);
        self.recent = frame
            .filter(|_| packet.ip.len() - packet.payload.len() == plain)
            .and_then(|frame| Recent::new(packet.port, frame.data, to, changes, now));
    }

    /// A number that changes when a datagram like the last might go another way. (A client of a
    /// forward may come to be where an outbound flow led to until then.)
    fn changes(&self, net: &Net) -> u32 {
        net.changes().wrapping_add(self.clients.changes)
    }
}
