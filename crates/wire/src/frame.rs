//! Ethernet frames on their way through the process: borrowed bytes plus what the sender's
//! network card left undone. The metadata is virtio's (`struct virtio_net_hdr`), because TAP,
//! vhost-user and VZ all speak it; links without offload use [`Offload::NONE`].

use std::ops::Range;

use arrayvec::ArrayVec;

/// What has been left undone to a frame, or is known about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    pub checksum: Checksum,
    /// The frame is a train of segments that still has to be cut.
    pub gso: Option<Gso>,
}

impl Offload {
    /// A frame that is complete; whether its checksum is right has to be looked at.
    pub const NONE: Self = Self { checksum: Checksum::Complete, gso: None };
}

/// State of a frame's transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It is in the frame. On ingress it has still to be verified.
    #[default]
    Complete,
    /// It has been verified by whoever handed the frame over (VIRTIO_NET_HDR_F_DATA_VALID).
    Verified,
    /// Only the pseudo-header is summed so far; the sum from `start` to the end of the frame has
    /// to be stored at `start + offset` (VIRTIO_NET_HDR_F_NEEDS_CSUM). Both count from the first
    /// byte of the Ethernet header.
    Partial { start: u16, offset: u16 },
}

/// How a train of segments has to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    pub kind: GsoKind,
    /// Payload bytes for each segment.
    pub size: u16,
    /// Ethernet, IP and transport header together: repeated before each segment. A hint from
    /// outside; whoever cuts must compute it again.
    pub header_len: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    TcpV4,
    TcpV6,
}

/// A received frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// From the first byte of the Ethernet header; no FCS.
    pub data: &'a [u8],
    pub offload: Offload,
}

/// A frame to send: a head made for it and a body that may lie in two pieces (a ring).
#[derive(Clone, Copy, Debug)]
pub struct OutFrame<'a> {
    /// At least the Ethernet header; the whole frame when `body` is empty.
    pub head: &'a [u8],
    pub body: [&'a [u8]; 2],
    pub offload: Offload,
}

impl<'a> OutFrame<'a> {
    pub fn whole(data: &'a [u8], offload: Offload) -> Self {
        Self { head: data, body: [&[], &[]], offload }
    }

    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.head.len() + self.body[0].len() + self.body[1].len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Head and body one after the other, for those who need the frame in one piece.
    pub fn copy_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head);
        out.extend_from_slice(self.body[0]);
        out.extend_from_slice(self.body[1]);
    }
}

impl<'a> From<Frame<'a>> for OutFrame<'a> {
    fn from(frame: Frame<'a>) -> Self {
        Self::whole(frame.data, frame.offload)
    }
}

/// Frames that are sent at once.
const GROUP: usize = 64;

/// Received frames in one buffer. A link fills it, the engine reads it, and it is used again:
/// no allocation per frame.
#[derive(Debug, Default)]
pub struct FrameBatch {
    /// Storage; a link may write anywhere in it before it records frames.
    pub buf: Vec<u8>,
    frames: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    len: u32,
    offload: Offload,
}

impl FrameBatch {
    /// A batch with `capacity` zeroed bytes of storage (touched only when used).
    pub fn with_capacity(capacity: usize) -> Self {
        Self { buf: vec![0; capacity], frames: Vec::new() }
    }

    /// Bytes of all frames together.
    pub fn bytes(&self) -> u64 {
        self.bytes_of(0..self.len())
    }

    /// Bytes of these frames together.
    pub fn bytes_of(&self, frames: Range<usize>) -> u64 {
        let frames = self.frames.get(frames).unwrap_or_default();
        frames.iter().map(|f| u64::from(f.len)).sum()
    }

    /// Records that `buf[start..start + len]` is a frame. What does not lie in the buffer is left
    /// out.
    #[inline]
    pub fn push(&mut self, start: usize, len: usize, offload: Offload) {
        let end = start.checked_add(len);
        if let (Ok(s), Ok(l), Some(end)) = (u32::try_from(start), u32::try_from(len), end)
            && end <= self.buf.len()
        {
            self.frames.push(Entry { start: s, len: l, offload });
        }
    }

    /// Appends a copy of `data` as a frame (tests, wrappers that rewrite).
    pub fn push_copy(&mut self, data: &[u8], offload: Offload) {
        let start = self.frames.last().map_or(0, |f| (f.start + f.len) as usize);
        if self.buf.len() < start + data.len() {
            self.buf.resize(start + data.len(), 0);
        }
        if let Some(room) = self.buf.get_mut(start..start + data.len()) {
            room.copy_from_slice(data);
        }
        self.push(start, data.len(), offload);
    }

    pub fn clear(&mut self) {
        self.frames.clear();
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    #[inline]
    pub fn get(&self, index: usize) -> Option<Frame<'_>> {
        let data = self.buf.get(self.place(index)?)?;
        Some(Frame { data, offload: self.frames.get(index)?.offload })
    }

    /// Where in the buffer a frame lies.
    #[inline]
    pub fn place(&self, index: usize) -> Option<Range<usize>> {
        let entry = self.frames.get(index)?;
        let start = entry.start as usize;
        Some(start..start + entry.len as usize)
    }

    /// Has `send` take these frames in order, a group at a time, until it takes fewer than it was
    /// given. Returns how many it took.
    pub fn send_by(
        &self,
        mut frames: Range<usize>,
        mut send: impl FnMut(&[OutFrame<'_>]) -> usize,
    ) -> usize {
        let first = frames.start;
        while !frames.is_empty() {
            let mut group: ArrayVec<OutFrame<'_>, GROUP> = ArrayVec::new();
            group.extend(frames.clone().map_while(|i| self.get(i)).map(OutFrame::from).take(GROUP));
            let taken = send(&group);
            frames.start += taken;
            if taken < group.len() || group.is_empty() {
                break;
            }
        }
        frames.start - first
    }

    pub fn iter(&self) -> impl Iterator<Item = Frame<'_>> {
        (0..self.len()).filter_map(|i| self.get(i))
    }
}
