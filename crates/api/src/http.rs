//! As much of HTTP/1 (RFC 9112) as the control API needs: one request for each connection, its body
//! with a length, the whole of it in memory and bounded. The answer ends with the connection.

use std::io;

use serde::Serialize;

/// Most bytes of a request, head and body together.
pub const MAX_REQUEST: usize = 64 * 1024;

const MAX_HEADERS: usize = 64;

/// A whole request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// What follows the path's question mark.
    pub query: &'a str,
    pub body: &'a [u8],
    /// Bytes of the whole; what the client sent after it is for whoever takes the connection over.
    pub len: usize,
}

/// The head of an answer, for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Bytes before the body.
    pub(crate) len: usize,
}

impl Head {
    /// Reads a head; `None` while it is not complete.
    pub(crate) fn parse(input: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(input).map_err(io::Error::other)? {
            httparse::Status::Complete(len) => Ok(response.code.map(|status| Self { status, len })),
            httparse::Status::Partial => Ok(None),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
}

impl<'a> Request<'a> {
    /// Reads a request; `None` while it is not complete.
    pub fn parse(input: &'a [u8]) -> Result<Option<Self>, Response> {
        let bad = |text: &str| Response::error(400, text);
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let head = match request.parse(input) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if input.len() < MAX_REQUEST => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Err(Response::error(431, "request head too large"));
            }
            Err(error) => return Err(bad(&error.to_string())),
        };
        let (Some(method), Some(target)) = (request.method, request.path) else {
            return Err(bad("no request line"));
        };
        let mut length = None;
        for header in request.headers.iter() {
            if header.name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(Response::error(411, "a body needs a Content-Length here"));
            }
            if header.name.eq_ignore_ascii_case("content-length") {
                let text = std::str::from_utf8(header.value).unwrap_or("").trim();
                let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                let value = text.parse::<usize>().ok().filter(|_| digits);
                let Some(value) = value.filter(|v| length.is_none_or(|l| l == *v)) else {
                    return Err(bad("no valid Content-Length"));
                };
                length = Some(value);
            }
        }
        let length = length.unwrap_or(0);
        if length > MAX_REQUEST - head.min(MAX_REQUEST) {
            return Err(Response::error(413, "request too large"));
        }
        let Some(body) = input.get(head..head + length) else { return Ok(None) };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Ok(Some(Self { method, path, query, body, len: head + length }))
    }

    /// A parameter of the query, its escapes undone.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let value = pairs.filter(|(key, _)| unescape(key) == name).map(|(_, value)| value).next();
        value.map(unescape)
    }
}

impl Response {
    pub fn ok() -> Self {
        Self { status: 200, content_type: "text/plain; charset=utf-8", body: Vec::new() }
    }

    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(mut body) => {
                body.push(b'\n');
                Self { status: 200, content_type: "application/json", body }
            }
            Err(error) => Self::error(500, &error.to_string()),
        }
    }

    pub fn error(status: u16, text: &str) -> Self {
        let body = format!("{text}\n").into_bytes();
        Self { status, content_type: "text/plain; charset=utf-8", body }
    }

    /// The head of an answer that goes on until the connection ends.
    pub fn head_of_stream(content_type: &str) -> Vec<u8> {
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n");
        head.into_bytes()
    }

    pub fn into_bytes(self) -> Vec<u8> {
        let Self { status, content_type, body } = self;
        let reason = match status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            411 => "Length Required",
            413 => "Content Too Large",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let head = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len(),
        );
        [head.into_bytes(), body].concat()
    }
}

/// As forms have it (WHATWG URL, application/x-www-form-urlencoded).
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| *first == b'%');
        let escaped = escaped.and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(byte.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if byte.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Text as a part of a query, for [`Request::parameter`] to read.
pub fn escape(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(input: &[u8]) -> u16 {
        Request::parse(input).unwrap_err().status
    }

    #[test]
    fn requests_are_read_when_complete() {
        let text = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
        for len in 0..text.len() {
            assert_eq!(Request::parse(&text[..len]), Ok(None), "{len}");
        }
        let want =
            Request { method: "POST", path: "/a", query: "b=c", body: b"{}", len: text.len() };
        assert_eq!(Request::parse(text), Ok(Some(want)));
        let more = [&text[..], b"and more"].concat();
        assert_eq!(Request::parse(&more).unwrap().unwrap().len, text.len());
        let get = Request::parse(b"GET /stats HTTP/1.0\r\n\r\n").unwrap().unwrap();
        assert_eq!((get.method, get.path, get.body), ("GET", "/stats", &b""[..]));
    }

    #[test]
    fn parameters_are_unescaped() {
        let request = Request {
            method: "GET",
            path: "/",
            query: "a=1&b=%5b%3a%3A1%5d+x&c",
            body: b"",
            len: 0,
        };
        assert_eq!(request.parameter("a").as_deref(), Some("1"));
        assert_eq!(request.parameter("b").as_deref(), Some("[::1] x"));
        assert_eq!(request.parameter("c").as_deref(), Some(""));
        assert_eq!(request.parameter("d"), None);
        for text in ["a b&c=d%+", "b\u{fc}cher.example"] {
            assert_eq!(unescape(&escape(text)), text);
        }
        for odd in ["%", "%1", "%zz", "%+1", "\u{e9}%c3"] {
            unescape(odd);
        }
    }

    #[test]
    fn heads_of_answers_are_read() {
        let text = Response::error(404, "no").into_bytes();
        let len = text.len() - "no\n".len();
        assert_eq!(Head::parse(&text).unwrap(), Some(Head { status: 404, len }));
        assert_eq!(Head::parse(&text[..len - 1]).unwrap(), None);
        assert!(Head::parse(b"SSH-2.0\r\n\r\n").is_err());
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        assert_eq!(status(b"\x16\x03\x01"), 400);
        assert_eq!(status(b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), 400);
        assert_eq!(status(b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx"), 400);
        assert_eq!(
            status(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
            400
        );
        assert_eq!(status(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 411);
        assert_eq!(status(b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"), 413);
        assert_eq!(status(b"POST / HTTP/1.1\r\nContent-Length: 65536\r\n\r\n"), 413);
        let mut long = b"GET / HTTP/1.1\r\nX: ".to_vec();
        long.resize(MAX_REQUEST, b'x');
        assert_eq!(status(&long), 431);
    }

    #[test]
    fn responses_have_a_length() {
        let text = String::from_utf8(Response::error(404, "no").into_bytes()).unwrap();
        assert!(text.starts_with("HTTP/1.1 404 Not Found\r\n"), "{text}");
        assert!(text.ends_with("Content-Length: 3\r\nConnection: close\r\n\r\nno\n"), "{text}");
    }
}
