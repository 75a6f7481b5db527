//! The control API of one network: what its daemon can be asked over HTTP on a UNIX socket, and how
//! it answers. The daemon serves it, the command line is a client of it, and both have the words
//! from here.
//!
//! Paths and JSON are those of gvisor-tap-vsock where it has them, so that its clients work;
//! vmlan's own are below `/v1/`. A request becomes an [`Action`]; who carries it out and how the
//! connection is looked after is the daemon's business.
#![forbid(unsafe_code)]

mod action;
mod client;
pub mod dns;
mod forward;
mod http;
pub mod network;
mod openapi;
mod types;
pub mod zone;

pub use action::{Action, Added, Captured};
pub use client::{Client, ClientError};
pub use forward::{ForwardError, check as check_forward};
pub use http::{MAX_REQUEST, Request, Response, escape};
pub use openapi::document as openapi;
pub use types::{
    Flow, ForwardEntry, ForwardRequest, Leases, MacTable, Stats, Tunnel, TunnelRequest, colons,
    listen_text, protocol_name,
};
