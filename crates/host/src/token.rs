//! Poll tokens of the host's own sockets. Bit 62 says that they are; bit 63 is never set, it marks
//! the loop's own.

/// Set in the tokens of sockets that the engine does not know.
pub(crate) const INTERNAL: usize = 1 << 62;

const CLASS_SHIFT: u32 = 56;
const GENERATION_SHIFT: u32 = 32;
const GENERATION_MASK: usize = (1 << 24) - 1;
const INDEX_MASK: usize = (1 << 32) - 1;

/// Which part of the host a socket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A connect to `[::1]` that may yet become one to 127.0.0.1.
    Loopback,
    /// A UDP socket to a nameserver.
    DnsUdp,
    /// The service's end of a guest's DNS stream.
    DnsStream,
    /// A TCP connection to a nameserver.
    DnsTcp,
}

/// An index into its class's table. The generation tells an entry from the one that used the same
/// index before, whose last events may still be on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Internal {
    pub(crate) class: Class,
    pub(crate) index: usize,
    pub(crate) generation: u32,
}

impl Internal {
    pub(crate) fn new(class: Class, index: usize, generation: u32) -> Self {
        Self { class, index, generation: generation & 0x00ff_ffff }
    }

    pub(crate) fn token(self) -> mio::Token {
        let class = (self.class as usize) << CLASS_SHIFT;
        let generation = (self.generation as usize & GENERATION_MASK) << GENERATION_SHIFT;
        mio::Token(INTERNAL | class | generation | (self.index & INDEX_MASK))
    }

    pub(crate) fn of(token: mio::Token) -> Option<Self> {
        if token.0 & INTERNAL == 0 {
            return None;
        }
        let class = match (token.0 >> CLASS_SHIFT) & 0x3f {
            0 => Class::Loopback,
            1 => Class::DnsUdp,
            2 => Class::DnsStream,
            3 => Class::DnsTcp,
            _ => return None,
        };
        let generation = (token.0 >> GENERATION_SHIFT) & GENERATION_MASK;
        #[expect(clippy::cast_possible_truncation, reason = "24 bits are left")]
        let generation = generation as u32;
        Some(Self { class, index: token.0 & INDEX_MASK, generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        for class in [Class::Loopback, Class::DnsUdp, Class::DnsStream, Class::DnsTcp] {
            let internal = Internal::new(class, 0xffff_fffe, 0x01ab_cdef);
            assert_eq!(internal.generation, 0x00ab_cdef);
            let token = internal.token();
            assert_eq!(Internal::of(token), Some(internal));
            assert_eq!(token.0 >> 63, 0);
        }
        assert_eq!(Internal::of(mio::Token(INTERNAL - 1)), None);
    }
}
