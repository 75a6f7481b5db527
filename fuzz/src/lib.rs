//! Fuzz targets: each is a function from bytes to nothing that panics when a property is broken.
//! `fuzz_targets/` makes libFuzzer programs of them; `tests/replay.rs` runs the committed corpora
//! and a bounded number of mutations with any Rust.

pub mod config;
#[cfg(target_os = "linux")]
pub mod datagram;
pub mod dhcp;
pub mod dns;
pub mod engine;
pub mod proxy;
pub mod resolver;
pub mod script;
pub mod seeds;
pub mod segment;
pub mod stream;
#[cfg(target_os = "linux")]
pub mod tap;

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("engine", engine::run),
    ("dhcp", dhcp::run),
    ("dns", dns::run),
    ("resolver", resolver::run),
    ("config", config::run),
    ("proxy", proxy::run),
    ("stream", stream::run),
    ("segment", segment::run),
    #[cfg(target_os = "linux")]
    ("datagram", datagram::run),
    #[cfg(target_os = "linux")]
    ("tap", tap::run),
];
