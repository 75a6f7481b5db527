//! TCP segment by segment: what the engine answers to what, and when.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

mod doubtful;
mod handshake;
mod patience;
mod receiving;
mod sending;

use std::time::Duration;

use vmlan_testkit::trace::ISS;
use vmlan_testkit::{Ending, Pattern, Remote, Trace};

const MS: Duration = Duration::from_millis(1);
const SEC: Duration = Duration::from_secs(1);
/// Longer than any acknowledgement is delayed.
const SOON: Duration = Duration::from_millis(50);

fn sends(bytes: u64) -> Remote {
    Remote::accept().sends(Pattern(1), bytes).then(Ending::Hold)
}

/// What only these tests need of a trace.
trait Opened {
    /// The handshake with a far end that has something to say at once.
    fn open_data(&mut self);
}

impl Opened for Trace {
    fn open_data(&mut self) {
        self.syn();
        self.seq = ISS + 1;
        self.ack = self.expect().next_seq();
        self.acknowledge();
    }
}
