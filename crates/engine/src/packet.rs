//! One IP packet on its way in, parsed once: every service behind the switch works on this.
//!
//! RFC 791 section 3.1; RFC 8200 sections 3 and 4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet};
use vmlan_wire::checksum::Sum;
use vmlan_wire::frame::Checksum;
use vmlan_wire::{Frame, FrameBatch, Mac};

use crate::io::PortId;
use crate::stats::Drop;

/// IPv4 header without options.
pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
pub(crate) const ETHERNET_HEADER: usize = 14;

/// Extension headers looked through before a packet counts as malformed.
const MAX_EXTENSIONS: usize = 8;

/// An IP packet whose header has been checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) port: PortId,
    pub(crate) src_mac: Mac,
    pub(crate) dst_mac: Mac,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) ttl: u8,
    /// Traffic class.
    pub(crate) tos: u8,
    pub(crate) dont_fragment: bool,
    pub(crate) fragment: Option<Fragment>,
    /// The transport protocol, after IPv6 extension headers.
    pub(crate) protocol: IpProtocol,
    /// The IP packet, cut to its own length: what an ICMP error quotes.
    pub(crate) ip: &'a [u8],
    /// What the transport protocol sees. For a fragment, its part.
    pub(crate) payload: &'a [u8],
    /// The transport checksum was made or verified by somebody we trust.
    pub(crate) checksum_trusted: bool,
}

/// Where a packet lies among those that came with it, so that it can be found again at the end of
/// the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) batch: &'a FrameBatch,
    /// `None` for a packet that was put together from fragments.
    pub(crate) index: Option<usize>,
}

/// Place of a fragment in its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) id: u32,
    /// Bytes.
    pub(crate) offset: u16,
    pub(crate) more: bool,
}

impl<'a> Packet<'a> {
    /// Parses the IP packet in `frame`. The caller has already looked at the Ethernet header.
    pub(crate) fn parse(
        port: PortId,
        eth: &EthernetFrame<&'a [u8]>,
        frame: &Frame<'a>,
    ) -> Result<Self, Drop> {
        let ip = frame.data.get(ETHERNET_HEADER..).ok_or(Drop::Malformed)?;
        let trusted = frame.offload.checksum != Checksum::Complete;
        match eth.ethertype() {
            EthernetProtocol::Ipv4 => Self::parse_v4(port, eth, ip, trusted),
            EthernetProtocol::Ipv6 => Self::parse_v6(port, eth, ip, trusted),
            _ => Err(Drop::UnknownProtocol),
        }
    }

    fn parse_v4(
        port: PortId,
        eth: &EthernetFrame<&'a [u8]>,
        bytes: &'a [u8],
        checksum_trusted: bool,
    ) -> Result<Self, Drop> {
        let header = Ipv4Packet::new_checked(bytes).map_err(|_| Drop::Malformed)?;
        let header_len = usize::from(header.header_len());
        let total = usize::from(header.total_len());
        let ip = bytes.get(..total).ok_or(Drop::Malformed)?;
        let payload = ip.get(header_len..).ok_or(Drop::Malformed)?;
        if header.version() != 4 || header_len < IPV4_HEADER {
            return Err(Drop::Malformed);
        }
        let mut sum = Sum::new();
        sum.add(ip.get(..header_len).ok_or(Drop::Malformed)?);
        if !sum.is_valid() {
            return Err(Drop::Checksum);
        }
        let fragment = (header.more_frags() || header.frag_offset() != 0).then(|| Fragment {
            id: u32::from(header.ident()),
            offset: header.frag_offset(),
            more: header.more_frags(),
        });
        Ok(Self {
            port,
            src_mac: eth.src_addr(),
            dst_mac: eth.dst_addr(),
            src: header.src_addr().into(),
            dst: header.dst_addr().into(),
            ttl: header.hop_limit(),
            tos: header.dscp() << 2 | header.ecn(),
            dont_fragment: header.dont_frag(),
            fragment,
            protocol: header.next_header(),
            ip,
            payload,
            checksum_trusted,
        })
    }

    fn parse_v6(
        port: PortId,
        eth: &EthernetFrame<&'a [u8]>,
        bytes: &'a [u8],
        checksum_trusted: bool,
    ) -> Result<Self, Drop> {
        let header = Ipv6Packet::new_checked(bytes).map_err(|_| Drop::Malformed)?;
        if header.version() != 6 {
            return Err(Drop::Malformed);
        }
        let ip = bytes.get(..header.total_len()).ok_or(Drop::Malformed)?;
        let mut payload = ip.get(IPV6_HEADER..).ok_or(Drop::Malformed)?;
        let mut protocol = header.next_header();
        let mut fragment = None;
        for _ in 0..MAX_EXTENSIONS {
            let (next, len) = match protocol {
                IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts => {
                    let [next, len, ..] = *payload else { return Err(Drop::Malformed) };
                    (next, 8 + 8 * usize::from(len))
                }
                IpProtocol::Ipv6Frag => {
                    let [next, _, o0, o1, i0, i1, i2, i3, ..] = *payload else {
                        return Err(Drop::Malformed);
                    };
                    let offset = u16::from_be_bytes([o0, o1]);
                    let place = Fragment {
                        id: u32::from_be_bytes([i0, i1, i2, i3]),
                        offset: offset & !7,
                        more: offset & 1 == 1,
                    };
                    // An atomic fragment is a whole packet (RFC 6946).
                    if place.offset != 0 || place.more {
                        fragment = Some(place);
                    }
                    (next, 8)
                }
                _ => break,
            };
            payload = payload.get(len..).ok_or(Drop::Malformed)?;
            protocol = next.into();
            if fragment.is_some() {
                break;
            }
        }
        Ok(Self {
            port,
            src_mac: eth.src_addr(),
            dst_mac: eth.dst_addr(),
            src: header.src_addr().into(),
            dst: header.dst_addr().into(),
            ttl: header.hop_limit(),
            tos: header.traffic_class(),
            dont_fragment: true,
            fragment,
            protocol,
            ip,
            payload,
            checksum_trusted,
        })
    }

    /// Whether the transport checksum over the pseudo-header and `payload` is right. Trusted
    /// frames are not looked at.
    pub(crate) fn checksum_ok(&self) -> bool {
        // A UDP datagram over IPv4 may come without (RFC 768).
        let absent = || matches!(self.payload, [_, _, _, _, _, _, 0, 0, ..]) && !self.is_v6();
        if self.checksum_trusted || self.protocol == IpProtocol::Udp && absent() {
            return true;
        }
        let mut sum = Sum::new();
        // ICMP for IPv4 alone has no pseudo-header.
        if self.protocol != IpProtocol::Icmp {
            let len = u32::try_from(self.payload.len()).unwrap_or(0);
            sum.add_pseudo_header(self.src, self.dst, self.protocol.into(), len);
        }
        sum.add(self.payload);
        sum.is_valid()
    }

    pub(crate) fn is_v6(&self) -> bool {
        self.src.is_ipv6()
    }
}

/// Whether an address may stand as the source of a guest's unicast traffic at all.
pub(crate) fn is_unicast(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => {
            !(a.is_multicast() || a.is_broadcast() || a.is_loopback() || a == Ipv4Addr::UNSPECIFIED)
        }
        IpAddr::V6(a) => !(a.is_multicast() || a.is_loopback() || a == Ipv6Addr::UNSPECIFIED),
    }
}
