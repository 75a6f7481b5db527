//! Ports of the host that lead to the machine, as events.

use std::sync::Arc;

use super::super::event::{Events, PortForward, Status};
use super::state::State;
use crate::ports::{Config, Local, Port, PortEvent, Ports};

/// What there is without the agent.
const STAND_IN: &str = "no agent of vmlan's answers in the machine: ssh forwards its TCP ports and \
    sockets meanwhile; UDP, and sockets that lead to the host, are not forwarded";

/// Follows what listens in the machine, and tells what becomes of it.
pub(super) fn start(
    config: Config,
    state: &Arc<State>,
    events: &Arc<Events>,
) -> Result<Ports, String> {
    let (state, events) = (Arc::clone(state), Arc::clone(events));
    let tell = move |event| {
        let forward = match &event {
            PortEvent::Opened(port) => of("forwarding", port, ""),
            PortEvent::Closed(port) => of("stopping", port, ""),
            PortEvent::Conflict { port, why } => of("failed", port, why),
            PortEvent::Cards(cards) => return state.set_cards(cards.clone()),
            PortEvent::AgentUp => return state.set_note(None),
            PortEvent::AgentDown => return,
            PortEvent::SshStandsIn => {
                state.set_note(Some(STAND_IN.into()));
                let warning = Some(STAND_IN.into());
                return events.tell(Status { warning, ..Status::default() });
            }
        };
        events.tell(Status { port_forward: Some(forward), ..Status::default() });
    };
    Ports::start(config, tell).map_err(|e| format!("cannot forward ports: {e}"))
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
