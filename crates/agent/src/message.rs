//! The lines between host and guest, each a JSON value. The host speaks first and says everything
//! that it wants each time ([`Orders`]); the agent answers each of its lines, and says everything
//! that it has each time something has changed ([`Report`]). So a line that is lost costs time only.
//! Neither side believes the other: both bound what they read.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The name of the virtio port that the lines pass through.
pub const CHANNEL: &str = "dev.vmlan.agent";

/// Longest line, in both directions.
pub const MAX_LINE: usize = 256 * 1024;

/// Most listeners that a report tells of.
pub const MAX_LISTENERS: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    Tcp,
    Udp,
}

/// Most cards that a report tells of.
pub const MAX_CARDS: usize = 64;

/// Most notes that a report has, and the bytes of one.
pub const MAX_NOTES: usize = 16;
pub const MAX_NOTE: usize = 300;

/// A socket of the guest that waits for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Listener {
    pub proto: Proto,
    pub at: SocketAddr,
    /// Bound to `::`, and IPv4 is known to reach it as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dual: bool,
}

/// Where in the guest a lift leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    /// A socket's path.
    Unix(String),
}

/// All that the host wants of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Counts the host's lines.
    pub number: u64,
    /// The guest's own address on its network: lifts begin there.
    pub at: Ipv4Addr,
    /// Who may use lifts.
    pub from: Vec<IpAddr>,
    /// Places that are to be reached from the network, each by a port of its own.
    #[serde(default)]
    pub lifts: Vec<Target>,
    /// Paths of UNIX sockets in the guest that lead to the host.
    #[serde(default)]
    pub doors: Vec<String>,
    /// Whose the doors are.
    #[serde(default)]
    pub uid: u32,
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Report {
    State(State),
    /// Somebody has come to a door: the host is to call back, and be led to them.
    Call {
        door: String,
        port: u16,
    },
}

/// All that the agent has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The number of the orders that this is the answer to, or comes after.
    pub heard: u64,
    pub listeners: Vec<Listener>,
    /// Lifts that are in place.
    pub lifts: Vec<Lift>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cards: Vec<Card>,
    /// What is not as it should be in the machine since it has booted, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A network card of the machine's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// In lower case, with colons.
    pub mac: String,
    /// Those that are not link-local.
    pub addresses: Vec<IpAddr>,
}

/// A port at the guest's own address that leads to a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lift {
    pub to: Target,
    pub port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let listener = Listener { proto: Proto::Udp, at: "[::1]:53".parse().unwrap(), dual: false };
        let lift = Lift { to: Target::Unix("/run/x".into()), port: 40000 };
        let card = Card { mac: "52:55:55:00:00:01".into(), addresses: vec![[10, 9, 0, 2].into()] };
        let (listeners, lifts, cards) = (vec![listener], vec![lift], vec![card]);
        let notes = vec!["no".into()];
        let state = State { heard: 7, listeners, lifts, cards, notes };
        let line = serde_json::to_string(&Report::State(state)).unwrap();
        assert_eq!(
            line,
            r#"{"state":{"heard":7,"listeners":[{"proto":"udp","at":"[::1]:53"}],"lifts":[{"to":{"unix":"/run/x"},"port":40000}],"cards":[{"mac":"52:55:55:00:00:01","addresses":["10.9.0.2"]}],"notes":["no"]}}"#
        );
        let orders: Orders =
            serde_json::from_str(r#"{"number":1,"at":"192.168.5.15","from":["192.168.5.2"]}"#)
                .unwrap();
        assert_eq!((orders.lifts.len(), orders.doors.len(), orders.uid), (0, 0, 0));
    }
}
