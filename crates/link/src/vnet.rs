//! `struct virtio_net_hdr`, without `num_buffers` (virtio specification, section 5.1.6): what a TAP
//! with `IFF_VNET_HDR` puts before each frame, in the machine's own byte order. A virtio device has
//! it little-endian, which is the same on all systems that vmlan is for.

use vmlan_wire::frame::{Checksum, GsoKind};
use vmlan_wire::{Gso, Offload};

pub(crate) const HEADER: usize = 10;

const ETHERNET_HEADER: usize = 14;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Set beside a type when the train starts with CWR. Whoever cuts it looks for that itself.
const GSO_ECN: u8 = 0x80;

/// What the header says. A type that was not asked for reads as none: such a frame is then too
/// long for every port.
pub(crate) fn parse(header: &[u8; HEADER]) -> Offload {
    let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = *header;
    let number = |a, b| u16::from_ne_bytes([a, b]);
    let checksum = if flags & NEEDS_CSUM != 0 {
        Checksum::Partial { start: number(c0, c1), offset: number(o0, o1) }
    } else if flags & DATA_VALID != 0 {
        Checksum::Verified
    } else {
        Checksum::Complete
    };
    let kind = match kind & !GSO_ECN {
        GSO_TCPV4 => Some(GsoKind::TcpV4),
        GSO_TCPV6 => Some(GsoKind::TcpV6),
        _ => None,
    };
    let gso = kind.map(|kind| Gso { kind, size: number(s0, s1), header_len: number(h0, h1) });
    Offload { checksum, gso }
}

/// Whether a header can be one of a frame of this length. Who reads frames from a device of the
/// kernel's need not ask.
pub(crate) fn is_plausible(header: &[u8; HEADER], len: usize) -> bool {
    let known = matches!(header[1] & !GSO_ECN, GSO_NONE | GSO_TCPV4 | GSO_TCPV6);
    let Offload { checksum, gso } = parse(header);
    let checksum_fits = match checksum {
        Checksum::Partial { start, offset } => {
            let end = usize::from(start) + usize::from(offset) + 2;
            usize::from(start) >= ETHERNET_HEADER && end <= len
        }
        // Whoever cuts a train makes its checksums.
        _ => gso.is_none(),
    };
    known && checksum_fits && gso.is_none_or(|gso| gso.size > 0)
}

/// The header for a frame. A partial sum needs `NEEDS_CSUM`: with `DATA_VALID` the kernel takes
/// the unfinished sum for a finished one, and the guest drops the frame.
pub(crate) fn emit(offload: Offload) -> [u8; HEADER] {
    let (flags, start, offset) = match offload.checksum {
        Checksum::Partial { start, offset } => (NEEDS_CSUM, start, offset),
        Checksum::Verified => (DATA_VALID, 0, 0),
        Checksum::Complete => (0, 0, 0),
    };
    let (kind, size, header_len) = match offload.gso {
        Some(gso) => {
            let kind = match gso.kind {
                GsoKind::TcpV4 => GSO_TCPV4,
                GsoKind::TcpV6 => GSO_TCPV6,
            };
            (kind, gso.size, gso.header_len)
        }
        None => (GSO_NONE, 0, 0),
    };
    let ([h0, h1], [s0, s1]) = (header_len.to_ne_bytes(), size.to_ne_bytes());
    let ([c0, c1], [o0, o1]) = (start.to_ne_bytes(), offset.to_ne_bytes());
    [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offload_comes_back() {
        let checksums =
            [Checksum::Complete, Checksum::Verified, Checksum::Partial { start: 34, offset: 16 }];
        let gso = |kind| Some(Gso { kind, size: 1448, header_len: 66 });
        for checksum in checksums {
            for gso in [None, gso(GsoKind::TcpV4), gso(GsoKind::TcpV6)] {
                let offload = Offload { checksum, gso };
                assert_eq!(parse(&emit(offload)), offload);
            }
        }
    }

    #[test]
    fn a_header_that_its_frame_belies_is_found() {
        let partial = Checksum::Partial { start: 34, offset: 16 };
        let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448, header_len: 66 });
        let ok = |offload, len| is_plausible(&emit(offload), len);
        assert!(ok(Offload { checksum: partial, gso }, 52));
        assert!(!ok(Offload { checksum: partial, gso }, 51), "the sum's place is behind the end");
        assert!(!ok(Offload { checksum: Checksum::Complete, gso }, 9000));
        assert!(!ok(
            Offload { checksum: Checksum::Partial { start: 4, offset: 2 }, gso: None },
            99
        ));
        let none = Some(Gso { kind: GsoKind::TcpV6, size: 0, header_len: 0 });
        assert!(!ok(Offload { checksum: partial, gso: none }, 9000));
        let mut udp = emit(Offload { checksum: partial, gso });
        udp[1] = 3;
        assert!(!is_plausible(&udp, 9000));
        assert!(ok(Offload::NONE, 0));
    }

    #[test]
    fn unknown_types_and_marks_are_read_as_far_as_they_go() {
        let mut header = emit(Offload {
            checksum: Checksum::Partial { start: 34, offset: 16 },
            gso: Some(Gso { kind: GsoKind::TcpV4, size: 9, header_len: 9 }),
        });
        header[1] |= GSO_ECN;
        assert!(parse(&header).gso.is_some());
        header[1] = 5;
        assert_eq!(parse(&header).gso, None);
    }
}
