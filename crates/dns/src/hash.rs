//! Hashes of what guests choose are seeded by chance, so that nobody can aim at one bucket, and
//! computed once for a question: what is looked up by its name is looked up by the same hash.

use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::OnceLock;

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;

/// A folded name and its hash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hashed<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) hash: u64,
}

impl<'a> Hashed<'a> {
    pub(crate) fn new(name: &'a [u8]) -> Self {
        static HASHER: OnceLock<SipHasher13> = OnceLock::new();
        let hasher = HASHER.get_or_init(|| {
            let chance = RandomState::new();
            SipHasher13::new_with_keys(chance.hash_one(0), chance.hash_one(1))
        });
        Self { name, hash: hasher.hash(name) }
    }
}

/// A hash of something small together with another hash.
pub(crate) fn join(hash: u64, small: u32) -> u64 {
    mix(hash.wrapping_add(u64::from(small)))
}

/// One to one, with every bit of the result from all the lower ones.
fn mix(value: u64) -> u64 {
    value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26)
}

/// What is known of names in wire form, folded.
#[derive(Clone, Debug)]
pub(crate) struct ByName<V>(HashTable<(Box<[u8]>, V)>);

impl<V> Default for ByName<V> {
    fn default() -> Self {
        Self(HashTable::new())
    }
}

impl<V> ByName<V> {
    pub(crate) fn get(&self, Hashed { name, hash }: Hashed<'_>) -> Option<&V> {
        self.0.find(hash, |(known, _)| **known == *name).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, name: &[u8]) -> Option<&mut V> {
        let hash = Hashed::new(name).hash;
        self.0.find_mut(hash, |(known, _)| **known == *name).map(|(_, value)| value)
    }

    /// In the place of what the name stood for.
    pub(crate) fn insert(&mut self, name: Box<[u8]>, value: V) {
        self.remove(&name);
        let hash = Hashed::new(&name).hash;
        self.0.insert_unique(hash, (name, value), |(known, _)| Hashed::new(known).hash);
    }

    pub(crate) fn remove(&mut self, name: &[u8]) -> Option<V> {
        let hash = Hashed::new(name).hash;
        let found = self.0.find_entry(hash, |(known, _)| **known == *name).ok()?;
        Some(found.remove().0.1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }
}

/// For keys that nobody chooses at will: the resolver's own numbers.
pub(crate) type Numbered<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<Number>>;

#[derive(Debug, Default)]
pub(crate) struct Number(u64);

impl Hasher for Number {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = join(self.0, u32::from(byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = join(self.0, number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_replaced_and_removed() {
        let mut map = ByName::default();
        for number in 0..100_u8 {
            map.insert(Box::from([1, number, 0]), number);
        }
        map.insert(Box::from([1, 7, 0]), 200);
        let name = [1, 7, 0];
        assert_eq!(map.get(Hashed::new(&name)), Some(&200));
        assert_eq!((map.remove(&name), map.remove(&name)), (Some(200), None));
        assert_eq!((map.get(Hashed::new(&name)), map.iter().count()), (None, 99));
        *map.get_mut(&[1, 8, 0]).unwrap() += 1;
        assert_eq!(map.get(Hashed::new(&[1, 8, 0])), Some(&9));
    }
}
