//! A web server for tests, with the faults that real ones have.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// How one request is answered.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) body: Vec<u8>,
    pub(super) etag: Option<&'static str>,
    /// Whether it knows ranges.
    pub(super) ranges: bool,
    /// After so many bytes of the body the connection ends.
    pub(super) cut: Option<usize>,
    /// Instead of 200.
    pub(super) status: Option<u16>,
    pub(super) location: Option<String>,
    /// No length is said beforehand.
    pub(super) chunked: bool,
}

impl Answer {
    pub(super) fn of(body: &[u8]) -> Self {
        Self {
            body: body.into(),
            etag: Some("\"one\""),
            ranges: true,
            cut: None,
            status: None,
            location: None,
            chunked: false,
        }
    }
}

/// A request: its method and path, and what it asks of ranges and conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) line: String,
    pub(super) range: Option<u64>,
    pub(super) if_range: Option<String>,
    pub(super) if_none_match: Option<String>,
}

/// Answers with what it is told, the last answer again and again.
pub(super) struct Server {
    pub(super) url: String,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    requests: Arc<Mutex<Vec<Request>>>,
    address: std::net::SocketAddr,
    stopped: Arc<Mutex<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(name: &str, answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let stopped = Arc::<Mutex<bool>>::default();
        let shared = (answers.clone(), requests.clone(), stopped.clone());
        let thread = std::thread::spawn(move || {
            let (answers, requests, stopped) = shared;
            for stream in listener.incoming() {
                if *stopped.lock().unwrap() {
                    return;
                }
                // A client that goes away is no fault of the server's.
                let _ = serve(&stream.unwrap(), &answers, &requests);
            }
        });
        let url = format!("http://{address}/{name}");
        Self { url, answers, requests, address, stopped, thread: Some(thread) }
    }

    pub(super) fn answer(&self, answers: Vec<Answer>) {
        *self.answers.lock().unwrap() = answers.into();
    }

    /// The requests since this was asked last.
    pub(super) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        *self.stopped.lock().unwrap() = true;
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    stream: &TcpStream,
    answers: &Mutex<VecDeque<Answer>>,
    requests: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut request =
        Request { line: lines.next().unwrap_or(Ok(String::new()))?, ..Default::default() };
    if request.line.is_empty() {
        return Ok(());
    }
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let from = value.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap();
                request.range = Some(from.parse().unwrap());
            }
            "if-range" => request.if_range = Some(value.into()),
            "if-none-match" => request.if_none_match = Some(value.into()),
            _ => {}
        }
    }
    let answer = {
        let mut answers = answers.lock().unwrap();
        let answer = answers[0].clone();
        if answers.len() > 1 {
            answers.pop_front();
        }
        answer
    };
    requests.lock().unwrap().push(request.clone());
    respond(stream, &request, &answer)?;
    stream.shutdown(Shutdown::Both)
}

fn respond(mut stream: &TcpStream, request: &Request, answer: &Answer) -> std::io::Result<()> {
    let same = request.if_range.as_deref().is_none_or(|tag| Some(tag) == answer.etag);
    let from = request.range.filter(|_| answer.ranges && same).map(|n| usize::try_from(n).unwrap());
    let len = answer.body.len();
    let not_modified =
        request.if_none_match.is_some() && request.if_none_match.as_deref() == answer.etag;
    let (status, body) = match (answer.status, from) {
        (Some(status), _) => (status, &[][..]),
        _ if not_modified => (304, &[][..]),
        (_, Some(from)) if from >= len => (416, &[][..]),
        (_, Some(from)) => (206, &answer.body[from..]),
        (_, None) => (200, answer.body.as_slice()),
    };
    let mut head = format!("HTTP/1.1 {status} So\r\nConnection: close\r\n");
    match (status, from) {
        (206, Some(from)) => head += &format!("Content-Range: bytes {from}-{}/{len}\r\n", len - 1),
        (416, _) => head += &format!("Content-Range: bytes */{len}\r\n"),
        _ => {}
    }
    if let Some(etag) = answer.etag {
        head += &format!("ETag: {etag}\r\n");
    }
    if let Some(location) = &answer.location {
        head += &format!("Location: {location}\r\n");
    }
    match answer.chunked {
        true => head += "Transfer-Encoding: chunked\r\n\r\n",
        false => head += &format!("Content-Length: {}\r\n\r\n", body.len()),
    }
    stream.write_all(head.as_bytes())?;
    if request.line.starts_with("HEAD") {
        return Ok(());
    }
    let sent = &body[..answer.cut.unwrap_or(body.len()).min(body.len())];
    if !answer.chunked {
        return stream.write_all(sent);
    }
    if !sent.is_empty() {
        write!(stream, "{:x}\r\n", sent.len())?;
        stream.write_all(sent)?;
        stream.write_all(b"\r\n")?;
    }
    stream.write_all(if answer.cut.is_some() { b"" } else { b"0\r\n\r\n" })
}
