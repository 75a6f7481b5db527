//! UDP: datagrams both ways.

use criterion::{Criterion, Throughput};
use vmlan_testkit::{addr, packet};
use vmlan_wire::Offload;
use vmlan_wire::frame::Checksum;

use crate::rig::{GUEST, Kind, Rig, measure};

/// Datagrams of one pass.
const PASS: usize = 64;
const LEN: usize = 1400;

fn batch(rig: &mut Rig, kind: Kind) {
    let (from, to) = (addr("192.168.5.15:4000"), addr("10.0.0.1:53000"));
    let frame = packet::udp(GUEST, rig.gateway(), from, to, &[0x5a; LEN]);
    let checksum = if kind.offload { Checksum::Verified } else { Checksum::Complete };
    rig.batch.clear();
    for _ in 0..PASS {
        rig.batch.push_copy(&frame, Offload { checksum, gso: None });
    }
}

pub(crate) fn out(c: &mut Criterion) {
    let mut group = c.benchmark_group("udp_out");
    group.throughput(Throughput::Elements(PASS as u64));
    for kind in [Kind { mtu: 1500, offload: false }, Kind { mtu: 1500, offload: true }] {
        let mut rig = Rig::new(kind);
        batch(&mut rig, kind);
        group.bench_function(kind.name(), |b| {
            measure(b, &mut rig, Rig::tick, Rig::frames);
            assert!(rig.host.taken > 0, "the engine sent nothing");
        });
    }
    group.finish();
}

pub(crate) fn back(c: &mut Criterion) {
    let mut group = c.benchmark_group("udp_back");
    group.throughput(Throughput::Elements(PASS as u64));
    for kind in [Kind { mtu: 1500, offload: false }, Kind { mtu: 1500, offload: true }] {
        let mut rig = Rig::new(kind);
        batch(&mut rig, kind);
        rig.frames();
        rig.host.datagram = vec![0x5a; LEN];
        let token = rig.host.opened.expect("the engine opened a socket");
        group.bench_function(kind.name(), |b| {
            let arrive = |rig: &mut Rig| {
                rig.tick();
                rig.host.datagrams = (PASS, Some(addr("10.0.0.1:53000")));
            };
            let before = rig.links.frames;
            measure(b, &mut rig, arrive, |rig| rig.readable(token, false));
            assert!(rig.links.frames >= before + PASS as u64, "the guest got nothing");
        });
    }
    group.finish();
}
