//! Frames from one guest to another, many at once: those of a batch that go the same way leave
//! together, and only the first of them is looked at by the switch.
//!
//! A link that has no room drops, as a switch does, unless its sender can be paused instead. That
//! is done for a sender that talks to nobody else, and for a moment only, so that a guest that does
//! not read holds up nobody's traffic but its own.

use std::time::Duration;

use smoltcp::wire::EthernetFrame;
use vmlan_wire::{Frame, FrameBatch};

use crate::gateway::guard::{self, Claims};
use crate::io::{Io, PortId};
use crate::net::Net;
use crate::packet::ETHERNET_HEADER;
use crate::stats::Drop;

/// How long a sender is paused for a guest that does not read.
pub const PATIENCE: Duration = Duration::from_millis(10);

/// A sender is paused only if everything it has sent for so long went to one guest.
pub(crate) const DEVOTED: Duration = Duration::from_millis(100);

/// Why the frames of a batch were not all handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The first frame that was not.
    pub next: usize,
    /// The port that has no room.
    pub on: PortId,
}

/// The way of a frame to another guest, by which the next one is known to have the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    ethernet: [u8; ETHERNET_HEADER],
    claims: Claims,
    pub(crate) to: PortId,
}

/// Where in which batch such frames begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    pub(crate) from: PortId,
    pub(crate) batch: &'a FrameBatch,
    pub(crate) index: usize,
    pub(crate) may_wait: bool,
}

impl Way {
    /// The way of a frame that may be sent to this port.
    pub(crate) fn new(frame: &Frame<'_>, claims: Claims, to: PortId) -> Self {
        let ethernet = frame.data.first_chunk().copied().unwrap_or_default();
        Self { ethernet, claims, to }
    }

    fn is_of(&self, net: &Net, frame: &Frame<'_>) -> bool {
        frame.data.first_chunk() == Some(&self.ethernet)
            && (guard::is_tcp_from(frame.data, self.claims.source)
                || EthernetFrame::new_checked(frame.data)
                    .is_ok_and(|eth| guard::check(&net.config, &eth) == Ok(self.claims)))
    }
}

/// Sends the frame at `run.index`, whose way this is, and those after it that have the same way.
/// Returns how many were handled; 0 says that the first is to wait.
pub(crate) fn pass_on(net: &mut Net, io: &mut Io<'_>, way: &Way, run: Run<'_>) -> usize {
    let next = (run.index + 1..).map_while(|index| run.batch.get(index));
    let same = next.take_while(|frame| way.is_of(net, frame)).count();
    let frames = run.index..run.index + 1 + same;

    let devoted = net.switch.sent_to(run.from, way.to, io.now);
    let all = frames.clone();
    let taken = net.switch.pass_on(io.links, way.to, run.batch, all, &mut net.stats);
    if taken == frames.len() {
        return taken;
    }
    if run.may_wait && devoted && !net.switch.is_stuck(way.to) {
        return taken;
    }
    for _ in taken..frames.len() {
        net.stats.drop(Drop::LinkFull);
    }
    frames.len()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmlan_wire::Offload;

    use super::*;
    use crate::testing::*;

    const TO: u8 = 2;

    /// A sender and a receiver, each known by its address, that have been silent for a while.
    fn pair() -> (World, PortId, PortId) {
        let mut world = World::new();
        let (from, to) = (world.attach(), world.attach());
        announce(&mut world, from, 1, guest(101));
        announce(&mut world, to, TO, guest(102));
        world.links.sent.clear();
        (world, from, to)
    }

    fn datagram(n: u8) -> Vec<u8> {
        let packet = ip(guest(101).into(), guest(102).into(), 17, 64, &udp(1, 2, &[n]));
        to_mac(mac(TO), 1, &packet)
    }

    fn batch(frames: impl IntoIterator<Item = Vec<u8>>) -> FrameBatch {
        let mut batch = FrameBatch::default();
        frames.into_iter().for_each(|frame| batch.push_copy(&frame, Offload::NONE));
        batch
    }

    fn go(world: &mut World, port: PortId, batch: &FrameBatch, from: usize) -> Option<Waiting> {
        world.io(|engine, io| engine.handle_frames_from(port, batch, from, true, io))
    }

    /// One frame so that the sender is known to send there, and time for it to be devoted.
    fn devote(world: &mut World, from: PortId, to: PortId) {
        assert_eq!(go(world, from, &batch([datagram(0)]), 0), None);
        world.pass(DEVOTED);
        world.sent(to);
    }

    #[test]
    fn frames_of_one_way_leave_together_and_in_order() {
        let (mut world, from, to) = pair();
        let frames: Vec<_> = (0..150).map(datagram).collect();
        let before = world.links.calls;
        assert_eq!(go(&mut world, from, &batch(frames.clone()), 0), None);
        assert_eq!(world.sent(to), frames);
        assert_eq!(world.links.calls - before, 3);
        let stats = world.engine.stats();
        assert_eq!((stats.frames_in, stats.drops().count()), (152, 0));
    }

    #[test]
    fn one_frame_among_others_is_looked_at_for_itself() {
        let (mut world, from, to) = pair();
        let forged = ip(guest(102).into(), guest(102).into(), 17, 64, &udp(1, 2, b"x"));
        let server = ip(guest(101).into(), guest(102).into(), 17, 64, &udp(67, 68, &[0; 9]));
        let frames = [
            datagram(1),
            to_mac(mac(TO), 1, &forged),
            datagram(2),
            to_mac(mac(TO), 1, &server),
            datagram(3),
        ];
        go(&mut world, from, &batch(frames), 0);
        assert_eq!(world.sent(to), [datagram(1), datagram(2), datagram(3)]);
        assert_eq!((world.dropped(Drop::Source), world.dropped(Drop::Rogue)), (1, 1));
    }

    #[test]
    fn a_segment_in_anothers_name_is_found_among_others() {
        let (mut world, from, to) = pair();
        let segment = |source: u8, n: u8| {
            let packet = ip(guest(source).into(), guest(102).into(), 6, 64, &[n; 20]);
            to_mac(mac(TO), 1, &packet)
        };
        let short = segment(101, 3)[..30].to_vec();
        let frames = [segment(101, 1), segment(101, 2), segment(102, 2), short, segment(101, 4)];
        go(&mut world, from, &batch(frames), 0);
        assert_eq!(world.sent(to), [segment(101, 1), segment(101, 2), segment(101, 4)]);
        assert_eq!((world.dropped(Drop::Source), world.dropped(Drop::Malformed)), (1, 1));
    }

    #[test]
    fn a_sender_that_talks_to_one_guest_waits_for_it() {
        let (mut world, from, to) = pair();
        devote(&mut world, from, to);
        let frames: Vec<_> = (0..100).map(datagram).collect();
        let all = batch(frames.clone());
        world.links.room = 70;
        assert_eq!(go(&mut world, from, &all, 0), Some(Waiting { next: 70, on: to }));
        assert_eq!(go(&mut world, from, &all, 70), Some(Waiting { next: 70, on: to }));
        world.links.room = usize::MAX;
        assert_eq!(go(&mut world, from, &all, 70), None);
        assert_eq!(world.sent(to), frames);
        let stats = world.engine.stats();
        assert_eq!((stats.frames_in, stats.drops().count()), (103, 0));
    }

    #[test]
    fn a_guest_that_makes_no_room_is_given_up_until_it_does() {
        let (mut world, from, to) = pair();
        devote(&mut world, from, to);
        let all = batch((0..10).map(datagram));
        world.links.room = 4;
        assert_eq!(go(&mut world, from, &all, 0).map(|w| w.next), Some(4));
        world.engine.give_up(to);
        assert_eq!(go(&mut world, from, &all, 4), None);
        assert_eq!(go(&mut world, from, &all, 0), None);
        assert_eq!(world.dropped(Drop::LinkFull), 16);
        world.io(|engine, io| engine.handle_port_writable(to, io));
        assert_eq!(go(&mut world, from, &all, 0).map(|w| w.next), Some(0));
    }

    #[test]
    fn a_sender_that_talks_to_others_too_never_waits() {
        let (mut world, from, to) = pair();
        let other = world.attach();
        announce(&mut world, other, 3, guest(103));
        devote(&mut world, from, to);
        let to_other = ip(guest(101).into(), guest(103).into(), 17, 64, &udp(1, 2, b"x"));
        let elsewhere = [
            to_mac(mac(3), 1, &to_other),
            to_mac(GATEWAY_MAC, 1, &ip(guest(101).into(), GATEWAY.into(), 17, 64, &udp(1, 9, b""))),
            to_mac(
                BROADCAST,
                1,
                &ip(guest(101).into(), guest(255).into(), 17, 64, &udp(1, 9, b"")),
            ),
        ];
        for frame in elsewhere {
            devote(&mut world, from, to);
            world.links.room = usize::MAX;
            go(&mut world, from, &batch([frame]), 0);
            world.links.room = 0;
            assert_eq!(go(&mut world, from, &batch([datagram(1)]), 0), None);
            world.pass(Duration::from_millis(50));
            assert_eq!(go(&mut world, from, &batch([datagram(1)]), 0), None);
            world.links.room = usize::MAX;
        }
        assert_eq!(world.dropped(Drop::LinkFull), 6);
    }
}
