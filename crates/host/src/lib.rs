//! vmlan's host side: the machine's sockets behind [`vmlan_engine::Host`], non-blocking and
//! edge-triggered, and the resolver among them.
//!
//! [`Sockets`] registers each socket once, for its whole life, with the loop's poll. The loop gives
//! events back by token: below [`Sockets::INTERNAL`] they are the engine's, with that bit set they
//! go to [`Sockets::handle_internal`]. What differs between operating systems lives in `sys`.

mod datagram;
mod dns;
mod explain;
mod failure;
mod limits;
mod listener;
mod sockets;
mod stream;
mod sys;
mod token;

pub use dns::{DnsPorts, PortError, resolve};
pub use explain::bind_failure;
pub use limits::raise_fd_limit;
pub use sockets::Sockets;
