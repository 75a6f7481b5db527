#![allow(clippy::cast_possible_truncation)]

mod hostile;
mod machine;

use std::io::Write;
use std::time::Duration;

use rustix::fs::SealFlags;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};
use vmlan_wire::frame::{Checksum, GsoKind};
use vmlan_wire::{Gso, Offload};

use super::device::{FROM_GUEST, TO_GUEST};
use super::*;
use machine::{INDIRECT, MEMORY, Machine, NEXT, SIZE, WRITE, memfd};

const PLAIN: [u8; 12] = [0; 12];
const BUFFERS: u64 = 0x10000;
const PARTIAL: Checksum = Checksum::Partial { start: 34, offset: 16 };

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| i as u8).collect()
}

fn message(header: [u8; 12], frame: &[u8]) -> Vec<u8> {
    [&header, frame].concat()
}

fn header(offload: Offload) -> [u8; 12] {
    let mut header = PLAIN;
    header[..10].copy_from_slice(&crate::vnet::emit(offload));
    header
}

/// Offers buffers of these lengths to the link, one in each chain.
fn offer_buffers(machine: &mut Machine, lens: &[u32]) {
    for len in lens {
        let index = machine.rings[TO_GUEST].offered % SIZE;
        machine.describe(TO_GUEST, index, BUFFERS + 0x1000 * u64::from(index), *len, WRITE, 0);
        machine.offer(TO_GUEST, index);
    }
}

fn give(machine: &mut Machine, data: &[u8], offload: Offload) -> usize {
    machine.link.send(PeerId(0), &[OutFrame::whole(data, offload)])
}

#[test]
fn what_the_driver_takes_is_what_the_link_can_do() {
    let mut machine = Machine::new();
    assert_eq!(machine.link.caps(), LinkCaps::default());
    machine.negotiate(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4]);
    assert_eq!(machine.link.caps(), LinkCaps { checksum: true, tso4: true, tso6: false });
    machine.negotiate(&[VIRTIO_NET_F_GUEST_TSO6]);
    assert_eq!(machine.link.caps(), LinkCaps::default(), "trains need checksums");
}

#[test]
fn a_frame_from_the_guest_arrives_whole_with_what_is_left_undone() {
    let mut machine = Machine::with(&[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4]);
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448, header_len: 66 });
    let offload = Offload { checksum: PARTIAL, gso };
    let sent = frame(3000);
    let bytes = message(header(offload), &sent);
    // In three pieces, the first of which ends within the header.
    let (a, rest) = bytes.split_at(5);
    let (b, c) = rest.split_at(1000);
    for (i, piece) in [a, b, c].into_iter().enumerate() {
        let at = BUFFERS + 0x1000 * i as u64;
        machine.write(at, piece);
        let flags = if i < 2 { NEXT } else { 0 };
        machine.describe(FROM_GUEST, i as u16, at, piece.len() as u32, flags, i as u16 + 1);
    }
    machine.offer(FROM_GUEST, 0);
    assert_eq!(machine.frames(), [(sent, offload)]);
    assert_eq!(machine.used(FROM_GUEST), [(0, 0)]);
    assert!(machine.was_called(FROM_GUEST));
}

#[test]
fn more_frames_than_one_pass_takes_all_arrive() {
    let mut machine = Machine::with(&[]);
    let big = frame(60_000);
    for round in 0..40 {
        // As many as a pass takes at most, so that the next one finds nothing.
        let count = 1 + round % 6;
        for i in 0..count {
            machine.send(BUFFERS + 0x10000 * i, &message(PLAIN, &big));
        }
        assert_eq!(machine.frames().len() as u64, count, "round {round}");
        assert_eq!(machine.used(FROM_GUEST).len() as u64, count);
    }
}

#[test]
fn a_frame_to_the_guest_lies_in_as_many_buffers_as_it_needs() {
    let mut machine = Machine::with(&[VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_GUEST_CSUM]);
    offer_buffers(&mut machine, &[100, 100, 100, 100]);
    let sent = frame(250);
    let offload = Offload { checksum: PARTIAL, gso: None };
    let out = OutFrame { head: &sent[..14], body: [&sent[14..99], &sent[99..]], offload };
    assert_eq!(machine.link.send(PeerId(0), &[out]), 1);
    assert!(machine.used(TO_GUEST).is_empty(), "it is shown at the end of the pass");
    assert_eq!(machine.link.flush(), Flushed::Done);
    assert_eq!(machine.used(TO_GUEST), [(0, 100), (1, 100), (2, 62)]);
    assert!(machine.was_called(TO_GUEST));
    let mut expected = header(offload);
    expected[10] = 3;
    let got = [(0, 100), (1, 100), (2, 62)].map(|(i, len)| machine.read(BUFFERS + 0x1000 * i, len));
    assert_eq!(got.concat(), message(expected, &sent));
}

#[test]
fn what_finds_no_room_waits_for_it() {
    let mut machine = Machine::with(&[VIRTIO_NET_F_MRG_RXBUF]);
    offer_buffers(&mut machine, &[200, 200]);
    assert_eq!(give(&mut machine, &frame(100), Offload::NONE), 1);
    assert_eq!(give(&mut machine, &frame(300), Offload::NONE), 0);
    assert_eq!(machine.link.flush(), Flushed::Blocked);
    assert_eq!(machine.used(TO_GUEST), [(0, 112)]);
    assert!(machine.link.next_timeout().is_some(), "no event tells when the link is not read");
    // The driver is asked to say so.
    offer_buffers(&mut machine, &[200]);
    assert!(matches!(machine.link.recv(&mut machine.batch), Recv::Empty));
    assert!(machine.link.next_timeout().is_some_and(|at| at <= Instant::now()));
    assert_eq!(machine.link.flush(), Flushed::Done);
    assert_eq!(give(&mut machine, &frame(300), Offload::NONE), 1);
    assert_eq!(machine.link.flush(), Flushed::Done);
    assert_eq!(machine.used(TO_GUEST), [(1, 200), (2, 112)]);
}

#[test]
fn without_merging_a_frame_has_one_chain() {
    let mut machine = Machine::with(&[]);
    offer_buffers(&mut machine, &[200, 200]);
    assert_eq!(give(&mut machine, &frame(300), Offload::NONE), 1, "it is lost");
    assert_eq!(give(&mut machine, &frame(150), Offload::NONE), 1);
    assert_eq!(machine.link.flush(), Flushed::Done);
    assert_eq!(machine.used(TO_GUEST), [(0, 162)]);
}

#[test]
fn what_the_guest_could_not_finish_is_not_given_to_it() {
    let mut machine = Machine::with(&[VIRTIO_NET_F_MRG_RXBUF]);
    offer_buffers(&mut machine, &[1000]);
    let offload = Offload { checksum: PARTIAL, gso: None };
    assert_eq!(give(&mut machine, &frame(100), offload), 1);
    let verified = Offload { checksum: Checksum::Verified, gso: None };
    assert_eq!(give(&mut machine, &frame(60), verified), 1);
    assert_eq!(machine.link.flush(), Flushed::Done);
    assert_eq!(machine.used(TO_GUEST), [(0, 72)]);
    assert_eq!(machine.read(BUFFERS, 1), [0], "nothing that it did not take is said of the frame");
}

#[test]
fn a_guest_that_looks_by_itself_is_not_called_until_it_asks() {
    let mut machine = Machine::with(&[]);
    machine.set_interrupts(FROM_GUEST, false);
    machine.send(BUFFERS, &message(PLAIN, &frame(60)));
    assert_eq!(machine.frames().len(), 1);
    assert!(!machine.was_called(FROM_GUEST));
    // Its wish was on the way when it was looked at.
    let look = machine.link.next_timeout().unwrap();
    machine.set_interrupts(FROM_GUEST, true);
    std::thread::sleep(look.saturating_duration_since(Instant::now()));
    machine.link.flush();
    assert!(machine.was_called(FROM_GUEST));
    // One that does not change its mind is asked once.
    machine.set_interrupts(FROM_GUEST, false);
    machine.send(BUFFERS, &message(PLAIN, &frame(60)));
    assert_eq!(machine.frames().len(), 1);
    let end = Instant::now() + Duration::from_secs(10);
    while let Some(at) = machine.link.next_timeout() {
        assert!(Instant::now() < end);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        machine.link.flush();
        assert!(machine.frames().is_empty());
    }
    assert!(!machine.was_called(FROM_GUEST));
}

#[test]
fn chains_that_cannot_be_are_no_frames() {
    let mut machine = Machine::with(&[]);
    let whole = message(PLAIN, &frame(60));
    machine.write(BUFFERS, &whole);
    let len = whole.len() as u32;
    // Goes round.
    machine.describe(FROM_GUEST, 0, BUFFERS, 10, NEXT, 1);
    machine.describe(FROM_GUEST, 1, BUFFERS, 10, NEXT, 0);
    // Goes on outside of the table.
    machine.describe(FROM_GUEST, 2, BUFFERS, len, NEXT, SIZE);
    // Is there to be written to.
    machine.describe(FROM_GUEST, 3, BUFFERS, len, WRITE, 0);
    // Is longer than a frame can be.
    machine.describe(FROM_GUEST, 4, BUFFERS, 0x20000, 0, 0);
    // Is shorter than the header.
    machine.describe(FROM_GUEST, 5, BUFFERS, 11, 0, 0);
    // A table that leads to itself, and one that is none.
    machine.describe(FROM_GUEST, 6, 0x8000, 32, INDIRECT, 0);
    machine.describe_at(0x8000, (0x8000, 32, INDIRECT, 0));
    machine.describe(FROM_GUEST, 7, 0x8000, 17, INDIRECT, 0);
    machine.describe(FROM_GUEST, 8, MEMORY - 8, 32, INDIRECT, 0);
    // Has nothing.
    machine.describe(FROM_GUEST, 9, BUFFERS, 0, 0, 0);
    (0..10).for_each(|head| machine.offer(FROM_GUEST, head));
    // And one that is right, behind a table.
    machine.describe(FROM_GUEST, 10, 0x9000, 32, INDIRECT, 0);
    machine.describe_at(0x9000, (BUFFERS, 20, NEXT, 1));
    machine.describe_at(0x9010, (BUFFERS + 20, len - 20, 0, 0));
    machine.offer(FROM_GUEST, 10);
    let frames = machine.frames();
    assert_eq!(frames.len(), 11);
    assert!(frames.iter().take(10).all(|(data, _)| data.is_empty()), "{frames:?}");
    assert_eq!(frames[10], (frame(60), Offload::NONE));
    assert_eq!(machine.used(FROM_GUEST).len(), 11);
}

#[test]
fn headers_that_lie_are_no_frames() {
    let mut machine = Machine::with(&[VIRTIO_NET_F_CSUM]);
    let tso = |size| Some(Gso { kind: GsoKind::TcpV4, size, header_len: 54 });
    let lies = [
        Offload { checksum: Checksum::Partial { start: 34, offset: 65_000 }, gso: None },
        Offload { checksum: Checksum::Partial { start: 65_535, offset: 65_535 }, gso: None },
        Offload { checksum: PARTIAL, gso: tso(0) },
        // Not agreed upon.
        Offload { checksum: PARTIAL, gso: tso(1000) },
    ];
    for lie in lies {
        machine.send(BUFFERS, &message(header(lie), &frame(60)));
        assert_eq!(machine.frames(), [(Vec::new(), Offload::NONE)]);
    }
}

#[test]
fn a_ring_that_is_broken_rests_until_it_is_started_anew() {
    for broken in [TO_GUEST, FROM_GUEST] {
        let mut machine = Machine::with(&[VIRTIO_NET_F_MRG_RXBUF]);
        if broken == FROM_GUEST {
            // More than the ring has.
            machine.rings[broken].offered = 1000;
            machine.offer(broken, 0);
            assert!(machine.frames().is_empty());
        } else {
            // Memory that is not there.
            machine.describe(broken, 0, MEMORY - 10, 200, WRITE, 0);
            machine.offer(broken, 0);
            assert_eq!(give(&mut machine, &frame(60), Offload::NONE), 1);
        }
        machine.rings[FROM_GUEST].kick.write(1).unwrap();
        assert!(machine.frames().is_empty());
        if broken == TO_GUEST {
            assert_eq!(give(&mut machine, &frame(60), Offload::NONE), 1, "it is lost");
        }
        machine.link.flush();
        assert!(machine.used(broken).is_empty());
        // As a driver does that starts again.
        machine.ask(|frontend| vhost::VhostBackend::get_vring_base(frontend, broken).unwrap());
        machine.write(machine.rings[broken].avail(), &[0; 64]);
        machine.rings[broken].offered = 0;
        machine.start(broken).unwrap();
        if broken == FROM_GUEST {
            machine.send(BUFFERS, &message(PLAIN, &frame(60)));
            assert_eq!(machine.frames(), [(frame(60), Offload::NONE)]);
        } else {
            offer_buffers(&mut machine, &[200]);
            assert_eq!(give(&mut machine, &frame(60), Offload::NONE), 1);
            machine.link.flush();
            assert_eq!(machine.used(broken), [(0, 72)]);
        }
    }
}

#[test]
fn a_ring_goes_on_where_another_link_has_left_it() {
    let mut machine = Machine::with(&[]);
    machine.send(BUFFERS, &message(PLAIN, &frame(60)));
    assert_eq!(machine.frames().len(), 1);
    let (monitor, connection) = UnixStream::pair().unwrap();
    machine.link = VhostUserLink::new(connection).unwrap();
    machine.frontend = vhost::vhost_user::Frontend::from_stream(monitor, 2);
    machine.negotiate(&[]);
    machine.give_memory().unwrap();
    machine.start(FROM_GUEST).unwrap();
    machine.send(BUFFERS, &message(PLAIN, &frame(70)));
    assert_eq!(machine.frames(), [(frame(70), Offload::NONE)]);
    assert_eq!(machine.used(FROM_GUEST).len(), 2);
}

#[test]
fn memory_that_may_go_away_is_refused() {
    let refused = |machine: &mut Machine| match machine.link.recv(&mut FrameBatch::default()) {
        Recv::Closed(CloseReason::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    let mut machine = Machine::new();
    machine.negotiate(&[]);
    let unsealed = memfd(SealFlags::GROW);
    assert!(machine.give(std::os::fd::AsRawFd::as_raw_fd(&unsealed), MEMORY).is_err());
    assert_eq!(refused(&mut machine), memory::UNSEALED);
    let mut machine = Machine::new();
    machine.negotiate(&[]);
    let file = tempfile::tempfile().unwrap();
    file.set_len(MEMORY).unwrap();
    assert!(machine.give(std::os::fd::AsRawFd::as_raw_fd(&file), MEMORY).is_err());
    assert_eq!(refused(&mut machine), memory::UNSEALED);
    let mut machine = Machine::new();
    machine.negotiate(&[]);
    let short = memfd(SealFlags::SHRINK);
    assert!(machine.give(std::os::fd::AsRawFd::as_raw_fd(&short), MEMORY + 4096).is_err());
    assert!(refused(&mut machine).contains("table"));
}

#[test]
fn rings_may_not_lie_outside_of_the_memory() {
    let mut machine = Machine::new();
    machine.negotiate(&[]);
    machine.give_memory().unwrap();
    machine.rings[FROM_GUEST].table = MEMORY - 0x2010;
    assert!(machine.start(FROM_GUEST).is_err());
    let closed = machine.link.recv(&mut machine.batch);
    assert!(matches!(closed, Recv::Closed(CloseReason::Refused(_))), "{closed:?}");
}

#[test]
fn a_ring_can_be_enabled_before_the_features_are_known() {
    let (mut monitor, connection) = UnixStream::pair().unwrap();
    let mut link = VhostUserLink::new(connection).unwrap();
    let mut batch = FrameBatch::default();
    let enable = |ring: u32, on: u32| {
        [18, 1, 8, ring, on].iter().flat_map(|w: &u32| w.to_ne_bytes()).collect::<Vec<_>>()
    };
    monitor.write_all(&enable(1, 1)).unwrap();
    assert!(matches!(link.recv(&mut batch), Recv::Empty));
    monitor.write_all(&enable(2, 1)).unwrap();
    assert!(matches!(link.recv(&mut batch), Recv::Closed(CloseReason::Refused(_))));
}

#[test]
fn half_a_message_holds_nobody_up_and_the_end_is_seen() {
    let mut machine = Machine::with(&[]);
    let (mut monitor, connection) = UnixStream::pair().unwrap();
    let mut silent = VhostUserLink::new(connection).unwrap();
    let get_features = [1u32, 1, 0].map(u32::to_ne_bytes).concat();
    monitor.write_all(&get_features[..7]).unwrap();
    assert!(matches!(silent.recv(&mut machine.batch), Recv::Empty));
    machine.send(BUFFERS, &message(PLAIN, &frame(60)));
    assert_eq!(machine.frames().len(), 1);
    drop(monitor);
    assert!(matches!(silent.recv(&mut machine.batch), Recv::Closed(CloseReason::Eof)));
    assert_eq!(silent.flush(), Flushed::Closed);
}

#[test]
fn a_machine_that_ends_with_frames_on_the_way_is_gone() {
    let mut machine = Machine::with(&[VIRTIO_NET_F_MRG_RXBUF]);
    offer_buffers(&mut machine, &[100]);
    assert_eq!(give(&mut machine, &frame(60), Offload::NONE), 1);
    machine.send(BUFFERS + 0x8000, &message(PLAIN, &frame(60)));
    machine.frontend = vhost::vhost_user::Frontend::from_stream(UnixStream::pair().unwrap().0, 2);
    assert!(matches!(machine.link.recv(&mut machine.batch), Recv::Closed(CloseReason::Eof)));
    assert!(matches!(machine.link.recv(&mut machine.batch), Recv::Closed(CloseReason::Eof)));
    assert_eq!(give(&mut machine, &frame(60), Offload::NONE), 1);
    assert_eq!(machine.link.flush(), Flushed::Closed);
}
