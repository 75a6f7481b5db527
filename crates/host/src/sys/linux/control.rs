//! Control messages that go with datagrams (cmsg(3)): segment sizes and local addresses.

use std::ffi::c_int;
use std::net::IpAddr;

/// `CMSG_SPACE` of the largest of each kind that is sent: a `u16`, and an `in6_pktinfo`.
const SEGMENT: usize = space(size_of::<u16>());
const ADDRESS: usize = space(size_of::<libc::in6_pktinfo>());

const HEADER: usize = size_of::<libc::cmsghdr>();

const fn space(len: usize) -> usize {
    size_of::<libc::cmsghdr>() + len.next_multiple_of(align_of::<libc::cmsghdr>())
}

/// Room for the control messages of one datagram, or of one run of them.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Control([u8; SEGMENT + ADDRESS]);

impl Control {
    pub(super) const EMPTY: Self = Self([0; SEGMENT + ADDRESS]);

    /// Writes what is to be sent and returns how long it is.
    pub(super) fn write(&mut self, segment: Option<u16>, from: Option<IpAddr>) -> usize {
        let mut len = 0;
        if let Some(size) = segment {
            len += self.put(len, libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
        }
        match from {
            Some(IpAddr::V4(ip)) => {
                // in_pktinfo: interface, source address, and one that is not looked at.
                let mut info = [0; size_of::<libc::in_pktinfo>()];
                info[4..8].copy_from_slice(&ip.octets());
                len += self.put(len, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(ip)) => {
                // in6_pktinfo: source address, interface.
                let mut info = [0; size_of::<libc::in6_pktinfo>()];
                info[..16].copy_from_slice(&ip.octets());
                len += self.put(len, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        len
    }

    fn put(&mut self, at: usize, level: c_int, kind: c_int, data: &[u8]) -> usize {
        let room = self.0.get_mut(at..at + space(data.len()));
        let Some(room) = room else { return 0 };
        room.fill(0);
        let (header, rest) = room.split_at_mut(HEADER);
        header[..size_of::<usize>()].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        header[8..12].copy_from_slice(&level.to_ne_bytes());
        header[12..16].copy_from_slice(&kind.to_ne_bytes());
        rest[..data.len()].copy_from_slice(data);
        space(data.len())
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }

    pub(super) const fn capacity() -> usize {
        SEGMENT + ADDRESS
    }

    /// The local address among the control messages that the kernel wrote.
    pub(super) fn local_address(&self, len: usize) -> Option<IpAddr> {
        let mut rest = self.0.get(..len)?;
        loop {
            let header = rest.get(..HEADER)?;
            let len = usize::from_ne_bytes(header.get(..size_of::<usize>())?.try_into().ok()?);
            let level = c_int::from_ne_bytes(header.get(8..12)?.try_into().ok()?);
            let kind = c_int::from_ne_bytes(header.get(12..16)?.try_into().ok()?);
            let data = rest.get(HEADER..len)?;
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let ip: [u8; 4] = data.get(4..8)?.try_into().ok()?;
                    return Some(IpAddr::from(ip));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let ip: [u8; 16] = data.get(..16)?.try_into().ok()?;
                    return Some(IpAddr::from(ip)).filter(|ip| !ip.is_multicast());
                }
                _ => rest = rest.get(space(len - HEADER)..)?,
            }
        }
    }
}

// The fields of a `cmsghdr` are at these places on every 64-bit Linux.
const _: () = assert!(HEADER == 16 && size_of::<usize>() == 8);
const _: () = assert!(std::mem::offset_of!(libc::cmsghdr, cmsg_level) == 8);
const _: () = assert!(std::mem::offset_of!(libc::cmsghdr, cmsg_type) == 12);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut control = Control::EMPTY;
        assert_eq!(control.write(None, None), 0);
        assert_eq!(control.local_address(0), None);
        for ip in ["127.5.6.7", "fd76::2"] {
            let ip: IpAddr = ip.parse().unwrap();
            for segment in [None, Some(1400)] {
                let len = control.write(segment, Some(ip));
                assert_eq!(control.local_address(len), Some(ip));
            }
        }
        assert_eq!(control.write(Some(7), None), 24);
        assert_eq!(control.local_address(24), None);
    }
}
