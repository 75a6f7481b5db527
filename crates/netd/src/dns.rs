//! The resolver without a network: on ports of the host, in the foreground.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use vmlan_dns::{Names, Options, Target};
use vmlan_engine::Config;
use vmlan_host::DnsPorts;

use crate::{DaemonError, signals};

/// Events that one pass takes from the system.
const EVENTS: usize = 256;

const SIGNAL: Token = Token(0);

/// The name by which guests know the host.
const HOST_NAME: &str = "host.lima.internal";

/// Gives a network's own names to its resolver, and makes those of its addresses its own.
pub fn add_names(names: &mut Names, config: &Config) {
    names.remove(HOST_NAME);
    let host = match config.router {
        Some(router) => [router.ipv4.into(), router.ipv6.into()],
        None => [config.host.into(), config.ipv6.host().into()],
    };
    for address in host {
        // The name is one.
        let _ = names.add(HOST_NAME, &Target::Address(address));
    }
    names.add_subnet(config.ipv4.network.into(), config.ipv4.prefix);
    names.add_subnet(config.ipv6.prefix.into(), 64);
}

/// A resolver on a UDP and a TCP port of 127.0.0.1.
#[derive(Debug)]
pub struct Server {
    poll: Poll,
    ports: DnsPorts,
    signals: UnixStream,
}

impl Server {
    /// Opens both ports, a random free one where a zero is given. SIGTERM, SIGINT and SIGHUP will
    /// end [`Server::run`].
    pub fn open(udp: u16, tcp: u16, options: Options) -> Result<Self, DaemonError> {
        let poll = Poll::new().map_err(DaemonError::io("cannot poll"))?;
        let signals = signals::termination().map_err(DaemonError::io("cannot handle signals"))?;
        let source = signals.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&source), SIGNAL, Interest::READABLE)
            .map_err(DaemonError::io("cannot poll"))?;
        let ports = DnsPorts::open(poll.registry(), udp, tcp, options)?;
        Ok(Self { poll, ports, signals })
    }

    pub fn udp_addr(&self) -> SocketAddr {
        self.ports.udp_addr()
    }

    pub fn tcp_addr(&self) -> SocketAddr {
        self.ports.tcp_addr()
    }

    /// Serves until a signal comes.
    pub fn run(&mut self) -> Result<(), DaemonError> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let now = Instant::now();
            let due = self.ports.next_timeout(now);
            let timeout = due.map(|due| due.saturating_duration_since(now));
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(DaemonError::io("cannot poll")(e)),
            }
            let now = Instant::now();
            for event in &events {
                if event.token() != SIGNAL {
                    self.ports.handle(event, now);
                } else if signals::came(&self.signals) {
                    return Ok(());
                }
            }
            self.ports.work(now);
        }
    }
}
