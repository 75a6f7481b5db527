//! HTTP CONNECT (RFC 9110 section 9.3.6, RFC 9112), with the reason of a failure as RFC 9209 has it.

use crate::{Host, Outcome, Parsed, Request, Target};

const MAX_HEADERS: usize = 64;

/// A request's head; `None` while it is not all there.
pub(crate) fn request(input: &[u8]) -> Option<(Parsed, usize)> {
    let refused = |status, text| Some((Parsed::Refused(error(status, "", text)), input.len()));
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(input) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return None,
        Err(httparse::Error::TooManyHeaders) => {
            return refused("431 Request Header Fields Too Large", "too many headers");
        }
        Err(_) => return refused("400 Bad Request", "neither SOCKS5 nor HTTP"),
    };
    if request.method != Some("CONNECT") {
        let text =
            "this proxy knows CONNECT alone: use it as socks5h, or with curl's --proxytunnel";
        return refused("405 Method Not Allowed\r\nAllow: CONNECT", text);
    }
    let target = request.path.and_then(|authority| authority.rsplit_once(':'));
    let target = target.and_then(|(host, port)| {
        let port = Some(port).filter(|port| port.bytes().all(|b| b.is_ascii_digit()));
        // An IPv6 address is in brackets.
        let host = Some(host).filter(|host| !host.contains(':') || host.starts_with('['))?;
        Some(Target { host: Host::parse(host.as_bytes())?, port: port?.parse().ok()? })
    });
    match target {
        Some(target) => Some((Parsed::Request(Request::Connect(target)), len)),
        None => refused("400 Bad Request", "CONNECT wants HOST:PORT"),
    }
}

/// The answer to a request.
pub(crate) fn answer(outcome: Outcome) -> Vec<u8> {
    let (status, reason) = match outcome {
        Outcome::Done(_) => return b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec(),
        Outcome::NotAllowed => ("403 Forbidden", "destination_ip_prohibited"),
        Outcome::NoSuchName => ("502 Bad Gateway", "dns_error"),
        Outcome::NetUnreachable | Outcome::HostUnreachable => {
            ("502 Bad Gateway", "destination_ip_unroutable")
        }
        Outcome::Refused => ("502 Bad Gateway", "connection_refused"),
        Outcome::TimedOut => ("504 Gateway Timeout", "connection_timeout"),
        Outcome::Failed => ("503 Service Unavailable", "connection_limit_reached"),
    };
    let headers = format!("Proxy-Status: vmlan; error={reason}\r\n");
    error(status, &headers, &outcome.to_string())
}

fn error(status: &str, headers: &str, text: &str) -> Vec<u8> {
    let len = text.len() + 1;
    let head = format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n");
    format!("{head}Content-Type: text/plain\r\nContent-Length: {len}\r\n\r\n{text}\n").into_bytes()
}
