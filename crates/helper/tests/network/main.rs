//! The helper as root, in a network namespace that plays the host.
#![cfg(target_os = "linux")]

mod attacks;
mod firewalls;
mod host;
mod lan;
mod lifecycle;
