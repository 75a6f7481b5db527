//! A virtual machine whose network card is a vhost-user device, with vmlan as its back end: frames
//! lie in the machine's memory, and checksums and segmentation are left undone in both directions
//! (virtio 1.2, section 5.1; the vhost-user protocol of QEMU's interoperability documents).
//!
//! [`VhostUserLink`] has the connection to the machine's monitor; `device` is what the monitor sets
//! up, with its `ring`s and `memory`; `request` sees to it that a read never waits for the rest of a
//! message. One pair of rings, no live migration.
//!
//! A guest says by a flag in a ring that it wants to be told, and so do we. Both are looked at once
//! more a little later: an emulated processor may be late with its writes, and then each side thinks
//! that the other one knows.

mod device;
mod frames;
mod memory;
mod request;
mod ring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use vhost::vhost_user::{BackendReqHandler, Error, VhostUserBackendReqHandlerMut};
use vmlan_wire::{FrameBatch, OutFrame};

use crate::{CloseReason, Flushed, Link, LinkCaps, LinkKind, PeerId, Recv};

use device::Device;
use request::Request;

/// Messages of the monitor's that one pass handles.
const REQUESTS: usize = 32;

/// When a ring is looked at again of which no event tells.
const LOOK: Duration = Duration::from_millis(1);

const WRONG_MESSAGE: &str = "its monitor sent a message that cannot be";

/// What an event is of. Kicks need not be told apart.
const CONTROL: u64 = 0;
const KICK: u64 = 1;

/// A machine that has connected.
pub struct VhostUserLink {
    /// Of the connection and the rings' kicks, so that one descriptor is to be polled.
    poll: Arc<OwnedFd>,
    connection: UnixStream,
    handler: BackendReqHandler<Mutex<Device>>,
    device: Arc<Mutex<Device>>,
    /// There may be messages.
    requests: bool,
    /// No more will come than there is.
    ended: bool,
    look: Option<Instant>,
    closed: Option<CloseReason>,
}

impl VhostUserLink {
    /// Takes over a connection that a monitor has made.
    pub fn new(connection: UnixStream) -> io::Result<Self> {
        connection.set_nonblocking(true)?;
        let poll = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&poll, &connection, EventData::new_u64(CONTROL), flags)?;
        let device = Arc::new(Mutex::new(Device::new(Arc::clone(&poll))?));
        let handler = BackendReqHandler::from_stream(connection.try_clone()?, Arc::clone(&device));
        Ok(Self {
            poll,
            connection,
            handler,
            device,
            requests: true,
            ended: false,
            look: None,
            closed: None,
        })
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of events. True if a ring was kicked.
    fn poll(&mut self) -> bool {
        let mut events =
            [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 3];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok(n) = epoll::wait(&self.poll, &mut events, Some(&now)) else {
            return false;
        };
        let events = events.get(..n).unwrap_or_default();
        let mut kicked = false;
        for event in events {
            // The type is packed.
            let (data, flags) = (event.data, event.flags);
            if data.u64() == CONTROL {
                self.requests = true;
                self.ended |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
            } else {
                kicked = true;
            }
        }
        kicked
    }

    /// Handles the messages that are there.
    fn handle_requests(&mut self) -> Result<(), CloseReason> {
        for _ in 0..REQUESTS {
            match request::next(self.connection.as_fd())? {
                Request::Enable if !self.device().has_protocol_features() => {
                    self.enable_early()?;
                    continue;
                }
                Request::Whole | Request::Enable => {}
                Request::None if self.ended => return Err(CloseReason::Eof),
                Request::None => {
                    self.requests = false;
                    return Ok(());
                }
            }
            if let Err(error) = self.handler.handle_request() {
                return Err(self.reason(&error));
            }
        }
        Ok(())
    }

    /// A ring is enabled before the features are known.
    fn enable_early(&mut self) -> Result<(), CloseReason> {
        let acknowledges = self.device().acknowledges();
        let read = request::read_enable(&self.connection, acknowledges);
        match read.map_err(|error| CloseReason::from(&error))? {
            Some((ring, on)) if self.device().set_vring_enable(ring, on).is_ok() => Ok(()),
            _ => Err(CloseReason::Refused(WRONG_MESSAGE)),
        }
    }

    fn reason(&self, error: &Error) -> CloseReason {
        if let Some(refusal) = self.device().refusal() {
            return CloseReason::Refused(refusal);
        }
        match error {
            Error::Disconnected | Error::PartialMessage => CloseReason::Eof,
            Error::SocketBroken(error) | Error::SocketError(error) => CloseReason::from(error),
            _ => CloseReason::Refused(WRONG_MESSAGE),
        }
    }

    fn look_later(&mut self) {
        self.look.get_or_insert_with(|| Instant::now() + LOOK);
    }
}

impl std::fmt::Debug for VhostUserLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("VhostUserLink");
        f.field("connection", &self.connection).field("device", &self.device).finish()
    }
}

impl Link for VhostUserLink {
    fn kind(&self) -> LinkKind {
        LinkKind::VhostUser
    }

    fn caps(&self) -> LinkCaps {
        self.device().caps()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    /// The poll's own readiness is a level: it ends when the events have been taken.
    fn is_level_triggered(&self) -> bool {
        true
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Recv {
        batch.clear();
        if let Some(reason) = self.closed {
            return Recv::Closed(reason);
        }
        let kicked = self.poll();
        if self.requests
            && let Err(reason) = self.handle_requests()
        {
            self.device().close();
            self.closed = Some(reason);
            return Recv::Closed(reason);
        }
        let taken = self.device().receive(batch);
        if taken.look {
            self.look_later();
        }
        if kicked && self.device().is_blocked() {
            // The guest may have made room: `flush` finds out.
            self.look = Some(Instant::now());
        }
        if batch.is_empty() && !taken.more && !self.requests {
            return Recv::Empty;
        }
        Recv::Frames { peer: PeerId(0), more: taken.more || self.requests }
    }

    fn send(&mut self, _peer: PeerId, frames: &[OutFrame<'_>]) -> usize {
        if self.closed.is_some() {
            return frames.len();
        }
        self.device().send(frames)
    }

    fn flush(&mut self) -> Flushed {
        if self.closed.is_some() {
            return Flushed::Closed;
        }
        if self.look.is_some_and(|at| at <= Instant::now()) {
            self.look = None;
        }
        let flushed = self.device().flush();
        if flushed.look {
            self.look_later();
        }
        if flushed.blocked { Flushed::Blocked } else { Flushed::Done }
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.look
    }
}

#[cfg(test)]
mod tests;
