//! What a card with offloads would do, done in software: trains of TCP segments are cut as the
//! testkit's own card cuts them, wherever the frame's pieces lie, and what a guest says about its
//! frames is never believed so far that something breaks.

use vmlan_testkit::packet::{self, Packet, Tcp};
use vmlan_testkit::{SimFrame, addr, check, nic};
use vmlan_wire::frame::{Checksum, GsoKind};
use vmlan_wire::segment::{self, Train};
use vmlan_wire::{Gso, Mac, Offload, OutFrame};

use crate::script::Script;

const FROM: Mac = Mac([2, 0, 0, 0, 0, 1]);
const TO: Mac = Mac([2, 0, 0, 0, 0, 2]);

pub fn run(data: &[u8]) {
    let mut script = Script(data);
    if script.u8() & 1 == 0 {
        lies(&mut script);
    } else {
        train(&mut script);
    }
}

/// Any bytes, with any claims.
fn lies(script: &mut Script<'_>) {
    let how = script.u8();
    let kind = if how & 1 == 0 { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
    let gso = Gso { kind, size: script.u16(), header_len: script.u16() };
    let (start, offset) = (script.u16(), script.u16());
    let (cut, second) = (usize::from(script.u16()), usize::from(script.u16()));
    let bytes = script.0;
    let frame =
        pieces(bytes, cut, second, Offload { checksum: Checksum::Complete, gso: Some(gso) });
    let mut heads = Vec::new();
    if let Ok(mut train) = Train::new(&frame, gso) {
        let mut count = 0;
        while let Some(part) = train.next(&mut heads, how & 2 == 0) {
            let len = part.head_len + part.body[0].len() + part.body[1].len();
            assert!(part.head_len <= heads.len() && len <= bytes.len().max(14) + 60);
            count += 1;
            assert!(count <= 2048, "a train of more than 2048 segments");
        }
    }
    heads.clear();
    if let Ok(whole) = segment::complete(&frame, start, offset, &mut heads) {
        let len = whole.head_len + whole.body[0].len() + whole.body[1].len();
        assert_eq!((len, whole.head_len), (bytes.len(), heads.len()));
    }
}

/// A sound train, cut here and there.
fn train(script: &mut Script<'_>) {
    let how = script.u8();
    let (src, dst) = if how & 1 == 0 {
        (addr("192.168.5.15:1000"), addr("10.0.0.1:80"))
    } else {
        (addr("[fd00::15]:1000"), addr("[2001:db8::1]:80"))
    };
    let flags = script.u8() & !(packet::SYN | packet::RST);
    let mut tcp = Tcp::new(src, dst, flags).seq(script.u32()).window(script.u16());
    tcp.ack = script.u32();
    for _ in 0..how >> 6 {
        tcp.options.push(packet::TcpOption::Raw(vec![1; usize::from(script.u8() & 3)]));
    }
    let size = 1 + script.u16() % 9000;
    let len = 1 + usize::from(script.u16()) % (usize::from(size) * 40).min(60_000);
    let (cut, second) = (usize::from(script.u16()), usize::from(script.u16()));
    let fill = script.0;
    tcp.payload =
        (0..len).map(|i| fill.get(i % fill.len().max(1)).map_or(0, |b| b ^ i as u8)).collect();
    let bytes = tcp.frame(FROM, TO);
    let kind = if how & 1 == 0 { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
    let start = if how & 1 == 0 { 34 } else { 54 };
    let offload = Offload {
        checksum: Checksum::Partial { start, offset: 16 },
        gso: Some(Gso { kind, size, header_len: script.u16() }),
    };
    // Headers lie in the head, payload where it likes.
    let headers = bytes.len() - len;
    let frame = pieces(&bytes, headers + cut % (len + 1), second, offload);
    let want = nic::finish(SimFrame { data: bytes.clone(), offload });
    let mut heads = Vec::new();
    let mut train = Train::new(&frame, offload.gso.expect("set above")).expect("a sound train");
    assert_eq!(train.remaining(), want.len());
    let caps = vmlan_engine::PortCaps { mtu: 65_535, ..Default::default() };
    for whole in &want {
        heads.clear();
        let part = train.next(&mut heads, true).expect("as many segments");
        let mut got = heads[heads.len() - part.head_len..].to_vec();
        got.extend_from_slice(part.body[0]);
        got.extend_from_slice(part.body[1]);
        if !tcp.options.is_empty() {
            // Padding alone is no option that the engine itself would make.
            assert!(matches!(packet::parse(&got), Some(Packet::Tcp(_))), "{got:02x?}");
        } else if let Err(what) = check::frame(&got, Offload::NONE, caps, 65_535) {
            panic!("{what}: {got:02x?}");
        }
        // 0 and 0xffff are the same checksum.
        let at = usize::from(start) + 16;
        got[at..at + 2].copy_from_slice(&whole.data[at..at + 2]);
        assert!(got == whole.data, "\n{got:02x?}\n{:02x?}", whole.data);
    }
    assert!(train.next(&mut heads, true).is_none());
}

fn pieces(bytes: &[u8], cut: usize, second: usize, offload: Offload) -> OutFrame<'_> {
    let (head, body) = bytes.split_at(cut.min(bytes.len()));
    let (first, rest) = body.split_at(second.min(body.len()));
    OutFrame { head, body: [first, rest], offload }
}
