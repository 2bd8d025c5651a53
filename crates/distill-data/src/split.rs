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
        debug_assert!(
            document_starts
                .last()
                .is_none_or(|&last| last < tokens.len())
        );
        debug_assert_eq!(
            document_starts.first().copied(),
            (!tokens.is_empty()).then_some(0)
        );
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
        Cursor {
            seed,
            epoch: 0,
            index: 0,
            split: self.fingerprint.clone(),
            order: None,
        }
    }

    /// A cursor that was saved, if it belongs to this split.
    ///
    /// # Errors
    /// [`DataError::CursorMismatch`] if it was saved over other data.
    pub fn resume(&self, saved: Cursor) -> Result<Cursor, DataError> {
        if saved.split == self.fingerprint && saved.index <= self.sequences as u64 {
            Ok(saved)
        } else {
            Err(DataError::CursorMismatch {
                saved: saved.split,
                actual: self.fingerprint.clone(),
            })
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
        assert_eq!(
            cursor.split, self.fingerprint,
            "the cursor was made by another split"
        );
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
        if cursor
            .order
            .as_ref()
            .is_none_or(|order| order.epoch != epoch)
        {
            let sequences = SplitMix64::new(seed, epoch).permutation(self.sequences);
            cursor.order = Some(Order { epoch, sequences });
        }
        cursor.order.as_ref().map_or(&[], |order| &order.sequences)
    }

    /// Appends sequence `index` as one more row.
    fn append(&self, index: usize, batch: &mut Batch) {
        assert!(
            index < self.sequences,
            "sequence {index} of {}",
            self.sequences
        );
        let start = index * self.sequence_length;
        let end = (start + self.sequence_length).min(self.tokens.len());
        // The document that holds `start`, and where the one behind it begins.
        let mut next_document = self
            .document_starts
            .partition_point(|&begin| begin <= start);
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
            batch
                .labels
                .push(self.tokens.get(t + 1).copied().unwrap_or(self.pad));
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
        self.document_starts
            .get(document)
            .copied()
            .unwrap_or(self.tokens.len())
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
