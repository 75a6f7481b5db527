//! vmlan's configuration: `networks.yaml`, what `lima.yaml` says about networks and names, and where
//! files are below `$LIMA_HOME`.
//!
//! What a file says is first a raw type, whose every value knows where it stands ([`raw`]), and
//! becomes once what the program works with ([`Networks`], [`Attachment`]). Every rule is checked on
//! that way, and what is wrong is told with file, line and column ([`Report`]). Files are changed
//! with comments and order kept ([`edit`]), and replaced whole or not at all ([`mod@file`]).
//!
//! Who starts a network's daemon, and what `limactl` does with the rest of `lima.yaml`, is not this
//! crate's business. It opens no socket but the one that asks the kernel for its routes.
#![forbid(unsafe_code)]

pub mod choose;
pub mod edit;
pub mod entry;
pub mod file;
mod home;
mod identifier;
pub mod instance;
pub mod layers;
mod mac;
pub mod machine;
mod networks;
pub mod overlap;
mod platform;
pub mod raw;
mod reservation;
mod resolver;
pub mod routes;
pub mod schema;
mod secure;
pub mod socket_vmnet;
mod source;
mod subnet;
pub mod sudoers;
mod template;
#[cfg(test)]
mod testing;
mod usage;
pub mod vmnet;
mod yaml;

pub use entry::{Attachment, Instance, Target, attachments};
pub use file::{FileError, Locked, NetworksFile};
pub use home::{HomeError, LimaHome, NetworkPaths, SocketPathError, socket_path};
pub use identifier::{IdentifierError, host_name};
pub use mac::{MacError, mac_address, parse_mac, show_mac};
pub use networks::{BUILT_IN, Link, Mode, Network, Networks, Paths, Resolved};
pub use platform::{Os, Platform};
pub use reservation::Reservation;
pub use resolver::HostResolver;
pub use secure::{PathError, check_paths, check_program};
pub use source::{Diagnostic, Report, Severity, Source, Span};
pub use subnet::{Subnet, SubnetError, parse_gateway};
pub use template::default_networks;
pub use usage::{Users, users_of};
