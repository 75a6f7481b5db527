//! Leases in a file, so that guests keep their addresses when the daemon is restarted, even after
//! a kill -9.
//!
//! The file is a JSON object of MAC addresses by IP address, as Lima's is. Its order says who has
//! been gone for longest, and loses an address first when the network is full.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde::Serializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use vmlan_config::{parse_mac, show_mac};
use vmlan_engine::{Engine, Instant, SavedLease};
use vmlan_wire::Mac;

use crate::writer::{self, Writer};

/// Changes are saved no more often than this, however often guests make them.
const PAUSE: Duration = Duration::from_secs(1);

/// Guests may be gone for this long and have their addresses again.
const KEPT: Duration = Duration::from_secs(364 * 86_400);

#[derive(Debug)]
pub(crate) struct LeaseFile {
    /// The engine's count of changes that the file has, or will have.
    saved: u64,
    next: Instant,
    writer: Writer,
}

impl LeaseFile {
    /// Gives the engine the leases in the file at `path`, if there is one. A file that says nothing
    /// sensible is told of and will be replaced: it must not keep the network from guests.
    pub(crate) fn load(path: &Path, engine: &mut Engine, now: Instant) -> io::Result<Self> {
        let text = writer::read(path)?;
        let leases = if text.is_empty() { Ok(Vec::new()) } else { parse(&text) };
        let leases = leases.unwrap_or_else(|error| {
            eprintln!("vmlan: {}: {error}; guests get new addresses", path.display());
            Vec::new()
        });
        for ((ip, mac), order) in leases.into_iter().zip(0..) {
            let until = now + KEPT + Duration::from_secs(order);
            engine.restore_lease(SavedLease { ip, mac, until }, now);
        }
        let saved = engine.lease_changes();
        Ok(Self { saved, next: now, writer: Writer::new(path, "leases are not saved") })
    }

    /// Saves the engine's leases if they have changed and it is time.
    pub(crate) fn update(&mut self, engine: &Engine, now: Instant) {
        if self.next_timeout(engine).is_some_and(|at| at <= now) {
            self.save(engine, now);
        }
    }

    /// When [`LeaseFile::update`] has to be called.
    pub(crate) fn next_timeout(&self, engine: &Engine) -> Option<Instant> {
        (engine.lease_changes() != self.saved).then_some(self.next)
    }

    /// Saves what has changed and waits until it is on the disk.
    pub(crate) fn finish(mut self, engine: &Engine, now: Instant) {
        if self.next_timeout(engine).is_some() {
            self.save(engine, now);
        }
        self.writer.finish();
    }

    fn save(&mut self, engine: &Engine, now: Instant) {
        self.saved = engine.lease_changes();
        self.next = now + PAUSE;
        self.writer.put(text(&engine.remembered_leases()));
    }
}

fn text(leases: &[(IpAddr, Mac)]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut json = serde_json::Serializer::pretty(&mut text);
    let members = leases.iter().map(|(ip, mac)| (ip, show_mac(*mac)));
    // Writing to memory cannot fail, and the keys are strings.
    let _ = json.collect_map(members);
    text.push(b'\n');
    text
}

/// The leases in the file's order. A member that is no lease is left out.
fn parse(text: &[u8]) -> serde_json::Result<Vec<(IpAddr, Mac)>> {
    struct Members;

    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(IpAddr, Mac)>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of MAC addresses by IP address")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut leases = Vec::new();
            while let Some((ip, mac)) = map.next_entry::<String, String>()? {
                if let (Ok(ip), Ok(mac)) = (ip.parse(), parse_mac(&mac)) {
                    leases.push((ip, mac));
                }
            }
            Ok(leases)
        }
    }

    let mut json = serde_json::Deserializer::from_slice(text);
    let leases = json.deserialize_map(Members)?;
    json.end().map(|()| leases)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn engine() -> Engine {
        let config = crate::network("192.168.5.0/24".parse().unwrap(), None).unwrap();
        Engine::new(config, Instant::ZERO)
    }

    fn addresses(engine: &Engine) -> Vec<String> {
        engine.remembered_leases().iter().map(|(ip, _)| ip.to_string()).collect()
    }

    #[test]
    fn leases_come_back_as_they_went() {
        let leases = [
            ("fd76:6d6c:c0a8:500::15".parse().unwrap(), Mac([0x52, 0x54, 0, 0xab, 1, 2])),
            ("192.168.5.15".parse().unwrap(), Mac([0x52, 0x54, 0, 0xab, 1, 2])),
        ];
        let json = text(&leases);
        assert_eq!(parse(&json).unwrap(), leases);
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(value["192.168.5.15"], "52:54:00:ab:01:02");
        for bad in ["", "[]", "{", r#"{"192.168.5.15": 5}"#, "{} {}"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn leases_go_through_the_file_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        // Lima writes it in one line, with addresses that are not this network's.
        let lima = r#"{"192.168.5.21":"52:54:00:00:00:02","192.168.5.20":"52:54:00:00:00:01",
                      "192.168.9.9":"52:54:00:00:00:03","192.168.5.22":"nonsense"}"#;
        fs::write(&path, lima).unwrap();
        fs::write(dir.path().join("leases.json.new"), "half").unwrap();
        let mut first = engine();
        let before = fs::metadata(&path).unwrap().ino();
        let mut file = LeaseFile::load(&path, &mut first, Instant::ZERO).unwrap();
        let want = ["192.168.5.21", "192.168.5.20"];
        assert_eq!(addresses(&first), want);
        // Nothing has changed since, and so nothing is written.
        file.update(&first, Instant::ZERO);
        file.writer.finish();
        assert_eq!(fs::metadata(&path).unwrap().ino(), before);
        file.saved = 0;
        file.finish(&first, Instant::ZERO);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
        let mut second = engine();
        LeaseFile::load(&path, &mut second, Instant::ZERO).unwrap();
        assert_eq!(addresses(&second), want);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_broken_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        fs::write(&path, "192.168.5.20 52:54:00:00:00:01 9\n").unwrap();
        let mut engine = engine();
        let file = LeaseFile::load(&path, &mut engine, Instant::ZERO).unwrap();
        assert!(addresses(&engine).is_empty());
        engine.assign(Mac([2, 0, 0, 0, 0, 1]), None, None, Instant::ZERO).unwrap();
        file.finish(&engine, Instant::ZERO);
        assert_eq!(parse(&fs::read(&path).unwrap()).unwrap().len(), 2);
    }
}
