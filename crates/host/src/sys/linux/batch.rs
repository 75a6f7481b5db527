//! Many datagrams in one system call: `recvmmsg`, `sendmmsg`, and runs of equal size as one
//! message (`UDP_SEGMENT`, udp(7)).
//!
//! The arrays that the kernel reads and writes live on the heap for good, so that a call only
//! touches the entries it uses. Of the receive buffer, too, only the pages that datagrams really
//! filled are ever backed by memory.

use std::ffi::c_int;
use std::mem;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use arrayvec::ArrayVec;
use rustix::io::Errno;
use vmlan_engine::io::Datagram;

use super::control::Control;
use super::locals::Locals;
use crate::sys::last_errno;

/// Datagrams in one call.
const SLOTS: usize = 30;

/// No datagram is larger.
const SLOT: usize = 1 << 16;

/// Segments and bytes of one `UDP_SEGMENT` message: the kernel's limit of old, and what fits an IP
/// packet of either family.
const MAX_SEGMENTS: usize = 64;
const MAX_RUN: usize = 65_000;

#[expect(clippy::cast_possible_truncation, reason = "28 bytes")]
pub(super) const NAME_LEN: libc::socklen_t = size_of::<libc::sockaddr_in6>() as libc::socklen_t;

/// Scratch for batches, shared by all sockets.
#[derive(Default)]
pub(crate) struct Batches {
    recv: Option<Recv>,
    send: Option<Send>,
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").finish_non_exhaustive()
    }
}

struct Recv {
    data: Vec<u8>,
    names: Vec<libc::sockaddr_in6>,
    iovs: Vec<libc::iovec>,
    controls: Vec<Control>,
    messages: Vec<libc::mmsghdr>,
    /// The first headers have their control buffers.
    with_control: bool,
}

struct Send {
    name: Box<libc::sockaddr_in6>,
    iovs: Vec<libc::iovec>,
    controls: Vec<Control>,
    messages: Vec<libc::mmsghdr>,
    /// How many payloads each message holds.
    counts: Vec<usize>,
}

// SAFETY: the raw pointers lead to memory that the same structure owns, and nothing else has them.
unsafe impl std::marker::Send for Batches {}

impl Batches {
    /// Receives up to `max` datagrams, hands them over, and tells how many it asked for and got.
    pub(crate) fn recv(
        &mut self,
        fd: &OwnedFd,
        max: usize,
        mut locals: Option<&mut Locals>,
        each: &mut dyn FnMut(&[Datagram<'_>]),
    ) -> Result<(usize, usize), Errno> {
        let recv = self.recv.get_or_insert_with(Recv::new);
        let asked = max.min(SLOTS);
        let count = u32::try_from(asked).map_err(|_| Errno::INVAL)?;
        recv.want_control(asked, locals.is_some());
        // SAFETY: the first `asked` headers lead to names and buffers that `recv` owns, each with
        // its true length.
        let got = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                recv.messages.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let Ok(got) = usize::try_from(got) else { return Err(last_errno()) };
        let slots = recv.messages.iter_mut().zip(&recv.names).zip(recv.data.chunks_exact(SLOT));
        let mut datagrams = ArrayVec::<_, SLOTS>::new();
        for (((message, name), data), control) in slots.zip(&recv.controls).take(got) {
            let data = data.get(..message.msg_len as usize).unwrap_or(data);
            message.msg_hdr.msg_namelen = NAME_LEN;
            let Some(from) = socket_addr(name) else { continue };
            datagrams.push(Datagram { from, data });
            if let Some(locals) = locals.as_deref_mut()
                && let Some(local) = control.local_address(message.msg_hdr.msg_controllen)
            {
                locals.heard(from, local);
            }
        }
        if !datagrams.is_empty() {
            each(&datagrams);
        }
        Ok((asked, got))
    }

    /// Sends payloads to one place, which a connected socket knows by itself, from a certain address
    /// if one is given, and tells how many were sent and which error ended it. `segment` is taken
    /// back when the kernel does not do it for this socket.
    pub(crate) fn send(
        &mut self,
        fd: &OwnedFd,
        to: Option<SocketAddr>,
        from: Option<IpAddr>,
        payloads: &[&[u8]],
        segment: &mut bool,
    ) -> (usize, Option<Errno>) {
        let send = self.send.get_or_insert_with(Send::new);
        let name_len = match to {
            Some(SocketAddr::V4(_)) => size_of::<libc::sockaddr_in>(),
            Some(SocketAddr::V6(_)) => size_of::<libc::sockaddr_in6>(),
            None => 0,
        };
        if let Some(to) = to {
            *send.name = raw_addr(to);
        }
        let mut sent = 0;
        while let Some(rest) = payloads.get(sent..).filter(|rest| !rest.is_empty()) {
            let messages = send.fill(rest, name_len, from, *segment);
            let Ok(count) = u32::try_from(messages) else { break };
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: the first `messages` headers lead to the name, slices of `payloads` and
            // control buffers, all alive, each with its true length; the kernel only reads them.
            let done =
                unsafe { libc::sendmmsg(fd.as_raw_fd(), send.messages.as_mut_ptr(), count, flags) };
            match usize::try_from(done) {
                Ok(done) => sent += send.counts.iter().take(done).sum::<usize>(),
                Err(_) => match last_errno() {
                    Errno::INTR => {}
                    Errno::INVAL | Errno::IO | Errno::MSGSIZE | Errno::NOPROTOOPT
                        if *segment && send.counts.first().is_some_and(|&count| count > 1) =>
                    {
                        *segment = false;
                    }
                    errno => return (sent, Some(errno)),
                },
            }
        }
        (sent, None)
    }
}

impl Recv {
    fn new() -> Self {
        // SAFETY: all-zero is a valid value of these C structures.
        let (name, message) =
            unsafe { (mem::zeroed::<libc::sockaddr_in6>(), mem::zeroed::<libc::mmsghdr>()) };
        let mut recv = Self {
            data: vec![0; SLOTS * SLOT],
            names: vec![name; SLOTS],
            iovs: Vec::with_capacity(SLOTS),
            controls: vec![Control::EMPTY; SLOTS],
            messages: vec![message; SLOTS],
            with_control: false,
        };
        for slot in recv.data.chunks_exact_mut(SLOT) {
            recv.iovs.push(libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: SLOT });
        }
        let entries = recv.messages.iter_mut().zip(&mut recv.iovs).zip(&mut recv.names);
        for ((message, iov), name) in entries {
            message.msg_hdr.msg_name = (&raw mut *name).cast();
            message.msg_hdr.msg_namelen = NAME_LEN;
            message.msg_hdr.msg_iov = &raw mut *iov;
            message.msg_hdr.msg_iovlen = 1;
        }
        recv
    }

    /// Lends the control buffers to the kernel for this call, or takes them back.
    fn want_control(&mut self, count: usize, wanted: bool) {
        if !wanted && !self.with_control {
            return;
        }
        let count = if wanted { count } else { SLOTS };
        for (message, control) in self.messages.iter_mut().zip(&mut self.controls).take(count) {
            let header = &mut message.msg_hdr;
            (header.msg_control, header.msg_controllen) = if wanted {
                (control.as_mut_ptr(), Control::capacity())
            } else {
                (std::ptr::null_mut(), 0)
            };
        }
        self.with_control = wanted;
    }
}

impl Send {
    fn new() -> Self {
        // SAFETY: all-zero is a valid value of these C structures.
        let (name, message) =
            unsafe { (mem::zeroed::<libc::sockaddr_in6>(), mem::zeroed::<libc::mmsghdr>()) };
        Self {
            name: Box::new(name),
            iovs: Vec::with_capacity(SLOTS * MAX_SEGMENTS),
            controls: vec![Control::EMPTY; SLOTS],
            messages: vec![message; SLOTS],
            counts: Vec::with_capacity(SLOTS),
        }
    }

    /// Prepares messages for as many payloads as fit and returns the number of messages.
    fn fill(
        &mut self,
        payloads: &[&[u8]],
        name_len: usize,
        from: Option<IpAddr>,
        segment: bool,
    ) -> usize {
        self.counts.clear();
        self.iovs.clear();
        let mut rest = payloads;
        let entries = self.messages.iter_mut().zip(&mut self.controls);
        for (message, control) in entries {
            let Some(first) = rest.first() else { break };
            let count = if segment { run(rest) } else { 1 };
            let (now, later) = rest.split_at(count);
            rest = later;
            let start = self.iovs.len();
            self.iovs.extend(now.iter().map(|payload| libc::iovec {
                iov_base: payload.as_ptr().cast_mut().cast(),
                iov_len: payload.len(),
            }));
            let header = &mut message.msg_hdr;
            // A connected socket keeps its route, unless it is told where to send.
            header.msg_name = match name_len {
                0 => std::ptr::null_mut(),
                _ => (&raw mut *self.name).cast(),
            };
            header.msg_namelen = libc::socklen_t::try_from(name_len).unwrap_or(NAME_LEN);
            // SAFETY: within what was reserved, so the vector does not move either.
            header.msg_iov = unsafe { self.iovs.as_mut_ptr().add(start) };
            header.msg_iovlen = count;
            let size = u16::try_from(first.len()).ok().filter(|_| count > 1);
            header.msg_controllen = control.write(size, from);
            header.msg_control = match header.msg_controllen {
                0 => std::ptr::null_mut(),
                _ => control.as_mut_ptr(),
            };
            self.counts.push(count);
        }
        self.counts.len()
    }
}

/// How many of the first payloads can go as segments of one message: all as large as the first, but
/// for a shorter last one.
fn run(payloads: &[&[u8]]) -> usize {
    let Some(size) = payloads.first().map(|first| first.len()).filter(|&len| len > 0) else {
        return 1;
    };
    let most = MAX_SEGMENTS.min(MAX_RUN / size).max(1);
    let mut count = 0;
    for payload in payloads.iter().take(most) {
        if payload.len() > size || payload.is_empty() {
            break;
        }
        count += 1;
        if payload.len() < size {
            break;
        }
    }
    count
}

/// A socket address as the kernel takes it; an IPv4 one is the start of what is returned.
fn raw_addr(addr: SocketAddr) -> libc::sockaddr_in6 {
    // SAFETY: all-zero is a valid `sockaddr_in6`.
    let mut raw: libc::sockaddr_in6 = unsafe { mem::zeroed() };
    match addr {
        SocketAddr::V4(addr) => {
            // SAFETY: as above.
            let mut v4: libc::sockaddr_in = unsafe { mem::zeroed() };
            v4.sin_family = sa_family(libc::AF_INET);
            v4.sin_port = addr.port().to_be();
            v4.sin_addr.s_addr = u32::from_ne_bytes(addr.ip().octets());
            // SAFETY: `sockaddr_in` is the smaller and the less aligned of the two.
            unsafe { (&raw mut raw).cast::<libc::sockaddr_in>().write(v4) };
        }
        SocketAddr::V6(addr) => {
            raw.sin6_family = sa_family(libc::AF_INET6);
            raw.sin6_port = addr.port().to_be();
            raw.sin6_flowinfo = addr.flowinfo();
            raw.sin6_addr.s6_addr = addr.ip().octets();
            raw.sin6_scope_id = addr.scope_id();
        }
    }
    raw
}

/// The address that the kernel wrote; `None` if it wrote none of the IP families.
pub(super) fn socket_addr(raw: &libc::sockaddr_in6) -> Option<SocketAddr> {
    match c_int::from(raw.sin6_family) {
        libc::AF_INET => {
            // SAFETY: `sockaddr_in` is the smaller and the less aligned of the two.
            let v4 = unsafe { (&raw const *raw).cast::<libc::sockaddr_in>().read() };
            let ip = v4.sin_addr.s_addr.to_ne_bytes();
            Some(SocketAddrV4::new(ip.into(), u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            let ip = raw.sin6_addr.s6_addr.into();
            let port = u16::from_be(raw.sin6_port);
            Some(SocketAddrV6::new(ip, port, 0, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "2 and 10")]
fn sa_family(family: c_int) -> libc::sa_family_t {
    family as libc::sa_family_t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_with_the_first_other_size() {
        let (a, b, none): (&[u8], &[u8], &[u8]) = (&[0; 1400], &[0; 100], &[]);
        assert_eq!(run(&[a]), 1);
        assert_eq!(run(&[a, a, a]), 3);
        assert_eq!(run(&[a, a, b, a]), 3);
        assert_eq!(run(&[b, a]), 1);
        assert_eq!(run(&[none, none]), 1);
        assert_eq!(run(&[a, none]), 1);
        assert_eq!(run(&[a; 100]), MAX_RUN / 1400);
        assert_eq!(run(&[b; 100]), MAX_SEGMENTS);
    }

    #[test]
    fn addresses_survive_the_kernel_form() {
        for addr in ["127.0.0.2:53", "[fe80::1%3]:65535"] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert_eq!(socket_addr(&raw_addr(addr)), Some(addr));
        }
    }
}
