//! Forwards: listeners on the host whose connections and datagrams go to a guest. Here the sockets
//! are opened and connections accepted; what then happens is the flows' business.

mod parse;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use parse::{parse_forward, parse_listen, parse_publish};

use crate::config::Config;
use crate::flow::slots::Slots;
use crate::flow::tcp::Inbound;
use crate::flow::{Flows, Origin};
use crate::io::{Accepted, Close, DatagramKind, Host, Io, ListenAddr, Readiness, SockId, Token};
use crate::net::Net;
use crate::packet;
use crate::time::Instant;

/// Connections accepted in one turn.
const BUDGET: usize = 64;

/// When the host is out of descriptors, connections wait in the backlog for as long.
const RETRY: Duration = Duration::from_millis(50);

/// A port or socket of the host that leads to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    pub listen: ListenAddr,
    pub guest: SocketAddr,
    /// The guest sees the client's own address instead of the gateway's.
    pub keep_source: bool,
}

/// A forward's number, never used twice in an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForwardId(pub u32);

#[derive(Debug)]
pub(crate) struct Forwards {
    entries: Slots<Entry>,
    by_id: BTreeMap<ForwardId, u32>,
    by_listen: HashMap<ListenAddr, ForwardId>,
    next_id: u32,
    /// Listeners that had more connections than one turn allows.
    ready: VecDeque<u32>,
    /// Listeners that the host had no descriptor for, by the time at which to ask again.
    retries: VecDeque<(Instant, u32)>,
}

#[derive(Debug)]
struct Entry {
    forward: Forward,
    sock: SockId,
    accepting: Accepting,
}

/// What becomes of connections in a listener's backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepting {
    /// None that we know of: an event will tell.
    Idle,
    /// There may be more; in one of the lists of those who are next.
    Queued,
}

impl Forwards {
    pub(crate) fn new() -> Self {
        Self {
            entries: Slots::new(Origin::Forward),
            by_id: BTreeMap::new(),
            by_listen: HashMap::new(),
            next_id: 0,
            ready: VecDeque::new(),
            retries: VecDeque::new(),
        }
    }

    pub(crate) fn add(
        &mut self,
        forward: Forward,
        config: &Config,
        flows: &mut Flows,
        io: &mut Io<'_>,
    ) -> Result<ForwardId, String> {
        if let Some(other) = self.by_listen.get(&forward.listen).and_then(|id| self.get(*id)) {
            return Err(format!("{} is forwarded to {} already", forward.listen, other.guest));
        }
        check_guest(config, forward.guest)?;
        let index = self.entries.insert_with(|token| {
            let sock = open(io.host, token, &forward.listen)?;
            Ok::<_, String>(Entry { forward: forward.clone(), sock, accepting: Accepting::Idle })
        })?;
        if let (ListenAddr::Udp(_), Some(entry)) = (&forward.listen, self.entries.get(index)) {
            flows.udp.add_forward(index, entry.sock, forward.guest, forward.keep_source);
        }
        let id = ForwardId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        self.by_id.insert(id, index);
        self.by_listen.insert(forward.listen, id);
        Ok(id)
    }

    pub(crate) fn remove(&mut self, id: ForwardId, flows: &mut Flows, io: &mut Io<'_>) -> bool {
        let Some(index) = self.by_id.remove(&id) else { return false };
        let Some(entry) = self.entries.remove(index) else { return false };
        self.by_listen.remove(&entry.forward.listen);
        self.ready.retain(|i| *i != index);
        self.retries.retain(|(_, i)| *i != index);
        if let ListenAddr::Udp(_) = entry.forward.listen {
            flows.udp.remove_forward(index);
        }
        io.host.close(entry.sock, Close::Normal);
        true
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ForwardId, &Forward)> {
        self.by_id.keys().filter_map(|id| Some((*id, self.get(*id)?)))
    }

    pub(crate) fn host_ready(
        &mut self,
        net: &mut Net,
        flows: &mut Flows,
        io: &mut Io<'_>,
        token: Token,
        ready: Readiness,
    ) {
        let Some(index) = self.entries.find(token) else { return };
        let Some(entry) = self.entries.get(index) else { return };
        match entry.forward.listen {
            ListenAddr::Udp(_) => flows.udp.forward_ready(net, io, index, ready),
            // The lists will come to it.
            _ if entry.accepting == Accepting::Queued => {}
            _ => self.accept(net, flows, io, index),
        }
    }

    pub(crate) fn handle_timeout(&mut self, net: &mut Net, flows: &mut Flows, io: &mut Io<'_>) {
        let due = self.retries.partition_point(|(at, _)| *at <= io.now);
        self.ready.extend(self.retries.drain(..due).map(|(_, index)| index));
        for _ in 0..self.ready.len() {
            if let Some(index) = self.ready.pop_front() {
                self.accept(net, flows, io, index);
            }
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if !self.ready.is_empty() {
            return Some(Instant::ZERO);
        }
        self.retries.front().map(|(at, _)| *at)
    }

    pub(crate) fn shutdown(&mut self, flows: &mut Flows, io: &mut Io<'_>) {
        let all: Vec<ForwardId> = self.by_id.keys().copied().collect();
        for id in all {
            self.remove(id, flows, io);
        }
    }

    fn get(&self, id: ForwardId) -> Option<&Forward> {
        self.entries.get(*self.by_id.get(&id)?).map(|entry| &entry.forward)
    }

    /// Takes a budget of connections from a listener's backlog.
    fn accept(&mut self, net: &mut Net, flows: &mut Flows, io: &mut Io<'_>, index: u32) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        entry.accepting = Accepting::Idle;
        let (guest, keep) = (entry.forward.guest, entry.forward.keep_source);
        for _ in 0..BUDGET {
            let token = flows.tcp.reserve();
            match token.map(|token| (token, io.host.accept(entry.sock, token))) {
                Some((token, Accepted::Stream { sock, peer })) => {
                    let client = peer.and_then(|p| kept_source(&net.config, keep, guest, p));
                    flows.tcp.open_inbound(net, io, Inbound { token, sock, guest, client });
                }
                Some((_, Accepted::Blocked)) => return,
                Some((_, Accepted::Failed(_))) | None => {
                    entry.accepting = Accepting::Queued;
                    return self.retries.push_back((io.now + RETRY, index));
                }
            }
        }
        entry.accepting = Accepting::Queued;
        self.ready.push_back(index);
    }
}

/// The address under which a guest sees a client that keeps its own: not one that the guest could
/// not answer to through the gateway.
pub(crate) fn kept_source(
    config: &Config,
    keep: bool,
    guest: SocketAddr,
    client: SocketAddr,
) -> Option<SocketAddr> {
    let ip = client.ip();
    let link_local = match ip {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    let routed = ip.is_ipv6() == guest.is_ipv6()
        && packet::is_unicast(ip)
        && !link_local
        && !config.contains(ip);
    (keep && routed).then(|| SocketAddr::new(ip, client.port()))
}

fn open(host: &mut dyn Host, token: Token, at: &ListenAddr) -> Result<SockId, String> {
    match at {
        ListenAddr::Udp(addr) => host
            .datagram_open(token, DatagramKind::UdpBound(*addr))
            .map_err(|_| host.explain_bind(at)),
        ListenAddr::Tcp(_) | ListenAddr::Unix(_) => host.listen(token, at),
    }
}

fn check_guest(config: &Config, guest: SocketAddr) -> Result<(), String> {
    let ip = guest.ip();
    if config.is_own(ip) {
        return Err(format!("{ip} is the gateway's own address, not a guest's"));
    }
    if !config.is_guest(ip) {
        let prefix = config.ipv6.prefix;
        return Err(format!("{ip} is not in the network ({}, {prefix}/64)", config.ipv4));
    }
    if guest.port() == 0 {
        return Err(format!("{guest} is not a port that a guest could listen on"));
    }
    Ok(())
}
