//! Forwards that come and go with what listens in a machine: the agent in a guest with a real
//! kernel, its host side against a real daemon. Only the virtio port between them is a socket.

mod agent;
mod rules;
mod scene;
mod ssh;
