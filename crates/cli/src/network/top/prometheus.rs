//! A snapshot in Prometheus' text format, version 0.0.4.

use std::fmt::Write;

use vmlan_api::network::{Guest, Network};

use super::{Seen, Snapshot};

/// The samples of one metric.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: Vec<(Vec<(&'static str, String)>, f64)>,
}

pub(super) fn text(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    for metric in metrics(snapshot).into_iter().filter(|metric| !metric.samples.is_empty()) {
        let Metric { name, kind, help, samples } = metric;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let labels = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value)));
            let _ = writeln!(out, "{name}{{{}}} {value}", labels.collect::<Vec<_>>().join(","));
        }
    }
    out
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn metrics(snapshot: &Snapshot) -> Vec<Metric> {
    let mut metrics = networks(snapshot);
    metrics.extend(guests(snapshot));
    metrics
}

/// One sample for each network.
fn each(
    snapshot: &Snapshot,
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: impl Fn(&Network) -> f64,
) -> Metric {
    let samples = snapshot
        .networks
        .iter()
        .map(|Seen { name, network }| (vec![("network", name.clone())], value(network)));
    Metric { name, kind, help, samples: samples.collect() }
}

/// Several samples for each network, told apart by one more label.
fn by(
    snapshot: &Snapshot,
    (name, kind, help): (&'static str, &'static str, &'static str),
    label: &'static str,
    values: impl Fn(&Network) -> Vec<(String, u64)>,
) -> Metric {
    let samples = snapshot.networks.iter().flat_map(|Seen { name, network }| {
        let values = values(network).into_iter();
        values.map(|(key, n)| (vec![("network", name.clone()), (label, key)], float(n)))
    });
    Metric { name, kind, help, samples: samples.collect() }
}

#[rustfmt::skip]
fn networks(s: &Snapshot) -> Vec<Metric> {
    let pair = |names: [&str; 2], values: [u64; 2]| {
        names.map(String::from).into_iter().zip(values).collect::<Vec<_>>()
    };
    let triple = |values: [u64; 3]| {
        ["tcp", "udp", "ping"].map(String::from).into_iter().zip(values).collect::<Vec<_>>()
    };
    let directions = ["from_guests", "to_guests"];
    vec![
        each(s, "vmlan_start_time_seconds", "gauge", "When the network's daemon started, in Unix time.",
             |n| float(n.daemon.since)),
        each(s, "vmlan_warnings", "gauge", "What is not as it should be with the daemon.",
             |n| float(n.daemon.warnings.len() as u64)),
        each(s, "vmlan_loop_passes_total", "counter", "Times that the daemon's loop has gone round.",
             |n| float(n.daemon.passes)),
        each(s, "vmlan_loop_busy_seconds_total", "counter", "Time that the loop has worked.",
             |n| float(n.daemon.busy_micros) / 1e6),
        each(s, "vmlan_loop_longest_pass_seconds", "gauge", "The longest pass of the last 10 to 20 seconds.",
             |n| float(n.daemon.longest_pass_micros) / 1e6),
        each(s, "vmlan_guests", "gauge", "Guests that are attached.", |n| float(n.guests.len() as u64)),
        each(s, "vmlan_leases", "gauge", "Addresses that are kept for cards.", |n| float(n.leases.len() as u64)),
        each(s, "vmlan_forwards", "gauge", "Ports of the host that lead to guests.",
             |n| float(n.forwards.len() as u64)),
        by(s, ("vmlan_flows", "gauge", "Connections and the like that there are now."), "protocol",
           |n| triple([n.flows.tcp, n.flows.udp, n.flows.ping])),
        by(s, ("vmlan_flows_opened_total", "counter", "Connections and the like that there were."), "protocol",
           |n| triple([n.counters.tcp_opened, n.counters.udp_opened, n.counters.ping_opened])),
        each(s, "vmlan_tcp_closed_total", "counter", "TCP connections that have ended.",
             |n| float(n.counters.tcp_closed)),
        each(s, "vmlan_tcp_retransmits_total", "counter", "Segments that were sent to guests again.",
             |n| float(n.counters.tcp_retransmits)),
        each(s, "vmlan_dns_queries_total", "counter", "Questions to the name server.",
             |n| float(n.counters.dns_queries)),
        by(s, ("vmlan_frames_total", "counter", "Frames of all guests."), "direction",
           |n| pair(directions, [n.counters.from_guests.frames, n.counters.to_guests.frames])),
        by(s, ("vmlan_bytes_total", "counter", "Bytes of all guests' frames."), "direction",
           |n| pair(directions, [n.counters.from_guests.bytes, n.counters.to_guests.bytes])),
        by(s, ("vmlan_dropped_total", "counter", "What was dropped, by reason."), "reason",
           |n| n.counters.dropped.iter().map(|(reason, count)| (reason.clone(), *count)).collect()),
    ]
}

fn guests(snapshot: &Snapshot) -> Vec<Metric> {
    let metric = |name, kind, help, values: Values<'_>| {
        let samples = snapshot.networks.iter().flat_map(|Seen { name, network }| {
            network.guests.iter().flat_map(move |guest| {
                values(guest).into_iter().map(move |(label, value)| {
                    let mut labels = vec![
                        ("network", name.clone()),
                        ("guest", guest.name.clone().unwrap_or_default()),
                        ("mac", guest.macs.first().cloned().unwrap_or_default()),
                        ("port", guest.port.to_string()),
                    ];
                    labels.extend(label);
                    (labels, float(value))
                })
            })
        });
        Metric { name, kind, help, samples: samples.collect() }
    };
    let directions = |from: u64, to: u64| {
        let label = |direction: &str| Some(("direction", direction.to_owned()));
        vec![(label("from_guest"), from), (label("to_guest"), to)]
    };
    vec![
        metric(
            "vmlan_guest_start_time_seconds",
            "gauge",
            "When the guest was attached, in Unix time.",
            &|g| vec![(None, g.since)],
        ),
        metric("vmlan_guest_frames_total", "counter", "Frames of the guest.", &|g| {
            directions(g.from_guest.frames, g.to_guest.frames)
        }),
        metric("vmlan_guest_bytes_total", "counter", "Bytes of the guest's frames.", &|g| {
            directions(g.from_guest.bytes, g.to_guest.bytes)
        }),
        metric("vmlan_guest_flows", "gauge", "Connections and the like of the guest's.", &|g| {
            vec![(None, g.flows)]
        }),
        metric(
            "vmlan_guest_dropped_total",
            "counter",
            "What was dropped of what the guest sent, by reason.",
            &|g| {
                let dropped = g.dropped.iter();
                dropped.map(|(reason, n)| (Some(("reason", reason.clone())), *n)).collect()
            },
        ),
    ]
}

type Label = (&'static str, String);

/// The samples of a guest, with the label that tells them apart.
type Values<'a> = &'a dyn Fn(&Guest) -> Vec<(Option<Label>, u64)>;

/// Above 2^53, one more or less is not seen.
#[expect(clippy::cast_precision_loss, reason = "samples are floating point numbers")]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::time::Instant;

    use super::super::table::tests::snapshot;
    use super::*;

    /// A sample's metric, labels and value.
    type Sample = (String, BTreeMap<String, String>, f64);

    /// A strict reader of the format.
    fn parse(text: &str) -> Vec<Sample> {
        assert!(text.is_empty() || text.ends_with('\n'));
        let is_name = |name: &str| {
            let ok = |c: char| c.is_ascii_alphanumeric() || c == '_';
            !name.is_empty() && name.chars().all(ok) && !name.starts_with(|c: char| c.is_numeric())
        };
        let (mut seen, mut current, mut samples) = (HashSet::new(), String::new(), Vec::new());
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, text) = help.split_once(' ').unwrap();
                assert!(is_name(name) && !text.contains('\\'));
                let kind = lines.next().unwrap().strip_prefix("# TYPE ").unwrap();
                let (typed, kind) = kind.split_once(' ').unwrap();
                assert_eq!(typed, name);
                assert!(["counter", "gauge"].contains(&kind));
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                assert!(seen.insert(name.to_owned()), "{name} twice");
                current = name.to_owned();
                continue;
            }
            let (name, rest) = line.split_once('{').unwrap();
            assert_eq!(name, current, "a sample outside its metric");
            let mut labels = BTreeMap::new();
            let mut rest = rest;
            loop {
                let (label, after) = rest.split_once("=\"").unwrap();
                assert!(is_name(label));
                let mut value = String::new();
                let mut chars = after.char_indices();
                let end = loop {
                    match chars.next().unwrap() {
                        (at, '"') => break at + 1,
                        (_, '\\') => value.push(match chars.next().unwrap().1 {
                            'n' => '\n',
                            c @ ('"' | '\\') => c,
                            c => panic!("escape {c}"),
                        }),
                        (_, c) => value.push(c),
                    }
                };
                assert!(labels.insert(label.to_owned(), value).is_none());
                rest = &after[end..];
                match rest.strip_prefix(',') {
                    Some(more) => rest = more,
                    None => break,
                }
            }
            let value = rest.strip_prefix("} ").unwrap().parse().unwrap();
            samples.push((name.to_owned(), labels, value));
        }
        let mut keys = HashSet::new();
        assert!(samples.iter().all(|(name, labels, _)| keys.insert(format!("{name}{labels:?}"))));
        samples
    }

    #[test]
    fn a_strict_reader_understands_it() {
        let mut snapshot = snapshot(1024, Instant::now());
        snapshot.networks[0].name = "a \"b\" \\ c\nd".into();
        let samples = parse(&text(&snapshot));
        let find = |name: &str, label: (&str, &str)| {
            let found = samples.iter().find(|(n, labels, _)| {
                n == name && labels.get(label.0).map(String::as_str) == Some(label.1)
            });
            found.unwrap_or_else(|| panic!("{name} {label:?}")).2
        };
        assert_eq!(find("vmlan_loop_busy_seconds_total", ("network", "a \"b\" \\ c\nd")), 1.5);
        assert_eq!(find("vmlan_guest_bytes_total", ("guest", "web")), 1024.0);
        assert_eq!(find("vmlan_guest_dropped_total", ("reason", "spoofed")), 4.0);
        assert_eq!(find("vmlan_flows", ("protocol", "ping")), 3.0);
        snapshot.networks.clear();
        assert_eq!(text(&snapshot), "");
    }
}
