//! What a network's daemon tells, as `vmlan network show` prints it.

use std::collections::BTreeMap;
use std::fmt::Write;

use vmlan_api::network::{Daemon, Guest, Network, Traffic};

use crate::units;

/// The rows of a running network, below those of its configuration.
pub(super) fn text(network: &Network) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<12}{value}");
    };
    row("daemon", &daemon(&network.daemon));
    for warning in &network.daemon.warnings {
        row("warning", warning);
    }
    row("mtu", &network.mtu.to_string());
    let flows = &network.flows;
    row("flows", &format!("{} tcp, {} udp, {} ping", flows.tcp, flows.udp, flows.ping));
    let (from, to) = (network.counters.from_guests, network.counters.to_guests);
    row("traffic", &format!("{} from guests, {} to guests", amount(from), amount(to)));
    if !network.counters.dropped.is_empty() {
        row("dropped", &drops(&network.counters.dropped));
    }
    for forward in &network.forwards {
        let keep = if forward.keep_source { ",source=keep" } else { "" };
        let guest = forward.guest.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let (protocol, listen, target) = (&forward.protocol, &forward.listen, &forward.target);
        row("forward", &format!("{protocol} {listen} to {target}{keep}{guest}"));
    }
    for guest in &network.guests {
        row("guest", &shown(guest));
    }
    out
}

fn daemon(daemon: &Daemon) -> String {
    let Daemon { pid, version, since, held, .. } = daemon;
    let state = if daemon.warnings.is_empty() { "well" } else { "not well" };
    let held = if *held { ", held" } else { "" };
    let slow = daemon.longest_pass_micros;
    let since = units::since(*since);
    format!("{state}, pid {pid}, version {version}, since {since}{held}, longest pass {slow} us")
}

fn shown(guest: &Guest) -> String {
    let addresses: Vec<_> = guest.addresses.iter().map(ToString::to_string).collect();
    let mut parts = vec![guest.name.as_deref().unwrap_or("(no name)").to_owned()];
    parts.extend(addresses);
    parts.extend(guest.macs.iter().cloned());
    parts.push(format!("{} since {}", guest.link, units::since(guest.since)));
    parts.push(format!("{} sent, {} received", amount(guest.from_guest), amount(guest.to_guest)));
    if guest.flows > 0 {
        parts.push(format!("{} flows", guest.flows));
    }
    if !guest.dropped.is_empty() {
        parts.push(format!("dropped {}", drops(&guest.dropped)));
    }
    parts.join(", ")
}

fn amount(traffic: Traffic) -> String {
    format!("{} in {} frames", units::bytes(traffic.bytes), traffic.frames)
}

fn drops(dropped: &BTreeMap<String, u64>) -> String {
    let all = dropped.iter().map(|(reason, count)| format!("{count} {reason}"));
    all.collect::<Vec<_>>().join(", ")
}
