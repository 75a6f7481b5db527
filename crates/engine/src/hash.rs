//! The hash of every table whose keys a guest can choose: SipHash with the engine's seed, so that
//! nobody can aim at one bucket, and the same seed gives the same run.

use std::hash::BuildHasher;

use siphasher::sip::SipHasher13;

#[derive(Clone, Copy, Debug)]
pub(crate) struct SeededState([u8; 16]);

impl SeededState {
    pub(crate) fn new(seed: [u8; 16]) -> Self {
        Self(seed)
    }
}

impl BuildHasher for SeededState {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}
