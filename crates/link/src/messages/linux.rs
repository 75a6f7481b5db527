//! recvmmsg(2) and sendmmsg(2).

use std::io::IoSlice;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use arrayvec::ArrayVec;
use rustix::io::Errno;
use rustix::net::addr::SocketAddrStorage;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use vmlan_wire::OutFrame;

use super::{MESSAGES, Message, Messages};

pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    slot: usize,
) -> rustix::io::Result<(Messages, bool)> {
    let mut names = [const { MaybeUninit::<SocketAddrStorage>::uninit() }; MESSAGES];
    let mut slices = ArrayVec::<libc::iovec, MESSAGES>::new();
    let mut headers = ArrayVec::<libc::mmsghdr, MESSAGES>::new();
    for place in buf.chunks_exact_mut(slot).take(MESSAGES) {
        slices.push(libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: place.len() });
    }
    for (slice, name) in slices.iter_mut().zip(&mut names) {
        // SAFETY: all zero is a message header without anything.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_iov = slice;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_name = name.as_mut_ptr().cast();
        header.msg_hdr.msg_namelen = u32::try_from(size_of::<SocketAddrStorage>()).unwrap_or(0);
        headers.push(header);
    }
    let (first, count) = (headers.as_mut_ptr(), u32::try_from(headers.len()).unwrap_or(0));
    // SAFETY: the headers point at slices and names that live until the end of this function, and
    // the slices at distinct parts of `buf`, which is borrowed for as long.
    let n = unsafe { libc::recvmmsg(socket.as_raw_fd(), first, count, 0, ptr::null_mut()) };
    let Ok(n) = usize::try_from(n) else {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    };
    let mut messages = Messages::new();
    for (i, (header, name)) in headers.iter().zip(&names).take(n).enumerate() {
        let len = header.msg_hdr.msg_namelen as usize;
        // A socket without a name has an address that is its family alone.
        let named =
            (size_of::<libc::sa_family_t>() + 1..=size_of::<SocketAddrStorage>()).contains(&len);
        // SAFETY: the kernel has written an address of this length there.
        let from = named
            .then(|| unsafe { SocketAddrAny::read(name.as_ptr(), header.msg_hdr.msg_namelen) });
        messages.push(Message {
            start: i * slot,
            len: header.msg_len as usize,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            from,
        });
    }
    Ok((messages, n == headers.len()))
}

pub(super) fn send(
    socket: BorrowedFd<'_>,
    to: Option<&SocketAddrAny>,
    frames: &[OutFrame<'_>],
) -> rustix::io::Result<usize> {
    let mut controls = ArrayVec::<SendAncillaryBuffer<'_, '_, '_>, MESSAGES>::new();
    let mut slices = ArrayVec::<[IoSlice<'_>; 3], MESSAGES>::new();
    for frame in frames.iter().take(MESSAGES) {
        controls.push(SendAncillaryBuffer::default());
        slices.push([frame.head, frame.body[0], frame.body[1]].map(IoSlice::new));
    }
    let mut headers: ArrayVec<MMsgHdr<'_>, MESSAGES> = slices
        .iter()
        .zip(&mut controls)
        .map(|(slices, control)| match to {
            Some(address) => MMsgHdr::new_with_addr(address, slices, control),
            None => MMsgHdr::new(slices, control),
        })
        .collect();
    sendmmsg(socket, &mut headers, SendFlags::NOSIGNAL)
}
