//! Datagrams on their way to a guest: one head is made for a pair of endpoints and then only
//! patched, and what the host received in one call leaves in one call.

use std::net::SocketAddr;

use arrayvec::ArrayVec;
use smoltcp::wire::IpProtocol;
use vmlan_wire::checksum::Sum;
use vmlan_wire::frame::Checksum;
use vmlan_wire::{Mac, Offload, OutFrame};

use super::HEADER;
use crate::io::Links;
use crate::net::{self, IpHeader, Net};
use crate::packet::{ETHERNET_HEADER, IPV4_HEADER, IPV6_HEADER};
use crate::stats::Drop;

const MAX_HEAD: usize = ETHERNET_HEADER + IPV6_HEADER + HEADER;

/// Frames in one call to a link.
const RUN: usize = 32;

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// As the guest knows the sender.
    pub(crate) from: SocketAddr,
    pub(crate) guest: SocketAddr,
    pub(crate) mac: Mac,
}

/// Makes and sends frames with datagrams for guests.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    template: Option<Template>,
}

/// The head of the datagrams of one path, with the sums of what does not change.
#[derive(Clone, Copy, Debug)]
struct Template {
    path: Path,
    head: [u8; MAX_HEAD],
    ip_sum: Sum,
    udp_sum: Sum,
}

impl Replies {
    /// Sends datagrams that came in together, each with its path; those without one have been
    /// counted already. False if the link had no room for all.
    pub(crate) fn send<'d>(
        &mut self,
        net: &mut Net,
        links: &mut dyn Links,
        datagrams: impl Iterator<Item = (Path, &'d [u8])>,
    ) -> bool {
        let mut run: ArrayVec<([u8; MAX_HEAD], &[u8]), RUN> = ArrayVec::new();
        let mut to: Option<Path> = None;
        let mut mtu = 0;
        let mut room = true;
        for (path, data) in datagrams {
            if to.is_none_or(|last| last.mac != path.mac) {
                mtu = net.mtu_towards(path.mac);
            }
            let whole = path.header_len() + HEADER + data.len() <= mtu;
            if let Some(last) = to
                && (run.is_full() || !whole || last.mac != path.mac || !last.same_family(&path))
            {
                room &= transmit(net, links, last, &mut run);
            }
            if whole {
                let id = net.next_fragment_id();
                run.push((self.head(net.config.gateway_mac, path, data.len(), id), data));
            } else {
                room &= send_large(net, links, path, data);
            }
            to = Some(path);
        }
        if let Some(path) = to {
            room &= transmit(net, links, path, &mut run);
        }
        room
    }

    fn head(&mut self, from: Mac, path: Path, len: usize, id: u32) -> [u8; MAX_HEAD] {
        let template = match &mut self.template {
            Some(known) if known.path == path => known,
            other => other.insert(Template::new(path, from)),
        };
        template.head(len, id)
    }
}

impl Path {
    fn header_len(&self) -> usize {
        if self.guest.is_ipv6() { IPV6_HEADER } else { IPV4_HEADER }
    }

    fn same_family(&self, other: &Self) -> bool {
        self.guest.is_ipv6() == other.guest.is_ipv6()
    }

    fn ip(&self) -> IpHeader {
        IpHeader::new(self.from.ip(), self.guest.ip(), IpProtocol::Udp)
    }
}

impl Template {
    fn new(path: Path, gateway: Mac) -> Self {
        let mut head = [0; MAX_HEAD];
        net::write_headers(&mut head, path.mac, gateway, &path.ip(), 0, 0);
        let start = ETHERNET_HEADER + path.header_len();
        if let Some(ports) = head.get_mut(start..start + 4) {
            ports[..2].copy_from_slice(&path.from.port().to_be_bytes());
            ports[2..].copy_from_slice(&path.guest.port().to_be_bytes());
        }
        let mut ip_sum = Sum::new();
        if !path.guest.is_ipv6() {
            // Length, identification and checksum are left out: they change.
            ip_sum.add(&head[14..16]);
            ip_sum.add(&head[20..24]);
            ip_sum.add(&head[26..34]);
        }
        let mut udp_sum = Sum::new();
        udp_sum.add_pseudo_header(path.from.ip(), path.guest.ip(), IpProtocol::Udp.into(), 0);
        Self { path, head, ip_sum, udp_sum }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the packet fits the MTU; the id wraps")]
    fn head(&self, len: usize, id: u32) -> [u8; MAX_HEAD] {
        let mut head = self.head;
        let udp_len = (HEADER + len) as u16;
        let mut udp_sum = self.udp_sum;
        udp_sum.add_u16(udp_len);
        let start = if self.path.guest.is_ipv6() {
            head[18..20].copy_from_slice(&udp_len.to_be_bytes());
            ETHERNET_HEADER + IPV6_HEADER
        } else {
            let (total, id) = (udp_len + IPV4_HEADER as u16, id as u16);
            let mut ip_sum = self.ip_sum;
            ip_sum.add_u16(total);
            ip_sum.add_u16(id);
            head[16..18].copy_from_slice(&total.to_be_bytes());
            head[18..20].copy_from_slice(&id.to_be_bytes());
            head[24..26].copy_from_slice(&ip_sum.finish());
            ETHERNET_HEADER + IPV4_HEADER
        };
        if let Some(fields) = head.get_mut(start + 4..start + 8) {
            fields[..2].copy_from_slice(&udp_len.to_be_bytes());
            fields[2..].copy_from_slice(&udp_sum.partial());
        }
        head
    }
}

/// Sends the frames of `run`, which have one destination, and empties it.
fn transmit(
    net: &mut Net,
    links: &mut dyn Links,
    path: Path,
    run: &mut ArrayVec<([u8; MAX_HEAD], &[u8]), RUN>,
) -> bool {
    if run.is_empty() {
        return true;
    }
    let start = ETHERNET_HEADER + path.header_len();
    #[expect(clippy::cast_possible_truncation, reason = "inside a head of some 60 bytes")]
    let checksum = Checksum::Partial { start: start as u16, offset: 6 };
    let offload = Offload { checksum, gso: None };
    let mut frames: ArrayVec<OutFrame<'_>, RUN> = ArrayVec::new();
    frames.extend(run.iter().map(|(head, data)| {
        let head = head.get(..start + HEADER).unwrap_or(&[]);
        OutFrame { head, body: [data, &[]], offload }
    }));
    let taken = net.transmit_on(links, path.mac, &frames);
    for _ in taken..frames.len() {
        net.stats.drop(Drop::LinkFull);
    }
    let all = taken == frames.len();
    drop(frames);
    run.clear();
    all
}

/// What does not fit the MTU goes in fragments.
fn send_large(net: &mut Net, links: &mut dyn Links, path: Path, data: &[u8]) -> bool {
    let header = super::header(path.from.port(), path.guest.port(), data.len());
    net.send_ip_on(links, path.mac, &path.ip(), &header, data)
}
