//! Who sees the frames of the network: a file, and clients of the control API that read along. While
//! nobody does, nothing of this is reached.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant as SystemInstant};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use slab::Slab;
use vmlan_engine::PortId;
use vmlan_link::capture::{Capture, Interface};
use vmlan_wire::{FrameBatch, OutFrame};

use crate::token::Owner;

/// Clients that read along at once; each costs a copy of every frame.
const MAX_READERS: usize = 8;

/// For a reader that wants no more to take what is left.
const DEADLINE: Duration = Duration::from_secs(10);

/// Whose frames are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    All,
    /// Those of the guest that joined with this name, whenever it is there.
    Name(String),
    Port(PortId),
}

#[derive(Debug, Default)]
pub(crate) struct Captures {
    list: Slab<Session>,
}

#[derive(Debug)]
struct Session {
    capture: Capture,
    filter: Filter,
    /// The client's end; a file has none.
    reader: Option<UnixStream>,
    /// Set once nothing more is to be captured.
    deadline: Option<SystemInstant>,
    /// The guests in the capture by their names there.
    by_name: HashMap<String, Interface>,
    /// What is known of each port.
    by_port: Vec<Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Seen {
    /// Nothing of it has passed yet.
    #[default]
    Unknown,
    /// It is not for this capture.
    Other,
    Interface(Interface),
}

impl Captures {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether there is room for another client.
    pub(crate) fn has_room(&self) -> bool {
        self.list.iter().filter(|(_, session)| session.reader.is_some()).count() < MAX_READERS
    }

    /// Captures everything in a new file.
    pub(crate) fn add_file(&mut self, path: &Path) -> io::Result<()> {
        let capture = Capture::create(path)?;
        self.list.insert(Session::new(capture, Filter::All, None));
        Ok(())
    }

    /// Captures for a client, behind the head of its answer.
    pub(crate) fn add_reader(
        &mut self,
        registry: &Registry,
        stream: UnixStream,
        filter: Filter,
        head: &[u8],
    ) -> io::Result<()> {
        let vacant = self.list.vacant_entry();
        let token = Owner::Capture(u32::try_from(vacant.key()).map_err(io::Error::other)?).token();
        let mut source = SourceFd(&stream.as_raw_fd());
        registry.register(&mut source, token, Interest::READABLE | Interest::WRITABLE)?;
        let out = File::from(OwnedFd::from(stream.try_clone()?));
        let mut session = Session::new(Capture::new(out, head), filter, Some(stream));
        session.capture.push();
        vacant.insert(session);
        Ok(())
    }

    /// Frames from the guest at a port.
    pub(crate) fn received(&mut self, port: PortId, name: Option<&str>, batch: &FrameBatch) {
        for (_, session) in &mut self.list {
            if let Some(interface) = session.interface(port, name) {
                session.capture.received(interface, batch);
            }
        }
    }

    /// Frames to the guest at a port.
    pub(crate) fn sent(&mut self, port: PortId, name: Option<&str>, frames: &[OutFrame<'_>]) {
        for (_, session) in &mut self.list {
            if let Some(interface) = session.interface(port, name) {
                session.capture.sent(interface, frames.iter());
            }
        }
    }

    /// At the end of a pass.
    pub(crate) fn flush(&mut self) {
        self.list.retain(|_, session| {
            let written = session.capture.push();
            // A file that failed has nobody who could be told.
            let over = written && session.deadline.is_some();
            !session.capture.has_failed() && !over
        });
    }

    /// A client's end is ready.
    pub(crate) fn handle(&mut self, index: u32) {
        let Some(session) = self.list.get_mut(index as usize) else { return };
        if session.deadline.is_none() && session.has_left() {
            session.finish();
        }
        self.flush();
    }

    /// The guest at a port is gone, or another is there.
    pub(crate) fn forget(&mut self, port: PortId) {
        for (_, session) in &mut self.list {
            if let Some(seen) = session.by_port.get_mut(usize::from(port.0)) {
                *seen = Seen::Unknown;
            }
            if session.filter == Filter::Port(port) && session.deadline.is_none() {
                session.finish();
            }
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<SystemInstant> {
        self.list.iter().filter_map(|(_, session)| session.deadline).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: SystemInstant) {
        self.list.retain(|_, session| session.deadline.is_none_or(|deadline| deadline > now));
    }
}

impl Session {
    fn new(capture: Capture, filter: Filter, reader: Option<UnixStream>) -> Self {
        Self {
            capture,
            filter,
            reader,
            deadline: None,
            by_name: HashMap::new(),
            by_port: Vec::new(),
        }
    }

    /// The guest at a port, if it is captured.
    fn interface(&mut self, port: PortId, name: Option<&str>) -> Option<Interface> {
        let index = usize::from(port.0);
        match self.by_port.get(index) {
            Some(Seen::Other) => return None,
            Some(Seen::Interface(interface)) => return Some(*interface),
            Some(Seen::Unknown) => {}
            None => self.by_port.resize(index + 1, Seen::Unknown),
        }
        let wanted = match &self.filter {
            Filter::All => true,
            Filter::Name(wanted) => name == Some(wanted),
            Filter::Port(wanted) => *wanted == port,
        };
        let seen = if wanted {
            let name = name.map_or_else(|| format!("port {}", port.0), ToOwned::to_owned);
            let known = self.by_name.get(&name).copied();
            // Without room, the next frame asks again.
            let interface = known.or_else(|| self.capture.interface(&name))?;
            self.by_name.insert(name, interface);
            Seen::Interface(interface)
        } else {
            Seen::Other
        };
        if let Some(slot) = self.by_port.get_mut(index) {
            *slot = seen;
        }
        match seen {
            Seen::Interface(interface) => Some(interface),
            Seen::Other | Seen::Unknown => None,
        }
    }

    /// Whether the client wants no more. It has nothing to say.
    fn has_left(&mut self) -> bool {
        let Some(reader) = &mut self.reader else { return false };
        let mut buf = [0; 64];
        loop {
            match reader.read(&mut buf) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return e.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    fn finish(&mut self) {
        self.capture.finish();
        self.deadline = Some(SystemInstant::now() + DEADLINE);
    }
}
