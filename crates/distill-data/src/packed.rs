//! A stream of packed documents, cut into sequences.

use sha2::{Digest, Sha256};

use crate::batch::Batch;
use crate::fingerprint::hex;

/// Documents one behind the other, readable as sequences of a fixed length.
///
/// Sequence `i` is the tokens `i·S .. (i+1)·S` of the stream. The last one is padded; it is left
/// out when nothing in it can be learnt from.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
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

impl Packed {
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
        let mut packed = Self {
            sequences: tokens.len().div_ceil(sequence_length),
            tokens,
            document_starts,
            sequence_length,
            pad,
            valid_tokens,
            fingerprint,
        };
        if packed.sequences > 0 && packed.valid_tokens_of(packed.sequences - 1) == 0 {
            packed.sequences -= 1;
        }
        packed
    }

    /// Number of sequences.
    pub(crate) fn len(&self) -> usize {
        self.sequences
    }

    /// Positions a sequence, `S`.
    pub(crate) fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// Tokens of text, end-of-sequence tokens included, padding not.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Documents, or parts of documents where the stream was cut within one.
    pub(crate) fn documents(&self) -> usize {
        self.document_starts.len()
    }

    /// Positions that the loss counts.
    pub(crate) fn valid_tokens(&self) -> usize {
        self.valid_tokens
    }

    /// Positions of a sequence that the loss counts.
    pub(crate) fn valid_tokens_of(&self, index: usize) -> usize {
        let mut batch = Batch::with_capacity(1, self.sequence_length);
        self.append(index, &mut batch);
        batch.valid_tokens()
    }

    /// A hash of the tokens and of how they are cut.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Appends sequence `index` as one more row.
    pub(crate) fn append(&self, index: usize, batch: &mut Batch) {
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
