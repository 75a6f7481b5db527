//! A small world around a whole engine, for unit tests: links and a host that only remember.
//! Everything that the engine did can be looked at, and everything that happens to it is said by
//! the test. (Crate `testkit` has the large one, with guests that have stacks, and faults.)
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod frames;
mod host;

use std::net::Ipv4Addr;
use std::time::Duration;

use vmlan_wire::checksum::Sum;
use vmlan_wire::frame::Checksum;
use vmlan_wire::{FrameBatch, Mac, Offload, OutFrame};

use crate::config::Ipv4Net;
use crate::io::Failure;
use crate::stats::Drop;
use crate::{Config, Engine, Instant, Io, Links, PortCaps, PortId, Readiness, SockId};

pub(crate) use frames::*;
pub(crate) use host::{SimError, SimHost};

pub(crate) const MS: Duration = Duration::from_millis(1);

/// The default network, 192.168.5.0/24.
pub(crate) fn config() -> Config {
    let net = Ipv4Net::new(Ipv4Addr::new(192, 168, 5, 0), 24).unwrap();
    let mut config = Config::new(net, None, [7; 16]).unwrap();
    config.mtu = 1500;
    config
}

pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) host: SimHost,
    pub(crate) links: Recorder,
    pub(crate) now: Instant,
    /// Where the guest is, in a world with one guest: the first port.
    pub(crate) port: PortId,
}

impl World {
    /// The default network without guests, on a host that refuses everything.
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: Config) -> Self {
        let now = Instant::from_micros(1_000_000);
        let mut host = SimHost::default();
        host.refuse = Some(Failure::Unsupported);
        let engine = Engine::new(config, now);
        Self { engine, host, links: Recorder::default(), now, port: PortId(0) }
    }

    /// The default network with one guest.
    pub(crate) fn with_guest() -> Self {
        Self::with_guest_and(|_| {})
    }

    /// The same with a changed configuration.
    pub(crate) fn with_guest_and(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config();
        change(&mut config);
        let mut world = Self::with(config);
        world.host.refuse = None;
        let mtu = world.engine.config().mtu;
        let caps = PortCaps { checksum: true, tso4: true, tso6: true, mtu };
        world.port = world.engine.add_port(caps).unwrap();
        world
    }

    /// Adds a port without offloads.
    pub(crate) fn attach(&mut self) -> PortId {
        let caps = PortCaps { mtu: 65_520, ..PortCaps::default() };
        self.engine.add_port(caps).unwrap()
    }

    /// Calls a door of the engine.
    pub(crate) fn io<R>(&mut self, f: impl FnOnce(&mut Engine, &mut Io<'_>) -> R) -> R {
        let mut io = Io { host: &mut self.host, links: &mut self.links, now: self.now };
        f(&mut self.engine, &mut io)
    }

    pub(crate) fn send(&mut self, port: PortId, frame: &[u8]) {
        self.send_all(port, &[frame.to_vec()]);
    }

    /// Frames in one batch.
    pub(crate) fn send_all(&mut self, port: PortId, frames: &[Vec<u8>]) {
        let mut batch = FrameBatch::default();
        for frame in frames {
            batch.push_copy(frame, Offload::NONE);
        }
        self.io(|engine, io| engine.handle_frames(port, &batch, io));
    }

    /// Frames from the guest, in one batch.
    pub(crate) fn frames(&mut self, frames: &[Vec<u8>]) {
        self.send_all(self.port, frames);
    }

    /// A datagram from the guest.
    pub(crate) fn udp(&mut self, src: &str, dst: &str, data: &[u8]) {
        self.frames(&[udp_frame(src, dst, data)]);
    }

    /// What was sent to a port since the last look.
    pub(crate) fn sent(&mut self, port: PortId) -> Vec<Vec<u8>> {
        let to_it = self.links.sent.extract_if(.., |(to, _)| *to == port);
        to_it.map(|(_, frame)| frame).collect()
    }

    /// The one frame that was sent to a port since the last look.
    pub(crate) fn one(&mut self, port: PortId) -> Vec<u8> {
        let mut sent = self.sent(port);
        assert_eq!(sent.len(), 1, "frames to {port:?}: {sent:02x?}");
        sent.remove(0)
    }

    /// Sends a frame and returns what the gateway sent back to that port.
    pub(crate) fn ask(&mut self, port: PortId, frame: &[u8]) -> Vec<Vec<u8>> {
        self.sent(port);
        self.send(port, frame);
        self.sent(port)
    }

    /// UDP datagrams that the guest got: from, to, payload.
    pub(crate) fn got_udp(&mut self) -> Vec<(String, String, Vec<u8>)> {
        self.sent(self.port).iter().filter_map(|frame| parse_udp(frame)).collect()
    }

    pub(crate) fn ready(&mut self, sock: SockId) {
        self.event(sock, Readiness { readable: true, ..Readiness::default() });
    }

    pub(crate) fn error(&mut self, sock: SockId) {
        self.event(sock, Readiness { error: true, ..Readiness::default() });
    }

    fn event(&mut self, sock: SockId, ready: Readiness) {
        let token = self.host.token(sock);
        self.io(|engine, io| engine.handle_host(token, ready, io));
    }

    /// Lets time pass, with every timeout served when it is due.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.engine.next_timeout().filter(|t| *t <= end) {
            self.now = self.now.max(next);
            self.io(Engine::handle_timeout);
        }
        self.now = end;
    }

    pub(crate) fn dropped(&self, reason: Drop) -> u64 {
        self.engine.stats().dropped(reason)
    }
}

/// Makes the gateway know a guest by its IPv4 address.
pub(crate) fn announce(world: &mut World, port: PortId, n: u8, ip: Ipv4Addr) {
    world.send(port, &arp(1, BROADCAST, (mac(n), ip), (Mac([0; 6]), ip)));
}

/// Links that remember, with room for a number of frames.
pub(crate) struct Recorder {
    pub(crate) sent: Vec<(PortId, Vec<u8>)>,
    pub(crate) calls: usize,
    pub(crate) room: usize,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { sent: Vec::new(), calls: 0, room: usize::MAX }
    }
}

impl Links for Recorder {
    fn send(&mut self, port: PortId, frames: &[OutFrame<'_>]) -> usize {
        self.calls += 1;
        let taken = frames.len().min(self.room);
        self.room -= taken;
        for frame in frames.iter().take(taken) {
            let mut bytes = Vec::new();
            frame.copy_to(&mut bytes);
            if let Checksum::Partial { start, offset } = frame.offload.checksum {
                let (start, at) = (usize::from(start), usize::from(start + offset));
                let mut sum = Sum::new();
                sum.add(&bytes[start..]);
                bytes[at..at + 2].copy_from_slice(&sum.finish());
            }
            self.sent.push((port, bytes));
        }
        taken
    }
}
