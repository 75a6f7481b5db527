//! A snapshot as lines of text: for each network what it is, then its guests, the busiest first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use vmlan_api::network::{Guest, Network};

use super::{Seen, Snapshot};
use crate::units;

const COLUMNS: [&str; 9] =
    ["GUEST", "ADDRESS", "LINK", "UP", "SENDS", "RECEIVES", "SENT", "RECEIVED", "FLOWS"];

/// Lines that end with a newline. Rates are those since `before`.
pub(super) fn lines(now: &Snapshot, before: Option<&Snapshot>) -> Vec<String> {
    if now.networks.is_empty() {
        return vec!["no network has a daemon now\n".into()];
    }
    let blocks = now.networks.iter().map(|seen| {
        let before = before.and_then(|before| before.earlier(seen, now.at));
        block(seen, before)
    });
    let mut lines = Vec::new();
    for block in blocks {
        if !lines.is_empty() {
            lines.push("\n".to_owned());
        }
        lines.extend(block);
    }
    lines
}

fn block(seen: &Seen, before: Option<(&Network, Duration)>) -> Vec<String> {
    let Seen { name, network } = seen;
    let Network { daemon, flows, guests, leases, forwards, counters, .. } = network;
    let state = if daemon.warnings.is_empty() { "well" } else { "not well" };
    let mut lines = vec![
        format!(
            "{name}  {}  {state}  pid {}  up {}  longest pass {} us\n",
            network.subnet,
            daemon.pid,
            units::since(daemon.since),
            daemon.longest_pass_micros,
        ),
        format!(
            "{}, {} tcp {} udp {} ping, {}, {}\n",
            count(guests.len(), "guest"),
            flows.tcp,
            flows.udp,
            flows.ping,
            count(leases.len(), "lease"),
            count(forwards.len(), "forward"),
        ),
    ];
    lines.extend(daemon.warnings.iter().map(|warning| format!("warning: {warning}\n")));
    if !counters.dropped.is_empty() {
        lines.push(format!("dropped: {}\n", drops(&counters.dropped)));
    }
    if guests.is_empty() {
        return lines;
    }
    let mut rows: Vec<_> = guests.iter().map(|guest| row(guest, before)).collect();
    rows.sort_by(|(a, _), (b, _)| b.cmp(a));
    let mut cells = vec![COLUMNS.map(String::from)];
    cells.extend(rows.into_iter().map(|(_, row)| row));
    let width = |i: usize| cells.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
    for row in &cells {
        let padded = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            // Amounts are read from their right ends.
            if column < 3 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        lines.push(padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n");
    }
    let dropped = guests.iter().filter(|guest| !guest.dropped.is_empty());
    lines.extend(dropped.map(|g| format!("dropped of {}: {}\n", called(g), drops(&g.dropped))));
    lines
}

/// How busy a guest is, and its cells.
fn row(guest: &Guest, before: Option<(&Network, Duration)>) -> (u64, [String; COLUMNS.len()]) {
    let rates = before.and_then(|(network, elapsed)| {
        let same = |old: &&Guest| (old.port, old.since) == (guest.port, guest.since);
        let old = network.guests.iter().find(same)?;
        let rate = |now: u64, before: u64| rate(now.saturating_sub(before), elapsed);
        let from = rate(guest.from_guest.bytes, old.from_guest.bytes);
        Some((from, rate(guest.to_guest.bytes, old.to_guest.bytes)))
    });
    let shown = |rate: Option<u64>| rate.map_or_else(|| "-".into(), |r| units::bytes(r) + "/s");
    let address = guest.addresses.iter().min_by_key(|ip| ip.is_ipv6());
    let cells = [
        called(guest),
        address.map_or_else(|| "-".into(), IpAddr::to_string),
        guest.link.clone(),
        units::since(guest.since),
        shown(rates.map(|(from, _)| from)),
        shown(rates.map(|(_, to)| to)),
        units::bytes(guest.from_guest.bytes),
        units::bytes(guest.to_guest.bytes),
        guest.flows.to_string(),
    ];
    (rates.map_or(0, |(from, to)| from + to), cells)
}

/// Bytes in a second.
fn rate(bytes: u64, elapsed: Duration) -> u64 {
    let millis = elapsed.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / millis).unwrap_or(u64::MAX)
}

/// A guest without a name is known by its card.
fn called(guest: &Guest) -> String {
    let card = || guest.macs.first().cloned();
    guest.name.clone().or_else(card).unwrap_or_else(|| format!("port {}", guest.port))
}

fn drops(dropped: &BTreeMap<String, u64>) -> String {
    let all = dropped.iter().map(|(reason, count)| format!("{count} {reason}"));
    all.collect::<Vec<_>>().join(", ")
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    /// A network with a guest that has a name and one that has none.
    pub(in super::super) fn snapshot(sent: u64, at: Instant) -> Snapshot {
        let guest = |port: u16, name: Option<&str>, bytes: u64| {
            json!({
                "port": port, "name": name, "macs": [format!("52:54:00:00:00:0{port}")],
                "addresses": [format!("fd00::{port}"), format!("10.71.0.{port}")], "link": "tap",
                "since": 1, "fromGuest": {"frames": 1, "bytes": bytes},
                "toGuest": {"frames": 2, "bytes": 3}, "dropped": {"spoofed": port}, "flows": 4,
            })
        };
        let network = json!({
            "subnet": "10.71.0.0/24", "ipv6": "fd00::/64", "gateway": "10.71.0.1",
            "host": "10.71.0.2", "dns": "10.71.0.3", "mtu": 1500,
            "daemon": {
                "pid": 7, "version": "1.2.3", "since": 1, "held": false, "passes": 5,
                "busyMicros": 1_500_000, "longestPassMicros": 20, "warnings": ["slow"],
            },
            "guests": [guest(4, None, 100), guest(5, Some("web"), sent)],
            "leases": [], "forwards": [], "flows": {"tcp": 1, "udp": 2, "ping": 3},
            "counters": {
                "fromGuests": {"frames": 1, "bytes": 2}, "toGuests": {"frames": 3, "bytes": 4},
                "tcpOpened": 5, "tcpClosed": 6, "tcpRetransmits": 7, "udpOpened": 8,
                "pingOpened": 9, "dnsQueries": 10, "dropped": {"spoofed": 9},
            },
        });
        let network = serde_json::from_value(network).unwrap();
        Snapshot { time: 9, networks: vec![Seen { name: "lab".into(), network }], at }
    }

    #[test]
    fn the_busiest_comes_first_and_rates_are_those_since_the_last_look() {
        let start = Instant::now();
        let (before, now) = (snapshot(1024, start), snapshot(5120, start + Duration::from_secs(2)));
        let text = lines(&now, Some(&before)).concat();
        let row = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect::<Vec<_>>()
        };
        let web = row("web");
        assert_eq!(web[..3], ["web", "10.71.0.5", "tap"]);
        assert_eq!(web[4..], ["2.0 KiB/s", "0 B/s", "5.0 KiB", "3 B", "4"]);
        assert_eq!(row("52:54")[4], "0 B/s");
        assert!(text.find("web").unwrap() < text.find("52:54").unwrap(), "{text}");
        assert!(text.contains("2 guests, 1 tcp 2 udp 3 ping, 0 leases, 0 forwards"), "{text}");
        assert!(text.contains("dropped of web: 5 spoofed") && text.contains("warning: slow"));
        // Another daemon under the same name has no past.
        let mut other = snapshot(1, start);
        other.networks[0].network.daemon.pid = 8;
        assert!(!lines(&now, Some(&other)).concat().contains("B/s"));
    }
}
