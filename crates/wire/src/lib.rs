//! Packet formats of vmlan: frames as links carry them, one-pass parsing of what the engine must
//! look at, and the Internet checksum. Protocol bodies come from `smoltcp::wire` and `dhcproto`;
//! here is only what they do not give. No I/O and no clock, and nothing here panics on any input.
//!
//! Read first: RFC 791, 1071, 8200; the virtio specification, section 5.1.6 (packet headers).
#![forbid(unsafe_code)]

pub mod checksum;
pub mod frame;
pub mod segment;

pub use frame::{Frame, FrameBatch, Gso, Offload, OutFrame};
pub use smoltcp::wire::EthernetAddress as Mac;
