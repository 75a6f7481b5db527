//! The network's nameserver: what guests get from it is what the host would get.

mod changes;
mod guests;
mod names;
mod scene;
mod table;
mod upstreams;
