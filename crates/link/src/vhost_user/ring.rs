//! One ring in the guest's memory: what it offers is taken, what was used is given back all at once,
//! and each side tells the other as often as it wants to be told (virtio 1.2, section 2.7).
//!
//! Nothing that the guest writes is believed: a chain ends within the ring's size, a ring that says
//! what cannot be is broken and rests until the guest's driver starts it anew.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::LOOK;
use super::memory::Guest;

/// Descriptors that a ring may have.
const MAX_SIZE: u16 = 1024;

/// The ring is not what a driver makes.
#[derive(Debug)]
pub(super) struct Broken;

impl From<GuestMemoryError> for Broken {
    fn from(_: GuestMemoryError) -> Self {
        Self
    }
}

impl From<virtio_queue::Error> for Broken {
    fn from(_: virtio_queue::Error) -> Self {
        Self
    }
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) at: GuestAddress,
    pub(super) len: usize,
}

#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    pub(super) enabled: bool,
    running: bool,
    /// The guest is asked to kick.
    kicks: bool,
    /// Used descriptors that the guest does not see yet.
    unpublished: u16,
    /// Since when the guest sees what it has not been told of.
    untold: Option<Instant>,
}

impl Ring {
    pub(super) fn new() -> Result<Self, Broken> {
        Ok(Self {
            queue: Queue::new(MAX_SIZE)?,
            kick: None,
            call: None,
            enabled: false,
            running: false,
            kicks: true,
            unpublished: 0,
            untold: None,
        })
    }

    pub(super) fn set_size(&mut self, size: u32) -> Result<(), Broken> {
        let size = u16::try_from(size).map_err(|_| Broken)?;
        Ok(self.queue.try_set_size(size)?)
    }

    pub(super) fn set_addresses(
        &mut self,
        table: u64,
        avail: u64,
        used: u64,
    ) -> Result<(), Broken> {
        self.queue.try_set_desc_table_address(GuestAddress(table))?;
        self.queue.try_set_avail_ring_address(GuestAddress(avail))?;
        Ok(self.queue.try_set_used_ring_address(GuestAddress(used))?)
    }

    pub(super) fn set_next(&mut self, next: u16) {
        self.queue.set_next_avail(next);
    }

    /// Where the ring goes on.
    pub(super) fn next(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Takes the ring into use. `asks` tells whether the guest is to say when it offers something.
    pub(super) fn start(&mut self, guest: &Guest, asks: bool) -> Result<(), Broken> {
        self.stop();
        self.queue.set_ready(true);
        if !self.queue.is_valid(guest) {
            return Err(Broken);
        }
        self.queue.set_next_used(self.queue.used_idx(guest, Ordering::Acquire)?.0);
        self.kicks = !asks;
        self.ask_for_kicks(guest, asks)?;
        self.running = true;
        Ok(())
    }

    /// Leaves the ring alone, as it is.
    pub(super) fn stop(&mut self) {
        self.queue.set_ready(false);
        self.running = false;
        self.unpublished = 0;
        self.untold = None;
    }

    /// After the memory has changed: whether the ring still lies in it.
    pub(super) fn is_in(&self, guest: &Guest) -> bool {
        !self.running || self.queue.is_valid(guest)
    }

    pub(super) fn is_active(&self) -> bool {
        self.running && self.enabled
    }

    pub(super) fn size(&self) -> usize {
        self.queue.size().into()
    }

    /// How far the guest has come with what it offers.
    pub(super) fn offered(&self, guest: &Guest) -> Result<u16, Broken> {
        Ok(self.queue.avail_idx(guest, Ordering::Acquire)?.0)
    }

    /// Whether something is offered, or was when it was last looked without asking for kicks.
    pub(super) fn has_news(&self, guest: &Guest) -> Result<bool, Broken> {
        Ok(!self.kicks || self.offered(guest)? != self.queue.next_avail())
    }

    /// The next chain that is offered. Its pieces are appended to `pieces`, which has room for
    /// `most`. The result is the chain's first descriptor, and whether the chain is one of pieces
    /// that are all for us to write to (or to read).
    pub(super) fn take(
        &mut self,
        guest: &Guest,
        to_write: bool,
        most: usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<Option<(u16, bool)>, Broken> {
        let Some(chain) = self.queue.iter(guest)?.next() else { return Ok(None) };
        let head = chain.head_index();
        Ok(Some((head, collect(chain, to_write, most, pieces))))
    }

    /// Goes back to where [`Ring::next`] was.
    pub(super) fn rewind(&mut self, next: u16) {
        self.queue.set_next_avail(next);
    }

    /// Gives a chain back, of which `len` bytes were written. The guest sees it with
    /// [`Ring::publish`].
    pub(super) fn give_back(&mut self, guest: &Guest, head: u16, len: usize) -> Result<(), Broken> {
        let size = self.queue.size();
        // Nor can more chains be on their way than the ring has.
        if head >= size || self.unpublished >= size {
            return Err(Broken);
        }
        let at = self.queue.next_used().wrapping_add(self.unpublished) % size;
        let len = u32::try_from(len).map_err(|_| Broken)?;
        let address = self.used(4 + 8 * u64::from(at))?;
        // `struct virtq_used_elem`.
        let element = u64::from(head) | u64::from(len) << 32;
        guest.write_obj(element.to_le(), address)?;
        self.unpublished += 1;
        Ok(())
    }

    /// Shows the guest what was given back.
    pub(super) fn publish(&mut self, guest: &Guest) -> Result<(), Broken> {
        if self.unpublished == 0 {
            return Ok(());
        }
        let next = self.queue.next_used().wrapping_add(self.unpublished);
        guest.store(next.to_le(), self.used(2)?, Ordering::Release)?;
        self.queue.set_next_used(next);
        self.unpublished = 0;
        self.untold = Some(Instant::now());
        Ok(())
    }

    /// Tells the guest of what it can see, if it wants to be told. True if it does not: then it has
    /// to be asked once more, when what it has written by now is sure to be seen.
    pub(super) fn tell(&mut self, guest: &Guest) -> Result<bool, Broken> {
        let Some(since) = self.untold else { return Ok(false) };
        // The guest looks after it has set the flag, and we look at the flag after it can see.
        fence(Ordering::SeqCst);
        let flags: u16 = guest.load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)?;
        if u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0 {
            if since.elapsed() < LOOK {
                return Ok(true);
            }
            // It looks by itself.
            self.untold = None;
            return Ok(false);
        }
        self.untold = None;
        if let Some(call) = &self.call {
            // It is an eventfd that does not block; a full one has been told.
            let _ = rustix::io::write(call.as_fd(), &1u64.to_ne_bytes());
        }
        Ok(false)
    }

    /// Has the guest kick, or not. True if it has offered something in the meantime.
    pub(super) fn ask_for_kicks(&mut self, guest: &Guest, on: bool) -> Result<bool, Broken> {
        if self.kicks != on {
            self.kicks = on;
            let flags = if on { 0 } else { VRING_USED_F_NO_NOTIFY };
            let flags = u16::try_from(flags).map_err(|_| Broken)?;
            guest.store(flags.to_le(), self.used(0)?, Ordering::Relaxed)?;
            fence(Ordering::SeqCst);
        }
        Ok(self.offered(guest)? != self.queue.next_avail())
    }

    fn used(&self, offset: u64) -> Result<GuestAddress, Broken> {
        self.queue.used_ring().checked_add(offset).map(GuestAddress).ok_or(Broken)
    }
}

/// Appends the pieces of a chain. False if it is cut short, goes round, has pieces of the wrong
/// direction or more of them than there is room for.
fn collect(
    chain: DescriptorChain<&Guest>,
    to_write: bool,
    most: usize,
    pieces: &mut Vec<Piece>,
) -> bool {
    let mut goes_on = true;
    for descriptor in chain {
        goes_on = descriptor.has_next();
        if descriptor.is_write_only() != to_write || pieces.len() >= most {
            return false;
        }
        let Ok(len) = usize::try_from(descriptor.len()) else { return false };
        pieces.push(Piece { at: descriptor.addr(), len });
    }
    !goes_on
}
