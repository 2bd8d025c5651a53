//! What the model sees: sequences of packed documents, and batches of them.

/// One packed sequence of `S` positions.
///
/// Documents stand one behind the other, each ended by the end-of-sequence token. A document
/// that is longer than what is left of the sequence goes on in the next one, with positions from
/// zero: attention cannot look back across a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The tokens, `[S]`; the padding token after the last document of a split.
    pub input_ids: Vec<u32>,
    /// The next token at each position, `[S]`: `labels[t] == input_ids[t + 1]`, already shifted.
    /// Meaningless where `loss_mask` is false.
    pub labels: Vec<u32>,
    /// Whether the loss counts this position, `[S]`: false where the next token belongs to
    /// another document or to the padding. The mask goes with the *shifted* labels.
    pub loss_mask: Vec<bool>,
    /// The document within this sequence, `[S]`: 0, 1, 2 …; padding is a document of its own.
    /// Attention stays inside equal numbers.
    pub document_ids: Vec<u32>,
    /// The position within the document's part in this sequence, `[S]`: 0, 1, 2 …
    pub position_ids: Vec<u32>,
}

/// `B` sequences of `S` positions; every vector is row-major `[B, S]`. See [`Sequence`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Number of sequences, `B`.
    pub batch: usize,
    /// Positions a sequence, `S`.
    pub sequence: usize,
    /// The tokens, `[B, S]`.
    pub input_ids: Vec<u32>,
    /// The next token at each position, `[B, S]`.
    pub labels: Vec<u32>,
    /// Whether the loss counts the position, `[B, S]`.
    pub loss_mask: Vec<bool>,
    /// The document within the sequence, `[B, S]`.
    pub document_ids: Vec<u32>,
    /// The position within the document, `[B, S]`.
    pub position_ids: Vec<u32>,
}

impl Batch {
    /// A batch of one sequence.
    #[must_use]
    pub fn of(sequence: Sequence) -> Self {
        Self {
            batch: 1,
            sequence: sequence.input_ids.len(),
            input_ids: sequence.input_ids,
            labels: sequence.labels,
            loss_mask: sequence.loss_mask,
            document_ids: sequence.document_ids,
            position_ids: sequence.position_ids,
        }
    }

    /// An empty batch of sequences of `sequence` positions, with room for `batch` of them.
    pub(crate) fn with_capacity(batch: usize, sequence: usize) -> Self {
        let positions = batch * sequence;
        Self {
            batch: 0,
            sequence,
            input_ids: Vec::with_capacity(positions),
            labels: Vec::with_capacity(positions),
            loss_mask: Vec::with_capacity(positions),
            document_ids: Vec::with_capacity(positions),
            position_ids: Vec::with_capacity(positions),
        }
    }

    /// Positions that the loss counts. The loss of an accumulation window is divided by the sum
    /// of these over all its batches.
    #[must_use]
    pub fn valid_tokens(&self) -> usize {
        self.loss_mask.iter().filter(|&&counts| counts).count()
    }

    /// One row.
    ///
    /// # Panics
    /// If `row` is not below [`Batch::batch`].
    #[must_use]
    pub fn row(&self, row: usize) -> Sequence {
        assert!(row < self.batch, "row {row} of a batch of {}", self.batch);
        let positions = row * self.sequence..(row + 1) * self.sequence;
        Sequence {
            input_ids: self.input_ids[positions.clone()].to_vec(),
            labels: self.labels[positions.clone()].to_vec(),
            loss_mask: self.loss_mask[positions.clone()].to_vec(),
            document_ids: self.document_ids[positions.clone()].to_vec(),
            position_ids: self.position_ids[positions].to_vec(),
        }
    }
}
