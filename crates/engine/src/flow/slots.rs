//! A table whose entries have stable indexes, and tokens that tell an entry from the one that had
//! its place before.

use super::Origin;
use crate::io::Token;

#[derive(Debug)]
pub(crate) struct Slots<T> {
    origin: Origin,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    pub(crate) fn new(origin: Origin) -> Self {
        Self { origin, slots: Vec::new(), free: Vec::new() }
    }

    /// Adds what `make` makes for the token of its place, unless that fails.
    pub(crate) fn insert_with<E>(
        &mut self,
        make: impl FnOnce(Token) -> Result<T, E>,
    ) -> Result<u32, E> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, value: None });
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return make(Token::new(self.origin, index, 0)).map(|_| index);
        };
        match make(Token::new(self.origin, index, slot.generation)) {
            Ok(value) => {
                slot.value = Some(value);
                Ok(index)
            }
            Err(error) => {
                self.free.push(index);
                Err(error)
            }
        }
    }

    /// The index behind a token, unless its entry is gone.
    pub(crate) fn find(&self, token: Token) -> Option<u32> {
        let index = token.index();
        let slot = self.slots.get(index as usize)?;
        let same = Token::new(self.origin, index, slot.generation) == token;
        (same && slot.value.is_some()).then_some(index)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.value.as_mut()
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let slot = self.slots.get_mut(index as usize)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(value)
    }

    /// Takes an entry out for a moment; [`Slots::put_back`] has to follow.
    pub(crate) fn take_if(&mut self, index: u32, when: impl FnOnce(&T) -> bool) -> Option<T> {
        let value = &mut self.slots.get_mut(index as usize)?.value;
        value.take_if(|v| when(v))
    }

    pub(crate) fn put_back(&mut self, index: u32, entry: T) {
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.value = Some(entry);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0u32..).zip(&self.slots).filter_map(|(i, s)| s.value.as_ref().map(|v| (i, v)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_dies_with_its_entry() {
        let mut slots = Slots::new(Origin::Udp);
        let mut tokens = Vec::new();
        for _ in 0..3 {
            let index = slots.insert_with(|token| {
                tokens.push(token);
                Ok::<_, ()>(token)
            });
            assert_eq!(index.ok(), slots.find(tokens[tokens.len() - 1]));
            let index = index.unwrap();
            assert_eq!(slots.remove(index), Some(tokens[tokens.len() - 1]));
            assert!(tokens.iter().all(|t| slots.find(*t).is_none()));
        }
        assert_eq!(slots.iter().count(), 0);
        assert_eq!(slots.slots.len(), 1, "the place is used again");
    }

    #[test]
    fn a_failed_insert_leaves_nothing() {
        let mut slots: Slots<u8> = Slots::new(Origin::Ping);
        assert_eq!(slots.insert_with(|_| Err("no")), Err("no"));
        assert_eq!(slots.iter().count(), 0);
        assert_eq!(slots.insert_with(|_| Ok::<_, ()>(7)), Ok(0));
    }
}
