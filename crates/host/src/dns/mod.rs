//! The name service that guests ask.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use mio::Registry;
use vmlan_engine::io::Failure;
use vmlan_engine::{Instant, Readiness, Token};

use crate::token::Internal;

/// Which nameservers are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsSource {
    /// Those of a resolv.conf(5), read again when it changes.
    ResolvConf(PathBuf),
    Servers(Vec<SocketAddr>),
}

impl Default for DnsSource {
    fn default() -> Self {
        Self::ResolvConf(PathBuf::from("/etc/resolv.conf"))
    }
}

#[derive(Debug)]
pub(crate) struct Dns {
    answers: VecDeque<(Token, Vec<u8>)>,
}

impl Dns {
    pub(crate) fn new(_source: DnsSource, _hosts: Vec<(String, Vec<IpAddr>)>) -> Self {
        Self { answers: VecDeque::new() }
    }

    pub(crate) fn query(&mut self, _registry: &Registry, _token: Token, _message: &[u8]) {}

    pub(crate) fn open_stream(&mut self, _registry: &Registry) -> Result<OwnedFd, Failure> {
        Err(Failure::Unsupported)
    }

    pub(crate) fn handle(
        &mut self,
        _registry: &Registry,
        _internal: Internal,
        _ready: Readiness,
        _now: Instant,
    ) {
    }

    pub(crate) fn take_answer(&mut self) -> Option<(Token, Vec<u8>)> {
        self.answers.pop_front()
    }

    pub(crate) fn handle_timeout(&mut self, _registry: &Registry, _now: Instant) {}

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        None
    }
}
