//! The Internet checksum (RFC 1071) over pieces: frames here are seldom in one slice.
//!
//! Sums are kept as native-endian one's-complement sums in a `u64` accumulator; byte order is
//! mended once at the end, which RFC 1071 section 2(B) allows. The loop over many bytes is
//! [`vmlan_sum`]'s, and faster than memory delivers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// From so many bytes on, the loop for many is worth its call: headers are shorter.
const MANY: usize = 96;

/// A running one's-complement sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    acc: u64,
    /// An odd number of bytes has been added: the next byte is a low-order one.
    odd: bool,
}

impl Sum {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as if they followed those added before.
    #[inline]
    pub fn add(&mut self, data: &[u8]) {
        let mut part = sum_bytes(data);
        if self.odd {
            part = u64::from(fold(part).swap_bytes());
        }
        self.acc = add_carry(self.acc, part);
        self.odd ^= data.len() % 2 == 1;
    }

    /// Adds a 16-bit number at an even position.
    pub fn add_u16(&mut self, value: u16) {
        self.acc = add_carry(self.acc, u64::from(value.to_be()));
    }

    pub fn add_u32(&mut self, value: u32) {
        self.acc = add_carry(self.acc, u64::from(value.to_be()));
    }

    /// The pseudo-header of RFC 793 section 3.1, RFC 8200 section 8.1. Mixed families add nothing.
    pub fn add_pseudo_header(&mut self, src: IpAddr, dst: IpAddr, protocol: u8, len: u32) {
        match (src, dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => self.add_addresses_v4(s, d),
            (IpAddr::V6(s), IpAddr::V6(d)) => self.add_addresses_v6(s, d),
            _ => return,
        }
        self.add_u32(len);
        self.add_u16(u16::from(protocol));
    }

    fn add_addresses_v4(&mut self, src: Ipv4Addr, dst: Ipv4Addr) {
        self.add_u32(src.to_bits());
        self.add_u32(dst.to_bits());
    }

    fn add_addresses_v6(&mut self, src: Ipv6Addr, dst: Ipv6Addr) {
        for addr in [src, dst] {
            let [high, low] = *addr.octets().as_chunks::<8>().0 else { return };
            self.acc = add_carry(self.acc, u64::from_ne_bytes(high));
            self.acc = add_carry(self.acc, u64::from_ne_bytes(low));
        }
    }

    /// The sum so far, not complemented, as it stands in a packet: what
    /// [`Checksum::Partial`](crate::frame::Checksum::Partial) wants in the checksum field.
    pub fn partial(self) -> [u8; 2] {
        fold(self.acc).to_ne_bytes()
    }

    /// The checksum as it stands in a packet.
    pub fn finish(self) -> [u8; 2] {
        (!fold(self.acc)).to_ne_bytes()
    }

    /// Whether the bytes added, checksum field included, are intact.
    pub fn is_valid(self) -> bool {
        fold(self.acc) == 0xffff
    }
}

/// The checksum of one slice.
pub fn checksum(data: &[u8]) -> [u8; 2] {
    let mut sum = Sum::new();
    sum.add(data);
    sum.finish()
}

#[inline]
fn sum_bytes(data: &[u8]) -> u64 {
    if data.len() < MANY {
        return sum_tail(data, 0);
    }
    let (sum, rest) = vmlan_sum::words(data);
    sum_tail(rest, sum)
}

#[inline]
fn sum_tail(data: &[u8], mut acc: u64) -> u64 {
    let (words, rest) = data.as_chunks::<8>();
    for word in words {
        acc = add_carry(acc, u64::from_ne_bytes(*word));
    }
    let (half, rest) = rest.as_chunks::<4>();
    if let [half] = half {
        acc = add_carry(acc, u64::from(u32::from_ne_bytes(*half)));
    }
    let (pair, rest) = rest.as_chunks::<2>();
    if let [pair] = pair {
        acc = add_carry(acc, u64::from(u16::from_ne_bytes(*pair)));
    }
    if let [last] = rest {
        acc = add_carry(acc, u64::from(u16::from_ne_bytes([*last, 0])));
    }
    acc
}

fn add_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

fn fold(acc: u64) -> u16 {
    let acc = (acc >> 32) + (acc & 0xffff_ffff);
    let acc = (acc >> 16) + (acc & 0xffff);
    let acc = (acc >> 16) + (acc & 0xffff);
    let acc = (acc >> 16) + (acc & 0xffff);
    #[expect(clippy::cast_possible_truncation, reason = "four folds leave 16 bits")]
    let folded = acc as u16;
    folded
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation)]
    use super::*;

    /// The definition, word by word.
    fn slow(data: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b));
            sum = (sum >> 16) + (sum & 0xffff);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn rfc1071_example() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), [0x22, 0x0d]);
    }

    #[test]
    fn equals_the_definition_at_every_length_and_split() {
        let data: Vec<u8> = (0..300u32).map(|i| ((i * 7919) >> 3) as u8).collect();
        for len in 0..data.len() {
            assert_eq!(checksum(&data[..len]), slow(&data[..len]), "length {len}");
            let mut sum = Sum::new();
            sum.add(&data[..len / 3]);
            sum.add(&data[len / 3..len]);
            assert_eq!(sum.finish(), slow(&data[..len]), "split of {len}");
        }
    }

    #[test]
    fn all_ones_do_not_overflow() {
        let data = vec![0xff; 65_535];
        assert_eq!(checksum(&data), slow(&data));
    }
}
