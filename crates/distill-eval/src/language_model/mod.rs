//! What can be measured: a model with its own tokenizer, whichever way it is computed.
//!
//! [`RuntimeModel`] is what ships, through the edge runtime; [`GraphModel`] is what trains, through
//! Burn. Every task is written once, against [`LanguageModel`].

#[cfg(test)]
pub(crate) mod bigram;
mod graph;
mod runtime;

use std::ops::Range;

pub use graph::GraphModel;
pub use runtime::RuntimeModel;

use crate::EvalError;

/// Positions whose logits are handed over at a time.
pub const TILE: usize = 64;

/// A causal language model with its tokenizer.
pub trait LanguageModel {
    /// How it is computed, in words: `"runtime, float activations, f16 KV cache"`.
    fn through(&self) -> String;

    /// Logits of a position.
    fn vocab_size(&self) -> usize;

    /// The most tokens that can be read.
    fn context(&self) -> usize;

    /// The beginning-of-sequence token, if the tokenizer puts one before every text.
    fn begin(&self) -> Option<u32>;

    /// What a continuation of nothing continues: the beginning-of-sequence token whether or not
    /// texts are given one, else the end-of-sequence token.
    fn prefix(&self) -> Option<u32>;

    /// The ids of `text` alone. Special tokens written in it become their ids.
    ///
    /// # Errors
    /// If the tokenizer lacks a character.
    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError>;

    /// The ids of `text` alone. Special tokens written in it are spelt out.
    ///
    /// # Errors
    /// If the tokenizer lacks a character.
    fn encode_plain(&self, text: &str) -> Result<Vec<u32>, EvalError>;

    /// Reads `tokens` from the first and calls `each` with the logits after the tokens at
    /// `positions`: the first position of a tile, and the tile, `[up to TILE, vocab]`.
    ///
    /// What calls have in common at the beginning of their tokens may be computed once; the result
    /// is the same.
    ///
    /// # Errors
    /// If the positions lie beyond the context, or a token outside the vocabulary.
    ///
    /// # Panics
    /// If the positions lie beyond the tokens.
    fn logits(
        &mut self,
        tokens: &[u32],
        positions: Range<usize>,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EvalError>;
}
