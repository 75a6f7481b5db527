//! A socket's error queue: what came back by ICMP (`IP_RECVERR`, ip(7)).

use std::ffi::c_int;
use std::mem::{self, MaybeUninit};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use vmlan_engine::io::IcmpError;

use super::batch::socket_addr;
use crate::datagram::local_error;
use crate::sys::last_errno;

/// Errors that are read in one call; each costs a system call.
const BUDGET: usize = 32;

/// What an ICMP error quotes of a datagram is seldom more (RFC 4443 section 2.4).
const QUOTE: usize = 1280;

/// Room for the error, the offender's address, and what other options may add.
const CONTROL: usize = 512;

#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Reads the queue until it is empty or the budget ends, and tells how many errors there were.
pub(crate) fn drain_errors(fd: &OwnedFd, each: &mut dyn FnMut(IcmpError<'_>)) -> usize {
    for count in 0..BUDGET {
        match read_one(fd, each) {
            Ok(()) => {}
            Err(_) => return count,
        }
    }
    BUDGET
}

fn read_one(fd: &OwnedFd, each: &mut dyn FnMut(IcmpError<'_>)) -> Result<(), Errno> {
    let mut data = [0_u8; QUOTE];
    let mut control = Control([0; CONTROL]);
    let mut name = MaybeUninit::<libc::sockaddr_in6>::zeroed();
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: QUOTE };
    // SAFETY: all-zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = super::batch::NAME_LEN;
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: every pointer of `message` leads to a local that lives through the call, with its
    // true length.
    let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    let Ok(len) = usize::try_from(len) else { return Err(last_errno()) };
    // SAFETY: zeroed before, so initialised whatever the kernel has written.
    let name = unsafe { name.assume_init() };
    let Some(to) = socket_addr(&name) else { return Ok(()) };
    let Some((error, offender)) = extended_error(&message) else { return Ok(()) };
    let data = data.get(..len).unwrap_or(&data);
    match error.ee_origin {
        libc::SO_EE_ORIGIN_LOCAL => {
            let errno = Errno::from_raw_os_error(c_int::try_from(error.ee_errno).unwrap_or(0));
            if let Some(mut told) = local_error(errno, to, data) {
                told.mtu = error.ee_info;
                each(told);
            }
        }
        libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => each(IcmpError {
            kind: error.ee_type,
            code: error.ee_code,
            mtu: error.ee_info,
            offender,
            to,
            data,
        }),
        _ => {}
    }
    Ok(())
}

/// The `sock_extended_err` of a message, and the address that follows it.
fn extended_error(message: &libc::msghdr) -> Option<(libc::sock_extended_err, Option<IpAddr>)> {
    const ERROR: usize = size_of::<libc::sock_extended_err>();
    // SAFETY: `message` was filled by recvmsg, its control buffer is alive.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header within the buffer.
        let cmsg = unsafe { *header };
        let wanted = matches!(
            (cmsg.cmsg_level, cmsg.cmsg_type),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        );
        // SAFETY: no memory is accessed.
        let (least, full) = unsafe {
            let error = u32::try_from(ERROR).ok()?;
            let address = u32::try_from(size_of::<libc::sockaddr_in6>()).ok()?;
            (libc::CMSG_LEN(error) as usize, libc::CMSG_LEN(error + address) as usize)
        };
        if wanted && cmsg.cmsg_len >= least {
            // SAFETY: the header says that at least a `sock_extended_err` follows it.
            let data = unsafe { libc::CMSG_DATA(header) };
            // SAFETY: as above; read unaligned.
            let error = unsafe { data.cast::<libc::sock_extended_err>().read_unaligned() };
            let mut name = MaybeUninit::<libc::sockaddr_in6>::zeroed();
            let present = (cmsg.cmsg_len.min(full)).saturating_sub(least);
            // SAFETY: `present` bytes follow the error within the control message, and are no more
            // than a `sockaddr_in6`.
            unsafe {
                let from = data.add(ERROR);
                std::ptr::copy_nonoverlapping(from, name.as_mut_ptr().cast::<u8>(), present);
            }
            // SAFETY: zeroed before.
            let name = unsafe { name.assume_init() };
            return Some((error, socket_addr(&name).map(|addr| addr.ip())));
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}
