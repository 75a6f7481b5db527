//! `vmlan network` and `vmlan schema` from outside, each test with a home of its own.

#[cfg(target_os = "linux")]
mod captures;
mod choose;
mod edits;
#[cfg(target_os = "linux")]
mod failures;
#[cfg(target_os = "linux")]
mod forwards;
#[cfg(target_os = "linux")]
mod guests;
#[cfg(target_os = "linux")]
mod lab;
mod list;
#[cfg(target_os = "linux")]
mod listings;
#[cfg(target_os = "linux")]
mod machines;
#[cfg(target_os = "linux")]
mod openapi;
#[cfg(target_os = "linux")]
#[path = "../common/ports.rs"]
mod ports;
#[path = "../run/pty.rs"]
mod pty;
#[cfg(target_os = "linux")]
mod settings;
#[cfg(target_os = "linux")]
mod several;
mod support;
#[cfg(target_os = "linux")]
mod top;
#[cfg(target_os = "linux")]
mod tunnel;
