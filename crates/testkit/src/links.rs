//! Simulated network cards: [`SimLinks`] implements [`Links`] with a cable in each direction for
//! every port. Each frame that the engine makes itself is checked on its way ([`crate::check`]).

use vmlan_engine::{Instant, Links, PortCaps, PortId};
use vmlan_wire::{Mac, OutFrame};

use crate::check;
use crate::nic;
use crate::wire::{Faults, SimFrame, Wire};

/// Violations are kept up to here; one is enough to fail.
const MAX_VIOLATIONS: usize = 16;

/// How a port is made.
#[derive(Clone, Copy, Debug)]
pub struct LinkOptions {
    pub caps: PortCaps,
    /// From the guest.
    pub up: Faults,
    /// To the guest.
    pub down: Faults,
    /// Frames on their way to the guest; beyond it the link is full.
    pub queue: usize,
    /// The card finishes what the engine left to it (checksums, segmentation) before the cable;
    /// else frames arrive as the engine made them.
    pub finish: bool,
}

impl LinkOptions {
    /// A perfect link without offloads.
    pub fn plain(mtu: u16) -> Self {
        let caps = PortCaps { checksum: false, tso4: false, tso6: false, mtu };
        Self { caps, up: Faults::NONE, down: Faults::NONE, queue: 4096, finish: true }
    }

    /// A perfect link with every offload.
    pub fn offload(mtu: u16) -> Self {
        let caps = PortCaps { checksum: true, tso4: true, tso6: true, mtu };
        Self { caps, ..Self::plain(mtu) }
    }

    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        (self.up, self.down) = (faults, faults);
        self
    }

    #[must_use]
    pub fn queue(mut self, frames: usize) -> Self {
        self.queue = frames;
        self
    }

    #[must_use]
    pub fn unfinished(mut self) -> Self {
        self.finish = false;
        self
    }
}

#[derive(Debug)]
pub struct Port {
    pub options: LinkOptions,
    pub up: Wire,
    pub down: Wire,
    /// The guest takes nothing from its card.
    pub paused: bool,
    /// `send` took fewer than it was given.
    starved: bool,
    /// Frames that the engine gave to this port.
    pub frames: u64,
    /// The longest that the queue to the guest ever was.
    pub peak: usize,
}

/// The guests' network cards.
#[derive(Debug)]
pub struct SimLinks {
    now: Instant,
    seed: u64,
    gateway_mac: Mac,
    mtu: u16,
    ports: Vec<Option<Port>>,
    /// What was wrong with frames that the engine made.
    pub violations: Vec<String>,
}

impl SimLinks {
    pub fn new(seed: u64, gateway_mac: Mac, mtu: u16) -> Self {
        let ports = Vec::new();
        Self { now: Instant::ZERO, seed, gateway_mac, mtu, ports, violations: Vec::new() }
    }

    pub fn add(&mut self, id: PortId, options: LinkOptions) {
        let index = usize::from(id.0);
        if self.ports.len() <= index {
            self.ports.resize_with(index + 1, || None);
        }
        let seed = self.seed ^ u64::from(id.0) << 8;
        self.ports[index] = Some(Port {
            options,
            up: Wire::new(options.up, seed ^ 0x7570),
            down: Wire::new(options.down, seed ^ 0x646f_776e),
            paused: false,
            starved: false,
            frames: 0,
            peak: 0,
        });
    }

    pub fn remove(&mut self, id: PortId) {
        self.ports[usize::from(id.0)] = None;
    }

    /// Panics if there is no such port.
    pub fn port(&mut self, id: PortId) -> &mut Port {
        self.ports[usize::from(id.0)].as_mut().expect("the port is there")
    }

    pub fn set_time(&mut self, now: Instant) {
        self.now = now;
    }

    /// The guest sends a frame.
    pub fn from_guest(&mut self, id: PortId, frame: impl Into<SimFrame>) {
        let now = self.now;
        if let Some(Some(port)) = self.ports.get_mut(usize::from(id.0)) {
            port.up.send(frame.into(), now);
        }
    }

    /// The next frame that has arrived at the engine.
    pub fn to_engine(&mut self, id: PortId) -> Option<SimFrame> {
        self.ports.get_mut(usize::from(id.0))?.as_mut()?.up.take(self.now)
    }

    /// The next frame that has arrived at the guest.
    pub fn to_guest(&mut self, id: PortId) -> Option<SimFrame> {
        let port = self.ports.get_mut(usize::from(id.0))?.as_mut()?;
        if port.paused { None } else { port.down.take(self.now) }
    }

    /// A port that has room again after it had none.
    pub fn writable(&mut self) -> Option<PortId> {
        let index = self.ports.iter_mut().position(|p| {
            p.as_mut().is_some_and(|p| p.starved && p.down.len() <= p.options.queue / 2)
        })?;
        self.ports[index].as_mut()?.starved = false;
        u16::try_from(index).ok().map(PortId)
    }

    /// When something arrives next, on any port in either direction.
    pub fn next(&self) -> Option<Instant> {
        let times = self.ports.iter().flatten().flat_map(|p| {
            let down = if p.paused { None } else { p.down.next() };
            [p.up.next(), down]
        });
        times.flatten().min()
    }

    /// Bytes on their way to guests.
    pub fn bytes_held(&self) -> usize {
        self.ports.iter().flatten().map(|p| p.down.bytes()).sum()
    }

    fn inspect(&mut self, id: PortId, frame: &SimFrame, caps: PortCaps) {
        let from_gateway = frame.data.get(6..12) == Some(&self.gateway_mac.0[..]);
        if !from_gateway || self.violations.len() >= MAX_VIOLATIONS {
            return;
        }
        let mtu = caps.mtu.min(self.mtu);
        if let Err(what) = check::frame(&frame.data, frame.offload, caps, mtu) {
            let head: Vec<u8> = frame.data.iter().copied().take(80).collect();
            self.violations.push(format!("{id:?} at {:?}: {what}: {head:02x?}", self.now));
        }
    }
}

impl Links for SimLinks {
    fn send(&mut self, id: PortId, frames: &[OutFrame<'_>]) -> usize {
        let index = usize::from(id.0);
        for (taken, frame) in frames.iter().enumerate() {
            let Some(Some(port)) = self.ports.get_mut(index) else {
                panic!("the engine sent to {id:?}, which is not there");
            };
            if port.down.len() >= port.options.queue {
                port.starved = true;
                return taken;
            }
            let options = port.options;
            let mut data = Vec::with_capacity(frame.len());
            frame.copy_to(&mut data);
            let sim = SimFrame { data, offload: frame.offload };
            self.inspect(id, &sim, options.caps);
            let now = self.now;
            let Some(Some(port)) = self.ports.get_mut(index) else { return taken };
            port.frames += 1;
            if options.finish {
                for whole in nic::finish(sim) {
                    port.down.send(whole, now);
                }
            } else {
                port.down.send(sim, now);
            }
            port.peak = port.peak.max(port.down.len());
        }
        frames.len()
    }
}
