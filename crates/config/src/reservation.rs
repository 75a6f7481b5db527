//! `reservations:` of a network: addresses and names that are kept for guests.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use vmlan_wire::Mac;

use crate::identifier;
use crate::mac::{parse_mac, show_mac};
use crate::networks::unknown_field;
use crate::raw::{At, RawReservation};
use crate::source::Diagnostic;
use crate::subnet::Subnet;

/// What is kept for one guest: at least one of `mac` and `name` is there, and `ip` unless both are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub mac: Option<Mac>,
    pub name: Option<String>,
    pub ip: Option<Ipv4Addr>,
}

impl fmt::Display for Reservation {
    /// As [`Reservation::from_str`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = self.mac.map(|mac| format!("mac={}", show_mac(mac)));
        let name = self.name.as_ref().map(|name| format!("name={name}"));
        let ip = self.ip.map(|ip| format!("ip={ip}"));
        let all: Vec<_> = [mac, name, ip].into_iter().flatten().collect();
        f.write_str(&all.join(","))
    }
}

impl FromStr for Reservation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut raw = RawReservation::default();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}`: no `=`"))?;
            let field = match key {
                "mac" => &mut raw.mac,
                "name" => &mut raw.name,
                "ip" => &mut raw.ip,
                _ => return Err(format!("`{key}` is none of mac, name and ip")),
            };
            *field = Some(At::nowhere(value.to_owned()));
        }
        let mut found = Vec::new();
        let reservation = one(&At::nowhere(raw), &mut found);
        reservation.ok_or_else(|| found.pop().map(|d| d.message).unwrap_or_default())
    }
}

/// Checks the reservations of a network; what is wrong is added to `found`.
pub(crate) fn resolve(
    raw: &[At<RawReservation>],
    subnet: &Subnet,
    found: &mut Vec<Diagnostic>,
) -> Vec<Reservation> {
    let mut all: Vec<Reservation> = Vec::new();
    for entry in raw {
        let unknown = entry.value.unknown.iter();
        found.extend(
            unknown.map(|key| unknown_field(key, RawReservation::KEYS, " of a reservation")),
        );
        let Some(reservation) = one(entry, found) else { continue };
        if let Some((why, place)) = conflict(&reservation, &all, subnet) {
            let field = match place {
                Place::Ip => &entry.value.ip,
                Place::Mac => &entry.value.mac,
                Place::Name => &entry.value.name,
            };
            let span = field.as_ref().map_or(entry.span, |at| at.span);
            found.push(Diagnostic::error(why, span));
        }
        all.push(reservation);
    }
    all
}

/// One reservation by itself.
fn one(entry: &At<RawReservation>, found: &mut Vec<Diagnostic>) -> Option<Reservation> {
    let raw = &entry.value;
    let before = found.len();
    let mut wrong = |at: &At<String>, why: String| found.push(Diagnostic::error(why, at.span));
    let mac = raw.mac.as_ref().and_then(|at| match parse_mac(&at.value) {
        Ok(mac) => Some(mac),
        Err(e) => {
            wrong(at, format!("reserved MAC address {e}"));
            None
        }
    });
    let ip = raw.ip.as_ref().and_then(|at| match at.value.parse() {
        Ok(ip) => Some(ip),
        Err(_) => {
            wrong(at, format!("reserved address `{}` is not an IPv4 address", at.value));
            None
        }
    });
    if let Some(at) = &raw.name
        && let Err(e) = identifier::check(&at.value)
    {
        wrong(at, format!("reserved name: {e}"));
    }
    if raw.mac.is_none() && raw.name.is_none() {
        let text = "a reservation is for a guest, by `mac` or by `name`";
        found.push(Diagnostic::error(text.to_owned(), entry.span));
    } else if raw.ip.is_none() && (raw.mac.is_none() || raw.name.is_none()) {
        let text = "a reservation without `ip` gives a name to a guest: it needs `mac` and `name`";
        found.push(Diagnostic::error(text.to_owned(), entry.span));
    }
    let name = raw.name.as_ref().map(|at| at.value.clone());
    (found.len() == before).then_some(Reservation { mac, name, ip })
}

enum Place {
    Ip,
    Mac,
    Name,
}

/// What stands against a reservation beside those before it.
fn conflict(
    reservation: &Reservation,
    before: &[Reservation],
    subnet: &Subnet,
) -> Option<(String, Place)> {
    let net = subnet.net();
    let role = |ip: Ipv4Addr| match ip {
        _ if ip == subnet.gateway => Some("gateway"),
        _ if ip == subnet.host() => Some("host"),
        _ if ip == subnet.dns() => Some("name server"),
        _ => None,
    };
    let usable = |ip: Ipv4Addr| net.contains(&ip) && ip != net.network() && ip != net.broadcast();
    if let Some(ip) = reservation.ip {
        if !usable(ip) {
            return Some((format!("reserved address {ip} is no guest's in {net}"), Place::Ip));
        }
        if let Some(role) = role(ip) {
            return Some((format!("reserved address {ip} is that of the {role}"), Place::Ip));
        }
        if before.iter().any(|other| other.ip == Some(ip)) {
            return Some((format!("address {ip} is reserved twice"), Place::Ip));
        }
    }
    if let Some(mac) = reservation.mac.filter(|mac| before.iter().any(|b| b.mac == Some(*mac))) {
        let text = format!("MAC address {} has two reservations", show_mac(mac));
        return Some((text, Place::Mac));
    }
    let host =
        |name: &String| identifier::host_name(name).map(|name| name.to_ascii_lowercase()).ok();
    let mine = reservation.name.as_ref().and_then(host)?;
    let taken = before.iter().any(|b| b.name.as_ref().and_then(host).as_ref() == Some(&mine));
    taken.then(|| (format!("name `{mine}` has two reservations"), Place::Name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn parse(list: &str) -> Result<Vec<Reservation>, String> {
        let text = format!(
            "networks:\n  lab:\n    mode: user-v2\n    gateway: 10.7.0.1\n    reservations: {list}\n"
        );
        let resolved = testing::parse(&text).map_err(|report| report.to_string())?;
        assert!(resolved.warnings.is_none());
        Ok(resolved.networks.get("lab").unwrap().reservations.clone())
    }

    #[test]
    fn what_is_kept_for_whom() {
        let list = "[{name: web, ip: 10.7.0.50}, {mac: '52:55:55:00:00:01', ip: 10.7.0.51}, \
                    {mac: '52:55:55:00:00:02', name: db}]";
        let all = parse(list).unwrap();
        let shown: Vec<_> = all.iter().map(ToString::to_string).collect();
        let want = [
            "name=web,ip=10.7.0.50",
            "mac=52:55:55:00:00:01,ip=10.7.0.51",
            "mac=52:55:55:00:00:02,name=db",
        ];
        assert_eq!(shown, want);
        for (text, reservation) in shown.iter().zip(&all) {
            assert_eq!(text.parse().as_ref(), Ok(reservation));
        }
        assert!("ip=10.7.0.1".parse::<Reservation>().is_err());
        assert!("x".parse::<Reservation>().is_err());
    }

    #[test]
    fn what_cannot_be_kept_is_told_with_its_place() {
        for (list, why) in [
            ("[{ip: 10.7.0.50}]", "by `mac` or by `name`"),
            ("[{name: web}]", "needs `mac` and `name`"),
            ("[{name: a/b, ip: 10.7.0.50}]", "reserved name: identifier `a/b`"),
            ("[{mac: x, ip: 10.7.0.50}]", "`x` is not a MAC address"),
            ("[{name: web, ip: x}]", "`x` is not an IPv4 address"),
            ("[{name: web, ip: 10.8.0.50}]", "10.8.0.50 is no guest's in 10.7.0.0/24"),
            ("[{name: web, ip: 10.7.0.255}]", "10.7.0.255 is no guest's"),
            ("[{name: web, ip: 10.7.0.1}]", "10.7.0.1 is that of the gateway"),
            ("[{name: web, ip: 10.7.0.2}]", "10.7.0.2 is that of the host"),
            ("[{name: web, ip: 10.7.0.3}]", "10.7.0.3 is that of the name server"),
            ("[{name: a, ip: 10.7.0.9}, {name: b, ip: 10.7.0.9}]", "10.7.0.9 is reserved twice"),
            ("[{name: a.b, ip: 10.7.0.9}, {name: a-B, ip: 10.7.0.8}]", "`lima-a-b` has two"),
            (
                "[{mac: '52:55:55:00:00:01', ip: 10.7.0.9}, {mac: '52:55:55:00:00:01', name: b}]",
                "52:55:55:00:00:01 has two reservations",
            ),
        ] {
            let error = parse(list).unwrap_err();
            assert!(error.contains(why), "{list}: {error}");
            assert!(error.contains("networks.yaml:5:"), "{list}: {error}");
        }
    }
}
