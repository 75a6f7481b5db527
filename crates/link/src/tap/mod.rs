//! A guest behind a TAP device: a network namespace, or a virtual machine whose monitor shares the
//! device. Checksums and segmentation are left undone in both directions, so that a train of 64 KiB
//! costs one system call and no look at its bytes (`IFF_VNET_HDR`).
//!
//! [`TapLink`] moves frames; [`netns`] makes the device in a namespace of somebody else's;
//! [`configure`] gives an interface its addresses and routes.

pub mod configure;
mod device;
mod netlink;
pub mod netns;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use rustix::io::Errno;
use vmlan_wire::{FrameBatch, Offload, OutFrame};

use crate::framing::MAX_FRAME;
use crate::ready::is_writable;
use crate::{CloseReason, Flushed, Link, LinkCaps, LinkKind, PeerId, Recv, vnet};

pub use configure::{ConfigureError, InterfaceConfig, configure_interface, remove_address};
pub use netns::{NetnsError, open_in_netns};

/// The largest frames that one pass reads. One at a time means a write to the host and an
/// acknowledgement for each; with many, the guest waits.
const READS: usize = 4;

/// Small frames that one pass reads.
const FRAMES: usize = 64;

/// Room for one frame and its header, in whole words.
const SLOT: usize = (vnet::HEADER + MAX_FRAME).next_multiple_of(8);

/// A guest that sends small frames one at a time waits for their answers: the read that would say
/// "empty" is spared, and only each eighth time is it looked whether more frames come by now.
const LOOK: u8 = 8;
const SMALL: usize = 2048;

/// What is not longer is sooner copied together than described to the kernel piece by piece.
const COPY: usize = 256;

/// A TAP link.
#[derive(Debug)]
pub struct TapLink {
    device: OwnedFd,
    vnet_header: bool,
    blocked: bool,
    closed: Option<CloseReason>,
    /// Frames come several at once.
    busy: bool,
    /// Reads of one small frame since it was last looked for a second.
    single: u8,
}

impl TapLink {
    /// Takes over an open TAP device. An error of kind `InvalidInput` says that it is none, or one
    /// that was opened without `IFF_NO_PI`.
    pub fn new(device: OwnedFd) -> io::Result<Self> {
        Self::open(device, true)
    }

    /// The same for frames that go on to where nobody finishes them: the guest's kernel does all of
    /// its work itself.
    pub fn without_offload(device: OwnedFd) -> io::Result<Self> {
        Self::open(device, false)
    }

    fn open(device: OwnedFd, offload: bool) -> io::Result<Self> {
        let framing = device::framing(device.as_fd()).ok_or(io::ErrorKind::InvalidInput)?;
        if framing.vnet_header {
            device::set_offload(device.as_fd(), offload)?;
        }
        rustix::io::ioctl_fionbio(&device, true)?;
        Ok(Self::with_framing(device, framing.vnet_header))
    }

    /// Takes over what only behaves as such a device does: non-blocking, a frame in each read and
    /// write, behind a `virtio_net_hdr` if told. Tests have sockets for it.
    pub fn with_framing(device: OwnedFd, vnet_header: bool) -> Self {
        Self { device, vnet_header, blocked: false, closed: None, busy: false, single: 0 }
    }

    /// Whether the descriptor is an open TAP device.
    pub fn is_tap(fd: BorrowedFd<'_>) -> bool {
        device::framing(fd).is_some()
    }

    /// Makes a TAP in the caller's own network namespace.
    pub fn create(name: &str) -> io::Result<OwnedFd> {
        device::create(name)
    }

    /// After one frame: whether to stop there.
    fn is_alone(&mut self, len: usize) -> bool {
        if self.busy || len > SMALL {
            return false;
        }
        self.single = (self.single + 1) % LOOK;
        self.single != 0
    }

    /// Reads one frame to `buf[at..]`; returns where it starts, its length and offload.
    fn read(&self, buf: &mut [u8]) -> rustix::io::Result<(usize, usize, Offload)> {
        let n = loop {
            match rustix::io::read(&self.device, &mut *buf) {
                Err(Errno::INTR) => {}
                result => break result?,
            }
        };
        if !self.vnet_header {
            return Ok((0, n, Offload::NONE));
        }
        let offload = buf.first_chunk().map_or(Offload::NONE, vnet::parse);
        Ok((vnet::HEADER, n.saturating_sub(vnet::HEADER), offload))
    }

    fn write(&self, frame: &OutFrame<'_>) -> rustix::io::Result<()> {
        let header = vnet::emit(frame.offload);
        let header = if self.vnet_header { header.as_slice() } else { &[] };
        let pieces = [header, frame.head, frame.body[0], frame.body[1]];
        let mut whole = ArrayVec::<u8, COPY>::new();
        let fits = pieces.iter().all(|piece| whole.try_extend_from_slice(piece).is_ok());
        loop {
            let written = if fits {
                rustix::io::write(&self.device, &whole)
            } else {
                rustix::io::writev(&self.device, &pieces.map(IoSlice::new))
            };
            match written {
                Err(Errno::INTR) => {}
                result => return result.map(|_| ()),
            }
        }
    }

    fn close(&mut self, error: Errno) -> CloseReason {
        let reason = match error {
            // The interface was removed, or its namespace ended with its last process.
            Errno::BADFD | Errno::NODEV => CloseReason::Eof,
            error => CloseReason::from(&io::Error::from(error)),
        };
        *self.closed.get_or_insert(reason)
    }
}

impl Link for TapLink {
    fn kind(&self) -> LinkKind {
        LinkKind::Tap
    }

    fn caps(&self) -> LinkCaps {
        let able = self.vnet_header;
        LinkCaps { checksum: able, tso4: able, tso6: able }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn is_level_triggered(&self) -> bool {
        true
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Recv {
        batch.clear();
        if let Some(reason) = self.closed {
            return Recv::Closed(reason);
        }
        if batch.buf.len() < READS * SLOT {
            batch.buf.resize(READS * SLOT, 0);
        }
        let mut at = 0;
        let more = loop {
            if batch.len() >= FRAMES || at + SLOT > READS * SLOT {
                break true;
            }
            match self.read(batch.buf.get_mut(at..at + SLOT).unwrap_or_default()) {
                Ok((start, len, offload)) => {
                    batch.push(at + start, len, offload);
                    at = (at + start + len).next_multiple_of(8);
                    if batch.len() == 1 && self.is_alone(len) {
                        break false;
                    }
                    self.busy = batch.len() > 1;
                }
                Err(Errno::AGAIN) => break false,
                Err(error) => {
                    let reason = self.close(error);
                    if batch.is_empty() {
                        return Recv::Closed(reason);
                    }
                    break true;
                }
            }
        };
        if batch.is_empty() { Recv::Empty } else { Recv::Frames { peer: PeerId(0), more } }
    }

    fn send(&mut self, _peer: PeerId, frames: &[OutFrame<'_>]) -> usize {
        for (taken, frame) in frames.iter().enumerate() {
            if self.closed.is_some() {
                break;
            }
            match self.write(frame) {
                Err(Errno::AGAIN) => {
                    self.blocked = true;
                    return taken;
                }
                Err(error @ (Errno::BADFD | Errno::NODEV)) => {
                    self.close(error);
                }
                // What the interface does not take, because it is down or short of memory or finds
                // the frame wrong, is lost as on any wire.
                Ok(()) | Err(_) => {}
            }
        }
        frames.len()
    }

    fn flush(&mut self) -> Flushed {
        if self.closed.is_some() {
            return Flushed::Closed;
        }
        if self.blocked {
            self.blocked = !is_writable(self.device.as_fd());
        }
        if self.blocked { Flushed::Blocked } else { Flushed::Done }
    }
}
