//! `ha.sock`: what a host agent answers, and what it can be asked to do.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use vmlan_api::{Request, Response};

use super::state::State;
use super::{Message, spawn};

/// For a request to be there, and for an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves the socket until the process ends. One after the other: a question is answered at once.
pub(super) fn serve(path: &Path, state: Arc<State>, tell: Sender<Message>) -> Result<(), String> {
    let failed = |e: io::Error| format!("{}: {e}", path.display());
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    let work = move || {
        for stream in listener.incoming() {
            match stream {
                // Who does not ask properly hears nothing.
                Ok(stream) => drop(answer(&stream, &state, &tell)),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    };
    spawn("api", work).map_err(failed)
}

fn answer(mut stream: &UnixStream, state: &State, tell: &Sender<Message>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut input = Vec::new();
    let mut chunk = [0; 4096];
    let response = loop {
        match Request::parse(&input) {
            Ok(Some(request)) => break respond(&request, state, tell),
            Ok(None) => {}
            Err(response) => break response,
        }
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => input.extend_from_slice(chunk.get(..n).unwrap_or_default()),
        }
    };
    stream.write_all(&response.into_bytes())
}

fn respond(request: &Request<'_>, state: &State, tell: &Sender<Message>) -> Response {
    match (request.method, request.path) {
        ("GET", "/v1/info") => Response::json(&state.snapshot()),
        ("POST", "/v1/stop") => {
            let force = request.parameter("force").is_some_and(|value| value == "true");
            match tell.send(Message::Stop { force }) {
                Ok(()) => Response::ok(),
                Err(_) => Response::error(503, "the machine has ended"),
            }
        }
        (_, "/v1/info" | "/v1/stop") => Response::error(405, "not with this method"),
        _ => Response::error(404, "there is no such path"),
    }
}
