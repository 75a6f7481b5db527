//! Asks a nameserver from inside a namespace, over UDP and TCP, and takes the reply apart.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::dns_message::{Message, Query};
use crate::netns::{Netns, SOON};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// One asker of one nameserver. Questions go one after the other.
#[derive(Debug)]
pub struct Client<'a> {
    netns: &'a Netns,
    server: SocketAddr,
    udp: UdpSocket,
    tcp: Option<TcpStream>,
    id: u16,
}

impl<'a> Client<'a> {
    #[track_caller]
    pub fn new(netns: &'a Netns, server: IpAddr) -> Self {
        Self::at(netns, SocketAddr::new(server, 53))
    }

    #[track_caller]
    pub fn at(netns: &'a Netns, server: SocketAddr) -> Self {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => [0; 4].into(),
            SocketAddr::V6(_) => [0_u16; 8].into(),
        };
        let udp = netns.udp((any, 0));
        netns.enter(|| udp.connect(server)).expect("a route to the nameserver");
        Self { netns, server, udp, tcp: None, id: 0 }
    }

    /// The reply to a question, which has to be one to it.
    #[track_caller]
    pub fn ask(&mut self, query: &Query, transport: Transport) -> Message {
        self.id = self.id.wrapping_add(1);
        let message = query.encode(self.id);
        let reply = match transport {
            Transport::Udp => self.exchange_udp(&message, SOON),
            Transport::Tcp => self.exchange_tcp(&message),
        };
        let reply = reply.unwrap_or_else(|error| panic!("{query:?} over {transport:?}: {error}"));
        let decoded = Message::decode(&reply)
            .unwrap_or_else(|error| panic!("the reply to {query:?} over {transport:?}: {error}"));
        assert!(decoded.is_reply() && decoded.id == self.id, "{query:?}: {decoded:?}");
        decoded
    }

    /// Asks over UDP with the question as given.
    #[track_caller]
    pub fn udp(&mut self, name: &str, kind: u16) -> Message {
        self.ask(&Query::new(name, kind), Transport::Udp)
    }

    /// Sends bytes as a datagram and returns the next one that has the same id, if one comes.
    pub fn exchange_udp(&mut self, message: &[u8], within: Duration) -> io::Result<Vec<u8>> {
        self.udp.send(message)?;
        let deadline = Instant::now() + within;
        let mut reply = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.udp.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let length = self.udp.recv(&mut reply)?;
            if reply[..length].get(..2) == message.get(..2) {
                reply.truncate(length);
                return Ok(reply);
            }
        }
    }

    /// Sends bytes as a datagram and does not wait.
    pub fn send_udp(&self, message: &[u8]) {
        self.udp.send(message).expect("a datagram can be sent");
    }

    /// Over a connection that is kept for the next question.
    pub fn exchange_tcp(&mut self, message: &[u8]) -> io::Result<Vec<u8>> {
        if let Some(stream) = &mut self.tcp
            && let Ok(reply) = exchange(stream, message)
        {
            return Ok(reply);
        }
        let mut stream = self.netns.connect(self.server)?;
        let reply = exchange(&mut stream, message)?;
        self.tcp = Some(stream);
        Ok(reply)
    }
}

/// RFC 7766: each message after its length.
pub fn exchange(stream: &mut TcpStream, message: &[u8]) -> io::Result<Vec<u8>> {
    send(stream, message)?;
    receive(stream)
}

pub fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

pub fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}
