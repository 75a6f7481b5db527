//! The Ethernet switch between the guests and the gateway: it learns which port a MAC address is
//! behind, hands known unicast to that port alone, and floods the rest (IEEE 802.1D section 7).
//!
//! Frames leave by [`Switch::transmit`], where what the port's link cannot do (checksums,
//! segmentation) is done in software.

mod egress;
mod fdb;

use std::ops::Range;
use std::time::Duration;

use vmlan_wire::{FrameBatch, Mac, OutFrame};

use crate::between::DEVOTED;
use crate::io::{Links, PortId};
use crate::stats::{Drop, Stats};
use crate::time::Instant;
use fdb::Fdb;
pub(crate) use fdb::Learned;

/// How long a silent MAC address is remembered (802.1D's default).
const AGEING: Duration = Duration::from_secs(300);

/// MAC addresses behind one port; a nested bridge fits, a flood of made-up addresses does not.
const MACS_PER_PORT: usize = 128;

/// MAC addresses behind the port that leads to another network. There may be more of them: what is
/// for one that is not known goes everywhere.
const MACS_OF_UPLINK: usize = 4096;

/// What the link behind a port can do with frames sent to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCaps {
    /// Takes [`Checksum::Partial`](vmlan_wire::frame::Checksum::Partial).
    pub checksum: bool,
    /// Takes trains of TCP segments over IPv4.
    pub tso4: bool,
    pub tso6: bool,
    /// Largest IP packet that the link carries in one frame (after segmentation).
    pub mtu: u16,
}

#[derive(Clone, Copy, Debug)]
struct Port {
    caps: PortCaps,
    /// The guest that this port's sends to, and when it last sent anything elsewhere.
    to: Option<PortId>,
    elsewhere: Instant,
    /// It has no room and does not make any.
    stuck: bool,
}

#[derive(Debug)]
pub(crate) struct Switch {
    ports: Vec<Option<Port>>,
    fdb: Fdb,
    scratch: egress::Scratch,
}

impl Switch {
    pub(crate) fn new(seed: [u8; 16]) -> Self {
        Self {
            ports: Vec::new(),
            fdb: Fdb::new(seed, AGEING, (MACS_PER_PORT, MACS_OF_UPLINK)),
            scratch: egress::Scratch::default(),
        }
    }

    pub(crate) fn add_port(&mut self, caps: PortCaps) -> Option<PortId> {
        let free = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        let id = PortId(u16::try_from(free).ok()?);
        if free == self.ports.len() {
            self.ports.push(None);
        }
        let port = Port { caps, to: None, elsewhere: Instant::ZERO, stuck: false };
        *self.ports.get_mut(free)? = Some(port);
        Some(id)
    }

    /// The port leads to another network.
    pub(crate) fn set_uplink(&mut self, port: PortId) {
        self.fdb.uplink = Some(port);
    }

    /// Forgets a port and the addresses behind it.
    pub(crate) fn remove_port(&mut self, port: PortId) {
        if let Some(slot) = self.ports.get_mut(usize::from(port.0)) {
            *slot = None;
        }
        self.fdb.forget_port(port);
    }

    pub(crate) fn set_caps(&mut self, port: PortId, caps: PortCaps) {
        if let Some(port) = self.port_mut(port) {
            port.caps = caps;
        }
    }

    pub(crate) fn caps(&self, port: PortId) -> Option<PortCaps> {
        self.port(port).map(|p| p.caps)
    }

    /// Notes that a port's guest sends to another; true if it has not sent elsewhere for a while.
    pub(crate) fn sent_to(&mut self, from: PortId, to: PortId, now: Instant) -> bool {
        let Some(port) = self.port_mut(from) else { return false };
        if port.to != Some(to) {
            (port.to, port.elsewhere) = (Some(to), now);
        }
        now.since(port.elsewhere) >= DEVOTED
    }

    /// Notes that a port's guest sends to the gateway or to everybody.
    pub(crate) fn sent_elsewhere(&mut self, from: PortId, now: Instant) {
        if let Some(port) = self.port_mut(from) {
            port.elsewhere = now;
        }
    }

    pub(crate) fn is_stuck(&self, port: PortId) -> bool {
        self.port(port).is_some_and(|p| p.stuck)
    }

    pub(crate) fn set_stuck(&mut self, port: PortId, stuck: bool) {
        if let Some(port) = self.port_mut(port) {
            port.stuck = stuck;
        }
    }

    fn port(&self, port: PortId) -> Option<&Port> {
        self.ports.get(usize::from(port.0))?.as_ref()
    }

    fn port_mut(&mut self, port: PortId) -> Option<&mut Port> {
        self.ports.get_mut(usize::from(port.0))?.as_mut()
    }

    pub(crate) fn ports(&self) -> impl Iterator<Item = PortId> {
        let taken = self.ports.iter().enumerate().filter(|(_, p)| p.is_some());
        taken.filter_map(|(i, _)| u16::try_from(i).ok().map(PortId))
    }

    /// Notes where a frame came from.
    pub(crate) fn learn(&mut self, mac: Mac, port: PortId, now: Instant) -> Learned {
        self.fdb.learn(mac, port, now)
    }

    /// The guest with this address was given a lease at this port.
    pub(crate) fn fix(&mut self, mac: Mac, port: PortId) {
        self.fdb.fix(mac, port);
    }

    /// The card at this port has this address, whatever guests have said before.
    pub(crate) fn give(&mut self, mac: Mac, port: PortId, now: Instant) {
        self.fdb.give(mac, port, now);
    }

    pub(crate) fn port_of(&self, mac: Mac) -> Option<PortId> {
        self.fdb.lookup(mac)
    }

    /// A number that changes with what [`Switch::port_of`] and [`Switch::learn`] would say.
    pub(crate) fn changes(&self) -> u32 {
        self.fdb.changes
    }

    /// The MAC addresses known, with their ports.
    pub(crate) fn table(&self) -> impl Iterator<Item = (Mac, PortId)> {
        self.fdb.entries()
    }

    /// Sends frames to one port and returns how many it took.
    pub(crate) fn transmit(
        &mut self,
        links: &mut dyn Links,
        port: PortId,
        frames: &[OutFrame<'_>],
        stats: &mut Stats,
    ) -> usize {
        let Some(caps) = self.caps(port) else { return 0 };
        let taken = egress::send(links, port, caps, frames, &mut self.scratch, stats);
        stats.frames_out += taken as u64;
        stats.bytes_out += frames.iter().take(taken).map(|f| f.len() as u64).sum::<u64>();
        taken
    }

    /// Sends frames as they were received to one port, and returns how many it took.
    pub(crate) fn pass_on(
        &mut self,
        links: &mut dyn Links,
        port: PortId,
        batch: &FrameBatch,
        frames: Range<usize>,
        stats: &mut Stats,
    ) -> usize {
        let Some(caps) = self.caps(port) else { return 0 };
        let plain = |i| batch.get(i).is_some_and(|frame| egress::is_plain(&frame.into(), caps));
        if !frames.clone().all(plain) {
            return batch.send_by(frames, |frames| self.transmit(links, port, frames, stats));
        }
        let taken = links.pass_on(port, batch, frames.clone());
        stats.frames_out += taken as u64;
        stats.bytes_out += batch.bytes_of(frames.start..frames.start + taken);
        taken
    }

    /// Sends a frame to every port but one.
    pub(crate) fn flood(
        &mut self,
        links: &mut dyn Links,
        except: Option<PortId>,
        frame: OutFrame<'_>,
        stats: &mut Stats,
    ) {
        for i in 0..self.ports.len() {
            let Ok(id) = u16::try_from(i) else { return };
            if Some(PortId(id)) != except
                && self.caps(PortId(id)).is_some()
                && self.transmit(links, PortId(id), &[frame], stats) == 0
            {
                stats.drop(Drop::LinkFull);
            }
        }
    }
}
