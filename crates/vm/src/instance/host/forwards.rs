//! Ports of the host that lead to the machine, as events.

use std::sync::Arc;

use super::super::event::{Events, PortForward, Status};
use crate::ports::{Config, Local, Port, PortEvent, Ports};

/// Follows what listens in the machine, and tells what becomes of it.
pub(super) fn start(config: Config, events: &Arc<Events>) -> Result<Ports, String> {
    let events = Arc::clone(events);
    let tell = move |event| {
        let forward = match &event {
            PortEvent::Opened(port) => of("forwarding", port, ""),
            PortEvent::Closed(port) => of("stopping", port, ""),
            PortEvent::Conflict { port, why } => of("failed", port, why),
            PortEvent::AgentUp | PortEvent::AgentDown => return,
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
