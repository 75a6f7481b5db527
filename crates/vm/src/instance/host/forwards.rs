//! Ports of the host that lead to the machine, as events.

use std::sync::Arc;

use super::super::event::{Events, PortForward, Status};
use super::state::State;
use crate::ports::{Config, Local, MAX_NOTES, Port, PortEvent, Ports};

/// What there is without an agent that answers, and without one at all.
const STAND_IN: &str = "no agent of vmlan's answers in the machine: ssh forwards its TCP ports and \
    sockets meanwhile; UDP is not forwarded";
const NO_AGENT: &str = "this vmlan carries no agent for machines of this kind (`vmlan doctor` says \
    more): ssh forwards its TCP ports and sockets; UDP is not forwarded";

/// Follows what listens in the machine, and tells what becomes of it.
pub(super) fn start(
    config: Config,
    state: &Arc<State>,
    events: &Arc<Events>,
) -> Result<Ports, String> {
    let (state, events) = (Arc::clone(state), Arc::clone(events));
    // Elsewhere ssh is not there in the place of the agent.
    let awaits_agent = config.ssh.as_ref().is_none_or(|ssh| !ssh.after.is_zero());
    if !awaits_agent && config.control.is_some() {
        note(&state, &events, NO_AGENT);
    }
    // A machine that always says something else is not written down without end.
    let mut notes_left = MAX_NOTES;
    let tell = move |event| {
        let forward = match &event {
            PortEvent::Opened(port) => of("forwarding", port, ""),
            PortEvent::Closed(port) => of("stopping", port, ""),
            PortEvent::Conflict { port, why } => of("failed", port, why),
            PortEvent::Cards(cards) => return state.set_cards(cards.clone()),
            PortEvent::Notes(notes) => {
                for text in state.set_notes(notes).into_iter().take(notes_left) {
                    notes_left -= 1;
                    let warning = Some(format!("in the machine: {text}"));
                    events.tell(Status { warning, ..Status::default() });
                }
                return;
            }
            PortEvent::AgentUp => return state.set_note(None),
            PortEvent::AgentDown => return,
            PortEvent::SshStandsIn => {
                if awaits_agent {
                    note(&state, &events, STAND_IN);
                }
                return;
            }
        };
        events.tell(Status { port_forward: Some(forward), ..Status::default() });
    };
    Ports::start(config, tell).map_err(|e| format!("cannot forward ports: {e}"))
}

/// Says now, and whenever somebody asks, what there is instead of the agent.
fn note(state: &State, events: &Events, text: &str) {
    state.set_note(Some(text.into()));
    events.tell(Status { warning: Some(text.into()), ..Status::default() });
}

fn of(kind: &str, port: &Port, error: &str) -> PortForward {
    let protocol = match port.local {
        Local::Tcp(_) => "tcp",
        Local::Udp(_) => "udp",
        Local::Unix(_) => "unix",
    };
    PortForward {
        kind: kind.into(),
        protocol: protocol.into(),
        guest_addr: port.guest_text(),
        host_addr: port.local.to_string(),
        error: error.into(),
    }
}
