use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;
use vmlan_wire::Gso;
use vmlan_wire::checksum::Sum;
use vmlan_wire::frame::GsoKind;

use super::*;
use crate::CloseReason;
use crate::stream::StreamLink;

fn pair(spec: &str) -> (StreamLink, Faulty<StreamLink>) {
    let (a, b) = UnixStream::pair().unwrap();
    let [a, b] = [a, b].map(|s| StreamLink::new(s.into()).unwrap());
    (a, Faulty::new(b, spec.parse().unwrap()))
}

/// Ethernet, IPv4 and UDP around a number, with checksums.
fn datagram(number: u32) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = vmlan_wire::checksum::checksum(&frame[14..]);
    frame[24..26].copy_from_slice(&sum);
    frame.extend([0, 1, 0, 2, 0, 12, 0, 0]);
    frame.extend(number.to_be_bytes());
    let sum = udp_sum(&frame).finish();
    frame[40..42].copy_from_slice(&sum);
    frame
}

fn udp_sum(frame: &[u8]) -> Sum {
    let mut sum = Sum::new();
    sum.add(&frame[26..34]);
    sum.add_u16(17);
    sum.add_u16(12);
    sum.add(&frame[34..]);
    sum
}

/// The number in a datagram, if it is as it was.
fn number(frame: &[u8]) -> Option<u32> {
    let mut header = Sum::new();
    header.add(&frame[14..34]);
    let intact = header.is_valid() && udp_sum(frame).is_valid();
    intact.then(|| u32::from_be_bytes(frame[42..46].try_into().unwrap()))
}

/// Sends `count` datagrams one way and returns what arrives, `None` for the corrupt.
fn pass(spec: &str, count: u32, outward: bool) -> Vec<Option<u32>> {
    let (mut plain, mut faulty) = pair(spec);
    let (from, to): (&mut dyn Link, &mut dyn Link) =
        if outward { (&mut faulty, &mut plain) } else { (&mut plain, &mut faulty) };
    let mut batch = FrameBatch::default();
    let mut got = Vec::new();
    let mut sent = 0;
    let mut quiet = Instant::now();
    while sent < count || quiet.elapsed() < Duration::from_millis(20) || timed(from, to) {
        if sent < count {
            let data = datagram(sent);
            sent += u32::from(from.send(PeerId(0), &[OutFrame::whole(&data, Offload::NONE)]) == 1);
        }
        from.flush();
        if let Recv::Frames { .. } = to.recv(&mut batch)
            && !batch.is_empty()
        {
            got.extend(batch.iter().map(|f| number(f.data)));
            quiet = Instant::now();
        }
    }
    got
}

fn timed(a: &dyn Link, b: &dyn Link) -> bool {
    a.next_timeout().is_some() || b.next_timeout().is_some()
}

fn near(count: usize, of: usize, percent: usize) -> bool {
    let expected = of * percent / 100;
    (expected * 7 / 10..=expected * 13 / 10).contains(&count)
}

const COUNT: u32 = 4000;

#[test]
fn each_fault_happens_as_often_as_asked_in_both_directions() {
    for outward in [true, false] {
        let all: Vec<_> = (0..COUNT).map(Some).collect();
        assert_eq!(pass("seed=3", COUNT, outward), all);

        let lost = COUNT as usize - pass("loss=10,seed=3", COUNT, outward).len();
        assert!(near(lost, COUNT as usize, 10), "{lost} lost");

        let doubled = pass("duplicate=10,seed=3", COUNT, outward).len() - COUNT as usize;
        assert!(near(doubled, COUNT as usize, 10), "{doubled} doubled");

        let got = pass("corrupt=10,seed=3", COUNT, outward);
        let corrupt = got.iter().filter(|n| n.is_none()).count();
        assert!(got.len() == COUNT as usize && near(corrupt, COUNT as usize, 10), "{corrupt}");

        let mut got = pass("reorder=10,seed=3", COUNT, outward);
        let behind = got.windows(2).filter(|w| w[0] > w[1]).count();
        assert!(near(behind, COUNT as usize, 9), "{behind} out of order");
        got.sort_unstable();
        assert_eq!(got, all);
    }
}

#[test]
fn the_same_seed_does_the_same() {
    let spec = "loss=10,duplicate=10,corrupt=10,seed=9";
    assert_eq!(pass(spec, 500, true), pass(spec, 500, true));
    assert_ne!(pass(spec, 500, true), pass("loss=10,duplicate=10,corrupt=10,seed=8", 500, true));
}

#[test]
fn a_delay_is_kept() {
    let (mut plain, mut faulty) = pair("delay=30");
    let mut batch = FrameBatch::default();
    let data = datagram(1);
    let start = Instant::now();
    faulty.send(PeerId(0), &[OutFrame::whole(&data, Offload::NONE)]);
    assert_eq!(faulty.flush(), Flushed::Done);
    assert!(matches!(plain.recv(&mut batch), Recv::Empty));
    let due = faulty.next_timeout().unwrap();
    assert!(due >= start + Duration::from_millis(30) && due < start + Duration::from_secs(5));
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
    faulty.flush();
    assert!(matches!(plain.recv(&mut batch), Recv::Frames { .. }));
    assert_eq!(batch.len(), 1);
    assert_eq!(faulty.next_timeout(), None);
}

#[test]
fn a_full_wire_takes_no_more_and_says_when_it_does() {
    let (_plain, mut faulty) = pair("delay=50");
    let data = vec![0; 60_000];
    let mut sent = 0;
    while faulty.send(PeerId(0), &[OutFrame::whole(&data, Offload::NONE)]) == 1 {
        sent += 1;
        assert!(sent < 1000);
    }
    assert_eq!(faulty.flush(), Flushed::Blocked);
    // The link behind takes some, until it is full itself; then an event tells.
    while let Some(due) = faulty.next_timeout() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        faulty.flush();
    }
    assert_eq!(faulty.send(PeerId(0), &[OutFrame::whole(&data, Offload::NONE)]), 1);
    assert_eq!(faulty.flush(), Flushed::Blocked);
    assert_eq!(faulty.next_timeout(), None);
}

#[test]
fn offloads_are_finished_before_the_wire() {
    let (mut plain, mut faulty) = pair("seed=1");
    let mut head = vec![2; 12];
    head.extend([8, 0, 0x45, 0]);
    head.extend((3000u16 + 40).to_be_bytes());
    head.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    head.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    let body = [7; 3000];
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1460, header_len: 54 });
    let checksum = Checksum::Partial { start: 34, offset: 16 };
    let train = OutFrame { head: &head, body: [&body, &[]], offload: Offload { checksum, gso } };
    let mut udp = datagram(5);
    let mut sum = Sum::new();
    sum.add(&udp[26..34]);
    sum.add_u16(17);
    sum.add_u16(12);
    udp[40..42].copy_from_slice(&sum.partial());
    let checksum = Checksum::Partial { start: 34, offset: 6 };
    let one = OutFrame::whole(&udp, Offload { checksum, gso: None });
    assert_eq!(faulty.caps(), LinkCaps::default());
    assert_eq!(faulty.send(PeerId(0), &[train, one]), 2);
    faulty.flush();
    let mut batch = FrameBatch::default();
    assert!(matches!(plain.recv(&mut batch), Recv::Frames { .. }));
    let lens: Vec<_> = batch.iter().map(|f| f.data.len()).collect();
    assert_eq!(lens, [1514, 1514, 54 + 80, 46]);
    assert_eq!(number(batch.get(3).unwrap().data), Some(5));
}

#[test]
fn the_end_of_the_link_is_the_end() {
    let (plain, mut faulty) = pair("delay=1000");
    drop(plain);
    let mut batch = FrameBatch::default();
    assert!(matches!(faulty.recv(&mut batch), Recv::Closed(CloseReason::Eof)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn no_frame_is_lost_by_accident(reorder in 0u8..=100, duplicate in 0u8..=100, seed: u64) {
        let spec = format!("reorder={reorder},duplicate={duplicate},delay=2,seed={seed}");
        let mut got = pass(&spec, 300, seed % 2 == 0);
        got.sort_unstable();
        got.dedup();
        prop_assert_eq!(got, (0..300).map(Some).collect::<Vec<_>>());
    }
}
