//! The network's nameserver: what guests get from it is what the host would get.

mod alone;
mod cached;
mod changes;
mod fixed;
mod guests;
mod messages;
mod names;
mod native;
mod running;
mod scene;
mod table;
mod upstreams;
mod waiting;
