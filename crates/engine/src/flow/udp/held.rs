//! Datagrams for guests whose MAC address is not known yet: a few are kept while the address is
//! asked for (RFC 1122 section 2.3.2.2).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::hash::SeededState;
use crate::time::Instant;

/// Datagrams kept for one guest.
const PER_GUEST: usize = 4;

/// Bytes kept for all.
const MAX_BYTES: usize = 64 * 1024;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Held {
    guests: HashMap<IpAddr, Waiting, SeededState>,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    until: Instant,
    datagrams: ArrayVec<Kept, PER_GUEST>,
}

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) from: SocketAddr,
    pub(super) guest: SocketAddr,
    pub(super) data: Vec<u8>,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeping {
    /// Kept; the guest has to be asked for.
    First,
    /// Kept; the guest has been asked for already.
    Next,
    /// There was no room.
    Full,
}

impl Held {
    pub(super) fn new(seed: [u8; 16]) -> Self {
        Self { guests: HashMap::with_hasher(SeededState::new(seed)), bytes: 0 }
    }

    pub(super) fn keep(
        &mut self,
        from: SocketAddr,
        guest: SocketAddr,
        data: &[u8],
        now: Instant,
    ) -> Keeping {
        if self.bytes + data.len() > MAX_BYTES {
            return Keeping::Full;
        }
        let kept = Kept { from, guest, data: data.to_vec() };
        let mut keeping = Keeping::Next;
        let waiting = self.guests.entry(guest.ip()).or_insert_with(|| {
            keeping = Keeping::First;
            Waiting { until: now + PATIENCE, datagrams: ArrayVec::new() }
        });
        if waiting.datagrams.try_push(kept).is_err() {
            return Keeping::Full;
        }
        self.bytes += data.len();
        keeping
    }

    /// What was kept for a guest.
    pub(super) fn take(&mut self, guest: IpAddr) -> ArrayVec<Kept, PER_GUEST> {
        let Some(waiting) = self.guests.remove(&guest) else { return ArrayVec::new() };
        self.bytes -= waiting.datagrams.iter().map(|kept| kept.data.len()).sum::<usize>();
        waiting.datagrams
    }

    /// Gives up waiting for guests that did not answer; returns how many datagrams that cost.
    pub(super) fn expire(&mut self, now: Instant) -> usize {
        if self.guests.is_empty() {
            return 0;
        }
        let silent = |(ip, waiting): (&IpAddr, &Waiting)| (waiting.until <= now).then_some(*ip);
        let gone: Vec<IpAddr> = self.guests.iter().filter_map(silent).collect();
        gone.into_iter().map(|ip| self.take(ip).len()).sum()
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.guests.values().map(|waiting| waiting.until).min()
    }
}
