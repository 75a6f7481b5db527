//! DHCPv6, the server's side of RFC 8415: one address of the network's prefix for each guest that
//! asks, DNS servers and search list (RFC 3646) for all. Guests find duplicates themselves, by
//! duplicate address detection, and decline.
//!
//! Options are walked here rather than decoded by the library: what a guest nests a thousand deep
//! must not be followed. Answers are built with the library.

use std::net::{IpAddr, Ipv6Addr};

use dhcproto::Encodable;
use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, OptionCode, Status, StatusCode,
    UnknownOption,
};
use smoltcp::wire::IpProtocol;
use vmlan_wire::Mac;

use super::dhcp::{LEASE_SECONDS, LEASE_TIME, OFFER_TIME};
use super::lease::{BAD_TIME, Pool, State};
use super::{nd, ra, udp};
use crate::config::Config;
use crate::io::{Io, PortId};
use crate::net::{IpHeader, Net};
use crate::packet::{Packet, is_unicast};
use crate::stats::Drop;
use crate::time::Instant;

pub(super) const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;
pub(super) const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// RFC 8415 section 11.1: a DUID is at most this long, its type included.
const MAX_DUID: usize = 130;
/// Identity associations looked at in one message; one gets an address.
const MAX_ASSOCIATIONS: usize = 8;
/// Message type and transaction.
const HEADER: usize = 4;

#[derive(Debug)]
pub(super) struct Dhcp6 {
    pool: Pool,
    /// The server's DUID-LL, from the gateway's MAC.
    duid: Vec<u8>,
    /// Search list, as names one after the other: compression is not allowed here.
    search: Vec<u8>,
}

#[derive(Debug)]
struct Request {
    kind: MessageType,
    xid: [u8; 3],
    port: PortId,
    mac: Mac,
    src: Ipv6Addr,
    client: Option<Vec<u8>>,
    server: Option<Vec<u8>>,
    rapid: bool,
    associations: Vec<Association>,
}

/// An IA_NA and the first address in it.
#[derive(Clone, Copy, Debug)]
struct Association {
    id: u32,
    address: Option<Ipv6Addr>,
}

impl Dhcp6 {
    pub(super) fn new(config: &Config, now: Instant) -> Self {
        Self {
            pool: Pool::new(config, now),
            duid: [&[0, 3, 0, 1], config.gateway_mac.as_bytes()].concat(),
            search: ra::search_names(&config.search),
        }
    }

    pub(super) fn set_search(&mut self, config: &Config) {
        self.search = ra::search_names(&config.search);
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn pool_mut(&mut self) -> &mut Pool {
        &mut self.pool
    }

    pub(super) fn forget_port(&mut self, port: PortId) {
        self.pool.forget_port(port);
    }

    /// Answers a message. `hint` is the number of the guest's IPv4 address: it may have the same.
    pub(super) fn handle(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
        hint: Option<u32>,
    ) -> Result<(), Drop> {
        let request = Request::parse(packet)?;
        if !self.is_for_us(&request) {
            return Err(Drop::Malformed);
        }
        let mut options = Vec::new();
        let kind = match request.kind {
            MessageType::Solicit => {
                let state = if request.rapid { State::Bound } else { State::Offered };
                self.assign(net, io, &request, hint, state, &mut options);
                if request.rapid {
                    options.push(DhcpOption::RapidCommit);
                    MessageType::Reply
                } else {
                    // There is no better server to wait for.
                    options.push(DhcpOption::Preference(255));
                    MessageType::Advertise
                }
            }
            MessageType::Request | MessageType::Renew | MessageType::Rebind => {
                self.assign(net, io, &request, hint, State::Bound, &mut options);
                MessageType::Reply
            }
            MessageType::Confirm => {
                options.push(confirmation(net, &request).ok_or(Drop::Malformed)?);
                MessageType::Reply
            }
            MessageType::Release | MessageType::Decline => {
                self.give_back(net, io, &request, &mut options);
                MessageType::Reply
            }
            _ => MessageType::Reply,
        };
        self.send(net, io, &request, kind, options);
        Ok(())
    }

    pub(super) fn handle_timeout(&mut self, net: &mut Net, now: Instant) {
        let prefix = net.config.ipv6;
        self.pool.expire(now, |lease| {
            net.neighbors.forget(prefix.nth(u64::from(lease.number)).into());
        });
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.pool.next_timeout()
    }

    /// RFC 8415 section 16: which identifiers each message must and must not have.
    fn is_for_us(&self, request: &Request) -> bool {
        let ours = request.server.as_ref().map(|id| *id == self.duid);
        let named = request.client.is_some();
        match request.kind {
            MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => {
                named && ours.is_none()
            }
            MessageType::Request
            | MessageType::Renew
            | MessageType::Release
            | MessageType::Decline => named && ours == Some(true),
            MessageType::InformationRequest => {
                ours != Some(false) && request.associations.is_empty()
            }
            _ => false,
        }
    }

    /// Gives the first association its address; the others get none.
    fn assign(
        &mut self,
        net: &mut Net,
        io: &Io<'_>,
        request: &Request,
        hint: Option<u32>,
        state: State,
        options: &mut Vec<DhcpOption>,
    ) {
        let renews = matches!(request.kind, MessageType::Renew | MessageType::Rebind);
        for (index, association) in request.associations.iter().enumerate() {
            let wanted = association.address.and_then(|a| number(&net.config, a));
            let number = match index {
                0 if renews => wanted.filter(|n| self.usable(net, *n, request.mac)),
                0 => self.choose(net, request, wanted.or(hint)),
                _ => None,
            };
            let given = number.filter(|n| self.hold(net, io, request, *n, state));
            let inner = match given {
                Some(number) => address(net.config.ipv6.nth(number.into()), LEASE_SECONDS),
                // Not a binding, or not any more: the guest must stop using it.
                None if renews => match association.address {
                    Some(old) if wanted.is_none() => address(old, 0),
                    _ => status(Status::NoBinding),
                },
                None => status(Status::NoAddrsAvail),
            };
            options.push(DhcpOption::IANA(IANA {
                id: association.id,
                t1: LEASE_SECONDS / 2,
                t2: LEASE_SECONDS / 5 * 4,
                opts: DhcpOptions::from_iter([inner]),
            }));
        }
    }

    fn choose(&mut self, net: &Net, request: &Request, wanted: Option<u32>) -> Option<u32> {
        let usable = |n| is_free(net, n, request.mac);
        self.pool.choose(request.mac, Some(request.port), wanted, usable).ok()
    }

    fn usable(&self, net: &Net, number: u32, mac: Mac) -> bool {
        self.pool.may_have(number, mac) && is_free(net, number, mac)
    }

    fn hold(
        &mut self,
        net: &mut Net,
        io: &Io<'_>,
        request: &Request,
        number: u32,
        state: State,
    ) -> bool {
        let own = self.pool.of(request.mac);
        let is_bound = own.is_some_and(|l| l.number == number && l.state == State::Bound);
        if is_bound && state == State::Offered {
            return true;
        }
        for old in [own, self.pool.get(number)].into_iter().flatten() {
            if old.state == State::Bound && (old.number != number || old.mac != request.mac) {
                net.neighbors.forget(net.config.ipv6.nth(old.number.into()).into());
            }
        }
        let time = if state == State::Bound { LEASE_TIME } else { OFFER_TIME };
        let (mac, port) = (request.mac, request.port);
        let held = self.pool.hold(number, mac, Some(port), state, io.now, time);
        if held && state == State::Bound {
            let ip = net.config.ipv6.nth(number.into());
            net.lease(ip.into(), mac, port, io.now);
        }
        held
    }

    /// The guest no longer wants its address, or found somebody else at it.
    fn give_back(
        &mut self,
        net: &mut Net,
        io: &Io<'_>,
        request: &Request,
        options: &mut Vec<DhcpOption>,
    ) {
        for association in &request.associations {
            let number = association.address.and_then(|a| number(&net.config, a));
            let own = self.pool.of(request.mac).filter(|l| l.state == State::Bound);
            let Some(lease) = own.filter(|l| Some(l.number) == number) else {
                options.push(DhcpOption::IANA(IANA {
                    id: association.id,
                    t1: 0,
                    t2: 0,
                    opts: DhcpOptions::from_iter([status(Status::NoBinding)]),
                }));
                continue;
            };
            net.neighbors.forget(net.config.ipv6.nth(lease.number.into()).into());
            if request.kind == MessageType::Release {
                self.pool.release(lease.number, io.now);
            } else {
                let port = Some(request.port);
                self.pool.hold(lease.number, request.mac, port, State::Bad, io.now, BAD_TIME);
            }
        }
        options.push(status(Status::Success));
    }

    fn send(
        &self,
        net: &mut Net,
        io: &mut Io<'_>,
        request: &Request,
        kind: MessageType,
        options: Vec<DhcpOption>,
    ) {
        let mut message = Message::new_with_id(kind, request.xid);
        let all = message.opts_mut();
        // Each is inserted before its equals.
        options.into_iter().rev().for_each(|option| all.insert(option));
        all.insert(DhcpOption::ServerId(self.duid.clone()));
        if let Some(client) = &request.client {
            all.insert(DhcpOption::ClientId(client.clone()));
        }
        all.insert(DhcpOption::DomainNameServers(vec![net.config.ipv6.dns()]));
        if !self.search.is_empty() {
            let code = OptionCode::DomainSearchList;
            all.insert(DhcpOption::Unknown(UnknownOption::new(code, self.search.clone())));
        }
        let Ok(bytes) = message.to_vec() else {
            net.stats.drop(Drop::TooBig);
            return;
        };
        let src = nd::own_source(net, request.src);
        let ip = IpHeader::new(src.into(), request.src.into(), IpProtocol::Udp);
        udp::send_complete(net, io, request.mac, &ip, (SERVER_PORT, CLIENT_PORT), &bytes);
    }
}

impl Request {
    fn parse(packet: &Packet<'_>) -> Result<Self, Drop> {
        let udp = udp::parse(packet)?;
        let IpAddr::V6(src) = packet.src else { return Err(Drop::Malformed) };
        if !is_unicast(packet.src) {
            return Err(Drop::Source);
        }
        let (&[kind, a, b, c], options) =
            udp.payload().split_first_chunk::<HEADER>().ok_or(Drop::Malformed)?;
        let mut request = Self {
            kind: kind.into(),
            xid: [a, b, c],
            port: packet.port,
            mac: packet.src_mac,
            src,
            client: None,
            server: None,
            rapid: false,
            associations: Vec::new(),
        };
        for option in walk(options) {
            let (code, data) = option?;
            match OptionCode::from(code) {
                OptionCode::ClientId if (3..=MAX_DUID).contains(&data.len()) => {
                    request.client = Some(data.to_vec());
                }
                OptionCode::ServerId if data.len() <= MAX_DUID => {
                    request.server = Some(data.to_vec());
                }
                OptionCode::RapidCommit => request.rapid = true,
                OptionCode::IANA if request.associations.len() < MAX_ASSOCIATIONS => {
                    request.associations.push(association(data)?);
                }
                _ => {}
            }
        }
        Ok(request)
    }
}

fn association(data: &[u8]) -> Result<Association, Drop> {
    // Identifier, then two times that are the client's wish.
    let (&[a, b, c, d, ..], options) = data.split_first_chunk::<12>().ok_or(Drop::Malformed)?;
    let mut association = Association { id: u32::from_be_bytes([a, b, c, d]), address: None };
    for option in walk(options) {
        let (code, data) = option?;
        if OptionCode::from(code) == OptionCode::IAAddr && association.address.is_none() {
            let address = data.first_chunk::<16>().ok_or(Drop::Malformed)?;
            association.address = Some(Ipv6Addr::from(*address));
        }
    }
    Ok(association)
}

/// The options in `bytes`, one level of them; an error ends it.
fn walk(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Drop>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let Some((&[a, b, c, d], rest)) = bytes.split_first_chunk::<4>() else {
            bytes = &[];
            return Some(Err(Drop::Malformed));
        };
        let len = usize::from(u16::from_be_bytes([c, d]));
        let Some((data, rest)) = rest.split_at_checked(len) else {
            bytes = &[];
            return Some(Err(Drop::Malformed));
        };
        bytes = rest;
        Some(Ok((u16::from_be_bytes([a, b]), data)))
    })
}

/// Whether the guest's addresses are of this network; nothing can be said without any.
fn confirmation(net: &Net, request: &Request) -> Option<DhcpOption> {
    let mut addresses = request.associations.iter().filter_map(|a| a.address).peekable();
    addresses.peek()?;
    let here = addresses.all(|a| net.config.ipv6.contains(a));
    Some(status(if here { Status::Success } else { Status::NotOnLink }))
}

fn address(addr: Ipv6Addr, seconds: u32) -> DhcpOption {
    DhcpOption::IAAddr(IAAddr {
        addr,
        preferred_life: seconds / 8 * 5,
        valid_life: seconds,
        opts: DhcpOptions::new(),
    })
}

fn status(status: Status) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: String::new() })
}

/// The number of an address that the pool could have given.
pub(super) fn number(config: &Config, addr: Ipv6Addr) -> Option<u32> {
    let offset = addr.to_bits().checked_sub(config.ipv6.prefix.to_bits())?;
    u32::try_from(offset).ok()
}

/// Whether nobody else is known to use the address.
pub(super) fn is_free(net: &Net, number: u32, mac: Mac) -> bool {
    let ip = IpAddr::V6(net.config.ipv6.nth(number.into()));
    net.neighbors.get(ip).is_none_or(|n| n.mac == mac || n.leased)
}
