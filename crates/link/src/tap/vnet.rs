//! The header that a TAP with `IFF_VNET_HDR` puts before each frame: `struct virtio_net_hdr` in
//! the machine's own byte order (virtio specification, section 5.1.6, without `num_buffers`).

use vmlan_wire::frame::{Checksum, GsoKind};
use vmlan_wire::{Gso, Offload};

pub(super) const HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Set beside a type when the train starts with CWR. Whoever cuts it looks for that itself.
const GSO_ECN: u8 = 0x80;

/// What the header says. A type that was not asked for reads as none: such a frame is then too
/// long for every port.
pub(super) fn parse(header: &[u8; HEADER]) -> Offload {
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

/// The header for a frame. A partial sum needs `NEEDS_CSUM`: with `DATA_VALID` the kernel takes
/// the unfinished sum for a finished one, and the guest drops the frame.
pub(super) fn emit(offload: Offload) -> [u8; HEADER] {
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
