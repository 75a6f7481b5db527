//! As much of HTTP/1 (RFC 9112) as the control API's clients speak: one request for each
//! connection, its body with a length, the whole of it in memory and bounded.

/// Most bytes of a request, head and body together.
pub(crate) const MAX_REQUEST: usize = 64 * 1024;

const MAX_HEADERS: usize = 64;

/// A whole request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    /// Without the query.
    pub(crate) path: &'a str,
    pub(crate) body: &'a [u8],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
}

impl<'a> Request<'a> {
    /// Reads a request; `None` while it is not complete.
    pub(crate) fn parse(input: &'a [u8]) -> Result<Option<Self>, Response> {
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
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        Ok(Some(Self { method, path, body }))
    }
}

impl Response {
    pub(crate) fn ok() -> Self {
        Self { status: 200, content_type: "text/plain; charset=utf-8", body: Vec::new() }
    }

    pub(crate) fn json(body: Vec<u8>) -> Self {
        Self { status: 200, content_type: "application/json", body }
    }

    pub(crate) fn error(status: u16, text: &str) -> Self {
        let body = format!("{text}\n").into_bytes();
        Self { status, content_type: "text/plain; charset=utf-8", body }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        let Self { status, content_type, body } = self;
        let reason = match status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            411 => "Length Required",
            413 => "Content Too Large",
            431 => "Request Header Fields Too Large",
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
        let want = Request { method: "POST", path: "/a", body: b"{}" };
        assert_eq!(Request::parse(text), Ok(Some(want)));
        let get = Request::parse(b"GET /stats HTTP/1.0\r\n\r\n").unwrap().unwrap();
        assert_eq!((get.method, get.path, get.body), ("GET", "/stats", &b""[..]));
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
