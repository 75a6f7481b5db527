//! vmlan's resolver: names in a guest resolve as they do on the machine that it runs on.
//!
//! A message goes in by [`Resolver::query`] or comes on a stream, and its answer comes out of
//! [`Resolver::answers`] or goes back on the stream. In between are, in this order: the network's
//! own [`Names`], the machine's hosts file, its own functions where they may know more than its
//! nameservers, a cache, and the nameservers, which are given the message as it is and whose answer
//! is given on as it is.
//!
//! The resolver has one owner, who polls its sockets, tells it the time and lends it
//! [`Datagrams`], batches of them. `core` is all that needs no socket.

mod answers;
mod cache;
mod core;
mod hash;
mod hosts;
mod ipv6;
mod message;
mod name;
mod names;
mod native;
mod nsswitch;
mod random;
mod resolver;
mod servers;
mod streams;
mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod token;
mod upstream;
mod watched;
mod zones;

pub use answers::{Answer, Answers, Origin};
pub use name::{NameError, check_name};
pub use names::{Names, Target};
pub use resolver::{Files, Ipv6, Options, Resolver, Source};
pub use streams::NoRoom;
pub use upstream::Datagrams;
pub use zones::{Zone, ZoneRecord};
