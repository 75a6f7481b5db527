//! Sequence numbers: 32 bits that wrap (RFC 9293 section 3.4).

/// A point in one direction's byte stream. Two are ordered if they lie within 2^31 of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seq(pub(crate) u32);

impl Seq {
    pub(crate) fn plus(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// How far `self` is behind `later`; negative if it is ahead.
    pub(crate) fn distance(self, later: Self) -> i32 {
        later.0.wrapping_sub(self.0).cast_signed()
    }

    /// Bytes from `self` to `later`; zero if `later` is not later.
    pub(crate) fn until(self, later: Self) -> u32 {
        u32::try_from(self.distance(later)).unwrap_or(0)
    }

    pub(crate) fn before(self, other: Self) -> bool {
        self.distance(other) > 0
    }

    pub(crate) fn max(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    pub(crate) fn min(self, other: Self) -> Self {
        if self.before(other) { self } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let (a, b) = (Seq(u32::MAX - 1), Seq(5));
        assert!(a.before(b) && !b.before(a) && !a.before(a));
        assert_eq!((a.until(b), b.until(a)), (7, 0));
        assert_eq!((a.max(b), a.min(b)), (b, a));
        assert_eq!(a.plus(7), b);
    }
}
