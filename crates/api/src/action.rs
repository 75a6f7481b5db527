//! What a client of the control API can ask for: a request becomes one [`Action`]. Paths, fields and
//! error texts are those of gvisor-tap-vsock where it has them.

use std::net::SocketAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use vmlan_engine::Forward;
use vmlan_engine::io::ListenAddr;

use crate::dns;
use crate::dns::Question;
use crate::forward::{self, ForwardError};
use crate::http::{Request, Response};
use crate::network::{self, Forwards, Guest, Listens, Network};
use crate::types::{
    Flow, ForwardEntry, ForwardRequest, Leases, MacTable, Stats, Tunnel, TunnelRequest,
};
use crate::zone::Zone;

/// A request that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The connection becomes a guest's link.
    Connect,
    /// Frames as pcapng, until the client wants no more.
    Capture(Captured),
    /// What all of this is, in words for machines.
    OpenApi,
    Stats,
    /// The switch's table: which MAC address is behind which port.
    MacTable,
    /// Which address belongs to whom.
    Leases,
    Flows,
    Forwards,
    /// The zones that the resolver answers for.
    Zones,
    AddZone(vmlan_dns::Zone),
    /// A question to the network's resolver, as its guests would ask it.
    Resolve(Question),
    /// Everything about the network.
    Network,
    /// Who is on the network.
    Guests,
    /// The forwards as vmlan's own part of the API has them.
    AllForwards,
    /// All of them, or none.
    AddForwards(Vec<Added>),
    /// All of them, or none.
    RemoveForwards(Vec<ListenAddr>),
    /// Whether the network stays without a guest.
    Hold(bool),
    /// `local` is how the client wrote it, for listings. Without an address, the forward leads to
    /// the only guest.
    Expose {
        forward: Forward,
        local: String,
    },
    Unexpose {
        listen: ListenAddr,
    },
    /// The connection goes on to a guest.
    Dial(SocketAddr),
    Tunnels,
    OpenTunnel {
        /// A random free one if it is 0.
        port: u16,
    },
    CloseTunnel {
        /// Every one if it is `None`.
        port: Option<u16>,
    },
}

/// Whose frames are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Captured {
    All,
    /// Those of the guest with this name, now and when it comes back.
    Guest(String),
    /// Those of the guest at this port of the switch.
    Port(u16),
}

/// A forward that is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    pub forward: Forward,
    /// The guest that it goes with.
    pub guest: Option<String>,
}

impl Added {
    /// The forward that somebody describes.
    pub fn new(described: network::Forward) -> Result<Self, ForwardError> {
        let network::Forward { protocol, listen, target, keep_source, guest: name } = described;
        let listen = forward::listen_of(&protocol, &listen)?;
        let guest = forward::parse_guest(&target)?;
        Ok(Self { forward: Forward { listen, guest, keep_source }, guest: name })
    }
}

/// A path, its method, what it means, and how it is described.
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) summary: &'static str,
    /// Parameters of the query, and whether each has to be there.
    pub(crate) query: &'static [(&'static str, bool, &'static str)],
    pub(crate) body: Option<SchemaOf>,
    pub(crate) answer: Answer,
    read: Read,
}

/// What a request that goes well is answered with.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    Nothing,
    Json(SchemaOf),
    /// This type, until the connection ends.
    Stream(&'static str),
    /// The connection is not HTTP's any more.
    Connection,
}

pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;
type Read = fn(&Request<'_>) -> Result<Action, Response>;

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const fn json_of<T: JsonSchema>() -> Answer {
    Answer::Json(schema::<T>)
}

#[rustfmt::skip]
pub(crate) const ROUTES: &[Route] = &[
    get("/connect", "Become a guest: frames follow, each after its length in 16 bits, little-endian",
        Answer::Connection, |_| Ok(Action::Connect)),
    post("/connect", "As with GET", Answer::Connection, |_| Ok(Action::Connect)),
    get("/stats", "Counters of the whole network", json_of::<Stats>(), |_| Ok(Action::Stats)),
    get("/cam", "Which MAC address is behind which port of the switch", json_of::<MacTable>(),
        |_| Ok(Action::MacTable)),
    get("/leases", "Which MAC address has an IP address", json_of::<Leases>(), |_| Ok(Action::Leases)),
    get("/services/dhcp/leases", "As /leases", json_of::<Leases>(), |_| Ok(Action::Leases)),
    get("/services/forwarder/all", "The forwards as they were written", json_of::<Vec<ForwardEntry>>(),
        |_| Ok(Action::Forwards)),
    post("/services/forwarder/expose", "Open a forward", Answer::Nothing, expose)
        .taking(schema::<ForwardRequest>),
    post("/services/forwarder/unexpose", "Close a forward", Answer::Nothing, unexpose)
        .taking(schema::<ForwardRequest>),
    get("/services/dns/all", "The zones that the network answers for", json_of::<Vec<Zone>>(),
        |_| Ok(Action::Zones)),
    post("/services/dns/add", "Answer for a zone; one that is there gets the new records as well",
         Answer::Nothing, add_zone).taking(schema::<Zone>),
    get("/tunnel", "A stream to a port of a guest, after the two bytes OK", Answer::Connection, dial)
        .with(TO),
    post("/tunnel", "As with GET", Answer::Connection, dial).with(TO),
    get("/v1/openapi.json", "This document", Answer::Json(any), |_| Ok(Action::OpenApi)),
    get("/v1/network", "Everything about the network", json_of::<Network>(), |_| Ok(Action::Network)),
    get("/v1/guests", "Who is on the network", json_of::<Vec<Guest>>(), |_| Ok(Action::Guests)),
    get("/v1/flows", "Connections and the like", json_of::<Vec<Flow>>(), |_| Ok(Action::Flows)),
    get("/v1/dns", "What a guest would be answered", json_of::<dns::Answer>(), resolve)
        .with(&[("name", true, "The name"), ("type", false, "A, AAAA, MX, and so on")]),
    get("/v1/capture", "Frames as they pass", Answer::Stream("application/x-pcapng"), capture)
        .with(&[("guest", false, "Only of the guest with this name"),
                ("port", false, "Only of the guest at this port of the switch")]),
    get("/v1/forwards", "The forwards", json_of::<Vec<network::Forward>>(), |_| Ok(Action::AllForwards)),
    post("/v1/forwards", "Open forwards, all of them or none", Answer::Nothing, add_forwards)
        .taking(schema::<Forwards>),
    post("/v1/forwards/remove", "Close forwards, all of them or none", Answer::Nothing, remove_forwards)
        .taking(schema::<Listens>),
    get("/v1/tunnels", "The tunnels", json_of::<Vec<Tunnel>>(), |_| Ok(Action::Tunnels)),
    post("/v1/tunnels", "Open a tunnel", json_of::<Tunnel>(), open_tunnel)
        .taking(schema::<TunnelRequest>),
    delete("/v1/tunnels", "Close tunnels, and tell which", json_of::<Vec<Tunnel>>(), close_tunnel)
        .with(&[("port", false, "Only the one with this port")]),
    post("/v1/hold", "Keep the network without a guest", Answer::Nothing, |_| Ok(Action::Hold(true))),
    post("/v1/release", "Let the network end with its last guest", Answer::Nothing,
         |_| Ok(Action::Hold(false))),
];

/// Where in the network a stream leads.
const TO: &[(&str, bool, &str)] =
    &[("ip", true, "The guest's address"), ("port", true, "Its port")];

fn any(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "object" })
}

const fn get(path: &'static str, summary: &'static str, answer: Answer, read: Read) -> Route {
    Route { method: "GET", path, summary, query: &[], body: None, answer, read }
}

const fn post(path: &'static str, summary: &'static str, answer: Answer, read: Read) -> Route {
    Route { method: "POST", ..get(path, summary, answer, read) }
}

const fn delete(path: &'static str, summary: &'static str, answer: Answer, read: Read) -> Route {
    Route { method: "DELETE", ..get(path, summary, answer, read) }
}

impl Route {
    const fn with(self, query: &'static [(&'static str, bool, &'static str)]) -> Self {
        Self { query, ..self }
    }

    const fn taking(self, body: SchemaOf) -> Self {
        Self { body: Some(body), ..self }
    }
}

impl Action {
    /// What a request asks for, or the answer that says why it makes no sense.
    pub fn of(request: &Request<'_>) -> Result<Self, Response> {
        let mut routes = ROUTES.iter().filter(|route| route.path == request.path).peekable();
        let Some(first) = routes.peek() else {
            return Err(Response::error(404, "404 page not found"));
        };
        let only = format!("{} only", first.method.to_lowercase());
        // As clients of gvisor-tap-vsock know it.
        let status = if request.path.starts_with("/services/") { 400 } else { 405 };
        match routes.find(|route| route.method == request.method) {
            Some(route) => (route.read)(request),
            None => Err(Response::error(status, &only)),
        }
    }
}

fn expose(request: &Request<'_>) -> Result<Action, Response> {
    let (body, listen) = forwarder(request)?;
    let remote = body.remote.strip_prefix("tcp://").unwrap_or(&body.remote);
    let guest = forward::parse_remote(remote).map_err(|e| refused(&e))?;
    let forward = Forward { listen, guest, keep_source: false };
    Ok(Action::Expose { forward, local: body.local })
}

fn unexpose(request: &Request<'_>) -> Result<Action, Response> {
    forwarder(request).map(|(_, listen)| Action::Unexpose { listen })
}

fn add_zone(request: &Request<'_>) -> Result<Action, Response> {
    let zone: Zone = json(request)?;
    zone.resolved().map(Action::AddZone).map_err(|e| Response::error(400, &e))
}

/// `/v1/dns?name=NAME&type=TYPE`.
fn resolve(request: &Request<'_>) -> Result<Action, Response> {
    let missing = || Response::error(400, "`name` is missing");
    let name = request.parameter("name").ok_or_else(missing)?;
    let question = Question::new(&name, request.parameter("type").as_deref());
    question.map(Action::Resolve).map_err(|e| Response::error(400, &e.to_string()))
}

fn capture(request: &Request<'_>) -> Result<Action, Response> {
    let captured = match (request.parameter("guest"), request.parameter("port")) {
        (None, None) => Captured::All,
        (Some(name), None) => Captured::Guest(name),
        (None, Some(port)) => {
            let wrong = |_| Response::error(400, &format!("`{port}` is not a port of the switch"));
            Captured::Port(port.parse().map_err(wrong)?)
        }
        (Some(_), Some(_)) => return Err(Response::error(400, "either a guest or a port")),
    };
    Ok(Action::Capture(captured))
}

fn add_forwards(request: &Request<'_>) -> Result<Action, Response> {
    let body: Forwards = json(request)?;
    let added = body.forwards.into_iter().map(Added::new);
    let added = added.collect::<Result<_, _>>();
    added.map(Action::AddForwards).map_err(|e| Response::error(400, &e.to_string()))
}

fn remove_forwards(request: &Request<'_>) -> Result<Action, Response> {
    let body: Listens = json(request)?;
    let listens = body.forwards.iter().map(|f| forward::listen_of(&f.protocol, &f.listen));
    let listens = listens.collect::<Result<_, _>>();
    listens.map(Action::RemoveForwards).map_err(|e| Response::error(400, &e.to_string()))
}

fn json<T: DeserializeOwned>(request: &Request<'_>) -> Result<T, Response> {
    serde_json::from_slice(request.body).map_err(|e| Response::error(400, &e.to_string()))
}

/// As gvisor-tap-vsock has it: `/tunnel?ip=ADDRESS&port=PORT`.
fn dial(request: &Request<'_>) -> Result<Action, Response> {
    let wrong = |name: &str| Response::error(400, &format!("`{name}` is missing or wrong"));
    let ip = request.parameter("ip").and_then(|ip| ip.parse().ok());
    let port = request.parameter("port").and_then(|port| port.parse().ok());
    let (ip, port) = (ip.ok_or_else(|| wrong("ip"))?, port.ok_or_else(|| wrong("port"))?);
    Ok(Action::Dial(SocketAddr::new(ip, port)))
}

fn open_tunnel(request: &Request<'_>) -> Result<Action, Response> {
    let body: TunnelRequest = json(request)?;
    Ok(Action::OpenTunnel { port: body.port })
}

fn close_tunnel(request: &Request<'_>) -> Result<Action, Response> {
    let port = request.parameter("port").map(|port| port.parse());
    let port = port.transpose().map_err(|_| Response::error(400, "`port` is wrong"))?;
    Ok(Action::CloseTunnel { port })
}

fn forwarder(request: &Request<'_>) -> Result<(ForwardRequest, ListenAddr), Response> {
    let body: ForwardRequest = json(request)?;
    let listen = forward::listen_of(&body.protocol, &body.local).map_err(|e| refused(&e))?;
    Ok((body, listen))
}

fn refused(error: &ForwardError) -> Response {
    Response::error(500, &error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &str, path: &str, body: &str) -> Result<Action, String> {
        with(method, path, "", body)
    }

    fn with(method: &str, path: &str, query: &str, body: &str) -> Result<Action, String> {
        let request = Request { method, path, query, body: body.as_bytes(), len: 0 };
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
    fn tunnels() {
        let guest = "192.168.5.15:22".parse().unwrap();
        assert_eq!(with("GET", "/tunnel", "ip=192.168.5.15&port=22", ""), Ok(Action::Dial(guest)));
        for wrong in ["", "ip=192.168.5.15", "ip=x&port=22", "ip=192.168.5.15&port=x"] {
            assert!(with("GET", "/tunnel", wrong, "").unwrap_err().contains(" 400 "), "{wrong}");
        }
        let path = "/v1/tunnels";
        assert_eq!(of("GET", path, ""), Ok(Action::Tunnels));
        assert_eq!(of("POST", path, "{}"), Ok(Action::OpenTunnel { port: 0 }));
        assert_eq!(of("POST", path, r#"{"port":1080}"#), Ok(Action::OpenTunnel { port: 1080 }));
        assert!(refusal("POST", path, r#"{"port":70000}"#).contains(" 400 "));
        assert_eq!(of("DELETE", path, ""), Ok(Action::CloseTunnel { port: None }));
        let one = with("DELETE", path, "port=1080", "");
        assert_eq!(one, Ok(Action::CloseTunnel { port: Some(1080) }));
        assert!(with("DELETE", path, "port=x", "").unwrap_err().contains(" 400 "));
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
