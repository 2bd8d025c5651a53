//! A fast hash for the tables that every piece of text is looked up in.
//!
//! The standard library's SipHash takes longer than the merging it serves. This one folds a
//! 64 × 64 → 128 bit product, as wyhash does. The seed is random for each tokenizer that is made of
//! lists, so that a vocabulary cannot be written to collide; tables of a file come with theirs.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};

/// A map with the fast hash.
pub(super) type FastMap<K, V> = HashMap<K, V, Seed>;

/// A set with the fast hash.
pub(super) type FastSet<K> = HashSet<K, Seed>;

/// The seed of one table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }
}

impl Seed {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn value(self) -> u64 {
        self.0
    }

    /// The hash of a text in a [`Table`](super::table::Table). A file may hold it: it is the same
    /// on every machine, and not the standard library's to change.
    pub(super) fn of_text(self, text: &[u8]) -> u32 {
        let mut hasher = Folding(self.0);
        hasher.write(text);
        (hasher.finish() >> 32) as u32
    }

    /// The hash of a number in a table, as [`Seed::of_text`].
    pub(super) fn of_word(self, word: u64) -> u32 {
        let mut hasher = Folding(self.0);
        hasher.fold(word);
        (hasher.finish() >> 32) as u32
    }
}

impl BuildHasher for Seed {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding(self.0)
    }
}

/// The state: everything fed so far, folded.
#[derive(Debug)]
pub(super) struct Folding(u64);

impl Folding {
    fn fold(&mut self, word: u64) {
        // An odd constant with as many ones as zeros: the fraction of the golden ratio.
        let product = u128::from(self.0 ^ word) * u128::from(0x9E37_79B9_7F4A_7C15_u64);
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        let (words, tail) = bytes.as_chunks::<8>();
        for word in words {
            self.fold(u64::from_le_bytes(*word));
        }
        // The length tells a tail from the same tail with zeros behind it.
        let mut word = [0; 8];
        word[..tail.len()].copy_from_slice(tail);
        self.fold(u64::from_le_bytes(word) ^ ((bytes.len() as u64) << 56));
    }

    fn write_u8(&mut self, word: u8) {
        self.fold(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.fold(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.fold(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.fold(word as u64);
    }

    fn finish(&self) -> u64 {
        // A second product: a table takes its index from the lowest bits and its tag from the
        // highest, and both must depend on every bit of the key.
        let product = u128::from(self.0) * u128::from(0xD6E8_FEB8_6659_FD93_u64);
        (product as u64) ^ ((product >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_little_spread_over_the_table() {
        let seed = Seed(1);
        let slots = 1_u64 << 16;
        let used: HashSet<u64> =
            (0..1_u64 << 16).map(|pair| seed.hash_one((pair << 32) | (pair / 7)) % slots).collect();
        // 65536 balls into as many bins leave 1 - 1/e of them, 41427, occupied.
        assert!((40_900..42_000).contains(&used.len()), "{}", used.len());
    }

    #[test]
    fn texts_that_share_a_tail_or_end_in_zeros_differ() {
        let seed = Seed(1);
        let texts = ["", "\0", "a", "a\0", "abcdefgh", "abcdefgh\0", "habcdefg", "bbcdefgh"];
        let hashes: HashSet<u64> = texts.iter().map(|text| seed.hash_one(text)).collect();
        assert_eq!(hashes.len(), texts.len());
    }
}
