//! A `portForwards` entry as written, and the line of the table or the pair of sockets that it
//! means.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::forwards::{Action, EVERYWHERE, Forwards, LOOPBACK, Proto, Rule, SocketForward};
use super::raw::RawForward;
use crate::home::socket_path;
use crate::networks::unknown_field;
use crate::source::{Diagnostic, Span};
use crate::yaml::At;

/// The table that entries mean. Relative sockets of the host are below `dir`, the instance's.
pub(super) fn forwards(
    entries: &[At<RawForward>],
    dir: &Path,
    found: &mut Vec<Diagnostic>,
) -> Forwards {
    let mut forwards = Forwards::default();
    for (i, entry) in entries.iter().enumerate() {
        let of = format!(" of `portForwards[{i}]`");
        let unknown = entry.value.unknown.iter();
        found.extend(unknown.map(|key| unknown_field(key, RawForward::KEYS, &of)));
        match resolve(i, &entry.value, entry.span, dir) {
            Ok(Line::Rule(rule)) => forwards.rules.push(rule),
            Ok(Line::Sockets(sockets)) => forwards.sockets.push(sockets),
            Err(wrong) => found.push(*wrong),
        }
    }
    forwards
}

enum Line {
    Rule(Rule),
    Sockets(SocketForward),
}

type Wrong = Box<Diagnostic>;

fn resolve(i: usize, raw: &RawForward, span: Option<Span>, dir: &Path) -> Result<Line, Wrong> {
    let wrong = |field: &str, why: &str, at: Option<Span>| {
        Box::new(Diagnostic::error(format!("field `portForwards[{i}].{field}` {why}"), at))
    };
    let is = |at: &Option<At<bool>>| at.as_ref().is_some_and(|at| at.value);
    let zero = raw.guest_ip_must_be_zero.as_ref().map(|at| at.value);
    let guest_ip = ip(raw.guest_ip.as_ref()).map_err(|at| wrong("guestIP", NO_IP, at))?;
    let default = if zero == Some(true) { EVERYWHERE } else { LOOPBACK };
    let guest_ip = guest_ip.unwrap_or(default);
    let must_be_zero = zero.unwrap_or(guest_ip == EVERYWHERE);
    if must_be_zero && guest_ip != EVERYWHERE {
        let at = raw.guest_ip_must_be_zero.as_ref().and_then(|at| at.span);
        return Err(wrong("guestIPMustBeZero", "can only be true when guestIP is 0.0.0.0", at));
    }
    let host_ip = ip(raw.host_ip.as_ref()).map_err(|at| wrong("hostIP", NO_IP, at))?;
    let host_socket = text(raw.host_socket.as_ref())
        .map(|at| {
            let path = dir.join("sock").join(&at.value);
            socket_path(&path).map_err(|e| wrong("hostSocket", &e.to_string(), at.span))?;
            Ok::<_, Wrong>(path)
        })
        .transpose()?;
    let reverse_at = raw.reverse.as_ref().and_then(|at| at.span);
    if let Some(guest) = text(raw.guest_socket.as_ref()) {
        if !guest.value.starts_with('/') {
            return Err(wrong("guestSocket", "must be an absolute path", guest.span));
        }
        if raw.guest_port.is_some() || raw.guest_port_range.is_some() {
            return Err(wrong("guestPort", "must be 0 when guestSocket is set", guest.span));
        }
        let Some(host) = host_socket else {
            let why = "needs a hostSocket: a socket of the guest leads to one of the host";
            return Err(wrong("guestSocket", why, guest.span));
        };
        let guest = PathBuf::from(&guest.value);
        return Ok(Line::Sockets(SocketForward { guest, host, reverse: is(&raw.reverse) }));
    }
    if is(&raw.reverse) {
        let why = "must be false unless both guestSocket and hostSocket are set";
        return Err(wrong("reverse", why, reverse_at));
    }
    let (one, range) = (raw.guest_port.as_ref(), raw.guest_port_range.as_ref());
    let ports = ports(("guestPort", one), ("guestPortRange", range), &wrong)?;
    let ports = ports.unwrap_or(1..=u16::MAX);
    let proto = match text(raw.proto.as_ref()) {
        None => Proto::Any,
        Some(at) => match at.value.as_str() {
            "any" => Proto::Any,
            "tcp" => Proto::Tcp,
            "udp" => Proto::Udp,
            _ => return Err(wrong("proto", "must be `tcp`, `udp`, or `any`", at.span)),
        },
    };
    let (one, range) = (raw.host_port.as_ref(), raw.host_port_range.as_ref());
    let host = self::ports(("hostPort", one), ("hostPortRange", range), &wrong)?;
    let host = host.unwrap_or_else(|| ports.clone());
    let action = match host_socket {
        _ if is(&raw.ignore) => Action::Ignore,
        Some(_) if ports.len() != 1 => {
            let why = "can only be mapped to a single port or socket. not a range";
            return Err(wrong("hostSocket", why, span));
        }
        Some(path) => Action::Socket(path),
        None if host.len() != ports.len() => {
            let why = "must specify the same number of ports as guestPortRange";
            return Err(wrong("hostPortRange", why, span));
        }
        None => Action::Port { ip: host_ip.unwrap_or(LOOPBACK), first: *host.start() },
    };
    let is_static = is(&raw.is_static);
    Ok(Line::Rule(Rule { guest_ip, must_be_zero, ports, proto, action, is_static }))
}

const NO_IP: &str = "must be an IP address";

/// An empty text says nothing.
fn text(at: Option<&At<String>>) -> Option<&At<String>> {
    at.filter(|at| !at.value.is_empty())
}

fn ip(at: Option<&At<String>>) -> Result<Option<IpAddr>, Option<Span>> {
    text(at).map(|at| at.value.parse().map_err(|_| at.span)).transpose()
}

/// The ports of a single field and of a range; if both are given they must agree. No port is 0.
fn ports(
    (one_name, one): (&str, Option<&At<i64>>),
    (range_name, range): (&str, Option<&At<Vec<i64>>>),
    wrong: &impl Fn(&str, &str, Option<Span>) -> Wrong,
) -> Result<Option<RangeInclusive<u16>>, Wrong> {
    let port = |field: &str, value: i64, span| match value {
        ..=0 => Err(wrong(field, "must be > 0", span)),
        22 if field.starts_with("hostPort") => Err(wrong(field, "must not be 22", span)),
        _ => u16::try_from(value).map_err(|_| wrong(field, "must be < 65536", span)),
    };
    // A port 0 is one that is not given.
    let one = one.filter(|at| at.value != 0);
    let single = one.map(|at| port(one_name, at.value, at.span)).transpose()?;
    let Some(range) = range else { return Ok(single.map(|port| port..=port)) };
    let [first, last] = range.value.as_slice() else {
        return Err(wrong(range_name, "must have two ports, the first and the last", range.span));
    };
    if *first == 0 && *last == 0 {
        return Ok(single.map(|port| port..=port));
    }
    let (first, last) =
        (port(range_name, *first, range.span)?, port(range_name, *last, range.span)?);
    if last < first {
        let field = format!("{range_name}[1]");
        let why = format!("must be greater than or equal to field `{range_name}[0]`");
        return Err(wrong(&field, &why, range.span));
    }
    if single.is_some_and(|port| port != first) {
        let why = format!("must match {range_name}[0]");
        return Err(wrong(one_name, &why, one.and_then(|at| at.span)));
    }
    Ok(Some(first..=last))
}
