//! Many short texts in one allocation, and an index to find them in.
//!
//! A vocabulary has up to 262 144 tokens and half a million merges, each of which is three
//! look-ups at load. What they cost is cache misses, so both structures are dense.

use std::hash::BuildHasher;

use super::hash::Seed;

/// Texts by id, one after another.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts {
    bytes: Vec<u8>,
    /// `ends[id]` is where the id-th ends.
    ends: Vec<u32>,
}

/// More text than 4 GiB.
#[derive(Debug)]
pub(super) struct TooLarge;

impl Texts {
    pub(super) fn with_capacity(texts: usize) -> Self {
        Self { bytes: Vec::with_capacity(texts * 8), ends: Vec::with_capacity(texts) }
    }

    /// Adds the next text, which `write` appends to the bytes.
    pub(super) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), TooLarge> {
        write(&mut self.bytes);
        self.ends.push(u32::try_from(self.bytes.len()).map_err(|_| TooLarge)?);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The text of an id; empty where there is none.
    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

/// Finds ids by text: open addressing with linear probing, at most half full.
#[derive(Clone, Debug)]
pub(super) struct Index {
    slots: Vec<Slot>,
    seed: Seed,
}

/// The high half of a text's hash, so that the text itself is seldom read in vain, and its id.
#[derive(Clone, Copy, Debug)]
struct Slot {
    tag: u32,
    id: u32,
}

/// No vocabulary has so many tokens.
const FREE: u32 = u32::MAX;

impl Index {
    /// An index of the texts of `ids`. Of those with the same text the last is found.
    pub(super) fn new(texts: &Texts, ids: impl Iterator<Item = u32>) -> Self {
        let size = (2 * texts.len()).next_power_of_two();
        let slots = vec![Slot { tag: 0, id: FREE }; size];
        let mut index = Self { slots, seed: Seed::default() };
        for id in ids {
            let (slot, tag) = index.find(texts, texts.get(id));
            index.slots[slot] = Slot { tag, id };
        }
        index
    }

    pub(super) fn get(&self, texts: &Texts, text: &[u8]) -> Option<u32> {
        let (slot, _) = self.find(texts, text);
        Some(self.slots[slot].id).filter(|&id| id != FREE)
    }

    /// The slot of `text`, or the free one where it belongs; and its tag.
    fn find(&self, texts: &Texts, text: &[u8]) -> (usize, u32) {
        let hash = self.seed.hash_one(text);
        let (mask, tag) = (self.slots.len() - 1, (hash >> 32) as u32);
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot.id == FREE || (slot.tag == tag && texts.get(slot.id) == text) {
                return (at, tag);
            }
            at = (at + 1) & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(of: &[&str]) -> Texts {
        let mut texts = Texts::with_capacity(of.len());
        for text in of {
            texts.push(|bytes| bytes.extend_from_slice(text.as_bytes())).unwrap();
        }
        texts
    }

    #[test]
    fn a_text_is_found_if_it_is_indexed_and_the_last_of_equals() {
        let texts = texts(&[" a", "b", "b", "c", ""]);
        let index = Index::new(&texts, [0, 1, 2, 4].into_iter());
        let found = [" a", "b", "c", "", "x"].map(|text| index.get(&texts, text.as_bytes()));
        assert_eq!(found, [Some(0), Some(2), None, Some(4), None]);
        assert_eq!((texts.get(0), texts.get(4), texts.get(5)), (&b" a"[..], &b""[..], &b""[..]));
    }

    #[test]
    fn an_index_of_nothing_finds_nothing() {
        let texts = texts(&[]);
        assert_eq!(Index::new(&texts, 0..0).get(&texts, b""), None);
    }

    proptest::proptest! {
        #[test]
        fn every_text_is_found(words in proptest::collection::hash_set("[ab]{0,5}", 0..60)) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let texts = texts(&words);
            let index = Index::new(&texts, 0..words.len() as u32);
            for (id, word) in (0..).zip(&words) {
                proptest::prop_assert_eq!(index.get(&texts, word.as_bytes()), Some(id));
            }
        }
    }
}
