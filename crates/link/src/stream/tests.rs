#![allow(clippy::cast_possible_truncation)]
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use vmlan_wire::Offload;

use super::*;
use crate::framing::MAX_FRAME;

fn pair() -> (StreamLink, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (StreamLink::new(ours.into()).unwrap(), theirs)
}

/// A frame of recognisable bytes.
fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + seed * 7) as u8).collect()
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

/// The frame in pieces, as flows send it.
fn split(data: &[u8]) -> OutFrame<'_> {
    let (head, body) = data.split_at(data.len().min(54));
    let (a, b) = body.split_at(body.len() / 3);
    OutFrame { head, body: [a, b], offload: Offload::NONE }
}

/// Has `send` give a link so many frames, some at a time, while the other end reads pieces of `read`
/// bytes, and returns what it got.
fn carry(
    count: usize,
    buffer: usize,
    read: usize,
    mut send: impl FnMut(&mut StreamLink, usize) -> usize,
) -> Vec<u8> {
    let (mut link, mut theirs) = pair();
    rustix::net::sockopt::set_socket_send_buffer_size(&link.socket, buffer).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut got = Vec::new();
    let mut piece = vec![0; read];
    let mut at = 0;
    loop {
        at += send(&mut link, at);
        assert!(link.out.len() <= PENDING_MAX + LENGTH + MAX_FRAME);
        let flushed = link.flush();
        match theirs.read(&mut piece) {
            Ok(n) => got.extend_from_slice(&piece[..n]),
            Err(_) if at == count && flushed == Flushed::Done => break,
            Err(_) => {}
        }
    }
    got
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_sent_arrives_in_order(
        sizes in prop::collection::vec(
            prop_oneof![14usize..200, Just(1514usize), 8000usize..8400, 20_000usize..65_553], 1..60),
        burst in 1usize..40,
        buffer in prop_oneof![Just(4096usize), Just(100_000usize), Just(1 << 20)],
        read in prop_oneof![100usize..5000, Just(300_000usize)],
    ) {
        let frames: Vec<_> = sizes.iter().enumerate().map(|(i, n)| frame(*n, i)).collect();
        let expected: Vec<u8> = frames.iter().flat_map(|f| framed(f)).collect();
        let out: Vec<_> = frames.iter().map(|f| split(f)).collect();
        let got = carry(out.len(), buffer, read, |link, at| {
            link.send(PeerId(0), &out[at..(at + burst).min(out.len())])
        });
        prop_assert!(got == expected);
    }

    #[test]
    fn what_is_passed_on_arrives_in_order(
        frames in prop::collection::vec(
            (prop_oneof![14usize..200, Just(1514usize), 20_000usize..65_553], 0..9), 1..60),
        burst in 1usize..60,
        buffer in prop_oneof![Just(4096usize), Just(100_000usize), Just(1 << 20)],
        read in prop_oneof![100usize..5000, Just(300_000usize)],
    ) {
        let mut batch = FrameBatch::default();
        let mut expected = Vec::new();
        for (i, (len, kind)) in frames.into_iter().enumerate() {
            let mut stored = framed(&frame(len, i));
            let start = batch.buf.len() + LENGTH;
            if kind != 0 {
                expected.extend_from_slice(&stored);
            }
            if kind == 1 {
                // As a link without lengths, or with others, may have left it.
                stored[..LENGTH].fill(0xff);
            }
            batch.buf.extend(stored);
            if kind != 0 {
                batch.push(start, len, Offload::NONE);
            }
        }
        let count = batch.len();
        let got = carry(count, buffer, read, |link, at| {
            link.pass_on(PeerId(0), &batch, at..(at + burst).min(count))
        });
        prop_assert!(got == expected);
    }
}

#[test]
fn frames_as_they_were_received_leave_in_one_piece() {
    let (mut link, mut theirs) = pair();
    let mut batch = FrameBatch::default();
    for i in 0..20 {
        let start = batch.buf.len() + LENGTH;
        batch.buf.extend(framed(&frame(1514, i)));
        batch.push(start, 1514, Offload::NONE);
    }
    assert_eq!(link.pass_on(PeerId(0), &batch, 0..batch.len()), batch.len());
    assert!(link.out.is_empty(), "nothing was copied, and nothing waits");
    let mut got = vec![0; batch.buf.len()];
    theirs.read_exact(&mut got).unwrap();
    assert!(got == batch.buf);
}

#[test]
fn a_peer_that_does_not_read_is_refused_and_then_told_of_room() {
    for size in [60, 1514, 65_534] {
        let (mut link, mut theirs) = pair();
        let data = frame(size, 1);
        let mut taken = 0;
        for _ in 0..100_000 {
            let n = link.send(PeerId(0), &[split(&data)]);
            taken += n;
            if n == 0 {
                break;
            }
            link.flush();
        }
        assert_eq!(link.send(PeerId(0), &[split(&data)]), 0, "full at {size}");
        assert_eq!(link.flush(), Flushed::Blocked);
        assert!(link.out.len() <= PENDING_MAX + LENGTH + size);
        let mut got = vec![0; taken * (LENGTH + size)];
        let mut at = 0;
        while at < got.len() {
            at += theirs.read(&mut got[at..]).unwrap();
            link.flush();
        }
        assert_eq!(link.flush(), Flushed::Done);
        assert!(got.chunks(LENGTH + size).all(|f| f == framed(&data)));
        assert_eq!(link.out.buf.capacity(), 0, "an idle link has no buffer");
    }
}

#[test]
fn frames_that_were_sent_before_the_end_are_read() {
    let (mut link, mut theirs) = pair();
    let data = frame(60, 1);
    theirs.write_all(&framed(&data)).unwrap();
    drop(theirs);
    let mut batch = FrameBatch::default();
    // The failed write does not hide what can be read.
    assert_eq!(link.send(PeerId(0), &[split(&data)]), 1);
    assert_eq!(link.flush(), Flushed::Closed);
    assert!(matches!(link.recv(&mut batch), Recv::Frames { more: false, .. }));
    assert_eq!(batch.get(0).unwrap().data, data);
    for _ in 0..2 {
        assert!(matches!(link.recv(&mut batch), Recv::Closed(CloseReason::Eof)));
        assert!(batch.is_empty());
    }
    assert_eq!(link.send(PeerId(0), &[split(&data)]), 1, "what goes nowhere counts as taken");
}

#[test]
fn nonsense_closes_the_link_and_says_why() {
    let (mut link, mut theirs) = pair();
    theirs.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let mut batch = FrameBatch::default();
    let reason = CloseReason::Framing(u32::from_be_bytes(*b"GET "));
    for _ in 0..2 {
        assert!(matches!(link.recv(&mut batch), Recv::Closed(r) if r == reason));
    }
    assert_eq!(link.flush(), Flushed::Closed);
}

#[test]
fn frames_no_link_carries_are_left_out() {
    let (mut link, mut theirs) = pair();
    let (short, good, long) = (frame(13, 1), frame(14, 2), frame(MAX_FRAME + 1, 3));
    let out = [&short, &good, &long].map(|f| OutFrame::whole(f, Offload::NONE));
    assert_eq!(link.send(PeerId(0), &out), 3);
    assert_eq!(link.flush(), Flushed::Done);
    let mut got = [0; 100];
    assert_eq!(theirs.read(&mut got).unwrap(), LENGTH + 14);
    assert_eq!(got[..LENGTH + 14], framed(&good));
}

#[test]
fn the_other_framing_and_what_came_early() {
    let (mine, mut theirs) = UnixStream::pair().unwrap();
    let framed = |data: &[u8]| [&u16::try_from(data.len()).unwrap().to_le_bytes(), data].concat();
    let (first, second) = (frame(60, 1), frame(20_000, 2));
    let stream = [framed(&first), framed(&second)].concat();
    let (early, late) = stream.split_at(100);
    theirs.write_all(late).unwrap();
    let mut link = StreamLink::after(mine.into(), Framing::Hyperkit, early.to_vec()).unwrap();
    let mut batch = FrameBatch::default();
    for want in [&first, &second] {
        // What is still in the socket must not wait for an event that has been.
        let Recv::Frames { more, .. } = link.recv(&mut batch) else { panic!("no frames") };
        assert_eq!(more, *want == first);
        assert_eq!(
            batch.iter().map(|f| f.data.to_vec()).collect::<Vec<_>>(),
            std::slice::from_ref(want)
        );
    }
    for data in [&first, &second] {
        let out = OutFrame { head: &data[..14], body: [&data[14..], &[]], offload: Offload::NONE };
        assert_eq!(link.send(PeerId(0), &[out]), 1);
    }
    assert_eq!(link.flush(), Flushed::Done);
    let mut got = vec![0; stream.len()];
    theirs.read_exact(&mut got).unwrap();
    assert_eq!(got, stream);
}
