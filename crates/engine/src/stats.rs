//! Plain counters: one owner, no atomics. What is dropped is counted with its reason and never
//! logged for each packet, or a guest could fill the disk.

/// Why something was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Drop {
    /// Shorter than its headers say, or contradicting itself.
    Malformed,
    /// A wrong IP or transport checksum.
    Checksum,
    /// An ethertype or transport protocol that nobody here speaks.
    UnknownProtocol,
    /// A source address outside the network, or somebody else's.
    Source,
    /// A destination that no guest may reach.
    Forbidden,
    /// The egress queue of a port was full.
    LinkFull,
    /// The frame does not fit the MTU of the port it should leave by.
    TooBig,
    /// A limit of flows, fragments, leases or queries was reached.
    Limit,
    /// No descriptor, port or memory left on the host.
    HostExhausted,
    /// The host has no such kind of socket (ping sockets, IPv6).
    HostUnsupported,
    /// The host's socket took fewer datagrams than it was given.
    HostFull,
    /// A segment or datagram for a flow that is not there.
    NoFlow,
    /// Outside the receive window, or an unacceptable acknowledgement.
    Window,
    /// A datagram from a peer that the guest never contacted.
    UnknownPeer,
    /// More MAC addresses behind one port than allowed.
    MacLimit,
    /// A frame in another's name: the gateway's or another guest's MAC address as source, an
    /// address of the gateway's that is said to be a guest's, a lie about the sender's MAC.
    Spoofed,
    /// TTL or hop limit ran out.
    Expired,
    /// Reassembly timed out or overlapped.
    Fragment,
    /// A guest's frame for other guests that has it play their router or DHCP server.
    Rogue,
}

impl Drop {
    pub const ALL: [Self; 19] = [
        Self::Malformed,
        Self::Checksum,
        Self::UnknownProtocol,
        Self::Source,
        Self::Forbidden,
        Self::LinkFull,
        Self::TooBig,
        Self::Limit,
        Self::HostExhausted,
        Self::HostUnsupported,
        Self::HostFull,
        Self::NoFlow,
        Self::Window,
        Self::UnknownPeer,
        Self::MacLimit,
        Self::Spoofed,
        Self::Expired,
        Self::Fragment,
        Self::Rogue,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Checksum => "checksum",
            Self::UnknownProtocol => "unknown-protocol",
            Self::Source => "source",
            Self::Forbidden => "forbidden",
            Self::LinkFull => "link-full",
            Self::TooBig => "too-big",
            Self::Limit => "limit",
            Self::HostExhausted => "host-exhausted",
            Self::HostUnsupported => "host-unsupported",
            Self::HostFull => "host-full",
            Self::NoFlow => "no-flow",
            Self::Window => "window",
            Self::UnknownPeer => "unknown-peer",
            Self::MacLimit => "mac-limit",
            Self::Spoofed => "spoofed",
            Self::Expired => "expired",
            Self::Fragment => "fragment",
            Self::Rogue => "rogue",
        }
    }
}

/// Counters of one engine.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub frames_in: u64,
    pub bytes_in: u64,
    pub frames_out: u64,
    pub bytes_out: u64,
    pub tcp_opened: u64,
    pub tcp_closed: u64,
    pub tcp_retransmits: u64,
    pub udp_opened: u64,
    pub ping_opened: u64,
    pub dns_queries: u64,
    dropped: [u64; Drop::ALL.len()],
}

impl Stats {
    pub(crate) fn drop(&mut self, reason: Drop) {
        if let Some(count) = self.dropped.get_mut(reason as usize) {
            *count += 1;
        }
    }

    pub fn dropped(&self, reason: Drop) -> u64 {
        self.dropped.get(reason as usize).copied().unwrap_or(0)
    }

    /// The counts of all reasons, in the order of [`Drop::ALL`].
    pub fn all_dropped(&self) -> &[u64; Drop::ALL.len()] {
        &self.dropped
    }

    /// Each reason that occurred, with its count.
    pub fn drops(&self) -> impl Iterator<Item = (Drop, u64)> {
        Drop::ALL.into_iter().map(|r| (r, self.dropped(r))).filter(|(_, n)| *n > 0)
    }
}
