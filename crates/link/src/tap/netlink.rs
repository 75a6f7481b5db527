//! As much of rtnetlink as it takes to set up one interface: requests that are made of a fixed
//! header and attributes, each answered by an acknowledgement (rtnetlink(7)).

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// A route netlink socket.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        // No protocol is protocol zero, which is NETLINK_ROUTE.
        let socket = socket_with(family, SocketType::RAW, flags, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and waits for its acknowledgement.
    pub(super) fn ask(&mut self, request: Request) -> io::Result<()> {
        self.sequence += 1;
        let message = request.finish(self.sequence);
        send(&self.socket, &message, SendFlags::empty())?;
        loop {
            let mut answer = [0; 1024];
            let (_, n) = recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
            let answer = answer.get(..n).unwrap_or_default();
            let Some((header, rest)) = answer.split_first_chunk::<HEADER>() else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
            if i32::from(kind) != libc::NLMSG_ERROR || sequence != self.sequence {
                continue;
            }
            return match rest.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
                Some(0) => Ok(()),
                Some(code) => Err(io::Error::from_raw_os_error(-code)),
                None => Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }
}

/// A request that is being made.
#[derive(Debug)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// `body` is the fixed structure that this kind of request starts with.
    pub(super) fn new(kind: u16, flags: i32, body: &[u8]) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "16 flag bits")]
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend_from_slice(body);
        Self { bytes }
    }

    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).unwrap_or(0);
        for (at, value) in [(0, len), (8, sequence)] {
            if let Some(place) = self.bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        }
        self.bytes
    }
}
