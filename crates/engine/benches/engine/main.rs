//! What the engine costs by itself, between a host and links that cost nothing: bytes, packets and
//! connections per second.
//!
//! `cargo bench -p vmlan-engine`, or with `-- tcp_out` for some of them. What has to be made for a
//! pass (frames with the right sequence numbers) is made outside the time measured.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

mod datagrams;
mod rig;
mod streams;
mod switching;

use criterion::{criterion_group, criterion_main};

criterion_group!(
    benches,
    streams::out,
    streams::back,
    streams::acknowledgements,
    streams::connections,
    datagrams::out,
    datagrams::back,
    switching::forward,
    switching::checksum
);
criterion_main!(benches);
