//! `vmlan network` and `vmlan schema` from outside, each test with a home of its own.

mod choose;
mod edits;
mod list;
mod support;
