#![allow(clippy::cast_possible_truncation)]
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket, TcpRepr};

use super::*;

/// A train to be cut and how.
#[derive(Clone, Debug)]
struct Case {
    v6: bool,
    vlan: bool,
    /// Words of TCP options.
    options: usize,
    payload: Vec<u8>,
    size: u16,
    flags: u8,
    seq: u32,
    ident: u16,
    /// Where head and body part, and the body's two pieces.
    cuts: (usize, usize),
    trailer: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let flags = prop::sample::subsequence(vec![FIN, PSH, CWR, 0x10, 0x40], 0..5);
    let shape = (any::<bool>(), any::<bool>(), 0usize..=10, 1u16..3000, any::<(u32, u16)>());
    let payload = prop_oneof![0usize..100, 0usize..9000, 50_000usize..65_000];
    (shape, payload, flags, (0usize..2000, 0usize..60_000), 0usize..20).prop_map(
        |((v6, vlan, options, size, (seq, ident)), len, flags, cuts, trailer)| Case {
            v6,
            vlan,
            options,
            payload: (0..len).map(|i| (i * 7 + i / 251) as u8).collect(),
            size: size.max((len / MAX_SEGMENTS) as u16 + 1),
            flags: flags.into_iter().sum(),
            seq,
            ident,
            cuts,
            trailer,
        },
    )
}

impl Case {
    /// The whole frame, made field by field. Checksums are right if `sums`.
    fn frame(&self, ident: u16, seq: u32, flags: u8, payload: &[u8], sums: bool) -> Vec<u8> {
        let mut out = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if self.vlan {
            out.extend([0x81, 0, 0, 5]);
        }
        let tcp_len = 20 + 4 * self.options + payload.len();
        let ip_at = out.len() + 2;
        if self.v6 {
            out.extend([0x86, 0xdd, 0x60, 1, 2, 3]);
            out.extend((tcp_len as u16).to_be_bytes());
            out.extend([6, 64]);
            out.extend([[0xfd; 16], [0xfe; 16]].concat());
        } else {
            out.extend([0x08, 0, 0x45, 9]);
            out.extend((tcp_len as u16 + 20).to_be_bytes());
            out.extend(ident.to_be_bytes());
            out.extend([0x40, 0, 64, 6, 0, 0, 192, 168, 5, 15, 10, 0, 0, 1]);
        }
        let tcp_at = out.len();
        out.extend([0x12, 0x34, 0, 80]);
        out.extend(seq.to_be_bytes());
        out.extend([1, 2, 3, 4, (5 + self.options as u8) << 4, flags, 0xff, 0xf0, 0, 0, 0, 0]);
        out.extend(std::iter::repeat_n(1, 4 * self.options));
        out.extend_from_slice(payload);
        if sums && !self.v6 {
            Ipv4Packet::new_unchecked(&mut out[ip_at..]).fill_checksum();
        }
        if sums {
            let (src, dst) = self.addresses();
            TcpPacket::new_unchecked(&mut out[tcp_at..]).fill_checksum(&src, &dst);
        }
        out
    }

    fn addresses(&self) -> (IpAddress, IpAddress) {
        if self.v6 {
            (Ipv6Addr::from([0xfdfd; 8]).into(), Ipv6Addr::from([0xfefe; 8]).into())
        } else {
            (IpAddress::v4(192, 168, 5, 15), IpAddress::v4(10, 0, 0, 1))
        }
    }

    fn gso(&self) -> Gso {
        let kind = if self.v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        Gso { kind, size: self.size, header_len: 9999 }
    }

    fn headers(&self) -> usize {
        14 + 20 + 20 + 4 * self.options + 20 * usize::from(self.v6) + 4 * usize::from(self.vlan)
    }

    /// What has to come out, the slow way.
    fn expected(&self) -> Vec<Vec<u8>> {
        let size = usize::from(self.size);
        let count = self.payload.len().div_ceil(size).max(1);
        let pieces = (0..count).map(|i| {
            let from = i * size;
            let payload = &self.payload[from..(from + size).min(self.payload.len())];
            let mut flags = self.flags;
            if i + 1 < count {
                flags &= !(FIN | PSH);
            }
            if i > 0 {
                flags &= !CWR;
            }
            let ident = self.ident.wrapping_add(i as u16);
            self.frame(ident, self.seq.wrapping_add(from as u32), flags, payload, true)
        });
        pieces.collect()
    }
}

fn parts<'a>(data: &'a [u8], headers: usize, cuts: (usize, usize)) -> OutFrame<'a> {
    let (head, body) = data.split_at((headers + cuts.0).min(data.len()));
    let (a, b) = body.split_at(cuts.1.min(body.len()));
    OutFrame { head, body: [a, b], offload: Offload::NONE }
}

fn join(heads: &[u8], made: &Rewritten<'_>) -> Vec<u8> {
    [&heads[heads.len() - made.head_len..], made.body[0], made.body[1]].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_train_is_cut_as_the_slow_way_does(case in case(), finish: bool) {
        let mut whole = case.frame(case.ident, case.seq, case.flags, &case.payload, false);
        whole.extend(std::iter::repeat_n(0xee, case.trailer));
        let frame = parts(&whole, case.headers(), case.cuts);
        let mut train = Train::new(&frame, case.gso()).unwrap();
        let expected = case.expected();
        prop_assert_eq!(train.remaining(), expected.len());
        prop_assert_eq!(train.frame_len(), expected[0].len());
        let mut heads = vec![9; 5];
        for expected in &expected {
            let made = train.next(&mut heads, finish).unwrap();
            let mut got = join(&heads, &made);
            if let Checksum::Partial { start, offset } = made.offload.checksum {
                prop_assert!(!finish);
                let out = OutFrame::whole(&got, made.offload);
                let mut heads = Vec::new();
                let done = complete(&out, start, offset, &mut heads).unwrap();
                got = join(&heads, &done);
            }
            prop_assert!(got == *expected, "got {:?}", TcpRepr::parse(
                &TcpPacket::new_unchecked(&got[34..]), &case.addresses().0, &case.addresses().1,
                &ChecksumCapabilities::ignored()));
        }
        prop_assert!(train.next(&mut heads, finish).is_none());
    }

    #[test]
    fn a_checksum_is_finished_over_all_pieces(case in case()) {
        let right = case.frame(case.ident, case.seq, case.flags, &case.payload, true);
        let start = case.headers() - 20 - 4 * case.options;
        let mut partial = right.clone();
        let mut sum = Sum::new();
        let (src, dst) = case.addresses();
        sum.add_pseudo_header(src.into(), dst.into(), 6, (right.len() - start) as u32);
        partial[start + 16..start + 18].copy_from_slice(&sum.partial());
        let frame = parts(&partial, case.headers(), case.cuts);
        let mut heads = vec![3; 7];
        let done = complete(&frame, start as u16, 16, &mut heads).unwrap();
        prop_assert_eq!(done.offload, Offload::NONE);
        prop_assert!(join(&heads, &done) == right);
        prop_assert_eq!(heads.len(), 7 + done.head_len);
    }

    #[test]
    fn garbage_is_refused_or_bounded(
        mut head in prop::collection::vec(any::<u8>(), 0..200),
        ethertype in prop::sample::select(vec![[8u8, 0], [0x86, 0xdd], [0x81, 0]]),
        versions in any::<(u8, u8, u8)>(),
        body in prop::collection::vec(any::<u8>(), 0..300),
        size: u16,
        v6: bool,
        place: (u16, u8),
    ) {
        // Steer towards what looks right at first.
        for (at, value) in [(12, ethertype[0]), (13, ethertype[1]), (14, versions.0 & 0x6f | 0x40),
            (20, 6), (23, 6), (16, 0), (18, 0)] {
            if let Some(byte) = head.get_mut(at) {
                *byte = value;
            }
        }
        let frame = OutFrame { head: &head, body: [&body, &[]], offload: Offload::NONE };
        let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        let mut heads = Vec::new();
        if let Ok(mut train) = Train::new(&frame, Gso { kind, size, header_len: 0 }) {
            let mut count = 0;
            while train.next(&mut heads, count % 2 == 0).is_some() {
                count += 1;
            }
            prop_assert!(count <= MAX_SEGMENTS);
        }
        let before = heads.len();
        match complete(&frame, place.0, place.1.into(), &mut heads) {
            Ok(done) => prop_assert_eq!(join(&heads, &done).len(), frame.len()),
            Err(_) => prop_assert_eq!(heads.len(), before),
        }
    }
}

#[test]
fn extension_headers_are_passed_over() {
    let case = Case {
        v6: true,
        vlan: false,
        options: 3,
        payload: vec![5; 3000],
        size: 1400,
        flags: 0x10,
        seq: 1,
        ident: 0,
        cuts: (8, 1000),
        trailer: 0,
    };
    let mut whole = case.frame(0, 1, 0x10, &case.payload, false);
    // Eight bytes of hop-by-hop options between IP and TCP.
    whole.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
    whole[20] = 0;
    whole[18..20].copy_from_slice(&(8 + 20 + 12 + 3000u16).to_be_bytes());
    let frame = parts(&whole, case.headers(), case.cuts);
    let mut train = Train::new(&frame, case.gso()).unwrap();
    let mut heads = Vec::new();
    for expected in case.expected() {
        let made = train.next(&mut heads, true).unwrap();
        let mut got = join(&heads, &made);
        let ip = Ipv6Packet::new_checked(&got[14..]).unwrap();
        assert_eq!(usize::from(ip.payload_len()), got.len() - 54);
        got.drain(54..62);
        assert_eq!(got[54..], expected[54..]);
    }
}

#[test]
fn what_is_no_train_is_refused() {
    let case = Case {
        v6: false,
        vlan: false,
        options: 0,
        payload: vec![1; 4000],
        size: 1000,
        flags: 0x10,
        seq: 0,
        ident: 0,
        cuts: (0, 4000),
        trailer: 0,
    };
    let good = case.frame(0, 0, 0x10, &case.payload, false);
    let try_with = |at: usize, value: u8, gso: Gso| {
        let mut bad = good.clone();
        bad[at] = value;
        Train::new(&OutFrame::whole(&bad, Offload::NONE), gso).err()
    };
    assert_eq!(try_with(14, 0x45, case.gso()), None);
    // Version, header length, fragments, protocol, total length, data offset, SYN, RST.
    for (at, value) in [
        (14, 0x65),
        (14, 0x44),
        (20, 0x20),
        (21, 1),
        (23, 17),
        (16, 0xff),
        (46, 0x40),
        (47, 0x12),
        (47, 0x14),
    ] {
        assert_eq!(try_with(at, value, case.gso()), Some(Refused::NotTcp), "{at} = {value:#x}");
    }
    let gso = Gso { size: 1, ..case.gso() };
    assert_eq!(try_with(14, 0x45, gso), Some(Refused::TooMany));
    let gso = Gso { size: 0, ..case.gso() };
    assert_eq!(try_with(14, 0x45, gso), Some(Refused::NotTcp));
    let gso = Gso { kind: GsoKind::TcpV6, ..case.gso() };
    assert_eq!(try_with(14, 0x45, gso), Some(Refused::NotTcp));
    let short = OutFrame::whole(&good[..53], Offload::NONE);
    assert_eq!(Train::new(&short, case.gso()).err(), Some(Refused::NotTcp));
}

#[test]
fn a_sum_of_zero_is_stored_as_all_ones() {
    let mut frame = vec![0u8; 42];
    frame[40..42].copy_from_slice(&[0xff, 0xff]);
    let mut heads = Vec::new();
    complete(&OutFrame::whole(&frame, Offload::NONE), 34, 6, &mut heads).unwrap();
    assert_eq!(heads[40..42], [0xff, 0xff]);
}
