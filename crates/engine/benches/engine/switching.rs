//! Guest to guest, and the checksum under all of it.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use vmlan_testkit::addr;
use vmlan_testkit::packet::{self, ACK, Tcp};
use vmlan_wire::frame::{Checksum, GsoKind};
use vmlan_wire::{Gso, Mac, Offload, checksum};

use crate::rig::{GUEST, Kind, Rig, measure};

const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 16]);

/// Frames of one pass.
const PASS: usize = 64;

/// From a port with offload to one with or without, whole frames and trains.
pub(crate) fn forward(c: &mut Criterion) {
    let mut group = c.benchmark_group("switch");
    let train = Gso { kind: GsoKind::TcpV4, size: 1460, header_len: 54 };
    for (name, offload, len, gso) in [
        ("1500", false, 1460, None),
        ("train", true, 64_240, Some(train)),
        ("train to plain", false, 64_240, Some(train)),
        ("checksum to plain", false, 1460, None),
    ] {
        let mut rig = Rig::new(Kind { mtu: 1500, offload: true });
        let to = Kind { mtu: 1500, offload };
        rig.port = rig.engine.add_port(to.caps()).expect("a port is free");
        let (a, b) = (addr("192.168.5.15:1000"), addr("192.168.5.16:80"));
        rig.one(&packet::arp_request(OTHER, [192, 168, 5, 16].into(), [192, 168, 5, 2].into()));
        rig.port = vmlan_engine::PortId(0);
        let frame = Tcp::new(a, b, ACK).data(&vec![0x5a; len]).frame(GUEST, OTHER);
        let checksum = if gso.is_some() || name == "checksum to plain" {
            Checksum::Partial { start: 34, offset: 16 }
        } else {
            Checksum::Complete
        };
        rig.batch.clear();
        for _ in 0..PASS {
            rig.batch.push_copy(&frame, Offload { checksum, gso });
        }
        group.throughput(Throughput::Bytes((len * PASS) as u64));
        group.bench_function(name, |b| {
            let before = rig.links.frames;
            measure(b, &mut rig, Rig::tick, Rig::frames);
            assert!(rig.links.frames >= before + PASS as u64, "nothing was forwarded");
        });
    }
    group.finish();
}

pub(crate) fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [40, 1460, 65_480] {
        let data = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(len.to_string(), |b| {
            b.iter(|| checksum::checksum(black_box(&data)));
        });
    }
    group.finish();
}
