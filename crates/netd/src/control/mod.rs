//! The control API: HTTP/1 on a UNIX socket of its own, for this user and root alone, served by
//! the daemon's loop. Clients are few, requests small and deadlines short, so that none of them
//! can keep the network waiting or make the daemon grow.

mod action;
mod view;

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant as SystemInstant};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use slab::Slab;
use vmlan_api::{Action, MAX_REQUEST, Request, Response};

use crate::core::Core;
use crate::token::Owner;
use crate::trusted::TrustedListener;
use crate::tunnel::Tunnels;
use crate::unix_path::BindError;
pub(crate) use action::Handover;
use action::{Asked, Outcome};

const MAX_CLIENTS: usize = 16;

/// For a request to be there, and again for its answer to be taken.
const DEADLINE: Duration = Duration::from_secs(10);

/// For a question to be answered; the resolver gives up earlier.
const RESOLVED: Duration = Duration::from_secs(20);

const CHUNK: usize = 4096;

#[derive(Debug)]
pub(crate) struct Control {
    listener: TrustedListener,
    clients: Slab<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    /// The answer, once there is one, and how much of it has been written.
    output: Option<(Vec<u8>, usize)>,
    /// The question that it waits for.
    asked: Option<Asked>,
    deadline: SystemInstant,
}

/// Whether a client's connection goes on.
#[derive(Debug)]
enum Progress {
    Waiting,
    Done,
    Over(Handover),
}

/// A connection that is not the control API's any more.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) stream: UnixStream,
    /// What has been read from it behind the request.
    pub(crate) early: Vec<u8>,
    pub(crate) to: Handover,
}

impl Control {
    pub(crate) fn new(registry: &Registry, path: &Path) -> Result<Self, BindError> {
        let listener = TrustedListener::bind(registry, path, Owner::ControlListener.token())?;
        Ok(Self { listener, clients: Slab::new() })
    }

    /// Takes new clients, as many as there is room for; the others wait in the backlog.
    pub(crate) fn accept(&mut self, registry: &Registry) {
        while self.clients.len() < MAX_CLIENTS {
            let Some(stream) = self.listener.accept() else { return };
            // Whoever is lost here sees the connection close.
            let _ = self.add(registry, stream);
        }
    }

    fn add(&mut self, registry: &Registry, stream: UnixStream) -> io::Result<()> {
        let vacant = self.clients.vacant_entry();
        let token = Owner::Control(u32::try_from(vacant.key()).map_err(io::Error::other)?).token();
        let fd = stream.as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE | Interest::WRITABLE)?;
        let deadline = SystemInstant::now() + DEADLINE;
        vacant.insert(Client { stream, input: Vec::new(), output: None, asked: None, deadline });
        Ok(())
    }

    /// A client's connection is ready.
    pub(crate) fn handle(
        &mut self,
        registry: &Registry,
        index: u32,
        core: &mut Core,
        tunnels: &mut Tunnels,
    ) -> Option<Handed> {
        let client = self.clients.get_mut(index as usize)?;
        let progress = client.go_on(core, tunnels);
        if matches!(progress, Ok(Progress::Waiting)) {
            return None;
        }
        let Client { stream, input: early, .. } = self.clients.remove(index as usize);
        self.accept(registry);
        let Ok(Progress::Over(to)) = progress else { return None };
        // Its next owner registers it as its own.
        registry.deregister(&mut SourceFd(&stream.as_raw_fd())).ok()?;
        Some(Handed { stream, early, to })
    }

    /// Gives clients the answers of the resolver.
    pub(crate) fn give_resolved(&mut self, registry: &Registry, core: &mut Core) {
        for resolved in core.answered.drain(..) {
            let answer = self.clients.iter_mut().find_map(|(index, client)| {
                let response = client.asked.as_ref()?.answer(&resolved)?;
                client.answer(response);
                Some((index, client.write()))
            });
            if let Some((index, Ok(Progress::Done | Progress::Over(_)) | Err(_))) = answer {
                self.clients.remove(index);
                self.accept(registry);
            }
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<SystemInstant> {
        self.clients.iter().map(|(_, client)| client.deadline).min()
    }

    /// Lets clients go that took too long.
    pub(crate) fn handle_timeout(&mut self, registry: &Registry, now: SystemInstant) {
        self.clients.retain(|_, client| client.deadline > now);
        self.accept(registry);
    }
}

impl Client {
    fn go_on(&mut self, core: &mut Core, tunnels: &mut Tunnels) -> io::Result<Progress> {
        if self.asked.is_some() {
            return Ok(Progress::Waiting);
        }
        if self.output.is_none() {
            let ended = self.read()?;
            let response = match Request::parse(&self.input) {
                Ok(None) if ended => return Ok(Progress::Done),
                Ok(None) => return Ok(Progress::Waiting),
                Ok(Some(request)) => match Action::of(&request) {
                    Ok(action) => match action::run(action, core, tunnels) {
                        Outcome::Answer(response) => response,
                        Outcome::Asked(asked) => {
                            self.asked = Some(asked);
                            self.deadline = SystemInstant::now() + RESOLVED;
                            return Ok(Progress::Waiting);
                        }
                        Outcome::Handover(to) => {
                            let len = request.len;
                            self.input.drain(..len);
                            return Ok(Progress::Over(to));
                        }
                    },
                    Err(refusal) => refusal,
                },
                Err(refusal) => refusal,
            };
            self.answer(response);
        }
        self.write()
    }

    fn answer(&mut self, response: Response) {
        self.asked = None;
        self.output = Some((response.into_bytes(), 0));
        self.deadline = SystemInstant::now() + DEADLINE;
    }

    /// Reads what there is; true when nothing more will come.
    fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0; CHUNK];
        while self.input.len() < MAX_REQUEST {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(true),
                Ok(n) => self.input.extend_from_slice(chunk.get(..n).unwrap_or(&[])),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }

    fn write(&mut self) -> io::Result<Progress> {
        let Some((output, sent)) = &mut self.output else { return Ok(Progress::Waiting) };
        while let Some(rest) = output.get(*sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(n) => *sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Waiting),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Progress::Done)
    }
}
