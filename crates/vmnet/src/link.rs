//! Frames in and out of an interface, in batches. The framework tells of frames on a queue of its own;
//! from there, a byte in a socket wakes whoever polls.

use std::ffi::{c_int, c_void};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use block2::RcBlock;
use vmlan_link::{Flushed, Link, LinkCaps, LinkKind, PeerId, Recv};
use vmlan_wire::{FrameBatch, Offload, OutFrame};

use crate::interface::{Interface, StartError};
use crate::sys::{self, Packet, XpcObject};

/// Frames of one call of the framework.
const FRAMES: usize = 32;

/// An interface as a link.
#[derive(Debug)]
pub struct VmnetLink {
    interface: Interface,
    /// Readable when there are frames.
    bell: UnixStream,
    /// Frames whose pieces lie apart.
    copies: Vec<u8>,
}

impl VmnetLink {
    pub fn new(interface: Interface) -> io::Result<Self> {
        let (bell, ring) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ring.set_nonblocking(true)?;
        let on_event = RcBlock::new(move |_: u32, _: XpcObject| {
            // A socket that is full has rung already.
            let _ = (&ring).write(&[1]);
        });
        // SAFETY: the interface is started; queue and block are retained by the framework.
        let status = unsafe {
            sys::vmnet_interface_set_event_callback(
                interface.handle,
                sys::PACKETS_AVAILABLE,
                Some(&interface.queue),
                Some(&on_event),
            )
        };
        if status != sys::SUCCESS {
            return Err(io::Error::other(StartError::Status(status)));
        }
        Ok(Self { interface, bell, copies: Vec::new() })
    }

    /// Writes frames, each in one piece. What the framework does not take is lost, as on any wire:
    /// it does not tell when it has room again.
    fn write(&self, frames: &mut [libc::iovec]) {
        let mut packets: Vec<Packet> = frames
            .iter_mut()
            .map(|iov| Packet { size: iov.iov_len, iov: &raw mut *iov, iovcnt: 1, flags: 0 })
            .collect();
        let Ok(mut count) = c_int::try_from(packets.len()) else { return };
        // SAFETY: each packet points to an iovec, and each of these to bytes, that live through the
        // call and are not written to by it.
        unsafe {
            sys::vmnet_write(self.interface.handle, packets.as_mut_ptr(), &raw mut count);
        }
    }
}

impl Link for VmnetLink {
    fn kind(&self) -> LinkKind {
        LinkKind::Vmnet
    }

    fn caps(&self) -> LinkCaps {
        LinkCaps::default()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Recv {
        batch.clear();
        // Before the frames are read, so that those that come later ring anew.
        let mut rung = [0; 256];
        while matches!(self.bell.read(&mut rung), Ok(n) if n == rung.len()) {}
        let slot = self.interface.max_packet;
        if batch.buf.len() < FRAMES * slot {
            batch.buf.resize(FRAMES * slot, 0);
        }
        let mut slots: Vec<libc::iovec> = batch
            .buf
            .chunks_exact_mut(slot)
            .take(FRAMES)
            .map(|room| libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: slot })
            .collect();
        let mut packets: Vec<Packet> = slots
            .iter_mut()
            .map(|iov| Packet { size: slot, iov: &raw mut *iov, iovcnt: 1, flags: 0 })
            .collect();
        let Ok(mut count) = c_int::try_from(packets.len()) else { return Recv::Empty };
        // SAFETY: each packet points to an iovec, and each of these to as many bytes of the batch as
        // it says, which nobody else uses during the call.
        let status =
            unsafe { sys::vmnet_read(self.interface.handle, packets.as_mut_ptr(), &raw mut count) };
        let count = usize::try_from(count).unwrap_or(0);
        if status != sys::SUCCESS || count == 0 {
            return Recv::Empty;
        }
        for (index, packet) in packets.iter().take(count).enumerate() {
            if packet.size <= slot {
                batch.push(index * slot, packet.size, Offload::NONE);
            }
        }
        Recv::Frames { peer: PeerId(0), more: count == FRAMES }
    }

    fn send(&mut self, _peer: PeerId, frames: &[OutFrame<'_>]) -> usize {
        let fits = |frame: &&OutFrame<'_>| frame.len() <= self.interface.max_packet;
        for group in frames.iter().filter(fits).collect::<Vec<_>>().chunks(FRAMES) {
            self.copies.clear();
            self.copies.reserve(group.iter().map(|frame| frame.len()).sum());
            let mut iov = Vec::with_capacity(group.len());
            for frame in group {
                let pieces = [frame.head, frame.body[0], frame.body[1]];
                let mut whole = pieces.into_iter().filter(|piece| !piece.is_empty());
                let (base, len) = match (whole.next(), whole.next()) {
                    (Some(piece), None) => (piece.as_ptr(), piece.len()),
                    _ => {
                        let at = self.copies.len();
                        pieces.iter().for_each(|piece| self.copies.extend_from_slice(piece));
                        // Room was made for all of them: nothing moves any more.
                        let copy = self.copies.get(at..).unwrap_or_default();
                        (copy.as_ptr(), copy.len())
                    }
                };
                let iov_base = base.cast_mut().cast::<c_void>();
                iov.push(libc::iovec { iov_base, iov_len: len });
            }
            self.write(&mut iov);
        }
        frames.len()
    }

    fn flush(&mut self) -> Flushed {
        Flushed::Done
    }
}
