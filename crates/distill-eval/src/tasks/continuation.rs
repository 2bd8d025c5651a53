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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language_model::bigram::Bigram;

    fn pair(
        model: &Bigram,
        context: &str,
        continuation: &str,
    ) -> Result<(Vec<u32>, usize), Problem> {
        let pair = Continuation::new(model, context, continuation).unwrap()?;
        Ok((pair.tokens, pair.context))
    }

    #[test]
    fn the_continuation_begins_where_the_contexts_own_tokens_end() {
        let model = Bigram::default();
        assert_eq!(pair(&model, "b", " a"), Ok((vec![1, 5], 1)));
        // As one text "ab" is one token: it counts as the context's, as in lm-eval.
        assert_eq!(pair(&model, "ca", "bd"), Ok((vec![2, 3, 6], 2)));
        assert_eq!(pair(&model, "a", "b"), Err("adds no token to its context".into()));
    }

    #[test]
    fn white_space_at_the_end_of_the_context_belongs_to_the_continuation() {
        let model = Bigram::default();
        assert_eq!(pair(&model, "b ", "a"), pair(&model, "b", " a"));
        assert_eq!(pair(&model, "b  ", "a"), Ok((vec![1, 4, 5], 1)));
    }

    #[test]
    fn a_text_begins_with_its_token_once() {
        let model = Bigram { begins: true, ..Bigram::default() };
        assert_eq!(pair(&model, "b", " a"), Ok((vec![7, 1, 5], 2)));
        assert_eq!(pair(&model, "^b", " a"), Ok((vec![7, 1, 5], 2)));
    }

    #[test]
    fn a_continuation_of_nothing_follows_the_token_that_begins_a_text() {
        for begins in [false, true] {
            let model = Bigram { begins, ..Bigram::default() };
            assert_eq!(pair(&model, "", "bc"), Ok((vec![7, 1, 2], 1)));
            assert_eq!(pair(&model, " ", "b"), Ok((vec![7, 4, 1], 1)));
            assert_eq!(pair(&model, "", "^b"), Ok((vec![7, 1], 1)));
        }
    }

    #[test]
    fn a_likelihood_is_the_sum_over_the_continuations_tokens() {
        let mut model = Bigram::default();
        let text = Continuation::new(&model, "b", "cdb").unwrap().unwrap();
        let found = text.likelihood(&mut model).unwrap().unwrap();
        let expected = model.log_prob(1, 2) + model.log_prob(2, 6) + model.log_prob(6, 1);
        assert!((found.log_likelihood - expected).abs() < 1e-6);
        assert_eq!((found.tokens, found.dropped), (3, 0));
    }

    #[test]
    fn a_continuation_is_greedy_if_every_token_is_the_likeliest() {
        let mut model = Bigram::default();
        let top =
            |last| (0..8).max_by(|&a, &b| model.logit(last, a).total_cmp(&model.logit(last, b)));
        // After b: 3 + 5 next mod 7 is 6 for next = 2, c. After c: 6 + 5 next is 6 for 0 and 7.
        assert_eq!(top(1), Some(2));
        let mut greedy = |continuation| {
            let text = Continuation::new(&model, "b", continuation).unwrap().unwrap();
            text.likelihood(&mut model).unwrap().unwrap().greedy
        };
        assert!(greedy("c") && greedy("ca"), "the first of equals is the likeliest");
        assert!(!greedy("cd") && !greedy("dc"));
    }

    #[test]
    fn of_a_text_too_long_the_beginning_is_dropped_but_never_the_continuation() {
        let mut model = Bigram { context: 4, ..Bigram::default() };
        let mut likelihood = |context: &str, continuation: &str| {
            let text = Continuation::new(&model, context, continuation).unwrap().unwrap();
            text.likelihood(&mut model).unwrap()
        };
        // The last token is not read, so that five fit.
        assert_eq!(likelihood("bbb", "cd").unwrap().dropped, 0);
        let found = likelihood("dddbbb", "cd").unwrap();
        assert_eq!(found.dropped, 3);
        assert_eq!(found.log_likelihood, likelihood("bbb", "cd").unwrap().log_likelihood);
        assert_eq!(likelihood("b", "cdcd").unwrap().dropped, 0);
        assert_eq!(likelihood("bb", "cdcd").unwrap().dropped, 1);
        assert_eq!(likelihood("b", "cdcdc"), Err("has 5 tokens; the model reads 4".into()));
    }
}
