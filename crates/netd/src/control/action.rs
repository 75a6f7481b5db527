//! Carries out what clients of the control API ask for, between two passes of the loop.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant as SystemInstant;

use vmlan_api::dns::Question;
use vmlan_api::{Action, Added, Captured, Response, Tunnel, protocol_name};
use vmlan_dns::Zone;
use vmlan_engine::io::ListenAddr;
use vmlan_engine::{Forward, ForwardId, PortId};

use super::view;
use crate::captures::Filter;
use crate::core::{Core, Label, Resolved};
use crate::tunnel::Tunnels;

/// What an action comes to.
#[derive(Debug)]
pub(super) enum Outcome {
    Answer(Response),
    /// It is answered when this question is.
    Asked(Asked),
    /// The connection goes on as something else.
    Handover(Handover),
}

/// A question to the network's resolver.
#[derive(Debug)]
pub(super) struct Asked {
    number: u64,
    question: Question,
    at: SystemInstant,
}

impl Asked {
    /// What the client is told when this is its answer.
    pub(super) fn answer(&self, resolved: &Resolved) -> Option<Response> {
        if resolved.number != self.number {
            return None;
        }
        let time = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        Some(match self.question.answer(&resolved.message, resolved.origin, time) {
            Ok(answer) => Response::json(&answer),
            Err(error) => Response::error(500, &error.to_string()),
        })
    }
}

/// What becomes of a client's connection.
#[derive(Debug)]
pub(crate) enum Handover {
    /// The link of a guest with hyperkit's framing.
    Link,
    /// A stream to a guest.
    Stream(SocketAddr),
    /// The client reads frames along.
    Capture(Filter),
}

pub(super) fn run(action: Action, core: &mut Core, tunnels: &mut Tunnels) -> Outcome {
    Outcome::Answer(match action {
        Action::Connect => return Outcome::Handover(Handover::Link),
        Action::Dial(guest) => return Outcome::Handover(Handover::Stream(guest)),
        Action::Tunnels => Response::json(&list(tunnels.ports())),
        Action::OpenTunnel { port } => match tunnels.open(port) {
            Ok(port) => Response::json(&Tunnel { port }),
            Err(error) => Response::error(500, &error),
        },
        Action::CloseTunnel { port } => close(tunnels, port),
        Action::Capture(whose) => match filter(core, whose) {
            Ok(filter) => return Outcome::Handover(Handover::Capture(filter)),
            Err(refusal) => refusal,
        },
        Action::Resolve(question) => match ask(core, question) {
            Ok(asked) => return Outcome::Asked(asked),
            Err(refusal) => refusal,
        },
        Action::OpenApi => Response::json(&vmlan_api::openapi()),
        Action::Stats => Response::json(&view::stats(core)),
        Action::MacTable => Response::json(&view::mac_table(core)),
        Action::Leases => Response::json(&view::leases(core)),
        Action::Flows => Response::json(&view::flows(core)),
        Action::Forwards => Response::json(&view::forwards(core)),
        Action::Zones => Response::json(&view::zones(core)),
        Action::AddZone(zone) => add_zone(core, zone),
        Action::Network => Response::json(&view::network(core)),
        Action::Guests => Response::json(&view::guests(core)),
        Action::AllForwards => Response::json(&view::all_forwards(core)),
        Action::AddForwards(added) => answer(add(core, added)),
        Action::RemoveForwards(listens) => answer(remove(core, &listens)),
        Action::Hold(held) => {
            core.held = held;
            Response::ok()
        }
        Action::Expose { forward, local } => expose(core, forward, local),
        Action::Unexpose { listen } => match find(core, &listen) {
            Some(id) => {
                core.remove_forward(id);
                Response::ok()
            }
            None => Response::error(500, "proxy not found"),
        },
    })
}

/// Zones come from whoever may command the daemon, but it is not to grow without bound.
const MAX_ZONES: usize = 1024;

fn add_zone(core: &mut Core, zone: Zone) -> Response {
    let names = core.sockets.resolver().names_mut();
    if names.zones().map(|zone| 1 + zone.records.len()).sum::<usize>() >= MAX_ZONES {
        return Response::error(500, &format!("there are {MAX_ZONES} zones and records already"));
    }
    match names.add_zone(zone) {
        Ok(()) => {
            core.additions += 1;
            Response::ok()
        }
        Err(error) => Response::error(400, &error.to_string()),
    }
}

fn ask(core: &mut Core, question: Question) -> Result<Asked, Response> {
    let message = question.message().map_err(|e| Response::error(400, &e.to_string()))?;
    let at = SystemInstant::now();
    let number = core.ask(&message, at);
    let nobody = || Response::error(400, "that is no question");
    Ok(Asked { number: number.ok_or_else(nobody)?, question, at })
}

fn close(tunnels: &mut Tunnels, port: Option<u16>) -> Response {
    let meant = |open: &u16| port.is_none_or(|port| port == *open);
    let ports: Vec<u16> = tunnels.ports().into_iter().filter(meant).collect();
    if let (Some(port), []) = (port, &ports[..]) {
        return Response::error(404, &format!("no tunnel has port {port}"));
    }
    for port in &ports {
        tunnels.close(*port);
    }
    Response::json(&list(ports))
}

fn list(ports: Vec<u16>) -> Vec<Tunnel> {
    ports.into_iter().map(|port| Tunnel { port }).collect()
}

fn filter(core: &Core, whose: Captured) -> Result<Filter, Response> {
    if !core.ports.captures.has_room() {
        return Err(Response::error(503, "enough others read along already"));
    }
    match whose {
        Captured::All => Ok(Filter::All),
        Captured::Guest(name) => Ok(Filter::Name(name)),
        Captured::Port(port) if core.ports.views().any(|view| view.port.0 == port) => {
            Ok(Filter::Port(PortId(port)))
        }
        Captured::Port(port) => Err(Response::error(404, &format!("no guest is at port {port}"))),
    }
}

fn answer(done: Result<(), Response>) -> Response {
    match done {
        Ok(()) => Response::ok(),
        Err(refusal) => refusal,
    }
}

fn find(core: &Core, listen: &ListenAddr) -> Option<ForwardId> {
    core.engine.forwards().find(|(_, f)| f.listen == *listen).map(|(id, _)| id)
}

fn expose(core: &mut Core, mut forward: Forward, local: String) -> Response {
    if forward.guest.ip().is_unspecified() {
        match only_guest(core) {
            Ok(ip) => forward.guest.set_ip(ip),
            Err(why) => return Response::error(500, &format!(":{}: {why}", forward.guest.port())),
        }
    }
    if find(core, &forward.listen).is_some() {
        let protocol = protocol_name(&forward.listen);
        let text = format!("proxy already running for {protocol} on {local}");
        return Response::error(500, &text);
    }
    match core.add_labelled(forward, Label { local: Some(local), guest: None }) {
        Ok(_) => Response::ok(),
        Err(error) => Response::error(500, &error.to_string()),
    }
}

/// The address of whoever is meant when nobody is named.
fn only_guest(core: &Core) -> Result<IpAddr, String> {
    let guests = view::guests(core).into_iter();
    let firsts = guests.filter_map(|guest| guest.addresses.into_iter().min());
    match firsts.collect::<Vec<_>>()[..] {
        [only] => Ok(only),
        [] => Err("whose port? No guest has an address yet: say ADDRESS:PORT".into()),
        ref several => {
            let several: Vec<_> = several.iter().map(ToString::to_string).collect();
            Err(format!("whose port? There are {}: say ADDRESS:PORT", several.join(", ")))
        }
    }
}

fn add(core: &mut Core, added: Vec<Added>) -> Result<(), Response> {
    let mut done = Vec::new();
    for one in added {
        match add_one(core, one) {
            Ok(id) => done.push(id),
            Err(refusal) => {
                for id in done {
                    core.remove_forward(id);
                }
                return Err(refusal);
            }
        }
    }
    Ok(())
}

fn add_one(core: &mut Core, Added { forward, guest }: Added) -> Result<ForwardId, Response> {
    let guest = guest.map(|name| {
        let found = core.guests.iter().find(|guest| guest.name.as_ref() == Some(&name));
        let none = || Response::error(404, &format!("no guest `{name}` is on the network"));
        found.map(|guest| guest.mac).ok_or_else(none)
    });
    let guest = guest.transpose()?;
    if let Some(id) = find(core, &forward.listen) {
        let to = core.engine.forwards().find(|(other, _)| *other == id);
        let to = to.map(|(_, f)| f.guest.to_string()).unwrap_or_default();
        let text = format!("{}: leads to {to} on this network already", forward.listen);
        return Err(Response::error(409, &text));
    }
    let added = core.add_labelled(forward, Label { local: None, guest });
    added.map_err(|e| Response::error(409, &e.to_string()))
}

fn remove(core: &mut Core, listens: &[ListenAddr]) -> Result<(), Response> {
    let ids = listens.iter().map(|listen| {
        let none = || Response::error(404, &format!("{listen}: no forward listens there"));
        find(core, listen).ok_or_else(none)
    });
    for id in ids.collect::<Result<Vec<_>, _>>()? {
        core.remove_forward(id);
    }
    Ok(())
}
