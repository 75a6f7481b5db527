//! The last step before a link: what the link cannot do is done here. Trains of segments are cut,
//! checksums finished, and what does not fit the link's MTU is dropped.
//!
//! Frames that need nothing pass untouched. The others go out in groups that are small enough to
//! be still in the cache when the link copies them, with their rewritten heads in one buffer that
//! is used again and again.

use arrayvec::ArrayVec;
use vmlan_wire::OutFrame;
use vmlan_wire::frame::{Checksum, Gso, GsoKind};
use vmlan_wire::segment::{self, Rewritten, Train};

use super::PortCaps;
use crate::io::{Links, PortId};
use crate::packet::ETHERNET_HEADER;
use crate::stats::{Drop, Stats};

/// Rewritten frames that are handed to the link at once.
const GROUP: usize = 64;

/// A group ends when it holds so many bytes.
const GROUP_BYTES: usize = 128 * 1024;

/// Heads of a whole group, and no more is kept between groups.
const HEADS_KEPT: usize = 16 * 1024;

const VLAN_TAG: usize = 4;

/// IPv4 and TCP without options.
const SHORTEST_HEADERS: usize = 40;

/// Buffers for frames that have to be rewritten.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    heads: Vec<u8>,
}

/// What has to be done to a frame before its port can take it.
enum Need {
    Nothing,
    Checksum { start: u16, offset: u16 },
    Cut(Gso),
    Drop,
}

/// Sends `frames` to `port` and returns how many it took, in order. What is dropped here counts
/// as taken, and so does a train of which the port took a part.
pub(super) fn send(
    links: &mut dyn Links,
    port: PortId,
    caps: PortCaps,
    frames: &[OutFrame<'_>],
    scratch: &mut Scratch,
    stats: &mut Stats,
) -> usize {
    let mut taken = 0;
    while let Some(rest) = frames.get(taken..)
        && let Some(first) = rest.first()
    {
        let (n, full) = match need(first, caps) {
            Need::Nothing => {
                let run = rest.iter().take_while(|f| is_plain(f, caps));
                let run = rest.get(..run.count()).unwrap_or_default();
                let n = links.send(port, run);
                (n, n < run.len())
            }
            Need::Checksum { .. } => finish(links, port, caps, rest, scratch, stats),
            Need::Cut(gso) => match cut(links, port, caps, first, gso, scratch) {
                Cut::Sent => (1, false),
                Cut::Full => (0, true),
                Cut::Dropped(reason) => {
                    stats.drop(reason);
                    (1, reason == Drop::LinkFull)
                }
            },
            Need::Drop => {
                stats.drop(Drop::TooBig);
                (1, false)
            }
        };
        taken += n;
        if full {
            break;
        }
    }
    taken
}

/// Whether the port can take a frame as it is.
pub(super) fn is_plain(frame: &OutFrame<'_>, caps: PortCaps) -> bool {
    matches!(need(frame, caps), Need::Nothing)
}

fn need(frame: &OutFrame<'_>, caps: PortCaps) -> Need {
    match frame.offload.gso {
        Some(gso) => {
            let able = match gso.kind {
                GsoKind::TcpV4 => caps.tso4,
                GsoKind::TcpV6 => caps.tso6,
            };
            if !able || !caps.checksum {
                return Need::Cut(gso);
            }
            if usize::from(gso.size) + SHORTEST_HEADERS > usize::from(caps.mtu) {
                return Need::Drop;
            }
        }
        None if frame.len() > room(frame, caps) => return Need::Drop,
        None => {}
    }
    match frame.offload.checksum {
        Checksum::Partial { start, offset } if !caps.checksum => Need::Checksum { start, offset },
        _ => Need::Nothing,
    }
}

/// The longest frame of this kind that the port carries.
fn room(frame: &OutFrame<'_>, caps: PortCaps) -> usize {
    let tag = match frame.head.get(12..14) {
        Some([0x81, 0x00] | [0x88, 0xa8]) => VLAN_TAG,
        _ => 0,
    };
    ETHERNET_HEADER + tag + usize::from(caps.mtu)
}

/// Finishes the checksums of the first frames, as many as need it and make a group, and sends
/// them. Returns how many were taken, and whether the link is full.
fn finish(
    links: &mut dyn Links,
    port: PortId,
    caps: PortCaps,
    frames: &[OutFrame<'_>],
    scratch: &mut Scratch,
    stats: &mut Stats,
) -> (usize, bool) {
    let mut group = Group::new(scratch);
    for frame in frames {
        let Need::Checksum { start, offset } = need(frame, caps) else { break };
        if group.is_full() {
            break;
        }
        match segment::complete(frame, start, offset, group.heads) {
            Ok(made) => group.push(made),
            Err(_) if group.made.is_empty() => {
                stats.drop(Drop::Malformed);
                return (1, false);
            }
            Err(_) => break,
        }
    }
    let made = group.made.len();
    let n = group.send(links, port);
    (n, n < made)
}

/// What became of a train.
enum Cut {
    Sent,
    /// The link took nothing of it.
    Full,
    /// It cannot be cut, or the link took only a part.
    Dropped(Drop),
}

fn cut(
    links: &mut dyn Links,
    port: PortId,
    caps: PortCaps,
    frame: &OutFrame<'_>,
    gso: Gso,
    scratch: &mut Scratch,
) -> Cut {
    let Ok(mut train) = Train::new(frame, gso) else { return Cut::Dropped(Drop::Malformed) };
    if train.frame_len() > room(frame, caps) {
        return Cut::Dropped(Drop::TooBig);
    }
    let mut sent = false;
    loop {
        let mut group = Group::new(scratch);
        while !group.is_full()
            && let Some(made) = train.next(group.heads, !caps.checksum)
        {
            group.push(made);
        }
        let made = group.made.len();
        if made == 0 {
            return Cut::Sent;
        }
        let n = group.send(links, port);
        sent |= n > 0;
        if n < made {
            return if sent { Cut::Dropped(Drop::LinkFull) } else { Cut::Full };
        }
    }
}

/// Rewritten frames that leave together.
struct Group<'h, 'b> {
    heads: &'h mut Vec<u8>,
    made: ArrayVec<Rewritten<'b>, GROUP>,
    bytes: usize,
}

impl<'h, 'b> Group<'h, 'b> {
    fn new(scratch: &'h mut Scratch) -> Self {
        scratch.heads.clear();
        scratch.heads.shrink_to(HEADS_KEPT);
        Self { heads: &mut scratch.heads, made: ArrayVec::new(), bytes: 0 }
    }

    fn is_full(&self) -> bool {
        self.made.is_full() || self.bytes >= GROUP_BYTES
    }

    fn push(&mut self, made: Rewritten<'b>) {
        self.bytes += made.head_len + made.body[0].len() + made.body[1].len();
        self.made.push(made);
    }

    fn send(&self, links: &mut dyn Links, port: PortId) -> usize {
        let mut heads = self.heads.as_slice();
        // Filled in place: moving an array for 64 frames costs more than most groups.
        let mut frames: ArrayVec<OutFrame<'_>, GROUP> = ArrayVec::new();
        frames.extend(self.made.iter().map(|made| {
            let (head, rest) = heads.split_at_checked(made.head_len).unwrap_or_default();
            heads = rest;
            OutFrame { head, body: made.body, offload: made.offload }
        }));
        links.send(port, &frames)
    }
}

#[cfg(test)]
mod tests {
    use vmlan_wire::Offload;
    use vmlan_wire::checksum::Sum;

    use super::*;

    /// A link with limited room.
    struct Wire {
        got: Vec<(Vec<u8>, Offload)>,
        room: usize,
    }

    impl Links for Wire {
        fn send(&mut self, _port: PortId, frames: &[OutFrame<'_>]) -> usize {
            let n = frames.len().min(self.room);
            self.room -= n;
            for frame in &frames[..n] {
                let mut data = Vec::new();
                frame.copy_to(&mut data);
                self.got.push((data, frame.offload));
            }
            n
        }
    }

    const PLAIN: PortCaps = PortCaps { checksum: false, tso4: false, tso6: false, mtu: 1500 };
    const ABLE: PortCaps = PortCaps { checksum: true, tso4: true, tso6: true, mtu: 1500 };

    const PARTIAL: Offload =
        Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, gso: None };
    const TRAIN: Offload =
        Offload { gso: Some(Gso { kind: GsoKind::TcpV4, size: 1460, header_len: 54 }), ..PARTIAL };

    /// An Ethernet, IPv4 and TCP header for `len` bytes of payload.
    fn head(len: u16) -> Vec<u8> {
        let mut head = vec![2; 12];
        head.extend([0x08, 0, 0x45, 0]);
        head.extend((len + 40).to_be_bytes());
        head.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        head.extend([0, 1, 0, 2, 0, 0, 0, 9, 0, 0, 0, 7, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        let mut sum = Sum::new();
        sum.add(&head[26..34]);
        sum.add_u32(u32::from(len) + 20);
        sum.add_u16(6);
        head[50..52].copy_from_slice(&sum.partial());
        head
    }

    fn run(caps: PortCaps, frames: &[OutFrame<'_>], room: usize) -> (usize, Wire, Stats) {
        let mut wire = Wire { got: Vec::new(), room };
        let (mut scratch, mut stats) = (Scratch::default(), Stats::default());
        let n = send(&mut wire, PortId(0), caps, frames, &mut scratch, &mut stats);
        (n, wire, stats)
    }

    fn checksum_is_right(frame: &[u8]) -> bool {
        let mut sum = Sum::new();
        sum.add(&frame[26..34]);
        sum.add_u32(u32::try_from(frame.len() - 34).unwrap());
        sum.add_u16(6);
        sum.add(&frame[34..]);
        sum.is_valid()
    }

    #[test]
    fn an_able_port_gets_frames_as_they_are() {
        let (h, body) = (head(4000), vec![7; 4000]);
        let frame = OutFrame { head: &h, body: [&body, &[]], offload: TRAIN };
        let (n, wire, _) = run(ABLE, &[frame; 3], 9);
        assert_eq!(n, 3);
        assert!(wire.got.iter().all(|(data, offload)| data.len() == 4054 && *offload == TRAIN));
    }

    #[test]
    fn a_plain_port_gets_whole_segments_in_order() {
        let (h, ack) = (head(4000), head(0));
        let body: Vec<u8> = (0..4000u32).map(|i| i.to_le_bytes()[0]).collect();
        let train = OutFrame { head: &h, body: [&body[..100], &body[100..]], offload: TRAIN };
        let arp = OutFrame::whole(&[9; 60], Offload::NONE);
        let frames = [arp, train, OutFrame::whole(&ack, PARTIAL), arp];
        let (n, wire, stats) = run(PLAIN, &frames, 99);
        assert_eq!((n, wire.got.len(), stats.drops().count()), (4, 6, 0));
        let lens: Vec<_> = wire.got.iter().map(|(data, _)| data.len()).collect();
        assert_eq!(lens, [60, 1514, 1514, 54 + 1080, 54, 60]);
        assert!(wire.got.iter().all(|(_, offload)| *offload == Offload::NONE));
        assert!(wire.got[1..5].iter().all(|(data, _)| checksum_is_right(data)));
        let payload: Vec<u8> = wire.got[1..4].iter().flat_map(|(d, _)| d[54..].to_vec()).collect();
        assert!(payload == body);
    }

    #[test]
    fn bursts_longer_than_a_group_are_finished() {
        let (h, body) = (head(1000), vec![3; 1000]);
        let frame = OutFrame { head: &h, body: [&body, &[]], offload: PARTIAL };
        for room in [0, 1, 64, 100, 150] {
            let (n, wire, _) = run(PLAIN, &[frame; 150], room);
            assert_eq!((n, wire.got.len()), (room, room));
            assert!(wire.got.iter().all(|(data, _)| checksum_is_right(data)));
        }
    }

    #[test]
    fn a_train_that_is_taken_in_part_counts_as_taken_and_as_lost() {
        let (h, body) = (head(14600), vec![3; 14600]);
        let train = OutFrame { head: &h, body: [&body, &[]], offload: TRAIN };
        let (n, _, stats) = run(PLAIN, &[train, train], 0);
        assert_eq!((n, stats.dropped(Drop::LinkFull)), (0, 0));
        let (n, wire, stats) = run(PLAIN, &[train, train], 4);
        assert_eq!((n, wire.got.len(), stats.dropped(Drop::LinkFull)), (1, 4, 1));
        let (n, _, stats) = run(PLAIN, &[train, train], 10);
        assert_eq!((n, stats.dropped(Drop::LinkFull)), (1, 0));
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_the_rest_goes_on() {
        let (h, big, small) = (head(1461), vec![3; 1461], [0; 14]);
        let frames = [
            OutFrame { head: &h, body: [&big, &[]], offload: PARTIAL },
            OutFrame::whole(&small, Offload::NONE),
            OutFrame { head: &h, body: [&big, &[]], offload: TRAIN },
        ];
        for caps in [PLAIN, ABLE] {
            let (n, wire, stats) = run(caps, &frames[..2], 9);
            assert_eq!((n, wire.got.len(), stats.dropped(Drop::TooBig)), (2, 1, 1));
        }
        let (n, wire, stats) = run(PortCaps { mtu: 1400, ..PLAIN }, &frames[1..], 9);
        assert_eq!((n, wire.got.len(), stats.dropped(Drop::TooBig)), (2, 1, 1));
    }

    #[test]
    fn nonsense_from_a_guest_is_dropped() {
        let far = Offload { checksum: Checksum::Partial { start: 60, offset: 65_000 }, gso: None };
        let data = [0; 60];
        let frames = [OutFrame::whole(&data, TRAIN), OutFrame::whole(&data, far)];
        let (n, wire, stats) = run(PLAIN, &frames, 9);
        assert_eq!((n, wire.got.len(), stats.dropped(Drop::Malformed)), (2, 0, 2));
    }
}
