//! Frames from the ring of what the guest sends, and to the ring of what it receives: each behind a
//! `struct virtio_net_hdr` in chains of pieces of the guest's memory (virtio 1.2, section 5.1.6).

use vm_memory::{Bytes, GuestAddress};
use vmlan_wire::frame::{Checksum, GsoKind};
use vmlan_wire::{FrameBatch, Offload, OutFrame};

use super::memory::Guest;
use super::ring::{Broken, Piece, Ring};
use crate::framing::MAX_FRAME;
use crate::{LinkCaps, vnet};

/// The longest header: `struct virtio_net_hdr` and `num_buffers`.
pub(super) const HEADER: usize = vnet::HEADER + 2;

/// Frames that one pass takes, and of the largest ones.
const FRAMES: usize = 64;
const LARGE: usize = 4;
const SLOT: usize = (HEADER + MAX_FRAME).next_multiple_of(8);

/// Pieces that a frame to the guest may lie in, and the frames that one pass takes from it. A driver
/// needs some fifty for the largest frame.
const PIECES: usize = 1024;

/// What driver and device have agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    /// The length of what is before each frame.
    pub(super) header: usize,
    /// A frame to the guest may lie in several chains.
    pub(super) merges: bool,
    /// What may be left undone.
    pub(super) from_guest: LinkCaps,
    pub(super) to_guest: LinkCaps,
}

/// What became of [`FromGuest::receive`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    /// The guest offers more.
    pub(super) more: bool,
    /// The ring has to be looked at again soon.
    pub(super) look: bool,
}

/// What became of [`ToGuest::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    /// Not before the guest offers more than it had by then.
    NoRoom {
        offered: u16,
    },
}

/// Frames on their way out of the guest.
pub(super) struct FromGuest<'a> {
    pub(super) guest: &'a Guest,
    pub(super) ring: &'a mut Ring,
    pub(super) pieces: &'a mut Vec<Piece>,
    pub(super) format: Format,
}

impl FromGuest<'_> {
    pub(super) fn receive(&mut self, batch: &mut FrameBatch) -> Result<Taken, Broken> {
        let mut taken = Taken::default();
        if !self.ring.has_news(self.guest)? {
            return Ok(taken);
        }
        self.ring.ask_for_kicks(self.guest, false)?;
        if batch.buf.len() < LARGE * SLOT {
            batch.buf.resize(LARGE * SLOT, 0);
        }
        let mut at = 0;
        let mut seen = 0;
        let is_empty = loop {
            if batch.len() >= FRAMES || at + SLOT > LARGE * SLOT || seen >= PIECES {
                break false;
            }
            self.pieces.clear();
            let Some((head, whole)) = self.ring.take(self.guest, false, PIECES, self.pieces)?
            else {
                break true;
            };
            seen += self.pieces.len();
            let frame = if whole { self.read(batch, at)? } else { None };
            // What is no frame counts as one that is malformed.
            let (start, len, offload) = frame.unwrap_or((at, 0, Offload::NONE));
            batch.push(start, len, offload);
            at = (start + len).next_multiple_of(8);
            self.ring.give_back(self.guest, head, 0)?;
        };
        self.ring.publish(self.guest)?;
        if is_empty {
            taken.more = self.ring.ask_for_kicks(self.guest, true)?;
            taken.look = !taken.more;
        } else {
            taken.more = true;
        }
        taken.look |= self.ring.tell(self.guest)?;
        Ok(taken)
    }

    /// Copies a chain to `buf[at..]`: where the frame is then, its length and offload. `None` if it
    /// is not one.
    fn read(
        &self,
        batch: &mut FrameBatch,
        at: usize,
    ) -> Result<Option<(usize, usize, Offload)>, Broken> {
        let Some(room) = batch.buf.get_mut(at..at + SLOT) else { return Ok(None) };
        let mut len = 0;
        for piece in self.pieces.iter() {
            let Some(to) = room.get_mut(len..len + piece.len) else { return Ok(None) };
            self.guest.read_slice(to, piece.at)?;
            len += piece.len;
        }
        let (Some(header), Some(len)) = (room.first_chunk(), len.checked_sub(self.format.header))
        else {
            return Ok(None);
        };
        let offload = vnet::parse(header);
        let ok = len <= MAX_FRAME
            && vnet::is_plausible(header, len)
            && is_able(self.format.from_guest, offload);
        Ok(ok.then_some((at + self.format.header, len, offload)))
    }
}

/// Frames on their way into the guest.
pub(super) struct ToGuest<'a> {
    pub(super) guest: &'a Guest,
    pub(super) ring: &'a mut Ring,
    pub(super) pieces: &'a mut Vec<Piece>,
    pub(super) heads: &'a mut Vec<(u16, usize)>,
    pub(super) format: Format,
}

impl ToGuest<'_> {
    /// Gives the guest a frame. One for which it can have no room is lost.
    pub(super) fn send(&mut self, frame: &OutFrame<'_>) -> Result<Sent, Broken> {
        let need = self.format.header + frame.len();
        let start = self.ring.next();
        // What the guest offers while its buffers are gathered counts as more than this.
        let offered = self.ring.offered(self.guest)?;
        match self.gather(need)? {
            Room::Enough => {}
            Room::Never => {
                self.ring.rewind(start);
                return Ok(Sent::Yes);
            }
            Room::NotYet => {
                self.ring.rewind(start);
                self.ring.ask_for_kicks(self.guest, true)?;
                return Ok(Sent::NoRoom { offered });
            }
        }
        let mut header = [0; HEADER];
        let buffers = u16::try_from(self.heads.len()).map_err(|_| Broken)?;
        if let Some((first, rest)) = header.split_first_chunk_mut() {
            let mut offload = frame.offload;
            if !self.format.to_guest.checksum {
                offload.checksum = Checksum::Complete;
            }
            *first = vnet::emit(offload);
            rest.copy_from_slice(&buffers.to_le_bytes());
        }
        let header = header.get(..self.format.header).unwrap_or_default();
        self.write([header, frame.head, frame.body[0], frame.body[1]])?;
        let mut left = need;
        for (head, room) in self.heads.iter() {
            let len = left.min(*room);
            left -= len;
            self.ring.give_back(self.guest, *head, len)?;
        }
        Ok(Sent::Yes)
    }

    /// Takes as many chains as a frame of this length needs.
    fn gather(&mut self, need: usize) -> Result<Room, Broken> {
        self.pieces.clear();
        self.heads.clear();
        let mut room = 0;
        while room < need {
            let most = if self.format.merges { self.ring.size() } else { 1 };
            if self.heads.len() >= most {
                return Ok(Room::Never);
            }
            let before = self.pieces.len();
            let Some((head, whole)) = self.ring.take(self.guest, true, PIECES, self.pieces)? else {
                return Ok(Room::NotYet);
            };
            if !whole {
                return Err(Broken);
            }
            let here = self.pieces.iter().skip(before).map(|piece| piece.len).sum();
            self.heads.push((head, here));
            room += here;
        }
        Ok(Room::Enough)
    }

    /// Copies a frame to the pieces that were gathered.
    fn write(&self, parts: [&[u8]; 4]) -> Result<(), Broken> {
        let mut pieces = self.pieces.iter().copied();
        let mut to = Piece { at: GuestAddress(0), len: 0 };
        for mut part in parts {
            while !part.is_empty() {
                if to.len == 0 {
                    to = pieces.next().ok_or(Broken)?;
                    continue;
                }
                let (now, rest) = part.split_at(to.len.min(part.len()));
                self.guest.write_slice(now, to.at)?;
                to.at.0 = to.at.0.checked_add(now.len() as u64).ok_or(Broken)?;
                to.len -= now.len();
                part = rest;
            }
        }
        Ok(())
    }
}

enum Room {
    Enough,
    NotYet,
    /// Not in all that the guest can offer.
    Never,
}

/// Whether this may be left undone.
pub(super) fn is_able(caps: LinkCaps, offload: Offload) -> bool {
    let checksum = caps.checksum || !matches!(offload.checksum, Checksum::Partial { .. });
    checksum
        && match offload.gso.map(|gso| gso.kind) {
            Some(GsoKind::TcpV4) => caps.tso4,
            Some(GsoKind::TcpV6) => caps.tso6,
            None => true,
        }
}
