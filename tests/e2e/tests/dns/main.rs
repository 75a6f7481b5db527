//! The network's nameserver: what guests get from it is what the host would get.

mod names;
mod table;
