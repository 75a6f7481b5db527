//! Poll tokens of the resolver's own sockets: an index into a table and a generation, below 2^58.
//! Above that its owner says whose they are.

const CLASS_SHIFT: u32 = 56;
const GENERATION_SHIFT: u32 = 32;
const GENERATION_MASK: usize = (1 << 24) - 1;
const INDEX_MASK: usize = (1 << 32) - 1;

/// Which part of the resolver a socket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A UDP socket to a nameserver.
    Udp,
    /// A TCP connection to a nameserver.
    Tcp,
    /// A client's stream.
    Stream,
    /// Tells that a native lookup has ended.
    Native,
}

/// An entry of a table. The generation tells it from the one that used the same index before, whose
/// last events may still be on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) class: Class,
    pub(crate) index: usize,
    pub(crate) generation: u32,
}

impl Key {
    pub(crate) fn new(class: Class, index: usize, generation: u32) -> Self {
        Self { class, index, generation: generation & 0x00ff_ffff }
    }

    pub(crate) fn token(self, base: usize) -> mio::Token {
        let class = (self.class as usize) << CLASS_SHIFT;
        let generation = (self.generation as usize & GENERATION_MASK) << GENERATION_SHIFT;
        mio::Token(base | class | generation | (self.index & INDEX_MASK))
    }

    pub(crate) fn of(token: mio::Token) -> Self {
        let class = match (token.0 >> CLASS_SHIFT) & 3 {
            0 => Class::Udp,
            1 => Class::Tcp,
            2 => Class::Stream,
            _ => Class::Native,
        };
        let generation = (token.0 >> GENERATION_SHIFT) & GENERATION_MASK;
        #[expect(clippy::cast_possible_truncation, reason = "24 bits are left")]
        let generation = generation as u32;
        Self { class, index: token.0 & INDEX_MASK, generation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        const BASE: usize = 5 << 60;
        for class in [Class::Udp, Class::Tcp, Class::Stream, Class::Native] {
            let key = Key::new(class, 0xffff_fffe, 0x01ab_cdef);
            assert_eq!(key.generation, 0x00ab_cdef);
            let token = key.token(BASE);
            assert_eq!(Key::of(token), key);
            assert_eq!(token.0 & BASE, BASE);
        }
    }
}
