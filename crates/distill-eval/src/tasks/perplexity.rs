//! Perplexity: exp of the mean −ln q(token), in windows as llama.cpp has them.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Progress, Windows};
use crate::bootstrap::Sample;
use crate::score::log_sum_exp;
use crate::{EvalError, LanguageModel};

/// A record a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// In the order of the text.
    pub chunks: Vec<Chunk>,
}

/// What a window's scored tokens cost, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// Tokens scored.
    pub tokens: usize,
    /// Σ −ln q(token).
    pub nll: f64,
    /// Σ (ln q(token))²: what the standard error is made of.
    pub nll_squared: f64,
}

impl Perplexity {
    /// Reads every window.
    ///
    /// # Errors
    /// What the model fails with.
    pub fn measure(
        model: &mut dyn LanguageModel,
        windows: &Windows,
        progress: &mut Progress<'_>,
    ) -> Result<Self, EvalError> {
        let (vocab, positions) = (model.vocab_size(), windows.positions());
        let mut chunks = Vec::with_capacity(windows.len());
        for window in windows.iter() {
            let mut chunk = Chunk::default();
            model.logits(&window, positions.clone(), &mut |first, logits| {
                chunk.add(logits, vocab, &window[first + 1..]);
            })?;
            chunks.push(chunk);
            progress(chunks.len(), windows.len());
        }
        Ok(Self { chunks })
    }

    /// Tokens scored in all windows.
    pub fn tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens).sum()
    }

    /// exp of the mean over all tokens.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// The standard error of the perplexity as llama.cpp prints it, which takes tokens for
    /// independent: perplexity · √((mean of squares − mean²) / (tokens − 1)).
    pub fn standard_error(&self) -> f64 {
        let (tokens, mean) = (self.tokens() as f64, self.mean());
        let squares: f64 = self.chunks.iter().map(|chunk| chunk.nll_squared).sum();
        let variance = (squares / tokens - mean * mean).max(0.0);
        self.perplexity() * (variance / (tokens - 1.0).max(1.0)).sqrt()
    }

    fn mean(&self) -> f64 {
        let nll: f64 = self.chunks.iter().map(|chunk| chunk.nll).sum();
        nll / self.tokens() as f64
    }
}

impl Chunk {
    /// Adds a tile of logits `[rows, vocab]`; `labels` are the tokens that follow, or more.
    pub(super) fn add(&mut self, logits: &[f32], vocab: usize, labels: &[u32]) {
        let nll = |(row, &label): (&[f32], &u32)| log_sum_exp(row) - f64::from(row[label as usize]);
        let labels = &labels[..logits.len() / vocab];
        let nlls: Vec<f64> = logits.par_chunks_exact(vocab).zip(labels).map(nll).collect();
        for nll in nlls {
            self.tokens += 1;
            self.nll += nll;
            self.nll_squared += nll * nll;
        }
    }
}

impl Sample for Perplexity {
    const FIGURES: &'static [&'static str] = &["perplexity"];

    fn len(&self) -> usize {
        self.chunks.len()
    }

    fn figures(&self, drawn: &[usize]) -> Vec<f64> {
        let add = |(tokens, nll), &index: &usize| {
            let chunk = &self.chunks[index];
            (tokens + chunk.tokens, nll + chunk.nll)
        };
        let (tokens, nll) = drawn.iter().fold((0, 0.0), add);
        vec![(nll / tokens as f64).exp()]
    }
}
