//! What host and guest agree on: the lines that pass between the agent inside a machine and the
//! machine's host agent, and how the kernel lists sockets as text. The agent itself is the binary
//! of this package.

#![forbid(unsafe_code)]

pub mod message;
pub mod proc_net;
