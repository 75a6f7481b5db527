//! Carries out what clients of the control API ask for, between two passes of the loop.

use std::collections::HashMap;

use vmlan_api::{
    Action, Flow, ForwardEntry, Guest, Leases, MacTable, Response, Stats, colons, protocol_name,
};
use vmlan_engine::io::ListenAddr;
use vmlan_engine::{Forward, ForwardId};

use crate::core::Core;

/// How the clients that opened forwards wrote the listening end.
pub(super) type Labels = HashMap<ForwardId, String>;

/// What an action comes to.
#[derive(Debug)]
pub(super) enum Outcome {
    Answer(Response),
    /// The connection goes on as something else.
    Handover(Handover),
}

/// What becomes of a client's connection.
#[derive(Debug)]
pub(crate) enum Handover {
    /// The link of a guest with hyperkit's framing.
    Link,
}

pub(super) fn run(action: Action, core: &mut Core, labels: &mut Labels) -> Outcome {
    Outcome::Answer(match action {
        Action::Connect => return Outcome::Handover(Handover::Link),
        Action::Stats => Response::json(&stats(core)),
        Action::MacTable => {
            let table = core.engine.mac_table();
            let table = table.into_iter().map(|(mac, port)| (colons(mac), port.0));
            Response::json(&table.collect::<MacTable>())
        }
        Action::Leases => {
            let leases = core.engine.leases().into_iter();
            let leases = leases.map(|l| (l.ip, colons(l.mac)));
            Response::json(&leases.collect::<Leases>())
        }
        Action::Flows => Response::json(&flows(core)),
        Action::Forwards => Response::json(&forwards(core, labels)),
        Action::Guests => Response::json(&guests(core)),
        Action::Hold(held) => {
            core.held = held;
            Response::ok()
        }
        Action::Expose { forward, local } => expose(core, labels, forward, local),
        Action::Unexpose { listen } => {
            let found = core.engine.forwards().find(|(_, f)| f.listen == listen);
            let Some(id) = found.map(|(id, _)| id) else {
                return Outcome::Answer(Response::error(500, "proxy not found"));
            };
            core.remove_forward(id);
            labels.remove(&id);
            Response::ok()
        }
    })
}

fn expose(core: &mut Core, labels: &mut Labels, forward: Forward, local: String) -> Response {
    if core.engine.forwards().any(|(_, f)| f.listen == forward.listen) {
        let protocol = protocol_name(&forward.listen);
        let text = format!("proxy already running for {protocol} on {local}");
        return Response::error(500, &text);
    }
    match core.add_forward(forward) {
        Ok(id) => {
            labels.insert(id, local);
            Response::ok()
        }
        Err(error) => Response::error(500, &error.to_string()),
    }
}

fn forwards(core: &Core, labels: &Labels) -> Vec<ForwardEntry> {
    let entries = core.engine.forwards().map(|(id, forward)| {
        let local = match (labels.get(&id), &forward.listen) {
            (Some(label), _) => label.clone(),
            (None, ListenAddr::Tcp(addr) | ListenAddr::Udp(addr)) => addr.to_string(),
            (None, ListenAddr::Unix(path)) => path.display().to_string(),
        };
        let protocol = protocol_name(&forward.listen).into();
        ForwardEntry { local, remote: forward.guest.to_string(), protocol }
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by(|a, b| (&a.local, &a.protocol).cmp(&(&b.local, &b.protocol)));
    entries
}

fn flows(core: &Core) -> Vec<Flow> {
    let flows = core.engine.flows().into_iter().map(|flow| Flow {
        protocol: flow.protocol.into(),
        guest: flow.guest.to_string(),
        remote: flow.remote.map(|remote| remote.to_string()),
        state: flow.state.into(),
    });
    flows.collect()
}

fn guests(core: &Core) -> Vec<Guest> {
    let guests = core.guests.iter().map(|guest| Guest {
        name: guest.name.clone(),
        mac: colons(guest.mac),
        addresses: vec![guest.addresses.0.into(), guest.addresses.1.into()],
    });
    guests.collect()
}

fn stats(core: &Core) -> Stats {
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
        dropped: s.drops().map(|(reason, count)| (reason.name().into(), count)).collect(),
    }
}
