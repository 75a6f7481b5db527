//! Guests of vmlan that vmlan itself starts. So far there is one kind: [`netns`], a command in a
//! Linux network namespace of its own.

#[cfg(target_os = "linux")]
pub mod netns;
