//! One message per system call.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrAny, recvfrom, sendmsg, sendmsg_addr,
};
use vmlan_wire::OutFrame;

use super::{MESSAGES, Message, Messages};

pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    slot: usize,
) -> rustix::io::Result<(Messages, bool)> {
    let mut messages = Messages::new();
    for (i, place) in buf.chunks_exact_mut(slot).take(MESSAGES).enumerate() {
        match recvfrom(socket, &mut *place, RecvFlags::empty()) {
            Ok((_, len, from)) => {
                // No frame fills its place.
                messages.push(Message { start: i * slot, len, truncated: len == slot, from });
            }
            Err(Errno::AGAIN) if !messages.is_empty() => return Ok((messages, false)),
            Err(_) if !messages.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok((messages, true))
}

pub(super) fn send(
    socket: BorrowedFd<'_>,
    to: Option<&SocketAddrAny>,
    frames: &[OutFrame<'_>],
) -> rustix::io::Result<usize> {
    for (sent, frame) in frames.iter().enumerate() {
        let slices = [frame.head, frame.body[0], frame.body[1]].map(IoSlice::new);
        let mut control = SendAncillaryBuffer::default();
        let flags = SendFlags::empty();
        let result = match to {
            Some(address) => sendmsg_addr(socket, address, &slices, &mut control, flags),
            None => sendmsg(socket, &slices, &mut control, flags),
        };
        match result {
            Ok(_) => {}
            Err(error) if sent == 0 => return Err(error),
            Err(_) => return Ok(sent),
        }
    }
    Ok(frames.len())
}
