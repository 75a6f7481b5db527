//! Frames to guests: what a link does not take, and when it has room again.

use std::ops::Range;
use std::os::fd::AsRawFd;

use mio::Interest;
use mio::unix::SourceFd;
use vmlan_engine::{Links, PortId};
use vmlan_link::{Flushed, Link, PeerId};
use vmlan_wire::{FrameBatch, OutFrame};

use super::{Ports, guest_at};
use crate::token::Owner;

impl Links for Ports {
    fn send(&mut self, port: PortId, frames: &[OutFrame<'_>]) -> usize {
        let taken = self.hand_over(port, frames.len(), |link, peer, taken| {
            link.send(peer, frames.get(taken..).unwrap_or_default())
        });
        let frames = frames.get(..taken).unwrap_or_default();
        self.count_sent(port, taken, frames.iter().map(OutFrame::len).sum::<usize>() as u64);
        if !self.captures.is_empty()
            && let Some(guest) = guest_at(&self.places, &self.links, port)
        {
            self.captures.sent(port, guest.name.as_deref(), frames);
        }
        taken
    }

    fn pass_on(&mut self, port: PortId, batch: &FrameBatch, frames: Range<usize>) -> usize {
        if !self.captures.is_empty() {
            return batch.send_by(frames, |frames| self.send(port, frames));
        }
        let taken = self.hand_over(port, frames.len(), |link, peer, taken| {
            link.pass_on(peer, batch, frames.start + taken..frames.end)
        });
        self.count_sent(port, taken, batch.bytes_of(frames.start..frames.start + taken));
        taken
    }
}

impl Ports {
    /// Whether links wait to be flushed.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Flushes every link that was sent to. Ports that were full and have room again are added to
    /// `writable`.
    pub(crate) fn flush(&mut self, writable: &mut Vec<PortId>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            let Some(entry) = self.links.get_mut(index as usize) else { continue };
            if !std::mem::take(&mut entry.dirty) {
                continue;
            }
            match entry.link.flush() {
                Flushed::Done => {
                    entry.blocked = false;
                    for guest in entry.guests.iter_mut().flatten().filter(|g| g.full) {
                        guest.full = false;
                        writable.push(guest.port);
                    }
                }
                Flushed::Blocked => {
                    entry.blocked = true;
                    self.poll_write(index, true);
                }
                Flushed::Closed => {
                    entry.hung_up = true;
                    self.set_ready(index);
                }
            }
            self.note_timeout(index);
        }
        self.dirty = dirty;
    }

    /// Has the link behind a port take `len` frames by `send`, which is told how many it has taken,
    /// and returns how many it took.
    fn hand_over(
        &mut self,
        port: PortId,
        len: usize,
        mut send: impl FnMut(&mut dyn Link, PeerId, usize) -> usize,
    ) -> usize {
        let Some(place) = self.places.get(usize::from(port.0)).copied().flatten() else { return 0 };
        let Some(entry) = self.links.get_mut(place.link as usize) else { return 0 };
        let mut taken = send(&mut *entry.link, place.peer, 0);
        if taken < len && !entry.blocked {
            // What it holds may go out now and make room for the rest.
            if entry.link.flush() == Flushed::Done {
                taken += send(&mut *entry.link, place.peer, taken);
            }
        }
        if let Some(Some(guest)) = entry.guests.get_mut(place.peer.0 as usize) {
            guest.full |= taken < len;
        }
        self.set_dirty(place.link);
        taken
    }

    fn count_sent(&mut self, port: PortId, frames: usize, bytes: u64) {
        if let Some(guest) = self.guest_mut(port) {
            guest.traffic.to_guest.0 += frames as u64;
            guest.traffic.to_guest.1 += bytes;
        }
    }

    pub(super) fn set_dirty(&mut self, index: u32) {
        if let Some(entry) = self.links.get_mut(index as usize)
            && !std::mem::replace(&mut entry.dirty, true)
        {
            self.dirty.push(index);
        }
    }

    pub(super) fn poll_write(&mut self, index: u32, on: bool) {
        let Some(entry) = self.links.get_mut(index as usize) else { return };
        if entry.polls_write == on {
            return;
        }
        let token = Owner::Link(index).token();
        let asked = if entry.level {
            crate::level::change(&self.registry, entry.link.as_fd(), token, !entry.paused, on)
        } else {
            let interest =
                if on { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let fd = entry.link.as_fd().as_raw_fd();
            self.registry.reregister(&mut SourceFd(&fd), token, interest)
        };
        if asked.is_ok() {
            entry.polls_write = on;
        }
    }
}
