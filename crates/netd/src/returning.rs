//! Guests that are there, in a file, with what their network has only seen of them: the IPv6 address
//! that one made itself, and what it calls itself. The daemon that follows one that was killed knows
//! them by it as soon as they are back, though they say nothing. The end of a network is the end of
//! the file.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmlan_config::{parse_mac, show_mac};
use vmlan_engine::{Engine, Instant};

use crate::writer::{self, Writer};

/// How long guests have to come back.
const RETURN: Duration = Duration::from_secs(60);

/// The file is looked at, and maybe written, no more often than this.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest name that a guest gives itself (RFC 1035).
const MAX_HOST_NAME: usize = 63;

#[derive(Debug)]
pub(crate) struct ReturningFile {
    /// By MAC address.
    saved: BTreeMap<String, Known>,
    /// Those of the daemon before this one, and until when they may come back.
    earlier: BTreeMap<String, Known>,
    return_by: Instant,
    /// The engine's counts of changes at the last look.
    looked: (u64, u32),
    next: Instant,
    writer: Writer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<Ipv6Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
}

impl ReturningFile {
    /// Tells the engine, which has the leases already, of the guests in the file at `path`, if there
    /// is one. A file that says nothing sensible is told of.
    pub(crate) fn load(path: &Path, engine: &mut Engine, now: Instant) -> io::Result<Self> {
        let text = writer::read(path)?;
        let guests =
            if text.is_empty() { Ok(BTreeMap::new()) } else { serde_json::from_slice(&text) };
        let earlier: BTreeMap<String, Known> = guests.unwrap_or_else(|error| {
            eprintln!("vmlan: {}: {error}; what it said is lost", path.display());
            BTreeMap::new()
        });
        let return_by = now + RETURN;
        for (mac, known) in &earlier {
            if let Ok(mac) = parse_mac(mac) {
                let name = known.hostname.as_deref().filter(|name| name.len() <= MAX_HOST_NAME);
                engine.restore_guest(mac, known.ipv6, name, return_by);
            }
        }
        Ok(Self {
            saved: earlier.clone(),
            earlier,
            return_by,
            looked: (0, 0),
            next: now,
            writer: Writer::new(path, "guests are not saved"),
        })
    }

    /// Saves what is known of guests if that has changed and it is time.
    pub(crate) fn update(&mut self, engine: &Engine, now: Instant) {
        if self.next_timeout(engine).is_none_or(|at| at > now) {
            return;
        }
        self.looked = changes(engine);
        self.next = now + PAUSE;
        if now >= self.return_by {
            self.earlier.clear();
        }
        let mut guests = self.earlier.clone();
        for lease in engine.present_leases() {
            let known =
                Known { ipv6: lease.address6, hostname: lease.host_name.map(ToOwned::to_owned) };
            if (&known.ipv6, &known.hostname) != (&None, &None) {
                guests.insert(show_mac(lease.mac), known);
            }
        }
        self.save(guests);
    }

    /// When [`ReturningFile::update`] has to be called.
    pub(crate) fn next_timeout(&self, engine: &Engine) -> Option<Instant> {
        let over = (!self.earlier.is_empty()).then_some(self.return_by);
        let changed = (changes(engine) != self.looked).then_some(self.next);
        [over, changed].into_iter().flatten().min()
    }

    /// The network ends.
    pub(crate) fn finish(mut self) {
        self.save(BTreeMap::new());
        self.writer.finish();
    }

    fn save(&mut self, guests: BTreeMap<String, Known>) {
        if guests == self.saved {
            return;
        }
        let text = if guests.is_empty() { Ok(Vec::new()) } else { serde_json::to_vec(&guests) };
        // Writing to memory cannot fail, and the keys are strings.
        self.writer.put(text.unwrap_or_default());
        self.saved = guests;
    }
}

fn changes(engine: &Engine) -> (u64, u32) {
    (engine.lease_changes(), engine.address_changes())
}
