//! ICMP errors that reached a datagram socket of the host, told to the guest whose datagram they
//! are about.

use std::net::{IpAddr, SocketAddr};

use arrayvec::ArrayVec;
use smoltcp::wire::IpProtocol;
use vmlan_wire::Mac;

use crate::gateway::icmp;
use crate::io::{Host, IcmpError, Io, SockId};
use crate::net::{self, IpHeader, Net};
use crate::packet::ETHERNET_HEADER;

/// An error taken from the host's queue. It keeps as much of the datagram as an ICMPv6 error can
/// quote (RFC 4443 section 2.4).
#[derive(Clone, Debug)]
pub(super) struct HostError {
    kind: u8,
    code: u8,
    mtu: u32,
    offender: Option<IpAddr>,
    pub(super) to: SocketAddr,
    pub(super) data: Vec<u8>,
}

/// The packet as the guest sent it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quote {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) protocol: IpProtocol,
}

/// Errors taken at once.
const MAX: usize = 16;

const MAX_DATA: usize = 1280;

/// Type and code of "port unreachable", types of "time exceeded".
const PORT_V4: (u8, u8) = (3, 3);
const PORT_V6: (u8, u8) = (1, 4);
const EXCEEDED_V4: u8 = 11;
const EXCEEDED_V6: u8 = 3;

impl From<&IcmpError<'_>> for HostError {
    fn from(error: &IcmpError<'_>) -> Self {
        let data = error.data.get(..MAX_DATA).unwrap_or(error.data);
        Self {
            kind: error.kind,
            code: error.code,
            mtu: error.mtu,
            offender: error.offender,
            to: error.to,
            data: data.to_vec(),
        }
    }
}

impl HostError {
    /// What is in the error queue of a socket; beyond a few at once the guest has heard enough.
    pub(super) fn take(host: &mut dyn Host, sock: SockId) -> ArrayVec<Self, MAX> {
        let mut errors = ArrayVec::new();
        host.datagram_errors(sock, &mut |error| {
            if !errors.is_full() {
                errors.push(Self::from(&error));
            }
        });
        errors
    }

    /// Nobody listens there.
    pub(super) fn is_refused(&self) -> bool {
        (self.kind, self.code) == if self.to.is_ipv4() { PORT_V4 } else { PORT_V6 }
    }

    /// Tells the guest. `header` is the transport header of the packet it is about.
    pub(super) fn relay(
        &self,
        net: &mut Net,
        io: &mut Io<'_>,
        mac: Mac,
        quote: &Quote,
        header: &[u8],
    ) {
        let exceeded = if self.to.is_ipv6() { EXCEEDED_V6 } else { EXCEEDED_V4 };
        let mut ip = IpHeader::new(quote.src, quote.dst, quote.protocol);
        if self.kind == exceeded {
            ip.ttl = 1;
        }
        let len = header.len() + self.data.len();
        let mut quoted = vec![0; ETHERNET_HEADER + ip.len()];
        let gateway = net.config.gateway_mac;
        net::write_headers(&mut quoted, gateway, mac, &ip, 0, len);
        quoted.extend_from_slice(header);
        quoted.extend_from_slice(&self.data);
        let quoted = quoted.get(ETHERNET_HEADER..).unwrap_or(&[]);
        let offender = self.offender(net, quote);
        let kind = (self.kind, self.code, self.mtu);
        icmp::relayed(net, io, mac, quote.src, offender, kind, quoted);
    }

    /// Who complains, as the guest knows it.
    fn offender(&self, net: &Net, quote: &Quote) -> IpAddr {
        let gateway = || match quote.src {
            IpAddr::V4(_) => net.config.gateway.into(),
            IpAddr::V6(_) => net.config.own_v6().into(),
        };
        let same_family = self.to.is_ipv6() == quote.src.is_ipv6();
        match self.offender {
            // Over IPv6 to a service that is there over IPv4: translated, and from the alias.
            _ if !same_family => self.to.ip(),
            // The destination itself, which may be hidden behind an alias.
            Some(ip) if ip == self.to.ip() || ip.is_loopback() => quote.dst,
            Some(ip) if !ip.is_unspecified() => ip,
            None if self.is_refused() => quote.dst,
            _ => gateway(),
        }
    }
}
