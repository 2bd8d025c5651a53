//! What a signal is found by: the text that was asked about.

use std::fmt;

use distill_data::Sequence;
use sha2::{Digest, Sha256};

use crate::signal::Kind;

/// The first 128 bits of a hash of a text, of the positions asked about, and of the kind of signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 16]);

impl Key {
    /// The key of a packed sequence. What is not counted in the loss and stands behind the last
    /// counted position of its document is nobody's context, and does not matter.
    #[must_use]
    pub fn of(sequence: &Sequence, kind: Kind) -> Self {
        let mut hash = Sha256::new();
        hash.update(match kind {
            Kind::TopK => [0],
            Kind::Sampled => [1],
        });
        hash.update((sequence.input_ids.len() as u64).to_le_bytes());
        for query in queries(sequence) {
            hash.update((query.start as u64).to_le_bytes());
            hash.update((query.tokens.len() as u64).to_le_bytes());
            query.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
            query.wanted.iter().for_each(|&wanted| hash.update([u8::from(wanted)]));
        }
        Self::first(&hash.finalize())
    }

    fn first(hash: &[u8]) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&hash[..16]);
        Self(key)
    }

    /// A name for a set of keys that depends on their order.
    #[must_use]
    pub(crate) fn of_all<'a>(keys: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut hash = Sha256::new();
        keys.into_iter().for_each(|key| hash.update(key.0));
        Self::first(&hash.finalize())
    }

    #[cfg(test)]
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self::first(&Sha256::digest(bytes))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A part of a packed sequence that a teacher reads by itself: a document, or as much of it as is
/// needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The position of the sequence that it begins at.
    pub start: usize,
    /// The tokens, and behind them the label of the last: a server that scores a text says what it
    /// expected before each token of it. At least 2.
    pub tokens: Vec<u32>,
    /// Whether the distribution after each but the last of them is wanted.
    pub wanted: Vec<bool>,
}

impl Query {
    /// Decides what is drawn for it; its positions count from 0.
    #[must_use]
    pub fn seed(&self, key: Key) -> u64 {
        let number = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| key.0[i]));
        number ^ self.start as u64
    }

    /// Positions, one fewer than tokens.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.wanted.len()
    }
}

/// What is asked about a packed sequence, document by document.
pub fn queries(sequence: &Sequence) -> impl Iterator<Item = Query> + '_ {
    let mut start = 0;
    sequence.document_ids.chunk_by(|a, b| a == b).filter_map(move |document| {
        let begin = start;
        start += document.len();
        let mask = &sequence.loss_mask[begin..start];
        let last = mask.iter().rposition(|&wanted| wanted)?;
        let mut tokens = sequence.input_ids[begin..=begin + last].to_vec();
        tokens.push(sequence.labels[begin + last]);
        Some(Query { start: begin, tokens, wanted: mask[..=last].to_vec() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence() -> Sequence {
        Sequence {
            input_ids: vec![5, 6, 7, 8, 9, 4, 0, 0],
            labels: vec![6, 7, 8, 9, 4, 11, 0, 0],
            loss_mask: vec![true, false, false, true, true, true, false, false],
            document_ids: vec![0, 0, 0, 1, 1, 1, 2, 2],
            position_ids: vec![0, 1, 2, 0, 1, 2, 0, 1],
        }
    }

    #[test]
    fn documents_are_asked_about_up_to_the_last_label_that_counts() {
        let found: Vec<Query> = queries(&sequence()).collect();
        let expected = [
            Query { start: 0, tokens: vec![5, 6], wanted: vec![true] },
            Query { start: 3, tokens: vec![8, 9, 4, 11], wanted: vec![true; 3] },
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_the_loss_sees_decides_the_key_and_padding_does_not() {
        let key = |change: &dyn Fn(&mut Sequence)| {
            let mut sequence = sequence();
            change(&mut sequence);
            Key::of(&sequence, Kind::TopK)
        };
        let same = key(&|_| {});
        assert_eq!(same, key(&|s| s.input_ids[2] = 99), "behind the last counted of its document");
        assert_eq!(same, key(&|s| s.input_ids[7] = 99), "padding");
        assert_ne!(same, Key::of(&sequence(), Kind::Sampled));
        assert_ne!(same, key(&|s| s.input_ids[0] = 99));
        assert_ne!(same, key(&|s| s.labels[5] = 99), "the label of the last");
        assert_ne!(same, key(&|s| s.loss_mask[1] = true));
        assert_ne!(same, key(&|s| s.document_ids[3] = 0));
    }
}
