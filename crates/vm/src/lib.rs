//! Guests of vmlan that vmlan itself starts: [`netns`], a command in a Linux network namespace of
//! its own; and what a machine is made of, its [`image`], its [`disk`], the [`seed`] from which it
//! configures itself, its [`agent`], and the [`ports`] of its that are reached on the host.

pub mod agent;
pub mod child;
pub mod disk;
pub mod driver;
pub mod image;
pub mod instance;
pub mod kernel;
#[cfg(target_os = "linux")]
pub mod netns;
pub mod ports;
pub mod qemu;
pub mod seed;
pub mod shell;
pub mod template;
pub mod vz;
