//! A stream of packed documents, cut into sequences: the training part or the held-out part.

use sha2::{Digest, Sha256};

use crate::batch::{Batch, Sequence};
use crate::cursor::{Cursor, Order};
use crate::error::DataError;
use crate::fingerprint::hex;
use crate::shuffle::SplitMix64;

/// Documents one behind the other, readable as sequences of a fixed length.
///
/// Sequence `i` is the tokens `i·S .. (i+1)·S` of the stream. The last one is padded; it is left
/// out when nothing in it can be learnt from.
#[derive(Clone, Debug)]
pub struct Split {
    /// All tokens, in order.
    tokens: Vec<u32>,
    /// Where each document begins in `tokens`, ascending; the first is 0.
    document_starts: Vec<usize>,
    sequence_length: usize,
    pad: u32,
    sequences: usize,
    valid_tokens: usize,
    fingerprint: String,
}

impl Split {
    /// `document_starts`: ascending, distinct, from 0, each below `tokens.len()`.
    pub(crate) fn new(
        tokens: Vec<u32>,
        document_starts: Vec<usize>,
        sequence_length: usize,
        pad: u32,
    ) -> Self {
        debug_assert!(document_starts.is_sorted_by(|a, b| a < b));
        debug_assert!(document_starts.last().is_none_or(|&last| last < tokens.len()));
        debug_assert_eq!(document_starts.first().copied(), (!tokens.is_empty()).then_some(0));
        let fingerprint = fingerprint(&tokens, &document_starts, sequence_length, pad);
        // Every token but the last of each document has its successor as label.
        let valid_tokens = tokens.len() - document_starts.len();
        let mut split = Self {
            sequences: tokens.len().div_ceil(sequence_length),
            tokens,
            document_starts,
            sequence_length,
            pad,
            valid_tokens,
            fingerprint,
        };
        if split.sequences > 0 && split.batch(&[split.sequences - 1]).valid_tokens() == 0 {
            split.sequences -= 1;
        }
        split
    }

    /// Number of sequences.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sequences
    }

    /// Whether there is no sequence at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences == 0
    }

    /// Positions a sequence, `S`.
    #[must_use]
    pub fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// Tokens of text, end-of-sequence tokens included, padding not.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Documents, or parts of documents where the split cut one.
    #[must_use]
    pub fn documents(&self) -> usize {
        self.document_starts.len()
    }

    /// Positions that the loss counts in one epoch.
    #[must_use]
    pub fn valid_tokens(&self) -> usize {
        self.valid_tokens
    }

    /// A hash of the tokens and of how they are cut; two splits with the same one give the same
    /// batches.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Sequence `index` in the order of the documents.
    ///
    /// # Panics
    /// If `index` is not below [`Split::len`].
    #[must_use]
    pub fn sequence(&self, index: usize) -> Sequence {
        self.batch(&[index]).row(0)
    }

    /// The named sequences as one batch, in the order named (evaluation takes `0, 1, 2 …`).
    ///
    /// # Panics
    /// If an index is not below [`Split::len`].
    #[must_use]
    pub fn batch(&self, indices: &[usize]) -> Batch {
        let mut batch = Batch::with_capacity(indices.len(), self.sequence_length);
        for &index in indices {
            self.append(index, &mut batch);
        }
        batch
    }

    /// The start of the walk in the order of `seed`.
    #[must_use]
    pub fn cursor(&self, seed: u64) -> Cursor {
        Cursor { seed, epoch: 0, index: 0, split: self.fingerprint.clone(), order: None }
    }

    /// A cursor that was saved, if it belongs to this split.
    ///
    /// # Errors
    /// [`DataError::CursorMismatch`] if it was saved over other data.
    pub fn resume(&self, saved: Cursor) -> Result<Cursor, DataError> {
        if saved.split == self.fingerprint && saved.index <= self.sequences as u64 {
            Ok(saved)
        } else {
            Err(DataError::CursorMismatch { saved: saved.split, actual: self.fingerprint.clone() })
        }
    }

    /// The next `batch_size` sequences of the walk. After the last sequence of an epoch comes
    /// the first of the next one, in a new order, within the same batch if need be.
    ///
    /// # Panics
    /// If the split is empty, `batch_size` is 0, or the cursor was made by another split.
    pub fn next_batch(&self, cursor: &mut Cursor, batch_size: usize) -> Batch {
        assert!(!self.is_empty(), "an empty split has no batch");
        assert!(batch_size > 0, "a batch has at least one sequence");
        assert_eq!(cursor.split, self.fingerprint, "the cursor was made by another split");
        let mut batch = Batch::with_capacity(batch_size, self.sequence_length);
        while batch.batch < batch_size {
            if cursor.index >= self.sequences as u64 {
                cursor.epoch += 1;
                cursor.index = 0;
            }
            let at = cursor.index as usize;
            self.append(self.order(cursor)[at] as usize, &mut batch);
            cursor.index += 1;
        }
        batch
    }

    fn order<'c>(&self, cursor: &'c mut Cursor) -> &'c [u32] {
        let (seed, epoch) = (cursor.seed, cursor.epoch);
        if cursor.order.as_ref().is_none_or(|order| order.epoch != epoch) {
            let sequences = SplitMix64::new(seed, epoch).permutation(self.sequences);
            cursor.order = Some(Order { epoch, sequences });
        }
        cursor.order.as_ref().map_or(&[], |order| &order.sequences)
    }

    /// Appends sequence `index` as one more row.
    fn append(&self, index: usize, batch: &mut Batch) {
        assert!(index < self.sequences, "sequence {index} of {}", self.sequences);
        let start = index * self.sequence_length;
        let end = (start + self.sequence_length).min(self.tokens.len());
        // The document that holds `start`, and where the one behind it begins.
        let mut next_document = self.document_starts.partition_point(|&begin| begin <= start);
        let mut next_start = self.document_start(next_document);
        let (mut document, mut position) = (0, 0);
        for t in start..end {
            if t == next_start {
                next_document += 1;
                next_start = self.document_start(next_document);
                document += 1;
                position = 0;
            }
            batch.input_ids.push(self.tokens[t]);
            batch.labels.push(self.tokens.get(t + 1).copied().unwrap_or(self.pad));
            batch.loss_mask.push(t + 1 < next_start);
            batch.document_ids.push(document);
            batch.position_ids.push(position);
            position += 1;
        }
        for padding in 0..(start + self.sequence_length - end) as u32 {
            batch.input_ids.push(self.pad);
            batch.labels.push(self.pad);
            batch.loss_mask.push(false);
            batch.document_ids.push(document + 1);
            batch.position_ids.push(padding);
        }
        batch.batch += 1;
    }

    /// Where a document begins; the end of the stream behind the last one.
    fn document_start(&self, document: usize) -> usize {
        self.document_starts.get(document).copied().unwrap_or(self.tokens.len())
    }
}

fn fingerprint(tokens: &[u32], starts: &[usize], sequence_length: usize, pad: u32) -> String {
    let mut hash = Sha256::new();
    hash.update((sequence_length as u64).to_le_bytes());
    hash.update(pad.to_le_bytes());
    hash.update((tokens.len() as u64).to_le_bytes());
    for token in tokens {
        hash.update(token.to_le_bytes());
    }
    for &start in starts {
        hash.update((start as u64).to_le_bytes());
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EOS: u32 = 0;
    const PAD: u32 = 99;

    /// A split of documents, each given with its end-of-sequence token.
    fn split(documents: &[Vec<u32>], sequence_length: usize) -> Split {
        let mut starts = Vec::new();
        let mut tokens = Vec::new();
        for document in documents {
            starts.push(tokens.len());
            tokens.extend(document);
        }
        Split::new(tokens, starts, sequence_length, PAD)
    }

    /// Packing as its definition reads: one list of (token, document), cut and padded, each
    /// field derived position by position from the whole list.
    fn slow(documents: &[Vec<u32>], length: usize) -> Vec<Sequence> {
        let stream: Vec<(u32, usize)> = documents
            .iter()
            .enumerate()
            .flat_map(|(document, tokens)| tokens.iter().map(move |&token| (token, document)))
            .collect();
        let mut sequences = Vec::new();
        for start in (0..stream.len()).step_by(length) {
            let here: Vec<Option<(u32, usize)>> =
                (start..start + length).map(|t| stream.get(t).copied()).collect();
            let document = |t: usize| here[t].map(|(_, document)| document);
            let first = |t: usize| (0..=t).find(|&s| document(s) == document(t)).unwrap();
            let mut distinct: Vec<Option<usize>> = (0..length).map(document).collect();
            distinct.dedup();
            let next = |t: usize| stream.get(start + t + 1).copied();
            sequences.push(Sequence {
                input_ids: here.iter().map(|at| at.map_or(PAD, |(token, _)| token)).collect(),
                labels: (0..length).map(|t| next(t).map_or(PAD, |(token, _)| token)).collect(),
                loss_mask: (0..length)
                    .map(|t| here[t].is_some() && next(t).map(|(_, d)| d) == document(t))
                    .collect(),
                document_ids: (0..length)
                    .map(|t| distinct.iter().position(|&d| d == document(t)).unwrap() as u32)
                    .collect(),
                position_ids: (0..length).map(|t| (t - first(t)) as u32).collect(),
            });
        }
        if sequences.last().is_some_and(|last| !last.loss_mask.contains(&true)) {
            sequences.pop();
        }
        sequences
    }

    #[test]
    fn two_documents_and_a_half_pack_as_computed_by_hand() {
        let split = split(&[vec![5, 6, EOS], vec![7, EOS], vec![8, 9, 10, EOS]], 6);
        assert_eq!((split.len(), split.tokens(), split.valid_tokens()), (2, 9, 6));
        let (yes, no) = (true, false);
        assert_eq!(
            split.sequence(0),
            Sequence {
                input_ids: vec![5, 6, EOS, 7, EOS, 8],
                labels: vec![6, EOS, 7, EOS, 8, 9],
                loss_mask: vec![yes, yes, no, yes, no, yes],
                document_ids: vec![0, 0, 0, 1, 1, 2],
                position_ids: vec![0, 1, 2, 0, 1, 0],
            }
        );
        assert_eq!(
            split.sequence(1),
            Sequence {
                input_ids: vec![9, 10, EOS, PAD, PAD, PAD],
                labels: vec![10, EOS, PAD, PAD, PAD, PAD],
                loss_mask: vec![yes, yes, no, no, no, no],
                document_ids: vec![0, 0, 0, 1, 1, 1],
                position_ids: vec![0, 1, 2, 0, 1, 2],
            }
        );
    }

    #[test]
    fn a_last_sequence_with_nothing_to_learn_is_left_out() {
        assert_eq!(split(&[vec![5, 6, 7, 8, EOS]], 4).len(), 1);
        assert_eq!(split(&[vec![EOS]], 4).len(), 0);
        assert_eq!(split(&[], 4).len(), 0);
    }

    fn documents() -> impl Strategy<Value = Vec<Vec<u32>>> {
        let document = proptest::collection::vec(1_u32..50, 0..12);
        proptest::collection::vec(document, 0..12).prop_map(|mut documents| {
            documents.iter_mut().for_each(|document| document.push(EOS));
            documents
        })
    }

    proptest! {
        #[test]
        fn packing_is_what_its_definition_says(documents in documents(), length in 2_usize..9) {
            let split = split(&documents, length);
            let expected = slow(&documents, length);
            prop_assert_eq!(split.len(), expected.len());
            for (index, expected) in expected.iter().enumerate() {
                prop_assert_eq!(&split.sequence(index), expected);
            }
            let valid: usize = (0..split.len()).map(|i| split.batch(&[i]).valid_tokens()).sum();
            prop_assert_eq!(split.valid_tokens(), valid);
        }

        #[test]
        fn a_restored_cursor_gives_the_batches_of_an_uninterrupted_one(
            sequences in 1_usize..20,
            batch_size in 1_usize..7,
            interrupted_after in 0_usize..12,
            seed: u64,
        ) {
            let split = split(&[(0..4 * sequences as u32).map(|t| t + 1).collect()], 4);
            let mut uninterrupted = split.cursor(seed);
            let expected: Vec<Batch> =
                (0..12).map(|_| split.next_batch(&mut uninterrupted, batch_size)).collect();
            let mut cursor = split.cursor(seed);
            for (step, expected) in expected.iter().enumerate() {
                if step == interrupted_after {
                    let saved = serde_json::to_string(&cursor).unwrap();
                    cursor = split.resume(serde_json::from_str(&saved).unwrap()).unwrap();
                }
                prop_assert_eq!(&split.next_batch(&mut cursor, batch_size), expected);
            }
            prop_assert_eq!(cursor, uninterrupted);
        }
    }

    #[test]
    fn every_epoch_holds_every_sequence_once_in_another_order() {
        let split = split(&[(1..=4 * 50).collect()], 4);
        let mut cursor = split.cursor(3);
        let mut epochs = Vec::new();
        for epoch in 0..3 {
            let batch = split.next_batch(&mut cursor, 50);
            assert_eq!((cursor.epoch(), cursor.index()), (epoch, 50));
            let firsts: Vec<u32> = batch.input_ids.chunks(4).map(|row| row[0]).collect();
            let mut sorted = firsts.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq((0..50).map(|sequence| 4 * sequence + 1)));
            assert!(!epochs.contains(&firsts));
            epochs.push(firsts);
        }
        let other_seed = split.next_batch(&mut split.cursor(4), 50);
        assert!(!epochs.contains(&other_seed.input_ids.chunks(4).map(|row| row[0]).collect()));
    }

    #[test]
    fn a_batch_reaches_across_the_end_of_an_epoch() {
        let split = split(&[(1..=12).collect()], 4);
        let mut cursor = split.cursor(0);
        let batch = split.next_batch(&mut cursor, 5);
        assert_eq!((batch.batch, cursor.epoch(), cursor.index()), (5, 1, 2));
        assert_eq!(batch.input_ids.len(), 20);
    }

    #[test]
    fn a_cursor_of_other_data_is_refused() {
        let (one, other) = (split(&[(1..=12).collect()], 4), split(&[(2..=13).collect()], 4));
        let error = other.resume(one.cursor(0)).unwrap_err().to_string();
        assert!(
            error.contains(one.fingerprint()) && error.contains(other.fingerprint()),
            "{error}"
        );
        let shorter = split(&[(1..=12).collect()], 3);
        assert!(shorter.resume(one.cursor(0)).is_err());
        let mut beyond = one.cursor(0);
        beyond.index = 4;
        assert!(one.resume(beyond).is_err());
    }
}
