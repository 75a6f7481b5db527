//! What a client of the control API can ask for: paths and JSON become one [`Action`], which is
//! carried out between two passes of the loop. Paths, fields and error texts are those of
//! gvisor-tap-vsock where it has them, so that its clients work.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use vmlan_engine::io::ListenAddr;
use vmlan_engine::{Forward, ForwardId};
use vmlan_wire::Mac;

use super::http::{Request, Response};
use crate::core::Core;
use crate::forward::{self, ForwardError};

/// A request that makes sense.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Stats,
    /// The switch's table: which MAC address is behind which port.
    Cam,
    /// Which address belongs to whom.
    Leases,
    Flows,
    Forwards,
    /// Guests that said who they are.
    Guests,
    /// Whether the network stays without a guest.
    Hold(bool),
    /// `local` is how the client wrote it, for listings.
    Expose {
        forward: Forward,
        local: String,
    },
    Unexpose {
        listen: ListenAddr,
    },
}

/// How the clients that opened forwards wrote the listening end.
pub(crate) type Labels = HashMap<ForwardId, String>;

#[derive(Deserialize)]
struct ForwarderBody {
    local: String,
    #[serde(default)]
    remote: String,
    #[serde(default)]
    protocol: String,
}

#[derive(Serialize)]
struct ForwardEntry {
    local: String,
    remote: String,
    protocol: &'static str,
}

#[derive(Serialize)]
struct FlowEntry {
    protocol: &'static str,
    guest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<String>,
    state: &'static str,
}

#[derive(Serialize)]
struct GuestEntry<'a> {
    name: Option<&'a str>,
    mac: String,
    addresses: [IpAddr; 2],
}

#[derive(Serialize)]
struct StatsEntry {
    #[serde(rename = "BytesSent")]
    bytes_sent: u64,
    #[serde(rename = "BytesReceived")]
    bytes_received: u64,
    #[serde(rename = "FramesSent")]
    frames_sent: u64,
    #[serde(rename = "FramesReceived")]
    frames_received: u64,
    tcp_opened: u64,
    tcp_closed: u64,
    tcp_retransmits: u64,
    udp_opened: u64,
    ping_opened: u64,
    dns_queries: u64,
    dropped: BTreeMap<&'static str, u64>,
}

impl Action {
    /// What a request asks for.
    pub(crate) fn of(request: &Request<'_>) -> Result<Self, Response> {
        let action = match request.path {
            "/services/forwarder/expose" | "/services/forwarder/unexpose" => {
                if request.method != "POST" {
                    return Err(Response::error(400, "post only"));
                }
                return Self::forwarder(request);
            }
            "/stats" => Self::Stats,
            "/cam" => Self::Cam,
            "/leases" | "/services/dhcp/leases" => Self::Leases,
            "/flows" => Self::Flows,
            "/services/forwarder/all" => Self::Forwards,
            "/v1/guests" => Self::Guests,
            "/v1/hold" | "/v1/release" => {
                if request.method != "POST" {
                    return Err(Response::error(405, "post only"));
                }
                return Ok(Self::Hold(request.path == "/v1/hold"));
            }
            _ => return Err(Response::error(404, "404 page not found")),
        };
        match request.method {
            "GET" => Ok(action),
            _ => Err(Response::error(405, "get only")),
        }
    }

    fn forwarder(request: &Request<'_>) -> Result<Self, Response> {
        let body: ForwarderBody = serde_json::from_slice(request.body)
            .map_err(|e| Response::error(400, &e.to_string()))?;
        let wrong = |e: ForwardError| Response::error(500, &e.to_string());
        let listen = match body.protocol.as_str() {
            "" | "tcp" => forward::parse_listen(&body.local, false),
            "udp" => forward::parse_listen(&body.local, true),
            "unix" => Ok(ListenAddr::Unix(body.local.clone().into())),
            other => Err(ForwardError::Protocol(other.into())),
        };
        let listen = listen.map_err(wrong)?;
        if request.path.ends_with("/unexpose") {
            return Ok(Self::Unexpose { listen });
        }
        let remote = body.remote.strip_prefix("tcp://").unwrap_or(&body.remote);
        let guest = forward::parse_guest(remote).map_err(wrong)?;
        let forward = Forward { listen, guest, keep_source: false };
        Ok(Self::Expose { forward, local: body.local })
    }

    /// Carries it out.
    pub(crate) fn run(self, core: &mut Core, labels: &mut Labels) -> Response {
        match self {
            Self::Stats => json(&stats(core)),
            Self::Cam => {
                let table = core.engine.mac_table();
                let table = table.into_iter().map(|(mac, port)| (colons(mac), port.0));
                json(&table.collect::<BTreeMap<_, _>>())
            }
            Self::Leases => {
                let leases = core.engine.leases().into_iter();
                let leases = leases.map(|l| (l.ip, colons(l.mac)));
                json(&leases.collect::<BTreeMap<_, _>>())
            }
            Self::Flows => {
                let flows = core.engine.flows().into_iter().map(|f| FlowEntry {
                    protocol: f.protocol,
                    guest: f.guest.to_string(),
                    remote: f.remote.map(|r| r.to_string()),
                    state: f.state,
                });
                json(&flows.collect::<Vec<_>>())
            }
            Self::Forwards => json(&forwards(core, labels)),
            Self::Guests => json(&guests(core)),
            Self::Hold(held) => {
                core.held = held;
                Response::ok()
            }
            Self::Expose { forward, local } => expose(core, labels, forward, local),
            Self::Unexpose { listen } => {
                let found = core.engine.forwards().find(|(_, f)| f.listen == listen);
                let Some(id) = found.map(|(id, _)| id) else {
                    return Response::error(500, "proxy not found");
                };
                core.remove_forward(id);
                labels.remove(&id);
                Response::ok()
            }
        }
    }
}

fn expose(core: &mut Core, labels: &mut Labels, forward: Forward, local: String) -> Response {
    if core.engine.forwards().any(|(_, f)| f.listen == forward.listen) {
        let protocol = protocol(&forward.listen);
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
        let protocol = protocol(&forward.listen);
        ForwardEntry { local, remote: forward.guest.to_string(), protocol }
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by(|a, b| (&a.local, a.protocol).cmp(&(&b.local, b.protocol)));
    entries
}

fn guests(core: &Core) -> Vec<GuestEntry<'_>> {
    let guests = core.guests.iter().map(|guest| GuestEntry {
        name: guest.name.as_deref(),
        mac: colons(guest.mac),
        addresses: [guest.addresses.0.into(), guest.addresses.1.into()],
    });
    guests.collect()
}

fn protocol(listen: &ListenAddr) -> &'static str {
    match listen {
        ListenAddr::Tcp(_) => "tcp",
        ListenAddr::Udp(_) => "udp",
        ListenAddr::Unix(_) => "unix",
    }
}

/// A MAC address as gvisor-tap-vsock writes it.
fn colons(mac: Mac) -> String {
    mac.0.map(|byte| format!("{byte:02x}")).join(":")
}

fn stats(core: &Core) -> StatsEntry {
    let s = core.engine.stats();
    StatsEntry {
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
        dropped: s.drops().map(|(reason, count)| (reason.name(), count)).collect(),
    }
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut body) => {
            body.push(b'\n');
            Response::json(body)
        }
        Err(error) => Response::error(500, &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &str, path: &str, body: &str) -> Result<Action, String> {
        let request = Request { method, path, body: body.as_bytes() };
        Action::of(&request).map_err(|r| String::from_utf8(r.into_bytes()).unwrap())
    }

    fn refusal(method: &str, path: &str, body: &str) -> String {
        of(method, path, body).unwrap_err()
    }

    #[test]
    fn paths_and_bodies_become_actions() {
        assert_eq!(of("GET", "/stats", ""), Ok(Action::Stats));
        assert_eq!(of("GET", "/services/dhcp/leases", ""), Ok(Action::Leases));
        let body = r#"{"local":":6443","remote":"192.168.5.15:6443","protocol":"tcp"}"#;
        let listen = ListenAddr::Tcp("0.0.0.0:6443".parse().unwrap());
        let guest = "192.168.5.15:6443".parse().unwrap();
        let forward = Forward { listen: listen.clone(), guest, keep_source: false };
        assert_eq!(
            of("POST", "/services/forwarder/expose", body),
            Ok(Action::Expose { forward, local: ":6443".into() })
        );
        let body = r#"{"local":":6443","protocol":"tcp"}"#;
        assert_eq!(
            of("POST", "/services/forwarder/unexpose", body),
            Ok(Action::Unexpose { listen })
        );
        let body = r#"{"local":"/tmp/s","remote":"tcp://192.168.5.15:22","protocol":"unix"}"#;
        assert!(matches!(
            of("POST", "/services/forwarder/expose", body),
            Ok(Action::Expose { forward: Forward { listen: ListenAddr::Unix(_), .. }, .. })
        ));
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        assert!(refusal("GET", "/", "").contains(" 404 "));
        assert!(refusal("POST", "/stats", "").contains(" 405 "));
        let expose = "/services/forwarder/expose";
        assert!(refusal("GET", expose, "").contains("post only"));
        assert!(refusal("POST", expose, "{").contains(" 400 "));
        assert!(refusal("POST", expose, r#"{"local":":80"}"#).contains("not a guest's"));
        let pipe = r#"{"local":":80","remote":"192.168.5.15:80","protocol":"npipe"}"#;
        assert!(refusal("POST", expose, pipe).contains("`npipe`"));
        let ssh = r#"{"local":"/s","remote":"ssh-tunnel://u@192.168.5.15:22/x","protocol":"unix"}"#;
        assert!(refusal("POST", expose, ssh).contains("not a guest's"));
    }
}
