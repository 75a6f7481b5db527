//! `vmlan run` as its users see it: an ordinary user runs commands in namespace guests, and
//! everything but the network has to be as if the command had run by itself.
#![cfg(target_os = "linux")]

mod basics;
mod caller;
mod doctor;
mod endings;
mod files;
mod network;
#[path = "../common/ports.rs"]
mod ports;
mod pty;
mod refusals;
mod terminal;
