//! TCP: bytes both ways, acknowledgements, connections.

use criterion::{Criterion, Throughput};
use vmlan_testkit::packet::{self, ACK, FIN, Tcp};
use vmlan_wire::Offload;
use vmlan_wire::frame::Checksum;

use crate::rig::{Conn, GUEST, Kind, Rig, measure};

/// Bytes of one pass.
const PASS: usize = 256 << 10;

/// A batch of full segments, whose numbers are moved on for every pass.
struct Out {
    rig: Rig,
    conn: Conn,
    payload: usize,
    frames: Vec<Vec<u8>>,
    offload: Offload,
}

impl Out {
    fn new(kind: Kind) -> Self {
        let mut rig = Rig::new(kind);
        let conn = rig.open(40_000);
        let payload = usize::from(kind.mtu) - 40;
        let data = vec![0x5a; payload];
        let gateway = rig.gateway();
        let frame = conn.segment(packet::PSH).data(&data).frame(GUEST, gateway);
        let frames = vec![frame; PASS / payload];
        let checksum = if kind.offload { Checksum::Verified } else { Checksum::Complete };
        Self { rig, conn, payload, frames, offload: Offload { checksum, gso: None } }
    }

    fn bytes(&self) -> u64 {
        (self.payload * self.frames.len()) as u64
    }

    /// The segments that follow.
    fn prepare(&mut self) {
        self.rig.tick();
        self.rig.batch.clear();
        for frame in &mut self.frames {
            patch(frame, SEQ, self.conn.seq);
            self.conn.seq = self.conn.seq.wrapping_add(self.payload as u32);
            self.rig.batch.push_copy(frame, self.offload);
        }
    }
}

/// Where a frame with IPv4 without options has TCP's numbers and checksum.
const SEQ: usize = 38;
const ACK_NUMBER: usize = 42;
const CHECKSUM: usize = 50;

/// Changes one of a segment's numbers and the checksum with it (RFC 1624).
fn patch(frame: &mut [u8], at: usize, number: u32) {
    let words = |b: &[u8]| {
        u32::from(u16::from_be_bytes([b[0], b[1]])) + u32::from(u16::from_be_bytes([b[2], b[3]]))
    };
    let old = words(&frame[at..at + 4]);
    frame[at..at + 4].copy_from_slice(&number.to_be_bytes());
    let sum = u32::from(!u16::from_be_bytes([frame[CHECKSUM], frame[CHECKSUM + 1]]));
    let mut sum = sum + words(&frame[at..at + 4]) + (0x1_fffe - old);
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    frame[CHECKSUM..CHECKSUM + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Guest to host.
pub(crate) fn out(c: &mut Criterion) {
    let mut group = c.benchmark_group("tcp_out");
    for kind in Kind::ALL {
        let mut state = Out::new(kind);
        group.throughput(Throughput::Bytes(state.bytes()));
        group.bench_function(kind.name(), |b| {
            measure(b, &mut state, Out::prepare, |s| s.rig.frames());
            let sent = state.conn.seq.wrapping_sub(1001);
            assert_eq!(state.rig.host.taken as u32, sent, "the engine did not take all");
        });
    }
    group.finish();
}

/// A connection that the host has something for.
struct Back {
    rig: Rig,
    conn: Conn,
    /// Bytes that the host had, all together.
    given: u32,
    ack: Vec<u8>,
}

impl Back {
    fn new(kind: Kind) -> Self {
        let mut rig = Rig::new(kind);
        let conn = rig.open(40_000);
        let ack = conn.segment(ACK).frame(GUEST, rig.gateway());
        let mut back = Self { rig, conn, given: 0, ack };
        // Until the ring has grown.
        for _ in 0..8 {
            back.supply(PASS);
            back.fetch();
        }
        back
    }

    fn supply(&mut self, bytes: usize) {
        self.rig.tick();
        self.rig.host.supply += bytes;
        self.given = self.given.wrapping_add(bytes as u32);
    }

    /// The host's bytes go to the guest, which acknowledges whatever it got at once.
    fn fetch(&mut self) {
        self.rig.readable(self.conn.token, false);
        loop {
            let left = self.rig.host.supply;
            self.acknowledge(self.given.wrapping_sub(left as u32));
            if left == 0 {
                return;
            }
        }
    }

    /// The guest has got so many bytes.
    fn acknowledge(&mut self, bytes: u32) {
        patch(&mut self.ack, ACK_NUMBER, self.conn.ack.wrapping_add(bytes));
        self.rig.batch.clear();
        self.rig.batch.push_copy(&self.ack, Offload::NONE);
        self.rig.frames();
    }
}

/// Host to guest.
pub(crate) fn back(c: &mut Criterion) {
    let mut group = c.benchmark_group("tcp_back");
    group.throughput(Throughput::Bytes(PASS as u64));
    for kind in Kind::ALL {
        let mut state = Back::new(kind);
        group.bench_function(kind.name(), |b| {
            let before = state.rig.links.bytes;
            measure(b, &mut state, |s| s.supply(PASS), Back::fetch);
            assert!(state.rig.links.bytes > before + PASS as u64, "the guest got nothing");
        });
    }
    group.finish();
}

/// One acknowledgement for every two full segments.
pub(crate) fn acknowledgements(c: &mut Criterion) {
    let mut state = Back::new(Kind { mtu: 1500, offload: true });
    let step = 2 * 1460;
    let count = 20;
    let mut group = c.benchmark_group("ack");
    group.throughput(Throughput::Elements(count));
    group.bench_function("1500", |b| {
        let prepare = |s: &mut Back| {
            let base = s.given;
            s.supply(count as usize * step);
            s.rig.readable(s.conn.token, false);
            assert_eq!(s.rig.host.supply, 0, "the engine did not take all");
            s.rig.batch.clear();
            for i in 1..=count as u32 {
                let at = base.wrapping_add(i * step as u32);
                patch(&mut s.ack, ACK_NUMBER, s.conn.ack.wrapping_add(at));
                s.rig.batch.push_copy(&s.ack, Offload::NONE);
            }
        };
        measure(b, &mut state, prepare, |s| s.rig.frames());
    });
    group.finish();
}

/// SYN, connect, SYN-ACK, data, FIN both ways: alone, and beside many others.
pub(crate) fn connections(c: &mut Criterion) {
    let mut group = c.benchmark_group("connection");
    group.throughput(Throughput::Elements(1));
    for beside in [0, 1000, 10_000] {
        let mut rig = Rig::new(Kind { mtu: 1500, offload: true });
        for port in 0..beside {
            rig.open(1024 + port);
        }
        let mut port = 20_000;
        group.bench_function(format!("beside {beside}"), |b| {
            b.iter(|| {
                port = if port == 60_000 { 20_000 } else { port + 1 };
                connection(&mut rig, port);
            });
            assert_eq!(rig.engine.flows().len(), usize::from(beside), "the engine did not close");
        });
    }
    group.finish();
}

fn connection(rig: &mut Rig, port: u16) {
    rig.tick();
    let gateway = rig.gateway();
    let mut conn = rig.open(port);
    let ask: Tcp = conn.segment(packet::PSH).data(b"GET / HTTP/1.0\r\n\r\n");
    conn.seq = ask.next_seq();
    rig.one(&ask.frame(GUEST, gateway));
    (rig.host.supply, rig.host.ended) = (100, true);
    rig.readable(conn.token, true);
    rig.host.ended = false;
    conn.ack = conn.ack.wrapping_add(101);
    rig.one(&conn.segment(FIN).frame(GUEST, gateway));
}
