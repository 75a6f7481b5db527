//! What the host agent tells while it works: a line of JSON for each event, as Lima's does, so that
//! whoever follows its log knows what it means.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub time: String,
    pub status: Status,
}

/// What is so since the event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// The machine answers by ssh.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub running: bool,
    /// It does, but something of it is missing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub degraded: bool,
    /// The host agent ends.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exiting: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub ssh_local_port: u16,
    /// A step on the way, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Something that people should know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_forward: Option<PortForward>,
}

/// What has become of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortForward {
    /// `forwarding`, `stopping` or `failed`.
    #[serde(rename = "type")]
    pub kind: String,
    pub protocol: String,
    pub guest_addr: String,
    pub host_addr: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(port: &u16) -> bool {
    *port == 0
}

/// Where events are written.
#[derive(Debug)]
pub struct Events(Mutex<File>);

impl Events {
    pub fn new(file: File) -> Self {
        Self(Mutex::new(file))
    }

    pub fn tell(&self, status: Status) {
        let event = Event { time: rfc3339(SystemTime::now()), status };
        let Ok(mut line) = serde_json::to_string(&event) else { return };
        line.push('\n');
        if let Ok(mut file) = self.0.lock() {
            // A full disk must not stop the machine.
            let _ = file.write_all(line.as_bytes());
        }
    }
}

/// Reads events as they are written.
#[derive(Debug)]
pub struct Follower {
    file: File,
    rest: Vec<u8>,
}

impl Follower {
    /// From the beginning of the log.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, rest: Vec::new() })
    }

    /// The events since the last call. What is no event is passed over.
    pub fn read(&mut self) -> io::Result<Vec<Event>> {
        self.file.read_to_end(&mut self.rest)?;
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            events.extend(serde_json::from_slice::<Event>(&line));
        }
        Ok(events)
    }
}

/// UTC, as RFC 3339 writes it.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (days, of_day) = (seconds / 86400, seconds % 86400);
    // Years that begin in March, so that a leap day is the last of one; 400 of them are 146097 days.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59.000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn a_follower_reads_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ha.stdout.log");
        let events = Events::new(File::create(&path).unwrap());
        let mut follower = Follower::open(&path).unwrap();
        assert_eq!(follower.read().unwrap(), []);
        let status = Status { running: true, ssh_local_port: 60022, ..Status::default() };
        events.tell(status.clone());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""status":{"running":true,"sshLocalPort":60022}"#), "{text}");
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"nonsense\n{\"time\":\"\",\"status\":{\"exi").unwrap();
        assert_eq!(follower.read().unwrap()[0].status, status);
        file.write_all(b"ting\":true}}\n").unwrap();
        assert!(follower.read().unwrap()[0].status.exiting);
    }
}
