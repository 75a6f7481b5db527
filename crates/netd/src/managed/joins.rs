//! The daemon's side: guests that join on a socket, and what is undone when they leave.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant as SystemInstant};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::net::RecvFlags;
use slab::Slab;
use vmlan_config::parse_mac;
use vmlan_engine::io::ListenAddr;
use vmlan_engine::{Forward, ForwardId, PortId};
use vmlan_link::Link;
use vmlan_wire::Mac;

use super::hosts::Hosts;
use super::message::{Answer, Hello, MAX_LINE, Welcome};
use crate::core::{Core, GuestInfo, internal_name};
use crate::ports::LinkId;
use crate::token::Owner;
use crate::trusted::TrustedListener;
use crate::unix_path::BindError;
use crate::wrappers::Wrappers;

/// Connections at once.
const MAX_CLIENTS: usize = 4096;

/// For a hello to be there.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Joins {
    listener: TrustedListener,
    clients: Slab<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It has not said all of its hello.
    Asking { line: Vec<u8>, card: Option<OwnedFd>, deadline: SystemInstant },
    /// It is there, until the connection ends.
    Joined(Guest),
}

/// A guest, and all that is to be undone when it leaves.
#[derive(Debug)]
struct Guest {
    mac: Mac,
    name: Option<String>,
    /// None for a guest on the bridge, which others are behind too.
    link: Option<LinkId>,
    port: PortId,
    forwards: Vec<ForwardId>,
    hosts: Hosts,
}

impl Joins {
    pub(crate) fn new(registry: &Registry, path: &Path) -> Result<Self, BindError> {
        let listener = TrustedListener::bind(registry, path, Owner::JoinListener.token())?;
        Ok(Self { listener, clients: Slab::new() })
    }

    /// Guests that are there or may be in a moment.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Lets everybody know that the daemon ends, before what they rely on is undone.
    pub(crate) fn hang_up(&mut self) {
        self.clients.clear();
    }

    pub(crate) fn accept(&mut self, registry: &Registry) {
        while self.clients.len() < MAX_CLIENTS {
            let Some(stream) = self.listener.accept() else { return };
            // Whoever is lost here sees the connection close.
            let _ = self.add(registry, stream);
        }
    }

    fn add(&mut self, registry: &Registry, stream: UnixStream) -> io::Result<()> {
        let vacant = self.clients.vacant_entry();
        let token = Owner::Join(u32::try_from(vacant.key()).map_err(io::Error::other)?).token();
        let fd = stream.as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        let deadline = SystemInstant::now() + DEADLINE;
        let state = State::Asking { line: Vec::new(), card: None, deadline };
        vacant.insert(Client { stream, state });
        Ok(())
    }

    /// A connection is ready.
    pub(crate) fn handle(
        &mut self,
        registry: &Registry,
        index: u32,
        core: &mut Core,
        wrappers: &mut Wrappers,
    ) {
        self.sweep(core);
        let taken: Vec<String> = self.names().map(ToOwned::to_owned).collect();
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if client.go_on(core, wrappers, &taken).is_err() {
            let client = self.clients.remove(index as usize);
            client.leave(core);
            self.accept(registry);
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<SystemInstant> {
        self.clients.iter().filter_map(|(_, client)| client.deadline()).min()
    }

    /// Lets those go that never said hello.
    pub(crate) fn handle_timeout(&mut self, registry: &Registry, now: SystemInstant) {
        self.clients.retain(|_, client| client.deadline().is_none_or(|deadline| deadline > now));
        self.accept(registry);
    }

    /// Guests whose end is not heard of yet must not stand in the way of their successors.
    fn sweep(&mut self, core: &mut Core) {
        let gone = |client: &Client| {
            let mut byte = [0];
            let peeked = rustix::net::recv(
                &client.stream,
                &mut byte[..],
                RecvFlags::PEEK | RecvFlags::DONTWAIT,
            );
            matches!(client.state, State::Joined(_)) && matches!(peeked, Ok((_, 0)))
        };
        let gone: Vec<usize> =
            self.clients.iter().filter(|(_, c)| gone(c)).map(|(index, _)| index).collect();
        for index in gone {
            self.clients.remove(index).leave(core);
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.clients.iter().filter_map(|(_, client)| match &client.state {
            State::Joined(guest) => guest.name.as_deref(),
            State::Asking { .. } => None,
        })
    }
}

/// The connection is to be closed.
struct Gone;

impl Client {
    fn deadline(&self) -> Option<SystemInstant> {
        match &self.state {
            State::Asking { deadline, .. } => Some(*deadline),
            State::Joined(_) => None,
        }
    }

    fn go_on(
        &mut self,
        core: &mut Core,
        wrappers: &mut Wrappers,
        taken: &[String],
    ) -> Result<(), Gone> {
        let mut data = [0; 4096];
        loop {
            match vmlan_link::scm::recv_fds(&self.stream, &mut data) {
                Ok((0, _)) => return Err(Gone),
                Ok((n, fds)) => self.hear(data.get(..n).unwrap_or_default(), fds)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Gone),
            }
        }
        let State::Asking { line, card, .. } = &mut self.state else { return Ok(()) };
        if line.first().is_some_and(|first| *first != b'{') {
            // A guest of Lima's: it is there as long as its link is.
            let link = open(core, wrappers, card.take().ok_or(Gone)?).map_err(|_| Gone)?;
            let _ = core.add_link(link);
            return Err(Gone);
        }
        let Some((b'\n', hello)) = line.split_last() else { return Ok(()) };
        let hello = serde_json::from_slice(hello).map_err(|e| e.to_string());
        let card = card.take();
        let answer = hello.and_then(|hello| welcome(hello, card, core, wrappers, taken));
        let (answer, guest) = match answer {
            Ok((welcome, guest)) => (Answer::Welcome(welcome), guest),
            Err(why) => (Answer::Refused(why), None),
        };
        let mut text = serde_json::to_vec(&answer).map_err(|_| Gone)?;
        text.push(b'\n');
        // A few hundred bytes into an empty socket.
        let told = self.stream.write_all(&text);
        if let Some(guest) = guest {
            self.state = State::Joined(guest);
            return told.map_err(|_| Gone);
        }
        Err(Gone)
    }

    fn hear(&mut self, data: &[u8], fds: Vec<OwnedFd>) -> Result<(), Gone> {
        // A guest that has joined has nothing more to say.
        let State::Asking { line, card, .. } = &mut self.state else { return Err(Gone) };
        line.extend_from_slice(data);
        if let Some(fd) = fds.into_iter().next() {
            *card = Some(fd);
        }
        if line.len() > MAX_LINE { Err(Gone) } else { Ok(()) }
    }

    fn leave(self, core: &mut Core) {
        if let State::Joined(guest) = self.state {
            guest.leave(core);
        }
    }
}

impl Guest {
    fn leave(self, core: &mut Core) {
        core.guests.retain(|guest| guest.mac != self.mac);
        if let Some(lan) = &core.lan {
            // Before anybody else with this MAC address is let in.
            if let Some(Err(e)) = lan.cards.as_ref().map(|cards| cards.remove(self.mac)) {
                eprintln!("vmlan: {e}");
            }
            return;
        }
        core.remove_forwards_of(self.mac);
        for forward in self.forwards {
            core.remove_forward(forward);
        }
        self.hosts.remove_from(core.sockets.resolver().names_mut());
        match &self.name {
            Some(name) => {
                core.sockets.resolver().names_mut().remove(name);
                // Its addresses are kept for it, others' that have been gone for longer are not.
                core.assign(self.mac, None, None);
            }
            None => core.unassign(self.mac),
        }
        if let Some(link) = self.link {
            core.sockets.resolver().set_ipv6_of(self.port.0.into(), None);
            core.sockets.resolver().set_plain(self.port.0.into(), false);
            core.let_go(link);
        }
    }
}

/// Takes a guest in, or says why not.
fn welcome(
    hello: Hello,
    card: Option<OwnedFd>,
    core: &mut Core,
    wrappers: &mut Wrappers,
    taken: &[String],
) -> Result<(Welcome, Option<Guest>), String> {
    let mac = parse_mac(&hello.mac).map_err(|e| e.to_string())?;
    let name = hello.name.as_deref().map(internal_name).transpose().map_err(|e| e.to_string())?;
    if name.as_ref().is_some_and(|name| taken.contains(name)) {
        let name = hello.name.unwrap_or_default();
        return Err(format!("a guest with the name `{name}` is on the network already"));
    }
    if core.guests.iter().any(|guest| guest.mac == mac) {
        let mac = hello.mac;
        return Err(format!("a guest with the MAC address {mac} is on the network already"));
    }
    if core.lan.is_some() {
        return on_lan(hello, mac, name, core);
    }
    core.reserve_for(mac, hello.name.as_deref())?;
    let mut hosts = Hosts::new(&hello.hosts, core.sockets.resolver().names_mut())?;
    let warnings = std::mem::take(&mut hosts.warnings);
    let (link, port) = if let Some(card) = card {
        let (link, port) = core.add_link(open(core, wrappers, card)?).map_err(|e| e.to_string())?;
        core.sockets.resolver().set_ipv6_of(port.0.into(), hello.ipv6);
        core.sockets.resolver().set_plain(port.0.into(), hello.plain);
        (Some(link), port)
    } else if hello.bridged {
        (None, core.bridge.ok_or("the network has no bridge")?)
    } else {
        let addresses = core.assign(mac, None, hello.addresses).ok_or_else(|| exhausted(core))?;
        return Ok((described(core, addresses, warnings), None));
    };
    hosts.add_to(core.sockets.resolver().names_mut());
    let mut guest = Guest { mac, name, link, port, forwards: Vec::new(), hosts };
    let Some(addresses) = core.assign(mac, Some(port), hello.addresses) else {
        guest.leave(core);
        return Err(exhausted(core));
    };
    for forward in hello.forwards {
        let added = forward.local.parse().map_err(|e| format!("`{}`: {e}", forward.local));
        let added = added.and_then(|local| {
            let listen = if forward.udp { ListenAddr::Udp(local) } else { ListenAddr::Tcp(local) };
            let guest = (addresses.0, forward.port).into();
            let forward = Forward { listen, guest, keep_source: false };
            core.add_forward(forward).map_err(|e| e.to_string())
        });
        match added {
            Ok(id) => guest.forwards.push(id),
            Err(why) => {
                guest.leave(core);
                return Err(why);
            }
        }
    }
    if guest.link.is_some() {
        core.ports.set_name(port, hello.name.clone());
    }
    let (address, address6) = (addresses.0, (!hello.autoconf).then_some(addresses.1));
    let autoconf = hello.autoconf;
    core.add_named(GuestInfo { mac, port, name: hello.name, address, address6, autoconf });
    Ok((described(core, addresses, warnings), Some(guest)))
}

/// Lets a guest stay on the network that the host is on.
fn on_lan(
    hello: Hello,
    mac: Mac,
    name: Option<String>,
    core: &mut Core,
) -> Result<(Welcome, Option<Guest>), String> {
    if !hello.forwards.is_empty() {
        return Err("ports are not published there: others reach the guest by its address".into());
    }
    let warnings = core.lan.iter().flat_map(|lan| lan.warnings.clone()).collect();
    let nowhere = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    let welcome = Welcome { lan: true, ..described(core, nowhere, warnings) };
    if !hello.bridged {
        return Ok((welcome, None));
    }
    let port = PortId(u16::MAX);
    let info = GuestInfo {
        mac,
        port,
        name: hello.name,
        address: nowhere.0,
        address6: None,
        autoconf: false,
    };
    core.guests.push(info);
    let (link, forwards, hosts) = (None, Vec::new(), Hosts::default());
    Ok((welcome, Some(Guest { mac, name, link, port, forwards, hosts })))
}

fn exhausted(core: &Core) -> String {
    let subnet = core.engine.config().ipv4;
    format!(
        "no address is left in {subnet}: guests that are there have them all, or they are \
         reserved; a larger netmask in networks.yaml makes room"
    )
}

fn described(
    core: &Core,
    (address, address6): (Ipv4Addr, Ipv6Addr),
    warnings: Vec<String>,
) -> Welcome {
    let config = core.engine.config();
    let router = config.router();
    Welcome {
        address,
        prefix: config.ipv4.prefix,
        address6,
        gateway: router.ipv4,
        gateway6: router.ipv6,
        dns: config.dns,
        mtu: config.mtu,
        warnings,
        isolated: !router.leads_out,
        lan: false,
    }
}

fn open(core: &Core, wrappers: &mut Wrappers, card: OwnedFd) -> Result<Box<dyn Link>, String> {
    let link = vmlan_link::fd::open(card, core.engine.config().mtu).map_err(|e| e.to_string())?;
    Ok(wrappers.wrap(link))
}
