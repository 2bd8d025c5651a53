//! A hash table that is a run of numbers, so that a file can hold it and it is used where it lies.
//!
//! Open addressing with linear probing, two thirds full. A slot is `N` words, little-endian, the
//! last of them the id of a token; whatever is none marks a free slot. An entry stands in the first
//! free slot from its home on, and gives way to one that is further from its own (Robin Hood), so
//! that none is [`REACH`] slots from home. A look-up reads no more: whatever bytes a table has, it
//! ends, and with the id of a token.

use distill_gguf::Bytes;

/// No entry is so many slots from its home. With random hashes the furthest of a million is 25 away.
pub(super) const REACH: usize = 64;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Table<const N: usize> {
    slots: Bytes,
    /// Slots where entries may be at home: all but the last `REACH` − 1.
    homes: usize,
    /// Tokens of the vocabulary.
    tokens: u32,
}

/// A table as it is looked up in: what lies behind [`Bytes`] is found once for many look-ups.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableView<'t, const N: usize> {
    slots: &'t [[[u8; 4]; N]],
    homes: usize,
    tokens: u32,
}

/// A table in the making.
#[derive(Debug)]
pub(super) struct TableMaker<const N: usize> {
    slots: Vec<u8>,
    homes: usize,
}

/// Too many entries have the same home: the hash needs another seed.
#[derive(Debug)]
pub(super) struct Crowded;

const FREE: u32 = u32::MAX;

fn home(hash: u32, homes: usize) -> usize {
    ((u64::from(hash) * homes as u64) >> 32) as usize
}

impl<const N: usize> Table<N> {
    /// A table of these bytes for a vocabulary of `tokens`; `None` if they are no whole slots, or
    /// fewer than [`REACH`].
    pub(super) fn new(bytes: Bytes, tokens: u32) -> Option<Self> {
        let count = bytes.len() / (4 * N);
        let homes = (count + 1).checked_sub(REACH).filter(|&homes| homes > 0)?;
        (bytes.len() == count * 4 * N).then_some(Self { slots: bytes, homes, tokens })
    }

    pub(super) fn view(&self) -> TableView<'_, N> {
        let slots = self.slots.as_chunks::<4>().0.as_chunks::<N>().0;
        TableView { slots, homes: self.homes, tokens: self.tokens }
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.slots
    }
}

impl<const N: usize> TableView<'_, N> {
    /// The entry of this hash that `is` recognises.
    #[inline]
    pub(super) fn get(&self, hash: u32, is: impl Fn(&[u32; N]) -> bool) -> Option<[u32; N]> {
        let first = home(hash, self.homes);
        for slot in self.slots.get(first..first + REACH)? {
            let slot = slot.map(u32::from_le_bytes);
            if slot[N - 1] >= self.tokens {
                return None;
            }
            if is(&slot) {
                return Some(slot);
            }
        }
        None
    }
}

impl<const N: usize> TableMaker<N> {
    /// For so many entries.
    pub(super) fn new(entries: usize) -> Self {
        let homes = (entries + entries / 2).max(1);
        Self { slots: vec![0xFF; (homes + REACH - 1) * 4 * N], homes }
    }

    /// Adds an entry of a hash, which `hash` also gives for those that are there; of two that are
    /// the `same`, the first stays.
    pub(super) fn add(
        &mut self,
        mut entry: [u32; N],
        hash: &dyn Fn(&[u32; N]) -> u32,
        same: &dyn Fn(&[u32; N], &[u32; N]) -> bool,
    ) -> Result<(), Crowded> {
        let mut at = home(hash(&entry), self.homes);
        let mut distance = 0;
        let slots = self.slots.as_chunks_mut::<4>().0.as_chunks_mut::<N>().0;
        while distance < REACH {
            let there = slots[at].map(u32::from_le_bytes);
            if there[N - 1] == FREE {
                slots[at] = entry.map(u32::to_le_bytes);
                return Ok(());
            }
            if same(&there, &entry) {
                return Ok(());
            }
            let its_distance = at - home(hash(&there), self.homes);
            if its_distance < distance {
                slots[at] = entry.map(u32::to_le_bytes);
                (entry, distance) = (there, its_distance);
            }
            at += 1;
            distance += 1;
        }
        Err(Crowded)
    }

    /// The table, for a vocabulary of `tokens`.
    pub(super) fn done(self, tokens: u32) -> Table<N> {
        Table { slots: self.slots.into(), homes: self.homes, tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::hash::Seed;

    fn hash(entry: &[u32; 2]) -> u32 {
        Seed::new(1).of_word(entry[0].into())
    }

    fn same(a: &[u32; 2], b: &[u32; 2]) -> bool {
        a[0] == b[0]
    }

    fn get(table: &Table<2>, key: u32) -> Option<u32> {
        table.view().get(hash(&[key, 0]), |entry| entry[0] == key).map(|entry| entry[1])
    }

    #[test]
    fn every_entry_is_found_and_the_first_of_equals() {
        let many = if cfg!(miri) { 200 } else { 300_000 };
        for entries in [0, 1, 2, 63, 64, 65, many] {
            let mut maker = TableMaker::<2>::new(entries as usize);
            for key in (0..entries).chain(0..entries / 2) {
                // The second time with another token.
                maker.add([3 * key, key.min(entries - 1 - key)], &hash, &same).unwrap();
            }
            let table = maker.done(entries);
            for key in 0..entries {
                assert_eq!(get(&table, 3 * key), Some(key.min(entries - 1 - key)));
                assert_eq!(get(&table, 3 * key + 1), None);
            }
            let again = Table::<2>::new(table.bytes().clone(), entries).unwrap();
            assert!((0..entries).all(|key| get(&again, 3 * key) == get(&table, 3 * key)));
        }
    }

    #[test]
    fn a_look_up_in_any_bytes_ends_with_a_token_or_nothing() {
        let looks = |bytes: Vec<u8>, tokens| {
            let table = Table::<2>::new(bytes.into(), tokens).unwrap();
            for key in 0..1000 {
                assert!(get(&table, key).is_none_or(|token| token < tokens));
                let any = table.view().get(hash(&[key, 0]), |_| false);
                assert_eq!(any, None);
            }
        };
        let random = (0..REACH * 80).map(|i| Seed::new(2).of_word(i as u64) as u8);
        looks(random.clone().map(|byte| byte & 3).collect(), 0x0200_0000);
        looks(random.collect(), u32::MAX);
        looks(vec![0; 8 * REACH], 1);
        for bytes in [0, 8 * (REACH - 1), 8 * REACH + 4] {
            assert!(Table::<2>::new(vec![0; bytes].into(), 1).is_none(), "{bytes}");
        }
    }

    #[test]
    fn too_many_entries_of_one_home_are_refused() {
        let mut maker = TableMaker::<2>::new(1000);
        let mut add = |key| maker.add([key, 0], &|_| 7, &same);
        assert!((0..REACH as u32).all(|key| add(key).is_ok()));
        assert!(add(REACH as u32).is_err());
        assert!(add(0).is_ok(), "an entry that is there needs no room");
    }
}
