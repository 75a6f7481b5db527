//! macOS' vmnet.framework: an interface on one of its networks, as a `Link` (of vmlan-link) with
//! batches of frames and a descriptor to poll.
//!
//! `sys` is the C interface as far as it is used, `interface` starts and stops an interface,
//! `link` moves frames. What the frames are for is known to whoever uses the link. On other
//! systems the crate is empty.
#![cfg(target_os = "macos")]

mod interface;
mod link;
mod network;
mod rights;
mod sys;

pub use interface::{Interface, StartError};
pub use link::VmnetLink;
pub use rights::become_nobody;

use std::net::{Ipv4Addr, Ipv6Addr};

/// The interface that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub mode: Mode,
    /// The host's address, the last one of guests, and the mask; the system's choice without.
    pub range: Option<(Ipv4Addr, Ipv4Addr, Ipv4Addr)>,
    pub nat66_prefix: Option<Ipv6Addr>,
    /// By which the system gives the same MAC address again.
    pub interface_id: Option<[u8; 16]>,
    /// Whether guests are given addresses. Without, macOS 26 is needed.
    pub dhcp: bool,
}

/// What the network leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The host, and by it everywhere.
    Shared,
    /// The host and others on the network; with an identifier, only others that have it too.
    Host { identifier: Option<[u8; 16]> },
    /// The network of this interface.
    Bridged(String),
}
