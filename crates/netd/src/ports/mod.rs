//! The guests' links and which port of the switch each guest is: the engine's [`Links`](vmlan_engine::Links).
//!
//! `send` has what goes to guests; here is what comes from them, and who they are.
//!
//! A link is read while it is on the ready list, and flushed while it is on the dirty list; an
//! idle link is on neither and costs nothing. Lists hold numbers, and each link's flags say
//! whether its number still counts, so that a link that is gone leaves nothing to clean up.

mod send;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant as SystemInstant;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use slab::Slab;
use vmlan_engine::{Drop, PortCaps, PortId};
use vmlan_link::{CloseReason, Link, LinkCaps, LinkKind, PeerId, Recv};
use vmlan_wire::FrameBatch;

use crate::captures::Captures;
use crate::token::Owner;

/// Guests behind one link; more of them than ports cannot be.
const MAX_PEERS: u32 = 1 << 16;

#[derive(Debug)]
pub(crate) struct Ports {
    registry: Registry,
    mtu: u16,
    links: Slab<Entry>,
    /// Where each port's frames go.
    places: Vec<Option<Place>>,
    /// Links that have, or may have, something to read.
    ready: VecDeque<u32>,
    /// Links that were sent to since their last flush.
    dirty: Vec<u32>,
    /// Links that want to be called at a time.
    timed: Vec<u32>,
    /// Links so far.
    count: u64,
    /// Why the last guest that was refused was.
    refusal: Option<CloseReason>,
    pub(crate) captures: Captures,
}

/// A link, and no other that has its number after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkId {
    pub(crate) index: u32,
    serial: u64,
}

#[cfg(test)]
impl LinkId {
    pub(crate) fn of(index: u32) -> Self {
        Self { index, serial: 0 }
    }
}

#[derive(Debug)]
struct Entry {
    link: Box<dyn Link>,
    serial: u64,
    /// Polled level-triggered.
    level: bool,
    /// As the engine knows them.
    caps: LinkCaps,
    guests: Vec<Option<Guest>>,
    ready: bool,
    /// Not to be read for a while.
    paused: bool,
    dirty: bool,
    /// The peer has hung up: read until the link says that it has ended.
    hung_up: bool,
    /// The last flush could not write everything.
    blocked: bool,
    /// Writability is asked of the poll. Only while it matters: a UNIX socket reports it each
    /// time its peer has read something.
    polls_write: bool,
    timeout: Option<SystemInstant>,
}

/// A guest behind a link.
#[derive(Clone, Debug)]
struct Guest {
    port: PortId,
    /// It was sent more than the link took.
    full: bool,
    /// What it joined as.
    name: Option<String>,
    since: SystemInstant,
    traffic: Traffic,
}

/// What has passed a port.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    /// Frames and bytes.
    pub(crate) from_guest: (u64, u64),
    pub(crate) to_guest: (u64, u64),
    /// What was dropped of what came from the guest, in the order of [`Drop::ALL`].
    pub(crate) dropped: [u64; Drop::ALL.len()],
}

/// A port for those who look.
#[derive(Debug)]
pub(crate) struct PortView<'a> {
    pub(crate) port: PortId,
    pub(crate) kind: LinkKind,
    pub(crate) since: SystemInstant,
    pub(crate) traffic: &'a Traffic,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    link: u32,
    peer: PeerId,
}

/// What reading a link came to.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Frames of a guest whose port is known.
    Frames(PortId),
    /// Frames of a guest that has no port yet.
    NewGuest(PeerId),
    Nothing,
    Closed,
}

impl Ports {
    pub(crate) fn new(registry: Registry, mtu: u16) -> Self {
        Self {
            registry,
            mtu,
            links: Slab::new(),
            places: Vec::new(),
            ready: VecDeque::new(),
            dirty: Vec::new(),
            timed: Vec::new(),
            count: 0,
            refusal: None,
            captures: Captures::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.links.len()
    }

    /// The link with a number now.
    pub(crate) fn id(&self, index: u32) -> Option<LinkId> {
        self.links.get(index as usize).map(|entry| LinkId { index, serial: entry.serial })
    }

    /// Whether a link is on the list of those to be read, or will be.
    pub(crate) fn is_ready(&self, index: u32) -> bool {
        self.links.get(index as usize).is_some_and(|entry| entry.ready || entry.paused)
    }

    /// Whether nothing has ever come from a link's guests.
    pub(crate) fn is_silent(&self, link: LinkId) -> bool {
        let entry = self.links.get(link.index as usize);
        entry.is_some_and(|entry| {
            let mut guests = entry.guests.iter().flatten();
            guests.all(|guest| guest.traffic.from_guest.0 == 0)
        })
    }

    /// Takes a link over and returns its number.
    pub(crate) fn add(&mut self, link: Box<dyn Link>) -> io::Result<u32> {
        let vacant = self.links.vacant_entry();
        let index = u32::try_from(vacant.key()).map_err(io::Error::other)?;
        let fd = link.as_fd().as_raw_fd();
        let token = Owner::Link(index).token();
        let level = link.is_level_triggered();
        if level {
            crate::level::register(&self.registry, link.as_fd(), token)?;
        } else {
            self.registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        }
        self.count += 1;
        let caps = link.caps();
        vacant.insert(Entry {
            link,
            serial: self.count,
            level,
            caps,
            guests: Vec::new(),
            ready: false,
            paused: false,
            dirty: false,
            hung_up: false,
            blocked: false,
            polls_write: false,
            timeout: None,
        });
        // It may have been written to before it was registered.
        self.set_ready(index);
        Ok(index)
    }

    /// Lets a link go and returns the ports that are gone with it.
    pub(crate) fn remove(&mut self, index: u32) -> Vec<PortId> {
        let Some(entry) = self.links.try_remove(index as usize) else { return Vec::new() };
        let fd = entry.link.as_fd().as_raw_fd();
        // A descriptor that the poll does not know any more is as good as deregistered.
        let _ = self.registry.deregister(&mut SourceFd(&fd));
        let ports: Vec<PortId> = entry.guests.iter().flatten().map(|g| g.port).collect();
        for port in &ports {
            self.unplace(*port);
        }
        ports
    }

    /// What the engine has to know about a link's ports.
    pub(crate) fn caps(&self, index: u32) -> Option<PortCaps> {
        let LinkCaps { checksum, tso4, tso6 } = self.links.get(index as usize)?.caps;
        Some(PortCaps { checksum, tso4, tso6, mtu: self.mtu })
    }

    /// The link's ports, if what the engine has to know about them has changed.
    pub(crate) fn take_new_caps(&mut self, index: u32) -> Option<(PortCaps, Vec<PortId>)> {
        let entry = self.links.get_mut(index as usize)?;
        let caps = entry.link.caps();
        if entry.caps == caps {
            return None;
        }
        entry.caps = caps;
        let ports = entry.guests.iter().flatten().map(|guest| guest.port).collect();
        Some((self.caps(index)?, ports))
    }

    /// Binds a guest of a link to its port.
    pub(crate) fn bind(&mut self, index: u32, peer: PeerId, port: PortId) {
        let Some(entry) = self.links.get_mut(index as usize) else { return };
        let guest = Guest {
            port,
            full: false,
            name: None,
            since: SystemInstant::now(),
            traffic: Traffic::default(),
        };
        set(&mut entry.guests, peer.0 as usize, guest);
        set(&mut self.places, usize::from(port.0), Place { link: index, peer });
    }

    /// Tells who is at a port.
    pub(crate) fn set_name(&mut self, port: PortId, name: Option<String>) {
        if let Some(guest) = self.guest_mut(port) {
            guest.name = name;
        }
        self.captures.forget(port);
    }

    /// Has those who read along see what a guest sent.
    pub(crate) fn capture(&mut self, port: PortId, batch: &FrameBatch) {
        if !self.captures.is_empty() {
            let guest = guest_at(&self.places, &self.links, port);
            self.captures.received(port, guest.and_then(|guest| guest.name.as_deref()), batch);
        }
    }

    fn guest_mut(&mut self, port: PortId) -> Option<&mut Guest> {
        let place = self.places.get(usize::from(port.0)).copied().flatten()?;
        let entry = self.links.get_mut(place.link as usize)?;
        entry.guests.get_mut(place.peer.0 as usize)?.as_mut()
    }

    /// The counters of a port.
    pub(crate) fn traffic_mut(&mut self, port: PortId) -> Option<&mut Traffic> {
        self.guest_mut(port).map(|guest| &mut guest.traffic)
    }

    /// Every port that has a guest.
    pub(crate) fn views(&self) -> impl Iterator<Item = PortView<'_>> {
        self.links.iter().flat_map(|(_, entry)| {
            entry.guests.iter().flatten().map(|guest| PortView {
                port: guest.port,
                kind: entry.link.kind(),
                since: guest.since,
                traffic: &guest.traffic,
            })
        })
    }

    /// Ports of guests that have left a link without its end.
    pub(crate) fn take_gone(&mut self, index: u32) -> Vec<PortId> {
        let Some(entry) = self.links.get_mut(index as usize) else { return Vec::new() };
        let peers = entry.link.take_gone();
        let guests = peers.iter().filter_map(|p| entry.guests.get_mut(p.0 as usize)?.take());
        let ports: Vec<PortId> = guests.map(|g| g.port).collect();
        for port in &ports {
            self.unplace(*port);
        }
        ports
    }

    /// Notes what an event says about a link.
    pub(crate) fn event(&mut self, index: u32, event: &Event) {
        let Some(entry) = self.links.get_mut(index as usize) else { return };
        entry.hung_up |= event.is_read_closed() || event.is_write_closed() || event.is_error();
        let read = event.is_readable() || entry.hung_up;
        if event.is_writable() {
            if entry.blocked {
                self.set_dirty(index);
            } else if entry.polls_write {
                self.poll_write(index, false);
            }
        }
        if read {
            self.set_ready(index);
        }
    }

    /// Links that wait to be read.
    pub(crate) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// The next link to read, taken from the list.
    pub(crate) fn next_ready(&mut self) -> Option<u32> {
        loop {
            let index = self.ready.pop_front()?;
            if let Some(entry) = self.links.get_mut(index as usize)
                && std::mem::take(&mut entry.ready)
            {
                return Some(index);
            }
        }
    }

    /// Reads a batch from a link; while there may be more, the link goes back to the list's end.
    pub(crate) fn recv(&mut self, index: u32, batch: &mut FrameBatch) -> Turn {
        let Some(entry) = self.links.get_mut(index as usize) else { return Turn::Nothing };
        let received = entry.link.recv(batch);
        let hung_up = entry.hung_up;
        let turn = match received {
            Recv::Frames { peer, more } => {
                let guest = entry.guests.get(peer.0 as usize).and_then(Option::as_ref);
                let turn = match guest {
                    Some(guest) => Turn::Frames(guest.port),
                    None if batch.is_empty() || peer.0 >= MAX_PEERS => Turn::Nothing,
                    None => Turn::NewGuest(peer),
                };
                if more || hung_up {
                    self.set_ready(index);
                }
                turn
            }
            Recv::Empty => Turn::Nothing,
            Recv::Closed(reason) => {
                self.tell_refusal(reason);
                Turn::Closed
            }
        };
        self.note_timeout(index);
        turn
    }

    /// Says why a guest is not served. It may come again and again.
    fn tell_refusal(&mut self, reason: CloseReason) {
        if matches!(reason, CloseReason::Refused(_)) && self.refusal.replace(reason) != Some(reason)
        {
            eprintln!("vmlan: {reason}");
        }
    }

    /// When a link wants to be called.
    pub(crate) fn next_timeout(&self) -> Option<SystemInstant> {
        let links = self.timed.iter().filter_map(|i| self.links.get(*i as usize));
        links.filter_map(|entry| entry.timeout).min()
    }

    /// Puts links whose time has come on the lists.
    pub(crate) fn handle_timeout(&mut self, now: SystemInstant) {
        for index in std::mem::take(&mut self.timed) {
            let Some(entry) = self.links.get_mut(index as usize) else { continue };
            match entry.timeout {
                Some(at) if at <= now => {
                    entry.timeout = None;
                    self.set_ready(index);
                    self.set_dirty(index);
                }
                Some(_) => self.timed.push(index),
                None => {}
            }
        }
    }

    fn note_timeout(&mut self, index: u32) {
        let Some(entry) = self.links.get_mut(index as usize) else { return };
        let timeout = entry.link.next_timeout();
        if timeout.is_some() && entry.timeout.is_none() && !self.timed.contains(&index) {
            self.timed.push(index);
        }
        entry.timeout = timeout;
    }

    pub(crate) fn set_ready(&mut self, index: u32) {
        if let Some(entry) = self.links.get_mut(index as usize)
            && !entry.paused
            && !std::mem::replace(&mut entry.ready, true)
        {
            self.ready.push_back(index);
        }
    }

    /// Stops reading a link, or goes on.
    pub(crate) fn pause(&mut self, index: u32, on: bool) {
        let Some(entry) = self.links.get_mut(index as usize) else { return };
        entry.paused = on;
        if on {
            entry.ready = false;
        }
        if entry.level {
            // It would be told again and again of what is not read.
            let fd = entry.link.as_fd();
            let token = Owner::Link(index).token();
            let _ = crate::level::change(&self.registry, fd, token, !on, entry.polls_write);
        }
        if !on {
            self.set_ready(index);
        }
    }

    fn unplace(&mut self, port: PortId) {
        if let Some(place) = self.places.get_mut(usize::from(port.0)) {
            *place = None;
        }
        self.captures.forget(port);
    }
}

/// Apart from what captures it.
fn guest_at<'a>(
    places: &[Option<Place>],
    links: &'a Slab<Entry>,
    port: PortId,
) -> Option<&'a Guest> {
    let place = places.get(usize::from(port.0)).copied().flatten()?;
    links.get(place.link as usize)?.guests.get(place.peer.0 as usize)?.as_ref()
}

fn set<T: Clone>(list: &mut Vec<Option<T>>, index: usize, value: T) {
    if list.len() <= index {
        list.resize(index + 1, None);
    }
    if let Some(slot) = list.get_mut(index) {
        *slot = Some(value);
    }
}
