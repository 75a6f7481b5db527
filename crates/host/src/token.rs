//! Poll tokens of the host's own sockets. Bit 62 says that they are, bit 58 that they are the
//! resolver's; bit 63 is never set, it marks the loop's own.

/// Set in the tokens of sockets that the engine does not know.
pub(crate) const INTERNAL: usize = 1 << 62;

/// Set in those of the resolver's.
pub(crate) const DNS: usize = INTERNAL | 1 << 58;

/// The bits of a generation that a token has room for.
pub(crate) const GENERATION: u32 = (1 << 24) - 1;

const GENERATION_SHIFT: u32 = 32;
const INDEX_MASK: usize = (1 << 32) - 1;

/// Whose an event is that is not the engine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Internal {
    /// A connect to `[::1]` that may yet become one to 127.0.0.1: its index in the table of
    /// sockets, and what tells it from the one that used the same index before, whose last events
    /// may still be on their way.
    Loopback {
        index: usize,
        generation: u32,
    },
    Dns,
}

impl Internal {
    pub(crate) fn token(self) -> mio::Token {
        match self {
            Self::Loopback { index, generation } => {
                let generation = ((generation & GENERATION) as usize) << GENERATION_SHIFT;
                mio::Token(INTERNAL | generation | (index & INDEX_MASK))
            }
            Self::Dns => mio::Token(DNS),
        }
    }

    pub(crate) fn of(token: mio::Token) -> Option<Self> {
        if token.0 & INTERNAL == 0 {
            return None;
        }
        if token.0 & DNS == DNS {
            return Some(Self::Dns);
        }
        #[expect(clippy::cast_possible_truncation, reason = "24 bits are left")]
        let generation = (token.0 >> GENERATION_SHIFT) as u32 & GENERATION;
        Some(Self::Loopback { index: token.0 & INDEX_MASK, generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        for internal in
            [Internal::Loopback { index: 0xffff_fffe, generation: 0x00ab_cdef }, Internal::Dns]
        {
            let token = internal.token();
            assert_eq!(Internal::of(token), Some(internal));
            assert_eq!(token.0 >> 63, 0);
        }
        assert_eq!(Internal::of(mio::Token(INTERNAL - 1)), None);
        assert_eq!(Internal::of(mio::Token(DNS | 7 << 32 | 5)), Some(Internal::Dns));
    }
}
