//! Bytes that prove themselves: a stream whose every byte follows from a seed and its position,
//! so that the receiver needs no copy to find the first that is lost, doubled or changed.

use std::io::{self, Read, Write};

const CHUNK: usize = 64 * 1024;

/// A pseudo-random byte stream.
#[derive(Clone, Debug)]
pub struct Pattern {
    state: u64,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// The stream's next bytes. `out` is a multiple of 8 long except at the end of the stream.
    pub fn fill(&mut self, out: &mut [u8]) {
        for word in out.chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes()[..word.len()]);
        }
    }
}

/// Writes the first `length` bytes of the stream of `seed`.
pub fn send(to: &mut impl Write, seed: u64, length: usize) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut chunk = vec![0; CHUNK];
    let mut left = length;
    while left > 0 {
        let now = left.min(CHUNK);
        pattern.fill(&mut chunk[..now]);
        to.write_all(&chunk[..now])?;
        left -= now;
    }
    Ok(())
}

/// Reads to the end and holds every byte against the stream of `seed`.
#[track_caller]
pub fn expect(from: &mut impl Read, seed: u64, length: usize) {
    let mut pattern = Pattern::new(seed);
    let mut chunk = vec![0; CHUNK];
    let mut want = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let now = (length - at).min(CHUNK);
        if let Err(error) = read_full(from, &mut chunk[..now]) {
            panic!("after {at} of {length} bytes: {error}");
        }
        pattern.fill(&mut want[..now]);
        if chunk[..now] != want[..now] {
            let first = chunk.iter().zip(&want).position(|(a, b)| a != b).unwrap_or(0);
            panic!("byte {} of {length} is not the one that was sent", at + first);
        }
        at += now;
    }
    let more = from.read(&mut chunk).expect("the end of the stream");
    assert_eq!(more, 0, "bytes follow after the last one that was sent");
}

/// `read_exact` that tells how far it came.
fn read_full(from: &mut impl Read, buf: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match from.read(&mut buf[done..]) {
            Ok(0) => return Err(io::Error::other(format!("stream ended {done} bytes later"))),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io::Error::other(format!("{error}, {done} bytes later"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_agrees_with_itself() {
        let mut bytes = Vec::new();
        send(&mut bytes, 7, 3 * CHUNK + 5).unwrap();
        expect(&mut bytes.as_slice(), 7, 3 * CHUNK + 5);
    }

    #[test]
    #[should_panic(expected = "byte 70000 ")]
    fn a_changed_byte_is_found() {
        let mut bytes = Vec::new();
        send(&mut bytes, 7, 100_000).unwrap();
        bytes[70_000] ^= 1;
        expect(&mut bytes.as_slice(), 7, 100_000);
    }

    #[test]
    #[should_panic(expected = "after 65536 of 100000 bytes: stream ended 4464 bytes later")]
    fn a_short_stream_is_found() {
        let mut bytes = Vec::new();
        send(&mut bytes, 7, 70_000).unwrap();
        expect(&mut bytes.as_slice(), 7, 100_000);
    }
}
