//! The gateway's services over a whole engine: real bytes in, exact fields out.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod arp;
mod dhcp;
mod dhcp6;
mod dns;
mod guard;
mod hostile;
mod icmp;
mod nd;
mod ra;
mod spoofing;
mod switch_only;
