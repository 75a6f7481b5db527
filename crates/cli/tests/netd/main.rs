//! `vmlan netd` from outside: its flags, what it leaves behind, guests on its sockets, and its
//! control API. Needs no rights and no network.

mod capture;
mod control;
mod flags;
mod guests;
mod lifecycle;
mod links;
#[path = "../common/ports.rs"]
mod ports;
mod support;
