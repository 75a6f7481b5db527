//! The TUN/TAP driver's ioctls.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::vnet;

/// `IFNAMSIZ`, the final zero included.
const NAME_MAX: usize = 16;

/// `struct ifreq`: a name, and here a union of which only the flags are used.
type IfReq = [u8; 40];

/// Makes a TAP in the caller's network namespace, or attaches to one that is kept there for the
/// caller. Unless it is kept, the interface is gone with the last copy of the descriptor.
pub(super) fn create(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let mut request: IfReq = [0; 40];
    if !is_valid_name(name) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.iter_mut().zip(name.as_bytes()) {
        *to = *from;
    }
    set_flags(&mut request, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    ioctl(device.as_fd(), libc::TUNSETIFF, &mut request)?;
    Ok(device)
}

/// Whether the kernel takes this name as it is. It would fill in `%d`.
pub(super) fn is_valid_name(name: &str) -> bool {
    let odd = |b: u8| b.is_ascii_whitespace() || b.is_ascii_control() || b"/:%".contains(&b);
    (1..NAME_MAX).contains(&name.len()) && !matches!(name, "." | "..") && !name.bytes().any(odd)
}

/// How an open TAP device frames what it gives and takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Framing {
    pub(super) vnet_header: bool,
}

/// Looks at an open descriptor: `None` when it is no TAP device, or one that puts the old packet
/// information before each frame.
pub(super) fn framing(device: BorrowedFd<'_>) -> Option<Framing> {
    let mut request: IfReq = [0; 40];
    ioctl(device, libc::TUNGETIFF, &mut request).ok()?;
    let flags = i32::from(i16::from_ne_bytes([request[16], request[17]]));
    let is = |flag| flags & flag != 0;
    (is(libc::IFF_TAP) && is(libc::IFF_NO_PI))
        .then_some(Framing { vnet_header: is(libc::IFF_VNET_HDR) })
}

/// Has the kernel put our size of header before each frame, and leave to us as much as it can, or
/// nothing.
pub(super) fn set_offload(device: BorrowedFd<'_>, offload: bool) -> io::Result<()> {
    let mut size = i32::try_from(vnet::HEADER).unwrap_or(0);
    ioctl(device, libc::TUNSETVNETHDRSZ, &mut size)?;
    if !offload {
        return ioctl_value(device, libc::TUNSETOFFLOAD, 0);
    }
    let checksum = libc::TUN_F_CSUM;
    let all = checksum | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    ioctl_value(device, libc::TUNSETOFFLOAD, all)
        .or_else(|_| ioctl_value(device, libc::TUNSETOFFLOAD, checksum))
        .or_else(|_| ioctl_value(device, libc::TUNSETOFFLOAD, 0))
}

fn set_flags(request: &mut IfReq, flags: i32) {
    #[expect(clippy::cast_possible_truncation, reason = "the field has 16 bits")]
    let [a, b] = (flags as i16).to_ne_bytes();
    request[16] = a;
    request[17] = b;
}

fn ioctl<T>(device: BorrowedFd<'_>, operation: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: the operations given read and write at most a `struct ifreq` or an `int`, which is
    // what `argument` is, and keep no pointer.
    let result =
        unsafe { libc::ioctl(device.as_raw_fd(), operation, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn ioctl_value(device: BorrowedFd<'_>, operation: libc::Ioctl, value: u32) -> io::Result<()> {
    // SAFETY: the operation takes a number in place of a pointer.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), operation, libc::c_ulong::from(value)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
