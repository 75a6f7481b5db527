//! A UDP lift: each client of the network has a socket of its own towards the listener, so that
//! answers find back, and loses it when nothing has passed for a while.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::net::{RecvFlags, SendFlags};

use crate::poll::{LOCAL_TOKENS, Poll, Source};

/// A client's socket is closed when nothing has passed for as long.
const IDLE: Duration = Duration::from_secs(60);

/// Clients of one lift.
const MAX_CLIENTS: usize = 64;

/// Datagrams in one turn.
const BUDGET: usize = 64;

#[derive(Debug)]
pub(crate) struct UdpLift {
    source: Source,
    /// Its first token, which is that of the socket that clients send to.
    tokens: u64,
    to: SocketAddr,
    /// The numbers of their flows; a flow's token is as much above the first.
    clients: HashMap<SocketAddr, u64>,
    flows: HashMap<u64, Flow>,
    last: u64,
}

#[derive(Debug)]
struct Flow {
    source: Source,
    client: SocketAddr,
    used: Instant,
}

impl UdpLift {
    /// Listens on a free port of this address; the port is told as well.
    pub(crate) fn open(
        poll: &Poll,
        tokens: u64,
        at: Ipv4Addr,
        to: SocketAddr,
    ) -> io::Result<(Self, u16)> {
        let socket = UdpSocket::bind((at, 0))?;
        socket.set_nonblocking(true)?;
        let port = socket.local_addr()?.port();
        let mut source = Source::new(socket.into(), tokens);
        source.ask(poll, EventFlags::IN)?;
        let (clients, flows) = (HashMap::new(), HashMap::new());
        Ok((Self { source, tokens, to, clients, flows, last: 0 }, port))
    }

    /// Passes on what clients have sent, those that may.
    pub(crate) fn hear_clients(&mut self, poll: &Poll, buffer: &mut [u8], from: &[IpAddr]) {
        for _ in 0..BUDGET {
            let received = rustix::net::recvfrom(&self.source, &mut *buffer, RecvFlags::empty());
            let Ok((_, len, peer)) = received else { return };
            let client = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
            let Some(client) = client.filter(|client| from.contains(&client.ip())) else {
                continue;
            };
            let number = self.clients.get(&client).copied();
            let Ok(number) = number.map_or_else(|| self.add(poll, client), Ok) else { continue };
            if let Some(flow) = self.flows.get_mut(&number) {
                flow.used = Instant::now();
                let payload = buffer.get(..len).unwrap_or_default();
                // A datagram may be lost; that nobody listens any more is told by the next list.
                let _ = rustix::net::send(&flow.source, payload, SendFlags::empty());
            }
        }
    }

    /// A socket for a new client; its number.
    fn add(&mut self, poll: &Poll, client: SocketAddr) -> io::Result<u64> {
        if self.flows.len() >= MAX_CLIENTS {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.used);
            if let Some(oldest) = oldest.map(|(number, _)| *number) {
                self.remove(oldest);
            }
        }
        let local: IpAddr = match self.to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((local, 0))?;
        socket.connect(self.to)?;
        socket.set_nonblocking(true)?;
        // 0 is the lift's own.
        self.last = self.last % (LOCAL_TOKENS - 1) + 1;
        let number = self.last;
        let mut source = Source::new(socket.into(), self.tokens + number);
        source.ask(poll, EventFlags::IN)?;
        self.remove(number);
        self.clients.insert(client, number);
        self.flows.insert(number, Flow { source, client, used: Instant::now() });
        Ok(number)
    }

    /// Passes on what the listener has answered to one client.
    pub(crate) fn hear_listener(&mut self, number: u64, buffer: &mut [u8]) {
        let Some(flow) = self.flows.get_mut(&number) else { return };
        for _ in 0..BUDGET {
            match rustix::net::recv(&flow.source, &mut *buffer, RecvFlags::empty()) {
                Ok((_, len)) => {
                    flow.used = Instant::now();
                    let payload = buffer.get(..len).unwrap_or_default();
                    let flags = SendFlags::empty();
                    let _ = rustix::net::sendto(&self.source, payload, flags, &flow.client);
                }
                // That was an answer too: nobody listened.
                Err(rustix::io::Errno::CONNREFUSED) => {}
                Err(_) => return,
            }
        }
    }

    fn remove(&mut self, number: u64) {
        if let Some(flow) = self.flows.remove(&number) {
            self.clients.remove(&flow.client);
        }
    }

    /// Closes what nobody uses.
    pub(crate) fn tidy(&mut self, now: Instant) {
        self.flows.retain(|_, flow| now.duration_since(flow.used) < IDLE);
        self.clients.retain(|_, number| self.flows.contains_key(number));
    }
}
