//! Guests of vmlan that vmlan itself starts: [`netns`], a command in a Linux network namespace of
//! its own; and what a machine is made of, its [`disk`] and the [`seed`] from
//! which it configures itself.

pub mod disk;
#[cfg(target_os = "linux")]
pub mod netns;
pub mod seed;
