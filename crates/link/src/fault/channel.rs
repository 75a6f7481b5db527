//! One direction of a bad wire.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Faults;
use crate::PeerId;

/// A wire holds so much and one frame. That is its bandwidth times its delay, if it has any.
const FULL: usize = 4 * 1024 * 1024;

/// Most frames by which one is overtaken.
const OVERTAKEN_MAX: u64 = 8;

/// A frame that nothing follows is not held back longer.
const HELD_MAX: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Channel {
    faults: Faults,
    random: Random,
    /// On their way, in order of arrival.
    queue: VecDeque<OnWay>,
    /// To be overtaken, by how many still.
    held: Vec<(u64, OnWay)>,
    bytes: usize,
}

#[derive(Debug)]
struct OnWay {
    peer: PeerId,
    data: Vec<u8>,
    due: Instant,
}

impl Channel {
    pub(super) fn new(faults: Faults, direction: u64) -> Self {
        let random = Random(faults.seed.wrapping_mul(2).wrapping_add(direction));
        Self { faults, random, queue: VecDeque::new(), held: Vec::new(), bytes: 0 }
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= FULL
    }

    /// Sends a frame on its way.
    pub(super) fn put(&mut self, peer: PeerId, mut data: Vec<u8>, now: Instant) {
        if self.random.is(self.faults.loss) {
            return;
        }
        let double = self.random.is(self.faults.duplicate).then(|| data.clone());
        if self.random.is(self.faults.corrupt) {
            self.corrupt(&mut data);
        }
        for data in [Some(data), double].into_iter().flatten() {
            self.bytes += data.len();
            let frame = OnWay { peer, data, due: now + self.faults.delay };
            if self.random.is(self.faults.reorder) {
                self.held.push((1 + self.random.below(OVERTAKEN_MAX), frame));
            } else {
                self.queue.push_back(frame);
                self.overtaken();
            }
        }
    }

    /// The next frame that has arrived.
    pub(super) fn due(&mut self, now: Instant) -> Option<(PeerId, &[u8])> {
        if self.held.first().is_some_and(|(_, frame)| frame.due + HELD_MAX <= now) {
            let (_, frame) = self.held.remove(0);
            self.queue.push_front(frame);
        }
        let frame = self.queue.front().filter(|frame| frame.due <= now)?;
        Some((frame.peer, &frame.data))
    }

    /// Takes off the frame that [`Channel::due`] has shown.
    pub(super) fn pop(&mut self) {
        if let Some(frame) = self.queue.pop_front() {
            self.bytes -= frame.data.len();
        }
    }

    /// When the next frame arrives.
    pub(super) fn next(&self) -> Option<Instant> {
        let queued = self.queue.front().map(|frame| frame.due);
        let held = self.held.first().map(|(_, frame)| frame.due + HELD_MAX);
        queued.into_iter().chain(held).min()
    }

    /// A frame has been queued: those that waited for it alone follow.
    fn overtaken(&mut self) {
        let mut index = 0;
        while let Some((left, _)) = self.held.get_mut(index) {
            *left -= 1;
            if *left == 0 {
                let (_, frame) = self.held.remove(index);
                self.queue.push_back(frame);
            } else {
                index += 1;
            }
        }
    }

    /// Flips a bit that the IP header's or the transport's checksum covers. Without one, the
    /// receiver could not know: a real wire has Ethernet's.
    fn corrupt(&mut self, data: &mut [u8]) {
        if let Some([0x08, 0x00] | [0x86, 0xdd]) = data.get(12..14)
            && let Some(packet) = data.get_mut(14..)
            && !packet.is_empty()
        {
            let bit = self.random.below(packet.len() as u64 * 8);
            let index = usize::try_from(bit / 8).unwrap_or(0);
            if let Some(byte) = packet.get_mut(index) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }
}

/// SplitMix64: enough for chance, and the same on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn is(&mut self, percent: f64) -> bool {
        // Exact in the 53 bits of a double.
        percent > 0.0 && ((self.next() >> 11) as f64) < percent / 100.0 * (1u64 << 53) as f64
    }
}
