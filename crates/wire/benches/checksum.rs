//! Speed of the Internet checksum at the lengths that matter: headers, segments, whole packets.

use std::hint::black_box;
use std::time::{Duration, Instant};

fn main() {
    let data = vec![7u8; 70_000];
    for len in [20, 54, 536, 1448, 4096, 65_483] {
        // The least of many: what is measured is the loop, not what else the machine does.
        let mut best = Duration::MAX;
        for _ in 0..2000 {
            let start = Instant::now();
            for _ in 0..16 {
                black_box(vmlan_wire::checksum::checksum(black_box(&data[2..2 + len])));
            }
            best = best.min(start.elapsed() / 16);
        }
        println!("{len:6} bytes: {best:10.1?}, {:5.1} GB/s", len as f64 / best.as_nanos() as f64);
    }
}
