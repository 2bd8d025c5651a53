//! How likely a continuation of a context is. Text becomes tokens as in EleutherAI's
//! `lm-evaluation-harness` (`TemplateLM._encode_pair`): context and continuation are encoded as one
//! text and parted where the context's own tokens end; white space at the end of the context
//! belongs to the continuation.

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::score::{log_sum_exp, top};
use crate::{EvalError, LanguageModel};

/// A context and its continuation as one text of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    tokens: Vec<u32>,
    /// Those of the context.
    context: usize,
}

/// How likely a continuation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Likelihood {
    /// Σ ln q(token), nats.
    pub log_likelihood: f64,
    /// Tokens of the continuation.
    pub tokens: usize,
    /// Whether each of them is the likeliest in its place.
    pub greedy: bool,
    /// Tokens of the context's beginning that the model's own context had no room for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: usize,
}

/// Why a continuation cannot be measured, in words: "the continuation …".
type Problem = String;

impl Continuation {
    /// The tokens of both.
    ///
    /// # Errors
    /// If the tokenizer lacks a character; what is wrong with the continuation itself, if it is
    /// something.
    pub fn new(
        model: &dyn LanguageModel,
        context: &str,
        continuation: &str,
    ) -> Result<Result<Self, Problem>, EvalError> {
        let words = context.trim_end_matches(is_space);
        let continuation = [&context[words.len()..], continuation].concat();
        let (tokens, context) = if words.is_empty() {
            after_nothing(model, &continuation)?
        } else {
            let whole = text(model, &[words, &continuation].concat())?;
            let context = text(model, words)?.len();
            (whole, context)
        };
        Ok(if context == 0 {
            Err("has no context, and the vocabulary no token that begins a text".into())
        } else if context >= tokens.len() {
            Err("adds no token to its context".into())
        } else {
            Ok(Self { tokens, context })
        })
    }

    /// What the model thinks of it. Of a text too long for the model the beginning is dropped.
    ///
    /// # Errors
    /// What the model fails with; what is wrong with the continuation itself.
    pub fn likelihood(
        &self,
        model: &mut dyn LanguageModel,
    ) -> Result<Result<Likelihood, Problem>, EvalError> {
        let (vocab, limit) = (model.vocab_size(), model.context());
        let read = self.tokens.len() - 1;
        let dropped = read.saturating_sub(limit);
        if dropped >= self.context {
            let own = self.tokens.len() - self.context;
            return Ok(Err(format!("has {own} tokens; the model reads {limit}")));
        }
        let tokens = &self.tokens[dropped..];
        let positions: Range<usize> = self.context - dropped - 1..read - dropped;
        let mut found = Likelihood { greedy: true, dropped, ..Likelihood::default() };
        model.logits(&tokens[..positions.end], positions.clone(), &mut |first, logits| {
            let labels = &tokens[first + 1..first + 1 + logits.len() / vocab];
            let rows: Vec<(f64, bool)> = logits
                .par_chunks_exact(vocab)
                .zip(labels)
                .map(|(row, &label)| {
                    let log_prob = f64::from(row[label as usize]) - log_sum_exp(row);
                    (log_prob, top(row) == label as usize)
                })
                .collect();
            for (log_prob, greedy) in rows {
                found.log_likelihood += log_prob;
                found.tokens += 1;
                found.greedy &= greedy;
            }
        })?;
        Ok(Ok(found))
    }
}

/// The beginning-of-sequence token, or what stands in for it, and the continuation's tokens; the
/// number of the former.
fn after_nothing(
    model: &dyn LanguageModel,
    continuation: &str,
) -> Result<(Vec<u32>, usize), EvalError> {
    let mut tokens = Vec::from_iter(model.prefix());
    let context = tokens.len();
    let own = model.encode(continuation)?;
    let spelt = own.first().is_some_and(|first| tokens.first() == Some(first));
    tokens.extend(&own[usize::from(spelt)..]);
    Ok((tokens, context))
}

/// The ids of a text with its beginning-of-sequence token, unless it is spelt out already.
fn text(model: &dyn LanguageModel, text: &str) -> Result<Vec<u32>, EvalError> {
    let own = model.encode(text)?;
    let begin = model.begin().filter(|begin| own.first() != Some(begin));
    let mut tokens = Vec::from_iter(begin);
    tokens.extend(own);
    Ok(tokens)
}

/// What Python's `str.rstrip` takes away: white space, and four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}
