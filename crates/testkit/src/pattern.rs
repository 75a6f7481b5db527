//! Streams of bytes that anybody can make and verify from a seed and an offset alone, so that a
//! transfer of any length is checked without keeping a copy of it.

use std::sync::OnceLock;

use crate::rng::Rng;

/// The period is prime: data that is off by any number of segments, windows or buffers differs.
const PERIOD: usize = 65_521;

/// One endless stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern(pub u64);

impl Pattern {
    /// Writes the bytes from `offset` on.
    pub fn fill(self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        for chunk in out.chunks_mut(PERIOD) {
            chunk.copy_from_slice(self.piece(at, chunk.len()));
            at += chunk.len() as u64;
        }
    }

    /// Whether `data` is what the stream has from `offset` on; the first wrong offset if not.
    pub fn check(self, offset: u64, data: &[u8]) -> Result<(), u64> {
        let mut at = offset;
        for chunk in data.chunks(PERIOD) {
            let want = self.piece(at, chunk.len());
            if chunk != want {
                let wrong = chunk.iter().zip(want).position(|(a, b)| a != b).unwrap_or(0);
                return Err(at + wrong as u64);
            }
            at += chunk.len() as u64;
        }
        Ok(())
    }

    fn piece(self, offset: u64, len: usize) -> &'static [u8] {
        let start = offset.wrapping_add(self.0.wrapping_mul(7919)) % PERIOD as u64;
        &table()[start as usize..start as usize + len]
    }
}

/// Two periods, so that one period can start anywhere.
fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = vec![0; PERIOD];
        Rng::new(0x7061_7474).fill(&mut table);
        table.extend_from_within(..);
        table
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misplaced_byte_is_found_where_it_is() {
        let mut data = vec![0; 200_000];
        Pattern(3).fill(1000, &mut data);
        assert_eq!(Pattern(3).check(1000, &data), Ok(()));
        assert_eq!(Pattern(3).check(51_000, &data[50_000..]), Ok(()));
        assert!(Pattern(4).check(1000, &data).is_err());
        data[150_000] ^= 1;
        assert_eq!(Pattern(3).check(1000, &data), Err(151_000));
    }
}
