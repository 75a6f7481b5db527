//! As much of rtnetlink as it takes to make, find and remove interfaces (rtnetlink(7)): requests of
//! a fixed header and attributes, answered by an acknowledgement or by a list.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// Marks an attribute whose value is attributes.
const NESTED: u16 = 0x8000;

/// A route netlink socket.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// One answer of a list: the fixed structure and the attributes.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: u16,
    body: Vec<u8>,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        // No protocol is protocol zero, which is NETLINK_ROUTE.
        let socket = rustix::net::socket_with(family, SocketType::RAW, flags, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and waits for its acknowledgement.
    pub(super) fn ask(&mut self, request: Request) -> io::Result<()> {
        self.exchange(request, libc::NLM_F_ACK).map(drop)
    }

    /// Sends a request for a list.
    pub(super) fn list(&mut self, request: Request) -> io::Result<Vec<Entry>> {
        self.exchange(request, libc::NLM_F_DUMP)
    }

    fn exchange(&mut self, request: Request, flags: i32) -> io::Result<Vec<Entry>> {
        self.sequence += 1;
        let message = request.finish(self.sequence, flags);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut entries = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let (_, n) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = buffer.get(..n).unwrap_or_default();
            while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
                let length = u32_at(header, 0) as usize;
                let body = rest.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
                let kind = u16::from_ne_bytes([header[4], header[5]]);
                if u32_at(header, 8) == self.sequence {
                    match i32::from(kind) {
                        libc::NLMSG_DONE => return Ok(entries),
                        libc::NLMSG_ERROR => return acknowledged(body).map(|()| entries),
                        _ => entries.push(Entry { kind, body: body.to_vec() }),
                    }
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn acknowledged(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

impl Entry {
    pub(super) fn u8_at(&self, at: usize) -> u8 {
        self.body.get(at).copied().unwrap_or(0)
    }

    pub(super) fn u16_at(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self.u8_at(at), self.u8_at(at + 1)])
    }

    pub(super) fn u32_at(&self, at: usize) -> u32 {
        u32_at(&self.body, at)
    }

    /// The value of an attribute after a fixed structure of `fixed` bytes.
    pub(super) fn attribute(&self, fixed: usize, wanted: i32) -> Option<&[u8]> {
        attribute(self.body.get(fixed..)?, wanted)
    }
}

/// The value of an attribute among attributes.
pub(super) fn attribute(mut rest: &[u8], wanted: i32) -> Option<&[u8]> {
    while let Some((&[a, b, c, d], _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        if i32::from(u16::from_ne_bytes([c, d]) & !NESTED) == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// A request that is being made.
#[derive(Clone, Debug)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// `body` is the fixed structure that this kind of request starts with.
    pub(super) fn new(kind: u16, flags: i32, body: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&sixteen(flags | libc::NLM_F_REQUEST).to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend_from_slice(body);
        Self { bytes }
    }

    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// An interface's name, or that of its kind.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// An attribute with a fixed structure and attributes in it.
    pub(super) fn nest(mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len().next_multiple_of(4);
        self.push(kind, fixed);
        let mut inner = fill(self);
        let length = inner.bytes.len().next_multiple_of(4) - start;
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        if let Some(place) = inner.bytes.get_mut(start..start + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        inner
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
    }

    fn finish(mut self, sequence: u32, flags: i32) -> Vec<u8> {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let length = u32::try_from(self.bytes.len()).unwrap_or(0);
        for (at, value) in [(0, length), (8, sequence)] {
            if let Some(place) = self.bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        }
        for (place, flag) in self.bytes.iter_mut().skip(6).zip(sixteen(flags).to_ne_bytes()) {
            *place |= flag;
        }
        self.bytes
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "16 flag bits")]
fn sixteen(flags: i32) -> u16 {
    flags as u16
}
