//! Instances: machines that have a directory below `$LIMA_HOME`, with the layout and the file names
//! of Lima.
//!
//! [`store`] has the directories, [`inspect()`] says what an instance is doing, and [`host`] is the
//! process beside a running machine. That process tells what happens as lines of JSON in
//! `ha.stdout.log` ([`event`]), and what is so at the moment on `ha.sock` ([`info`]).

pub mod event;
mod files;
pub mod host;
pub mod info;
mod inspect;
pub mod size;
pub mod ssh;
pub mod store;
mod user;

pub use files::Files;
pub use inspect::{Inspection, Status, inspect};
pub use store::{Base, Draft, Instance, Store, StoreError};
pub use user::guest_user;
