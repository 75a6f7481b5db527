//! The network as the control API shows it.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmlan_api::network::{Counters, Daemon, Flows, Forward, Guest, Lease, Network, Traffic};
use vmlan_api::zone::Zone;
use vmlan_api::{Flow, ForwardEntry, Leases, MacTable, Stats, colons, listen_text, protocol_name};
use vmlan_engine::{Drop, PortId};
use vmlan_wire::Mac;

use crate::core::{Core, GuestInfo};
use crate::ports::PortView;

/// A pass that is longer than this is felt by guests.
const LONG_PASS: Duration = Duration::from_millis(100);

pub(super) fn stats(core: &Core) -> Stats {
    let s = core.engine.stats();
    Stats {
        bytes_sent: s.bytes_out,
        bytes_received: s.bytes_in,
        frames_sent: s.frames_out,
        frames_received: s.frames_in,
        tcp_opened: s.tcp_opened,
        tcp_closed: s.tcp_closed,
        tcp_retransmits: s.tcp_retransmits,
        udp_opened: s.udp_opened,
        ping_opened: s.ping_opened,
        dns_queries: s.dns_queries,
        dropped: named(s.all_dropped()),
    }
}

pub(super) fn mac_table(core: &Core) -> MacTable {
    core.engine.mac_table().into_iter().map(|(mac, port)| (colons(mac), port.0)).collect()
}

pub(super) fn leases(core: &Core) -> Leases {
    known(core).into_iter().map(|lease| (lease.ip, colons(lease.mac))).collect()
}

/// The addresses of guests, but for what they were given and are not known to use.
fn known(core: &Core) -> Vec<vmlan_engine::snapshot::Lease> {
    let autoconf: HashSet<Mac> =
        core.guests.iter().filter(|guest| guest.autoconf).map(|guest| guest.mac).collect();
    let mut leases = core.engine.leases();
    leases.retain(|lease| lease.used || lease.ip.is_ipv4() || !autoconf.contains(&lease.mac));
    leases
}

pub(super) fn flows(core: &Core) -> Vec<Flow> {
    let flows = core.engine.flows().into_iter().map(|flow| Flow {
        protocol: flow.protocol.into(),
        guest: flow.guest.to_string(),
        remote: flow.remote.map(|remote| remote.to_string()),
        state: flow.state.into(),
    });
    flows.collect()
}

pub(super) fn zones(core: &mut Core) -> Vec<Zone> {
    core.sockets.resolver().names_mut().zones().map(Zone::from).collect()
}

pub(super) fn forwards(core: &Core) -> Vec<ForwardEntry> {
    let entries = core.engine.forwards().map(|(id, forward)| {
        let label = core.labels.get(&id).and_then(|label| label.local.clone());
        let local = label.unwrap_or_else(|| listen_text(&forward.listen));
        let protocol = protocol_name(&forward.listen).into();
        ForwardEntry { local, remote: forward.guest.to_string(), protocol }
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by(|a, b| (&a.local, &a.protocol).cmp(&(&b.local, &b.protocol)));
    entries
}

pub(super) fn all_forwards(core: &Core) -> Vec<Forward> {
    let named = |id| {
        let mac = core.labels.get(&id)?.guest?;
        core.guests.iter().find(|guest| guest.mac == mac)?.name.clone()
    };
    let owner = |ip: IpAddr| {
        core.guests.iter().find(|guest| guest.addresses().any(|a| a == ip))?.name.clone()
    };
    let forwards = core.engine.forwards().map(|(id, forward)| Forward {
        protocol: protocol_name(&forward.listen).into(),
        listen: listen_text(&forward.listen),
        target: forward.guest.to_string(),
        keep_source: forward.keep_source,
        guest: named(id).or_else(|| owner(forward.guest.ip())),
    });
    let mut forwards: Vec<_> = forwards.collect();
    forwards.sort_by(|a, b| (&a.listen, &a.protocol).cmp(&(&b.listen, &b.protocol)));
    forwards
}

pub(super) fn network(core: &mut Core) -> Network {
    let daemon = daemon(core);
    let config = core.engine.config();
    let mut counts = Flows::default();
    for flow in core.engine.flows() {
        match flow.protocol {
            "tcp" => counts.tcp += 1,
            "udp" => counts.udp += 1,
            _ => counts.ping += 1,
        }
    }
    Network {
        subnet: config.ipv4.to_string(),
        ipv6: format!("{}/64", config.ipv6.prefix),
        gateway: config.router().ipv4,
        host: config.router.map_or(config.host, |router| router.ipv4),
        dns: config.dns,
        mtu: config.mtu,
        daemon,
        guests: guests(core),
        leases: saved_leases(core),
        forwards: all_forwards(core),
        flows: counts,
        counters: counters(core),
    }
}

pub(super) fn guests(core: &Core) -> Vec<Guest> {
    let addresses = known(core);
    let macs = core.engine.mac_table();
    let mut flows: BTreeMap<IpAddr, u64> = BTreeMap::new();
    for flow in core.engine.flows() {
        *flows.entry(flow.guest.ip()).or_default() += 1;
    }
    let guests = core.ports.views().map(|PortView { port, kind, since, traffic }| {
        let info = core.guests.iter().find(|guest| guest.port == port);
        let mut addresses: Vec<_> =
            addresses.iter().filter(|l| l.port == port).map(|l| l.ip).collect();
        addresses.extend(info.into_iter().flat_map(GuestInfo::addresses));
        addresses.sort();
        addresses.dedup();
        let flows = addresses.iter().filter_map(|ip| flows.get(ip)).sum();
        let mut behind: Vec<_> = of_port(&macs, port).collect();
        behind.extend(info.map(|guest| colons(guest.mac)));
        behind.sort();
        behind.dedup();
        Guest {
            port: port.0,
            name: info
                .and_then(|guest| guest.name.clone())
                .or_else(|| core.lease_names.of(port).map(ToOwned::to_owned)),
            macs: behind,
            addresses,
            link: kind.name().into(),
            since: unix(SystemTime::now()).saturating_sub(since.elapsed()).as_secs(),
            from_guest: amount(traffic.from_guest),
            to_guest: amount(traffic.to_guest),
            dropped: named(&traffic.dropped),
            flows,
        }
    });
    let mut guests: Vec<_> = guests.collect();
    guests.sort_by_key(|guest| guest.port);
    guests
}

fn of_port(macs: &[(Mac, PortId)], port: PortId) -> impl Iterator<Item = String> {
    macs.iter().filter(move |(_, at)| *at == port).map(|(mac, _)| colons(*mac))
}

fn daemon(core: &mut Core) -> Daemon {
    let now = core.clock.now();
    let longest_pass_micros = core.pulse.longest_micros(now);
    let mut warnings = Vec::new();
    if Duration::from_micros(longest_pass_micros) > LONG_PASS {
        let millis = longest_pass_micros / 1000;
        warnings.push(format!("guests have lately had to wait for {millis} ms"));
    }
    let (open_files, file_limit) = (open_files(), file_limit());
    if let (Some(open), Some(limit)) = (open_files, file_limit)
        && open > limit / 10 * 9
    {
        warnings.push(format!("{open} of {limit} descriptors are in use"));
    }
    if core.engine.ping_unsupported() {
        warnings.push("guests cannot ping: see net.ipv4.ping_group_range".into());
    }
    Daemon {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        since: unix(SystemTime::now())
            .saturating_sub(Duration::from_micros(now.micros()))
            .as_secs(),
        held: core.held,
        passes: core.pulse.passes,
        busy_micros: core.pulse.busy_micros,
        longest_pass_micros,
        open_files,
        file_limit,
        warnings,
    }
}

fn saved_leases(core: &Core) -> Vec<Lease> {
    let now = core.clock.now();
    let unix = unix(SystemTime::now());
    let leases = core.engine.saved_leases().into_iter().map(|lease| Lease {
        address: lease.ip,
        mac: colons(lease.mac),
        until: (unix + lease.until.since(now)).as_secs(),
    });
    let mut leases: Vec<_> = leases.collect();
    leases.sort_by_key(|lease| lease.address);
    leases
}

fn counters(core: &Core) -> Counters {
    let s = core.engine.stats();
    Counters {
        from_guests: amount((s.frames_in, s.bytes_in)),
        to_guests: amount((s.frames_out, s.bytes_out)),
        tcp_opened: s.tcp_opened,
        tcp_closed: s.tcp_closed,
        tcp_retransmits: s.tcp_retransmits,
        udp_opened: s.udp_opened,
        ping_opened: s.ping_opened,
        dns_queries: s.dns_queries,
        dropped: named(s.all_dropped()),
    }
}

fn amount((frames, bytes): (u64, u64)) -> Traffic {
    Traffic { frames, bytes }
}

/// Only those that occurred.
fn named(dropped: &[u64; Drop::ALL.len()]) -> BTreeMap<String, u64> {
    let all = Drop::ALL.iter().zip(dropped).filter(|(_, count)| **count > 0);
    all.map(|(reason, count)| (reason.name().into(), *count)).collect()
}

fn unix(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Linux tells how many there are since 6.2; before, the directory's size is 0.
fn open_files() -> Option<u64> {
    std::fs::metadata("/proc/self/fd").ok().map(|meta| meta.len()).filter(|len| *len > 0)
}

fn file_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}
