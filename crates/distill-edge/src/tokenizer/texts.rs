//! Many short texts in one allocation, and an index to find them in.
//!
//! A vocabulary has up to 262 144 tokens and half a million merges, each of which is three
//! look-ups at load. What they cost is cache misses, so both structures are dense.

use distill_gguf::Bytes;

use super::hash::Seed;
use super::table::{Crowded, Table, TableMaker, TableView};

/// Texts by id, one after another.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    bytes: Bytes,
    /// `ends[id]`, a little-endian u32, is where the id-th ends.
    ends: Bytes,
}

/// Texts as they are read: what lies behind [`Bytes`] is found once for many of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextsView<'t> {
    bytes: &'t [u8],
    ends: &'t [[u8; 4]],
}

/// Texts that are being put together.
#[derive(Debug, Default)]
pub(super) struct TextsMaker {
    bytes: Vec<u8>,
    ends: Vec<u8>,
}

/// More text than 4 GiB.
#[derive(Debug)]
pub(super) struct TooLarge;

impl TextsMaker {
    pub(super) fn with_capacity(texts: usize) -> Self {
        Self { bytes: Vec::with_capacity(texts * 8), ends: Vec::with_capacity(texts * 4) }
    }

    /// Adds the next text, which `write` appends to the bytes.
    pub(super) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), TooLarge> {
        write(&mut self.bytes);
        let end = u32::try_from(self.bytes.len()).map_err(|_| TooLarge)?;
        self.ends.extend_from_slice(&end.to_le_bytes());
        Ok(())
    }

    pub(super) fn done(self) -> Texts {
        Texts { bytes: self.bytes.into(), ends: self.ends.into() }
    }
}

impl Texts {
    /// Texts that lie one after another, and where each ends. Ends that cannot be make a text
    /// empty.
    pub(super) fn new(bytes: Bytes, ends: Bytes) -> Self {
        Self { bytes, ends }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len() / 4
    }

    pub(super) fn view(&self) -> TextsView<'_> {
        TextsView { bytes: &self.bytes, ends: self.ends.as_chunks().0 }
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(super) fn ends(&self) -> &Bytes {
        &self.ends
    }
}

impl<'t> TextsView<'t> {
    /// The text of an id; empty where there is none.
    #[inline]
    pub(super) fn get(&self, id: u32) -> &'t [u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { [0; 4] } else { self.ends[id - 1] };
        let place = |end| u32::from_le_bytes(end) as usize;
        self.bytes.get(place(start)..place(end)).unwrap_or_default()
    }
}

/// Finds ids by text. An entry is the text's hash, so that the text itself is seldom read in vain,
/// and the id.
#[derive(Clone, Debug)]
pub(super) struct Index {
    table: Table<2>,
    seed: Seed,
}

impl Index {
    /// An index of the texts whose ids are to be in it. Of those with the same text the last is
    /// found.
    pub(super) fn new(
        texts: &Texts,
        is_in: &dyn Fn(u32) -> bool,
        seed: Seed,
    ) -> Result<Self, Crowded> {
        let ids = || (0..texts.len() as u32).rev().filter(|&id| is_in(id));
        let mut table = TableMaker::new(ids().count());
        let view = texts.view();
        for id in ids() {
            let entry = [seed.of_text(view.get(id)), id];
            table.add(entry, &|[hash, _]| *hash, &|a, b| {
                a[0] == b[0] && view.get(a[1]) == view.get(b[1])
            })?;
        }
        Ok(Self { table: table.done(texts.len() as u32), seed })
    }

    pub(super) fn of_table(table: Table<2>, seed: Seed) -> Self {
        Self { table, seed }
    }

    /// To find ids of these texts, which are those that were indexed.
    pub(super) fn view<'t>(&'t self, texts: &'t Texts) -> IndexView<'t> {
        IndexView { table: self.table.view(), texts: texts.view(), seed: self.seed }
    }

    pub(super) fn table(&self) -> &Table<2> {
        &self.table
    }
}

/// An index with the texts it finds.
#[derive(Clone, Copy, Debug)]
pub(super) struct IndexView<'t> {
    table: TableView<'t, 2>,
    texts: TextsView<'t>,
    seed: Seed,
}

impl<'t> IndexView<'t> {
    pub(super) fn get(&self, text: &[u8]) -> Option<u32> {
        let hash = self.seed.of_text(text);
        let texts = self.texts;
        let entry = self.table.get(hash, |&[its, id]| its == hash && texts.get(id) == text);
        entry.map(|[_, id]| id)
    }

    /// The text of an id.
    pub(super) fn text(&self, id: u32) -> &'t [u8] {
        self.texts.get(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(of: &[&str]) -> Texts {
        let mut texts = TextsMaker::with_capacity(of.len());
        for text in of {
            texts.push(|bytes| bytes.extend_from_slice(text.as_bytes())).unwrap();
        }
        texts.done()
    }

    #[test]
    fn a_text_is_found_if_it_is_indexed_and_the_last_of_equals() {
        let texts = texts(&[" a", "b", "b", "c", ""]);
        let index = Index::new(&texts, &|id| id != 3, Seed::default()).unwrap();
        let found = [" a", "b", "c", "", "x"].map(|text| index.view(&texts).get(text.as_bytes()));
        assert_eq!(found, [Some(0), Some(2), None, Some(4), None]);
        assert_eq!(
            (texts.view().get(0), texts.view().get(4), texts.view().get(5)),
            (&b" a"[..], &b""[..], &b""[..])
        );
    }

    #[test]
    fn an_index_of_nothing_finds_nothing() {
        let texts = texts(&[]);
        assert_eq!(
            Index::new(&texts, &|_| true, Seed::default()).unwrap().view(&texts).get(b""),
            None
        );
    }

    #[test]
    fn ends_that_cannot_be_make_a_text_empty() {
        let ends = [2_u32, 1, 3, 4].map(u32::to_le_bytes).concat();
        let texts = Texts::new(b"abc".to_vec().into(), ends.into());
        let found: Vec<&[u8]> = (0..5).map(|id| texts.view().get(id)).collect();
        assert_eq!(found, [&b"ab"[..], b"", b"bc", b"", b""]);
    }

    proptest::proptest! {
        #[test]
        fn every_text_is_found(words in proptest::collection::hash_set("[ab]{0,5}", 0..60)) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let texts = texts(&words);
            let index = Index::new(&texts, &|_| true, Seed::default()).unwrap();
            for (id, word) in (0..).zip(&words) {
                proptest::prop_assert_eq!(index.view(&texts).get(word.as_bytes()), Some(id));
            }
        }
    }
}
