//! One's-complement sums of many bytes: the inner loop of the Internet checksum (RFC 1071), with
//! the widest registers that the processor has. What a sum stands for, and how those of pieces
//! become one, is `vmlan_wire::checksum`'s business.
//!
//! The loop is plain code, compiled once for each width; which of them the processor can run is
//! found out when they run. Calling one of those is the only thing here that the compiler cannot
//! vouch for, and the reason why this is a crate of its own.

/// Sums 64-bit words in the machine's byte order; bytes behind the last whole one are returned.
/// Neither lane of the sum has lost a carry: it is right modulo 2^16 - 1.
pub fn words(data: &[u8]) -> (u64, &[u8]) {
    let (words, rest) = data.as_chunks();
    (widest(words), rest)
}

#[cfg(target_arch = "x86_64")]
fn widest(words: &[[u8; 8]]) -> u64 {
    #[target_feature(enable = "avx512f")]
    fn avx512(words: &[[u8; 8]]) -> u64 {
        sum(words)
    }
    #[target_feature(enable = "avx2")]
    fn avx2(words: &[[u8; 8]]) -> u64 {
        sum(words)
    }
    // Processors that have the first, but not the second, slow down for registers that wide.
    let eager = || std::arch::is_x86_feature_detected!("avx512vbmi2");
    if std::arch::is_x86_feature_detected!("avx512f") && eager() {
        // SAFETY: the processor has AVX-512F.
        return unsafe { avx512(words) };
    }
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { avx2(words) };
    }
    sum(words)
}

/// Others are always as wide as this target's baseline.
#[cfg(not(target_arch = "x86_64"))]
fn widest(words: &[[u8; 8]]) -> u64 {
    sum(words)
}

/// Halves are summed, which leaves room for carries, and count alike: 2^32 is one, modulo 2^16 - 1.
#[inline(always)]
fn sum(words: &[[u8; 8]]) -> u64 {
    /// Far fewer than would overflow.
    const AT_ONCE: usize = 1 << 24;
    let halves = |word: &[u8; 8]| {
        let word = u64::from_ne_bytes(*word);
        (word & 0xffff_ffff) + (word >> 32)
    };
    let mut total: u64 = 0;
    for words in words.chunks(AT_ONCE) {
        let sum: u64 = words.iter().map(halves).sum();
        total += (sum & 0xffff_ffff) + (sum >> 32);
    }
    total
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation)]
    use super::*;

    /// The sum's value modulo 2^16 - 1, by definition.
    fn slow(words: &[u8]) -> u64 {
        let pairs = words.as_chunks::<2>().0.iter();
        pairs.map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum::<u64>() % 0xffff
    }

    #[test]
    fn every_length_and_place_sums_right() {
        let data: Vec<u8> =
            (0..1500u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for start in 0..9 {
            for end in start..data.len() {
                let part = &data[start..end];
                let (sum, rest) = words(part);
                assert_eq!(rest.len(), part.len() % 8);
                assert_eq!(sum % 0xffff, slow(&part[..part.len() - rest.len()]), "{start}..{end}");
            }
        }
    }

    #[test]
    fn all_ones_do_not_overflow() {
        let data = vec![0xff; 3 << 20];
        assert_eq!(words(&data).0 % 0xffff, 0);
        assert_ne!(words(&data).0, 0);
    }
}
