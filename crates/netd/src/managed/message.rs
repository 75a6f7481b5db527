//! What is said on the socket where guests join: a line of JSON in each direction. The descriptor
//! comes with the first bytes. Who sends a descriptor and no JSON, as Lima does, is a guest too, and
//! gets no answer.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Longest line.
pub(crate) const MAX_LINE: usize = 64 * 1024;

/// Who wants to join. Without a descriptor, only the answer is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The guest's MAC address, which its addresses belong to.
    pub mac: String,
    /// What others call it, as `lima-NAME.internal`; without a name its addresses are free again
    /// when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The addresses that it has from a daemon before this one, which may not have lived to save
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<(Ipv4Addr, Ipv6Addr)>,
    /// Names that the guest brings to the network: each an address, or another name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<(String, String)>,
    /// Whether outside names have IPv6 addresses for the guest; by default as the host has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<bool>,
    /// Outside names are asked of the nameservers that the host's resolv.conf lists, and of nothing else
    /// of the host's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
    /// The guest's card is on the network's bridge: it stays without handing one over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bridged: bool,
    /// The guest configures its card itself: its name stands for the IPv6 address that it has been
    /// seen to use.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub autoconf: bool,
    /// Ports of the host that lead to the guest while it is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<Forwarded>,
}

/// A port of the host that leads to a port of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    /// `ADDRESS:PORT`.
    pub local: String,
    pub port: u16,
    pub udp: bool,
}

/// The answer: everything that the guest's card is to be configured with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub address6: Ipv6Addr,
    pub gateway: Ipv4Addr,
    pub gateway6: Ipv6Addr,
    pub dns: Ipv4Addr,
    pub mtu: u16,
    /// What the guest does not get although it joins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The gateway leads nowhere: there is no way out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
    /// The network is the one that the host is on: the guest asks there for addresses, by DHCP and
    /// router solicitation, and those above mean nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lan: bool,
}

impl Welcome {
    /// Whether the guest's card stays as it is.
    pub fn is_same_card(&self, other: &Self) -> bool {
        let card = |welcome: &Self| Self { warnings: Vec::new(), ..welcome.clone() };
        card(self) == card(other)
    }
}

/// The answer on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    Welcome(Welcome),
    /// Why the guest cannot join.
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let hello: Hello = serde_json::from_str(r#"{"mac":"52:55:55:00:00:01"}"#).unwrap();
        assert_eq!((hello.name, hello.forwards), (None, Vec::new()));
        let refused = serde_json::to_string(&Answer::Refused("why".into())).unwrap();
        assert_eq!(refused, r#"{"refused":"why"}"#);
    }
}
