//! Networks with a daemon that comes with its first user and goes with its last.
//!
//! A guest joins on a socket of the daemon's (`message`): it says who it is, hands over the
//! descriptor of its network card, and is there as long as the connection is. Whoever wants to join
//! starts the daemon if there is none, under a lock, so that there is one ([`ensure()`]); a guest
//! whose daemon dies does the same again, with the same card, and gets the same addresses.

mod client;
mod end;
mod ensure;
mod hosts;
mod joins;
mod message;

pub use client::{JoinError, Joined, ask, join, stay, until_joined};
pub use end::end;
pub use ensure::{EnsureError, ensure, lock, reap, why_ended};
pub(crate) use joins::Joins;
pub use message::{Forwarded, Hello, Welcome};
