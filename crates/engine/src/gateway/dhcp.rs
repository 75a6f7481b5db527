//! DHCPv4, the server's side of RFC 2131, with the options of RFC 2132, 3397 (search list) and 6842
//! (client identifier). The pool is next door in `lease`.
//!
//! An address that nobody was given before is first asked for on the network when other guests
//! are there, since one of them may have configured it by hand; a single guest has its offer at
//! once. The server speaks for its whole subnet: what is not its own to give gets a NAK.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use dhcproto::Encodable;
use dhcproto::v4::borrowed;
use dhcproto::v4::{
    DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode, UnknownOption,
};
use hickory_proto::rr::Name;
use smoltcp::wire::IpProtocol;
use vmlan_wire::Mac;

use super::lease::{BAD_TIME, Lease, Pool, State};
use super::{arp, udp};
use crate::config::Config;
use crate::hash::SeededState;
use crate::io::{Io, PortId};
use crate::net::{IpHeader, Net};
use crate::packet::Packet;
use crate::stats::Drop;
use crate::time::Instant;

pub(super) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

pub(super) const LEASE_SECONDS: u32 = 86_400;
pub(super) const LEASE_TIME: Duration = Duration::from_secs(LEASE_SECONDS as u64);
/// How long an offer stands.
pub(super) const OFFER_TIME: Duration = Duration::from_secs(60);

/// How long an answer to an ARP probe is waited for. Guests are on this machine.
const PROBE_WAIT: Duration = Duration::from_millis(150);
/// Probes that run at once for one port; a client whose discovery is dropped asks again.
const PROBES_PER_PORT: usize = 8;

/// Without options; the magic cookie included.
const MIN_MESSAGE: usize = 240;
/// What a client takes that does not say (RFC 2131 section 2).
const DEFAULT_SIZE: usize = 576;
/// Messages shorter than this are too short for BOOTP relays and old clients (RFC 1542).
const PADDED: usize = 300;
/// What of identifiers is kept and sent back.
const MAX_IDENTIFIER: usize = 255;

/// The longest label of a name (RFC 1035).
const MAX_HOST_NAME: usize = 63;
/// Names of more guests than have leases are not kept.
const MAX_HOST_NAMES: usize = 4096;

#[derive(Debug)]
pub(super) struct Dhcp {
    pool: Pool,
    probes: Vec<Probe>,
    search: Vec<Name>,
    /// What guests with a lease call themselves.
    host_names: HashMap<Mac, Box<str>, SeededState>,
}

/// A discovery that waits to see whether anybody has the address.
#[derive(Debug)]
struct Probe {
    number: u32,
    until: Instant,
    request: Request,
}

/// What an answer needs of the question.
#[derive(Clone, Debug)]
struct Request {
    kind: MessageType,
    port: PortId,
    mac: Mac,
    xid: u32,
    flags: Flags,
    client: Ipv4Addr,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    identifier: Option<Vec<u8>>,
    relay_information: Option<Vec<u8>>,
    host_name: Option<String>,
    max_size: usize,
}

impl Dhcp {
    pub(super) fn new(config: &Config, now: Instant) -> Self {
        let mut dhcp = Self {
            pool: Pool::new(config, now),
            probes: Vec::new(),
            search: Vec::new(),
            host_names: HashMap::with_hasher(SeededState::new(config.seed)),
        };
        dhcp.set_search(config);
        dhcp
    }

    pub(super) fn set_search(&mut self, config: &Config) {
        let names = config.search.iter().filter_map(|n| Name::from_ascii(n).ok());
        self.search = names.collect();
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn pool_mut(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// What a guest called itself when it got its lease.
    pub(super) fn host_name(&self, mac: Mac) -> Option<&str> {
        self.host_names.get(&mac).map(|name| &**name)
    }

    pub(super) fn set_host_name(&mut self, mac: Mac, name: Option<&str>) {
        if self.host_names.len() >= MAX_HOST_NAMES {
            let pool = &self.pool;
            self.host_names.retain(|mac, _| pool.of(*mac).is_some_and(|l| l.state == State::Bound));
        }
        match name {
            Some(name) => self.host_names.insert(mac, name.into()),
            None => self.host_names.remove(&mac),
        };
    }

    /// The number of the address that a guest has or had.
    pub(super) fn number_of(&self, mac: Mac) -> Option<u32> {
        self.pool.of(mac).map(|lease| lease.number)
    }

    pub(super) fn forget_port(&mut self, port: PortId) {
        self.pool.forget_port(port);
        self.probes.retain(|p| p.request.port != port);
    }

    pub(super) fn handle(
        &mut self,
        net: &mut Net,
        io: &mut Io<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), Drop> {
        let request = Request::parse(packet)?;
        match request.kind {
            MessageType::Discover => self.discover(net, io, request),
            MessageType::Request => self.request(net, io, &request),
            MessageType::Decline => self.decline(net, io, &request),
            MessageType::Release => self.release(net, io, &request),
            MessageType::Inform if !net.config.contains(request.client.into()) => Err(Drop::Source),
            MessageType::Inform => {
                self.answer(net, io, &request, MessageType::Ack, None);
                Ok(())
            }
            _ => Err(Drop::UnknownProtocol),
        }
    }

    pub(super) fn handle_timeout(&mut self, net: &mut Net, io: &mut Io<'_>) {
        let network = net.config.ipv4;
        self.pool.expire(io.now, |lease| {
            net.neighbors.forget(network.nth(lease.number).into());
        });
        while let Some(due) = self.probes.iter().position(|p| p.until <= io.now) {
            let probe = self.probes.swap_remove(due);
            if self.usable(net, probe.number, probe.request.mac) {
                self.offer(net, io, &probe.request, probe.number);
                continue;
            }
            // Somebody has it: kept apart for a while, and the next one is tried.
            self.pool.free(probe.number);
            self.hold(net, io, &probe.request, probe.number, State::Bad);
            if let Err(reason) = self.discover(net, io, probe.request) {
                net.stats.drop(reason);
            }
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let probe = self.probes.iter().map(|p| p.until).min();
        [probe, self.pool.next_timeout()].into_iter().flatten().min()
    }

    fn discover(&mut self, net: &mut Net, io: &mut Io<'_>, request: Request) -> Result<(), Drop> {
        if let Some(running) = self.probes.iter_mut().find(|p| p.request.mac == request.mac) {
            running.request = request;
            return Ok(());
        }
        let wanted = request.wanted.and_then(|ip| number(&net.config, ip));
        let mac = request.mac;
        let usable = |n| is_free(net, n, mac);
        let chosen = self.pool.choose(mac, Some(request.port), wanted, usable);
        let number = chosen.map_err(|_| Drop::Limit)?;
        if !self.must_probe(net, number, mac) {
            self.offer(net, io, &request, number);
            return Ok(());
        }
        let of_port = self.probes.iter().filter(|p| p.request.port == request.port);
        if of_port.count() >= PROBES_PER_PORT {
            return Err(Drop::Limit);
        }
        self.hold(net, io, &request, number, State::Offered);
        arp::probe(net, io, net.config.ipv4.nth(number));
        self.probes.push(Probe { number, until: io.now + PROBE_WAIT, request });
        Ok(())
    }

    /// RFC 2131 section 4.3.2.
    fn request(&mut self, net: &mut Net, io: &mut Io<'_>, request: &Request) -> Result<(), Drop> {
        let ip = match (request.server, request.wanted) {
            (Some(server), _) if !net.config.is_own(server.into()) => {
                // The guest took another server's offer.
                self.withdraw_offer(request.mac);
                return Ok(());
            }
            // Selecting, or verifying what it had before a restart.
            (_, Some(wanted)) => wanted,
            // Renewing and rebinding.
            (_, None) if !request.client.is_unspecified() => request.client,
            _ => return Err(Drop::Malformed),
        };
        let own = self.pool.of(request.mac).filter(|l| l.state != State::Past);
        let number = number(&net.config, ip).filter(|n| {
            let other = own.is_some_and(|l| l.number != *n);
            // A guest that has one address may not verify another; it may select a new one.
            (request.server.is_some() || !other) && self.usable(net, *n, request.mac)
        });
        let Some(number) = number else {
            self.answer(net, io, request, MessageType::Nak, None);
            return Ok(());
        };
        self.probes.retain(|p| p.request.mac != request.mac);
        if !self.hold(net, io, request, number, State::Bound) {
            self.answer(net, io, request, MessageType::Nak, None);
            return Err(Drop::Limit);
        }
        net.lease(ip.into(), request.mac, request.port, io.now);
        self.set_host_name(request.mac, request.host_name.as_deref());
        self.answer(net, io, request, MessageType::Ack, Some(ip));
        Ok(())
    }

    /// The guest found somebody else at the address.
    fn decline(&mut self, net: &mut Net, io: &Io<'_>, request: &Request) -> Result<(), Drop> {
        let number =
            request.wanted.and_then(|ip| number(&net.config, ip)).ok_or(Drop::Malformed)?;
        if self.pool.of(request.mac).is_none_or(|l| l.number != number) {
            return Err(Drop::Source);
        }
        net.neighbors.forget(net.config.ipv4.nth(number).into());
        self.hold(net, io, request, number, State::Bad);
        Ok(())
    }

    fn release(&mut self, net: &mut Net, io: &Io<'_>, request: &Request) -> Result<(), Drop> {
        let lease = self.pool.of(request.mac).filter(|l| l.state == State::Bound);
        let lease = lease.filter(|l| net.config.ipv4.nth(l.number) == request.client);
        let lease = lease.ok_or(Drop::Source)?;
        self.pool.release(lease.number, io.now);
        net.neighbors.forget(request.client.into());
        Ok(())
    }

    fn offer(&mut self, net: &mut Net, io: &mut Io<'_>, request: &Request, number: u32) {
        let bound = self
            .pool
            .of(request.mac)
            .is_some_and(|l| l.number == number && l.state == State::Bound);
        if bound || self.hold(net, io, request, number, State::Offered) {
            let ip = net.config.ipv4.nth(number);
            self.answer(net, io, request, MessageType::Offer, Some(ip));
        }
    }

    fn withdraw_offer(&mut self, mac: Mac) {
        self.probes.retain(|p| p.request.mac != mac);
        if let Some(Lease { number, state: State::Offered, .. }) = self.pool.of(mac) {
            self.pool.free(number);
        }
    }

    /// Takes a number for the guest. What it or another guest had before is theirs no more.
    fn hold(
        &mut self,
        net: &mut Net,
        io: &Io<'_>,
        request: &Request,
        number: u32,
        state: State,
    ) -> bool {
        let before = [self.pool.of(request.mac), self.pool.get(number)];
        for old in before.into_iter().flatten() {
            if old.state == State::Bound && (old.number != number || old.mac != request.mac) {
                net.neighbors.forget(net.config.ipv4.nth(old.number).into());
            }
        }
        let time = match state {
            State::Bound => LEASE_TIME,
            State::Bad => BAD_TIME,
            State::Offered | State::Past => OFFER_TIME,
        };
        self.pool.hold(number, request.mac, Some(request.port), state, io.now, time)
    }

    fn usable(&self, net: &Net, number: u32, mac: Mac) -> bool {
        // A reserved address is its owner's, whoever uses it meanwhile.
        self.pool.is_reserved_for(number, mac)
            || self.pool.may_have(number, mac) && is_free(net, number, mac)
    }

    /// Whether somebody might have the address without our knowing.
    fn must_probe(&self, net: &Net, number: u32, mac: Mac) -> bool {
        let known = self.pool.is_reserved_for(number, mac)
            || self.pool.get(number).is_some_and(|l| l.mac == mac)
            || net.neighbors.get(net.config.ipv4.nth(number).into()).is_some();
        !known && net.switch.ports().nth(1).is_some()
    }

    fn answer(
        &self,
        net: &mut Net,
        io: &mut Io<'_>,
        request: &Request,
        kind: MessageType,
        given: Option<Ipv4Addr>,
    ) {
        let config = &net.config;
        let server = config.gateway;
        let broadcast = request.flags.broadcast();
        let dst = match given {
            _ if kind == MessageType::Nak => Ipv4Addr::BROADCAST,
            _ if !request.client.is_unspecified() => request.client,
            Some(ip) if !broadcast => ip,
            _ => Ipv4Addr::BROADCAST,
        };
        let mut message = Message::new_with_id(
            request.xid,
            if kind == MessageType::Nak { Ipv4Addr::UNSPECIFIED } else { request.client },
            given.unwrap_or(Ipv4Addr::UNSPECIFIED),
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            request.mac.as_bytes(),
        );
        message.set_opcode(Opcode::BootReply).set_htype(HType::Eth).set_flags(request.flags);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(server));
        if let Some(id) = &request.identifier {
            options.insert(DhcpOption::ClientIdentifier(id.clone()));
        }
        if let Some(info) = &request.relay_information {
            let code = OptionCode::RelayAgentInformation;
            options.insert(DhcpOption::Unknown(UnknownOption::new(code, info.clone())));
        }
        if kind == MessageType::Nak {
            options.insert(DhcpOption::Message("address not available".to_owned()));
        } else {
            options.insert(DhcpOption::SubnetMask(config.ipv4.mask()));
            options.insert(DhcpOption::BroadcastAddr(config.ipv4.broadcast()));
            let router = config.router();
            if router.leads_out {
                options.insert(DhcpOption::Router(vec![router.ipv4]));
            }
            options.insert(DhcpOption::DomainNameServer(vec![config.dns]));
            options.insert(DhcpOption::InterfaceMtu(config.mtu));
            if let [only] = self.search.as_slice() {
                let name = only.to_ascii();
                options.insert(DhcpOption::DomainName(name.trim_end_matches('.').to_owned()));
            }
            if !self.search.is_empty() {
                options.insert(DhcpOption::DomainSearch(self.search.clone()));
            }
        }
        if given.is_some() {
            options.insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
            options.insert(DhcpOption::Renewal(LEASE_SECONDS / 2));
            options.insert(DhcpOption::Rebinding(LEASE_SECONDS / 8 * 7));
        }
        let Some(bytes) = encode(&mut message, request.max_size) else {
            net.stats.drop(Drop::TooBig);
            return;
        };
        let ip = IpHeader::new(server.into(), dst.into(), IpProtocol::Udp);
        udp::send_complete(net, io, request.mac, &ip, (SERVER_PORT, CLIENT_PORT), &bytes);
    }
}

impl Request {
    fn parse(packet: &Packet<'_>) -> Result<Self, Drop> {
        let udp = udp::parse(packet)?;
        let bytes = udp.payload();
        let message = borrowed::Message::new(bytes).map_err(|_| Drop::Malformed)?;
        // The library takes the address's length on trust.
        if bytes.len() < MIN_MESSAGE
            || message.opcode() != Opcode::BootRequest
            || message.htype() != HType::Eth
            || message.hlen() != 6
        {
            return Err(Drop::Malformed);
        }
        // No relay is between a guest and this server, and guests ask for themselves only.
        if !message.giaddr().is_unspecified() || message.chaddr() != packet.src_mac.as_bytes() {
            return Err(Drop::Spoofed);
        }
        let mut request = Self {
            kind: MessageType::Unknown(0),
            port: packet.port,
            mac: packet.src_mac,
            xid: message.xid(),
            flags: message.flags(),
            client: message.ciaddr(),
            wanted: None,
            server: None,
            identifier: None,
            relay_information: None,
            host_name: None,
            max_size: DEFAULT_SIZE,
        };
        for option in message.opts() {
            let data = option.data();
            let address = || <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
            match (option.code(), data) {
                (OptionCode::MessageType, [kind]) => request.kind = (*kind).into(),
                (OptionCode::RequestedIpAddress, _) => request.wanted = address(),
                (OptionCode::ServerIdentifier, _) => request.server = address(),
                (OptionCode::MaxMessageSize, [a, b]) => {
                    let size = usize::from(u16::from_be_bytes([*a, *b]));
                    request.max_size = size.max(DEFAULT_SIZE);
                }
                (OptionCode::ClientIdentifier, id) if id.len() <= MAX_IDENTIFIER => {
                    request.identifier = Some(id.to_vec());
                }
                (OptionCode::Hostname, name) if name.len() <= MAX_HOST_NAME => {
                    // Some end it with a zero.
                    let name = std::str::from_utf8(name).ok().map(|n| n.trim_end_matches('\0'));
                    request.host_name = name.filter(|n| !n.is_empty()).map(str::to_owned);
                }
                (OptionCode::RelayAgentInformation, info) if info.len() <= MAX_IDENTIFIER => {
                    request.relay_information = Some(info.to_vec());
                }
                _ => {}
            }
        }
        Ok(request)
    }
}

/// The number of an address of this subnet.
pub(super) fn number(config: &Config, ip: Ipv4Addr) -> Option<u32> {
    let subnet = config.ipv4;
    subnet.is_host(ip).then(|| ip.to_bits() - subnet.network.to_bits())
}

/// Whether nobody else is known to use the address.
pub(super) fn is_free(net: &Net, number: u32, mac: Mac) -> bool {
    let ip = IpAddr::V4(net.config.ipv4.nth(number));
    net.neighbors.get(ip).is_none_or(|n| n.mac == mac || n.leased)
}

/// The bytes of a message, without the search list if it would be too long for the client.
fn encode(message: &mut Message, max_size: usize) -> Option<Vec<u8>> {
    // The client's limit counts IP and UDP headers too.
    let room = max_size.saturating_sub(28);
    let mut bytes = message.to_vec().ok()?;
    if bytes.len() > room {
        message.opts_mut().remove(OptionCode::DomainSearch);
        bytes = message.to_vec().ok()?;
    }
    if bytes.len() < PADDED {
        bytes.resize(PADDED, 0);
    }
    Some(bytes)
}
