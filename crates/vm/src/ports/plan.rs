//! Which ports there ought to be: the rules, applied to what listens. Deterministic, without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use vmlan_agent::message::{Listener, MAX_LISTENERS, Proto, Target};
use vmlan_config::instance::forwards::{Forwards, Proto as RuleProto, Verdict};

use super::Local;

/// Where in the guest a port leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The network reaches it.
    Direct(SocketAddr),
    /// The agent has to lift it.
    Lifted(Target),
}

/// A port that there ought to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// What the user calls the guest's end.
    pub(super) guest: Target,
    pub(super) place: Place,
    rank: Rank,
}

/// Of several listeners for one port of the host, the least has it: none that is only there to have
/// `localhost` in both families, none of the other family, none by detour.
type Rank = (bool, bool, Place, SocketAddr);

/// All of them, in the order in which they are opened.
pub(super) fn plan(
    forwards: &Forwards,
    guest: Ipv4Addr,
    listeners: &[Listener],
) -> BTreeMap<Local, Wanted> {
    let mut all = BTreeMap::new();
    for sockets in forwards.sockets.iter().filter(|sockets| !sockets.reverse) {
        // A path that is no text can be said to no agent.
        let Some(path) = sockets.guest.to_str() else { continue };
        let target = Target::Unix(path.to_owned());
        let place = Place::Lifted(target.clone());
        let rank = (false, false, place.clone(), SocketAddr::from((guest, 0)));
        let wanted = Wanted { guest: target, place, rank };
        all.insert(Local::Unix(sockets.host.clone()), wanted);
    }
    for listener in listeners.iter().take(MAX_LISTENERS) {
        let udp = listener.proto == Proto::Udp;
        let verdict = forwards.decide(udp, listener.at);
        add(&mut all, &verdict, udp, listener.at, &place(listener, guest));
    }
    for (port, proto, verdict) in forwards.fixed() {
        for (udp, other) in [(false, RuleProto::Udp), (true, RuleProto::Tcp)] {
            // Nobody listens, or it would be there already: the guest says so itself.
            let at = SocketAddr::from((guest, port));
            let is_there = locals(&verdict, udp).any(|(local, _)| all.contains_key(&local));
            if proto != other && !is_there {
                add(&mut all, &verdict, udp, at, &Place::Direct(at));
            }
        }
    }
    all
}

/// What the agent has to lift.
pub(super) fn lifts(plan: &BTreeMap<Local, Wanted>) -> Vec<Target> {
    let lifts: BTreeSet<_> = plan
        .values()
        .filter_map(|wanted| match &wanted.place {
            Place::Direct(_) => None,
            Place::Lifted(target) => Some(target.clone()),
        })
        .collect();
    lifts.into_iter().collect()
}

fn add(
    all: &mut BTreeMap<Local, Wanted>,
    verdict: &Verdict,
    udp: bool,
    at: SocketAddr,
    place: &Place,
) {
    for (local, is_twin) in locals(verdict, udp) {
        let other_family = match &local {
            Local::Tcp(addr) | Local::Udp(addr) => addr.is_ipv4() != at.is_ipv4(),
            Local::Unix(_) => false,
        };
        let rank = (is_twin, other_family, place.clone(), at);
        if all.get(&local).is_none_or(|other| rank < other.rank) {
            let guest = if udp { Target::Udp(at) } else { Target::Tcp(at) };
            all.insert(local, Wanted { guest, place: place.clone(), rank });
        }
    }
}

/// Where a verdict has the host listen. `localhost` is two addresses: who is reached at one of them
/// is at the other one too, if that is nobody's by a rule.
fn locals(verdict: &Verdict, udp: bool) -> impl Iterator<Item = (Local, bool)> {
    let local = move |addr| if udp { Local::Udp(addr) } else { Local::Tcp(addr) };
    let (first, twin) = match verdict {
        Verdict::Ignored => (None, None),
        // Datagrams have no way into a socket of streams.
        Verdict::Socket(_) if udp => (None, None),
        Verdict::Socket(path) => (Some(Local::Unix(path.clone())), None),
        Verdict::Port(addr) => {
            let twin = SocketAddr::from((Ipv6Addr::LOCALHOST, addr.port()));
            let has_twin = addr.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST);
            (Some(local(*addr)), has_twin.then(|| local(twin)))
        }
    };
    first.map(|local| (local, false)).into_iter().chain(twin.map(|local| (local, true)))
}

fn place(listener: &Listener, guest: Ipv4Addr) -> Place {
    let at = listener.at;
    let ip = match at.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() || ip == guest => {
            return Place::Direct((guest, at.port()).into());
        }
        IpAddr::V6(ip) if ip.is_unspecified() && listener.dual => {
            return Place::Direct((guest, at.port()).into());
        }
        // Where IPv4 may not come in, the loopback may.
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let at = SocketAddr::new(ip, at.port());
    Place::Lifted(match listener.proto {
        Proto::Tcp => Target::Tcp(at),
        Proto::Udp => Target::Udp(at),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vmlan_config::Source;
    use vmlan_config::instance::InstanceConfig;

    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 15);

    /// `LOCAL: GUEST` for each port, with `=` before what the network reaches by itself.
    fn planned(rules: &str, listeners: &[(&str, bool)]) -> Vec<String> {
        let source = Source::new("lima.yaml", format!("portForwards:\n{rules}"));
        let read = InstanceConfig::parse(&source, Path::new("/i")).expect("rules");
        let forwards = read.config.forwards.in_force(60022);
        let listeners: Vec<Listener> = listeners
            .iter()
            .map(|(at, dual)| {
                let (at, proto) = match at.strip_suffix("/udp") {
                    Some(at) => (at, Proto::Udp),
                    None => (*at, Proto::Tcp),
                };
                Listener { proto, at: at.parse().expect("an address"), dual: *dual }
            })
            .collect();
        let plan = plan(&forwards, GUEST, &listeners);
        plan.iter()
            .map(|(local, wanted)| match &wanted.place {
                Place::Direct(addr) => format!("{local}: ={addr}"),
                Place::Lifted(Target::Tcp(addr) | Target::Udp(addr)) => format!("{local}: {addr}"),
                Place::Lifted(Target::Unix(path)) => format!("{local}: {path}"),
            })
            .collect()
    }

    #[test]
    fn the_loopback_is_lifted_and_every_address_is_the_networks() {
        assert_eq!(
            planned(
                "  []",
                &[("127.0.0.1:1", false), ("0.0.0.0:2", false), ("[::1]:3/udp", false)]
            ),
            [
                "127.0.0.1:1: 127.0.0.1:1",
                "127.0.0.1:2: =192.168.5.15:2",
                "[::1]:1: 127.0.0.1:1",
                "[::1]:2: =192.168.5.15:2",
                "127.0.0.1:3/udp: [::1]:3",
                "[::1]:3/udp: [::1]:3",
            ]
        );
        assert_eq!(
            planned("- {guestPort: 1, hostIP: 10.0.0.1}", &[("[::]:1", true)]),
            ["10.0.0.1:1: =192.168.5.15:1"]
        );
        // Nobody knows whether IPv4 comes in.
        assert_eq!(
            planned("- {guestPort: 1, hostIP: 10.0.0.1}", &[("[::]:1", false)]),
            ["10.0.0.1:1: [::1]:1"]
        );
    }

    #[test]
    fn of_two_servers_the_nearer_one_has_the_port() {
        assert_eq!(
            planned("  []", &[("[::1]:1", false), ("127.0.0.1:1", false)]),
            ["127.0.0.1:1: 127.0.0.1:1", "[::1]:1: [::1]:1"]
        );
        assert_eq!(
            planned("  []", &[("[::]:1", true), ("127.0.0.1:1", false), ("0.0.0.0:1", false)]),
            ["127.0.0.1:1: =192.168.5.15:1", "[::1]:1: =192.168.5.15:1"]
        );
        // What a rule says comes before what is only there for both families.
        let rule = "- {guestPort: 2, hostIP: '::1', hostPort: 1}";
        assert_eq!(
            planned(rule, &[("127.0.0.1:1", false), ("127.0.0.1:2", false)]),
            ["127.0.0.1:1: 127.0.0.1:1", "[::1]:1: 127.0.0.1:2"]
        );
    }

    #[test]
    fn what_is_fixed_is_there_and_is_lifted_once_its_server_is() {
        let rule = "- {guestPort: 1, hostIP: 10.0.0.1, proto: tcp, static: true}";
        assert_eq!(planned(rule, &[]), ["10.0.0.1:1: =192.168.5.15:1"]);
        assert_eq!(planned(rule, &[("127.0.0.1:1", false)]), ["10.0.0.1:1: 127.0.0.1:1"]);
        let twin = "- {guestPort: 1, static: true}";
        assert_eq!(planned(twin, &[]).len(), 4);
        let ignored = format!("- {{guestPort: 1, ignore: true, static: true}}\n{rule}");
        assert_eq!(planned(&ignored, &[("127.0.0.1:1", false)]), ["10.0.0.1:1: =192.168.5.15:1"]);
    }

    #[test]
    fn sockets_are_lifted_and_datagrams_do_not_fit_in() {
        let rules = "- {guestSocket: /run/x, hostSocket: /y}\n\
            - {guestSocket: /run/z, hostSocket: /z, reverse: true}\n\
            - {guestPort: 1, hostSocket: /p}";
        assert_eq!(
            planned(rules, &[("0.0.0.0:1", false), ("0.0.0.0:1/udp", false)]),
            ["/p: =192.168.5.15:1", "/y: /run/x"]
        );
    }
}
