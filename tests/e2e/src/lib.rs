//! What the end-to-end tests share: network namespaces as hosts and guests, QEMU machines,
//! processes that end with the test that started them, and byte streams that prove themselves.
//!
//! Each test makes a world of its own: the daemon under test runs in a namespace whose loopback,
//! addresses and resolv.conf belong to the test, so tests run side by side on fixed ports and
//! nothing leaves the machine. All of it is Linux and wants root. Whatever can hang has a deadline
//! and says what it was waiting for.

pub mod binary;
pub mod bridge_host;
pub mod dns_client;
pub mod dns_message;
pub mod frames;
pub mod heartbeat;
pub mod instances;
pub mod managed;
pub mod named;
pub mod nameserver;
pub mod netd;
pub mod netns;
pub mod pattern;
pub mod process;
pub mod qemu;
pub mod server;
pub mod upstream;
pub mod world;

pub use bridge_host::{As, BridgeHost, RunningGuest};
pub use heartbeat::Heartbeat;
pub use instances::MachineHost;
pub use managed::Lab;
pub use netd::Netd;
pub use netns::Netns;
pub use process::{Process, capture, run};
pub use qemu::Machine;
pub use upstream::Upstream;
pub use world::World;
