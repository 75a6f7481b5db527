//! Simulated hosts, links and guests: the engine's tests run at the speed of the processor, in
//! virtual time, without sockets and without sleeping, and the same seed gives the same run.
//!
//! [`World`] has it all: [`SimHost`] (the machine's sockets, whose far ends follow scripts),
//! [`SimLinks`] (network cards and bad cables), [`SimGuest`] (smoltcp's TCP/IP stack) and packets
//! made by hand ([`packet`]). [`null`] has a host and links that cost nothing, for benchmarks.
//!
//! A dev-dependency: it panics wherever a test, or the engine, does what makes no sense.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

pub mod check;
pub mod guest;
pub mod host;
pub mod links;
pub mod memory;
pub mod nic;
pub mod null;
pub mod packet;
pub mod pattern;
pub mod rng;
pub mod trace;
pub mod wire;
pub mod world;

pub use guest::{End, SimGuest};
pub use host::{Ending, Remote, Responder, Seen, SimHost};
pub use links::{LinkOptions, SimLinks};
pub use pattern::Pattern;
pub use rng::Rng;
pub use trace::Trace;
pub use wire::{Faults, SimFrame};
pub use world::{World, addr};
