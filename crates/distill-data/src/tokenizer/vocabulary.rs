//! Comparing vocabularies: distillation compares distributions over ids, so the ids must agree.

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::TextTokenizer;
use crate::error::DataError;
use crate::fingerprint::hex;

/// One more than the largest id; there may be holes below it.
pub(super) fn size(tokenizer: &Tokenizer) -> usize {
    let largest = tokenizer.get_vocab(true).into_values().max();
    largest.map_or(0, |id| id as usize + 1)
}

impl TextTokenizer {
    /// A hash of the vocabulary (ids and tokens) and of the merges. Equal for a model's
    /// `tokenizer.json` and the tokenizer built from its GGUF.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let mut feed = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for (id, token) in self.tokens() {
            feed(&id.to_le_bytes());
            feed(token.as_bytes());
        }
        for (left, right) in self.merges() {
            feed(left.as_bytes());
            feed(right.as_bytes());
        }
        hex(&hash.finalize())
    }

    /// Whether `other` gives every id the same token and merges in the same order, so that a
    /// teacher's distribution over ids is one over this tokenizer's. Padding rows that a model
    /// has beyond its vocabulary are not part of either.
    ///
    /// # Errors
    /// [`DataError::VocabularyMismatch`] or [`DataError::MergeMismatch`] with the first
    /// difference.
    pub fn check_same_vocabulary(&self, other: &Self) -> Result<(), DataError> {
        for id in 0..self.vocab_size().max(other.vocab_size()) as u32 {
            let (ours, theirs) = (self.token(id), other.token(id));
            if ours != theirs {
                return Err(DataError::VocabularyMismatch {
                    id,
                    ours: quoted(ours),
                    theirs: quoted(theirs),
                });
            }
        }
        let (ours, theirs) = (self.merges(), other.merges());
        for rank in 0..ours.len().max(theirs.len()) {
            if ours.get(rank) != theirs.get(rank) {
                let spelt = |merge: Option<&(String, String)>| {
                    quoted(merge.map(|(left, right)| format!("{left} {right}")))
                };
                return Err(DataError::MergeMismatch {
                    rank,
                    ours: spelt(ours.get(rank)),
                    theirs: spelt(theirs.get(rank)),
                });
            }
        }
        Ok(())
    }

    /// All tokens, by id.
    pub(super) fn tokens(&self) -> Vec<(u32, String)> {
        let mut tokens: Vec<(u32, String)> =
            self.inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort_unstable();
        tokens
    }

    /// The merges in the order of their rank; none for models that do not merge.
    fn merges(&self) -> Vec<(String, String)> {
        // The library keeps the merges to itself; its serialised form has them.
        let model = serde_json::to_value(self.inner.get_model()).unwrap_or_default();
        merges(&model)
    }
}

/// The merges of a model in the order of their rank, from its serialised form.
pub(super) fn merges(model: &Value) -> Vec<(String, String)> {
    let merges = model.get("merges").and_then(Value::as_array);
    merges.into_iter().flatten().filter_map(pair).collect()
}

/// A merge as `["a", "b"]` or, in older files, `"a b"`.
fn pair(merge: &Value) -> Option<(String, String)> {
    if let Some(text) = merge.as_str() {
        let (left, right) = text.split_once(' ')?;
        return Some((left.into(), right.into()));
    }
    let left = merge.get(0)?.as_str()?;
    let right = merge.get(1)?.as_str()?;
    Some((left.into(), right.into()))
}

fn quoted(text: Option<String>) -> String {
    text.map_or_else(|| "nothing".into(), |text| format!("{text:?}"))
}
