//! One direction of a simulated cable: frames arrive later, in another order, twice, damaged or
//! not at all, as asked for and as the seed has it.

use std::collections::BTreeMap;
use std::time::Duration;

use vmlan_engine::Instant;
use vmlan_wire::Offload;

use crate::rng::Rng;

/// A frame on a cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimFrame {
    pub data: Vec<u8>,
    pub offload: Offload,
}

impl From<Vec<u8>> for SimFrame {
    fn from(data: Vec<u8>) -> Self {
        Self { data, offload: Offload::NONE }
    }
}

/// What a cable does to frames. Probabilities are between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Faults {
    pub latency: Duration,
    pub loss: f64,
    pub duplicate: f64,
    /// Frames that are held back by up to `hold` and so are overtaken.
    pub reorder: f64,
    pub hold: Duration,
    /// Frames in which one bit is flipped. Only IP packets behind the Ethernet header: elsewhere
    /// nothing would show the damage.
    pub corrupt: f64,
}

impl Faults {
    /// The perfect cable.
    pub const NONE: Self = Self {
        latency: Duration::ZERO,
        loss: 0.0,
        duplicate: 0.0,
        reorder: 0.0,
        hold: Duration::ZERO,
        corrupt: 0.0,
    };

    pub fn latency(ms: u64) -> Self {
        Self { latency: Duration::from_millis(ms), ..Self::NONE }
    }

    #[must_use]
    pub fn loss(mut self, p: f64) -> Self {
        self.loss = p;
        self
    }

    #[must_use]
    pub fn duplicate(mut self, p: f64) -> Self {
        self.duplicate = p;
        self
    }

    #[must_use]
    pub fn reorder(mut self, p: f64, hold: Duration) -> Self {
        (self.reorder, self.hold) = (p, hold);
        self
    }

    #[must_use]
    pub fn corrupt(mut self, p: f64) -> Self {
        self.corrupt = p;
        self
    }
}

/// A cable in one direction.
#[derive(Debug)]
pub struct Wire {
    pub faults: Faults,
    rng: Rng,
    /// By arrival, then by departure.
    flying: BTreeMap<(Instant, u64), SimFrame>,
    count: u64,
    /// Frames that were not held back arrive in order.
    last: Instant,
    pub lost: u64,
    pub corrupted: u64,
}

impl Wire {
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self {
            faults,
            rng: Rng::new(seed),
            flying: BTreeMap::new(),
            count: 0,
            last: Instant::ZERO,
            lost: 0,
            corrupted: 0,
        }
    }

    pub fn send(&mut self, mut frame: SimFrame, now: Instant) {
        let faults = self.faults;
        if self.rng.chance(faults.loss) {
            self.lost += 1;
            return;
        }
        if self.rng.chance(faults.corrupt) && self.damage(&mut frame.data) {
            self.corrupted += 1;
        }
        if self.rng.chance(faults.duplicate) {
            self.launch(frame.clone(), now);
        }
        self.launch(frame, now);
    }

    fn launch(&mut self, frame: SimFrame, now: Instant) {
        let mut at = (now + self.faults.latency).max(self.last);
        if self.rng.chance(self.faults.reorder) {
            let micros = self.faults.hold.as_micros() as usize;
            at = at + Duration::from_micros(self.rng.below(micros + 1) as u64);
        } else {
            self.last = at;
        }
        self.count += 1;
        self.flying.insert((at, self.count), frame);
    }

    fn damage(&mut self, data: &mut [u8]) -> bool {
        let is_ip = matches!(data.get(12..14), Some([0x08, 0x00] | [0x86, 0xdd]));
        if !is_ip || data.len() <= 14 {
            return false;
        }
        let at = 14 + self.rng.below(data.len() - 14);
        data[at] ^= 1 << self.rng.below(8);
        true
    }

    /// Takes the next frame that has arrived.
    pub fn take(&mut self, now: Instant) -> Option<SimFrame> {
        let entry = self.flying.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// When the next frame arrives.
    pub fn next(&self) -> Option<Instant> {
        self.flying.first_key_value().map(|((at, _), _)| *at)
    }

    pub fn len(&self) -> usize {
        self.flying.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flying.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.flying.values().map(|f| f.data.len()).sum()
    }

    pub fn clear(&mut self) {
        self.flying.clear();
    }
}
