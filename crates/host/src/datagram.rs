//! UDP and ICMP echo sockets, one for each guest endpoint, and what comes back on their error
//! queues.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};
use vmlan_engine::SockId;
use vmlan_engine::io::{Datagram, DatagramKind, DatagramOptions, Drained, Failure, IcmpError};

use crate::stream::pending_error;
use crate::sys;

/// Asked of the system, which gives what `net.core.rmem_max` allows: a burst must fit between two
/// passes of the loop.
const RECV_BUFFER: usize = 4 << 20;

/// Errors of earlier sends that are passed over in one call; they are on the error queue as well.
const MAX_PENDING: usize = 64;

/// What is kept of a datagram that the system refused to send.
const QUOTE: usize = 1280;

/// A datagram socket's state beyond the system's own.
#[derive(Debug)]
pub(crate) struct Socket {
    ipv6: bool,
    /// What the socket is set to, as far as known.
    options: Option<DatagramOptions>,
    /// Runs of equal datagrams may go as one message.
    segment: bool,
    /// For a socket that is bound to every address: the one that each peer spoke to.
    locals: Option<Box<sys::Locals>>,
}

impl Socket {
    pub(crate) fn open(kind: DatagramKind) -> Result<(OwnedFd, Self), Errno> {
        let (family, protocol) = match kind {
            DatagramKind::Udp4 => (AddressFamily::INET, ipproto::UDP),
            DatagramKind::Udp6 => (AddressFamily::INET6, ipproto::UDP),
            DatagramKind::UdpBound(at) => (sys::family(at), ipproto::UDP),
            DatagramKind::Ping4 => (AddressFamily::INET, ipproto::ICMP),
            DatagramKind::Ping6 => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let ipv6 = family == AddressFamily::INET6;
        let udp = protocol == ipproto::UDP;
        let fd = sys::socket(family, SocketType::DGRAM, Some(protocol))?;
        sys::set_recverr(&fd, ipv6);
        if udp {
            // A smaller buffer only loses more.
            let _ = sockopt::set_socket_recv_buffer_size(&fd, RECV_BUFFER);
        }
        let mut locals = None;
        if let DatagramKind::UdpBound(at) = kind {
            if ipv6 {
                sockopt::set_ipv6_v6only(&fd, true)?;
            }
            if at.ip().is_unspecified() {
                sys::set_local_address(&fd, ipv6)?;
                locals = Some(Box::default());
            }
            rustix::net::bind(&fd, &at)?;
        }
        Ok((fd, Self { ipv6, options: None, segment: udp, locals }))
    }

    /// Sets what differs from the datagram before.
    fn set(&mut self, fd: &OwnedFd, options: DatagramOptions) {
        let before = self.options.replace(options);
        if before == Some(options) {
            return;
        }
        if before.is_none_or(|before| before.ttl != options.ttl) {
            sys::set_ttl(fd, self.ipv6, options.ttl);
        }
        if before.map_or(0, |before| before.tos) != options.tos {
            sys::set_tos(fd, self.ipv6, options.tos);
        }
        if before.is_none_or(|before| before.dont_fragment != options.dont_fragment) {
            sys::set_dont_fragment(fd, self.ipv6, options.dont_fragment);
        }
    }
}

/// Why a socket could not be opened, as the engine is told.
pub(crate) fn open_failure(kind: DatagramKind, errno: Errno) -> Failure {
    match (kind, errno) {
        // No group of this process is in `net.ipv4.ping_group_range`.
        (DatagramKind::Ping4 | DatagramKind::Ping6, Errno::ACCESS | Errno::PERM) => {
            Failure::Unsupported
        }
        _ => crate::failure::failure(errno),
    }
}

/// What all datagram sockets share.
#[derive(Debug, Default)]
pub(crate) struct Datagrams {
    pub(crate) batches: sys::Batches,
    refused: Option<Refused>,
}

/// The last datagram that the system refused at once; told with the errors of its socket.
#[derive(Debug)]
struct Refused {
    sock: SockId,
    errno: Errno,
    to: SocketAddr,
    quote: Vec<u8>,
}

impl Datagrams {
    pub(crate) fn send(
        &mut self,
        sock: SockId,
        fd: &OwnedFd,
        socket: &mut Socket,
        to: SocketAddr,
        options: DatagramOptions,
        payloads: &[&[u8]],
    ) -> usize {
        socket.set(fd, options);
        let from = socket.locals.as_ref().and_then(|locals| locals.of(to));
        let (mut taken, mut at) = (0, 0);
        let mut retried = false;
        while let Some(rest) = payloads.get(at..).filter(|rest| !rest.is_empty()) {
            let (sent, error) = match rest {
                [one] if from.is_none() => match rustix::net::sendto(fd, one, sys::SEND_FLAGS, &to)
                {
                    Ok(_) => (1, None),
                    Err(errno) => (0, Some(errno)),
                },
                many => self.batches.send(fd, Some(to), from, many, &mut socket.segment),
            };
            taken += sent;
            at += sent;
            retried &= sent == 0;
            match error {
                None => {}
                // The queue towards the network is full.
                Some(Errno::AGAIN | Errno::NOBUFS) => break,
                // Told by the error queue, and a smaller one may pass.
                Some(Errno::MSGSIZE) => at += 1,
                // It may be the error of an earlier datagram, which is gone with being told.
                Some(_) if !retried => retried = true,
                Some(errno) => {
                    let quote = rest
                        .get(sent)
                        .map_or(&[][..], |refused| refused.get(..QUOTE).unwrap_or(refused));
                    self.refused = Some(Refused { sock, errno, to, quote: quote.to_vec() });
                    break;
                }
            }
        }
        taken
    }

    pub(crate) fn recv(
        &mut self,
        fd: &OwnedFd,
        socket: &mut Socket,
        budget: usize,
        each: &mut dyn FnMut(&[Datagram<'_>]),
    ) -> Drained {
        let mut left = budget;
        let mut pending = 0;
        while left > 0 && pending < MAX_PENDING {
            match self.batches.recv(fd, left, socket.locals.as_deref_mut(), each) {
                Ok((asked, got)) if got < asked => return Drained::Empty,
                Ok((_, got)) => left -= got,
                Err(Errno::AGAIN) => return Drained::Empty,
                Err(_) => pending += 1,
            }
        }
        Drained::More
    }

    pub(crate) fn errors(
        &mut self,
        sock: SockId,
        fd: &OwnedFd,
        each: &mut dyn FnMut(IcmpError<'_>),
    ) {
        if let Some(refused) = self.refused.take_if(|refused| refused.sock == sock)
            && let Some(error) = local_error(refused.errno, refused.to, &refused.quote)
        {
            each(error);
        }
        if sys::drain_errors(fd, each) == 0 {
            // One that did not fit into the queue would fail the next call.
            let _ = pending_error(fd);
        }
    }
}

/// What a router would say (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1) where this host's own
/// network said it by an errno. `None` for what is nobody else's business.
pub(crate) fn local_error(errno: Errno, to: SocketAddr, data: &[u8]) -> Option<IcmpError<'_>> {
    let (v4, v6) = match errno {
        Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL => ((3, 0), (1, 0)),
        Errno::HOSTUNREACH | Errno::HOSTDOWN => ((3, 1), (1, 3)),
        Errno::CONNREFUSED => ((3, 3), (1, 4)),
        Errno::MSGSIZE => ((3, 4), (2, 0)),
        Errno::ACCESS | Errno::PERM => ((3, 13), (1, 1)),
        _ => return None,
    };
    let (kind, code) = if to.is_ipv6() { v6 } else { v4 };
    Some(IcmpError { kind, code, mtu: 0, offender: None, to, data })
}
