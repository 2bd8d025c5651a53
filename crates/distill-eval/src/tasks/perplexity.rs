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
    fn names(&self) -> &'static [&'static str] {
        &["perplexity"]
    }

    fn less_is_better(&self) -> &'static [bool] {
        &[true]
    }

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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::language_model::bigram::Bigram;

    /// Long enough for several tiles a window.
    const CONTEXT: usize = 300;

    fn windows(model: &Bigram) -> Windows {
        let text: String = (0..1000).map(|i| ["a", "b", "c", "d", " "][i * i % 17 % 5]).collect();
        Windows::cut(model, Path::new(""), &text, CONTEXT, 60).unwrap()
    }

    #[test]
    fn perplexity_is_what_the_log_probabilities_of_the_second_halves_give() {
        let mut model = Bigram { context: 512, begins: true, ..Bigram::default() };
        let windows = windows(&model);
        let found = Perplexity::measure(&mut model, &windows, &mut |_, _| {}).unwrap();
        let mut nlls = Vec::new();
        for window in windows.iter() {
            for pair in window[CONTEXT / 2..].windows(2) {
                nlls.push(-model.log_prob(pair[0], pair[1]));
            }
        }
        let count = nlls.len() as f64;
        let mean = nlls.iter().sum::<f64>() / count;
        let variance = nlls.iter().map(|nll| (nll - mean).powi(2)).sum::<f64>() / count;
        assert_eq!(found.tokens(), nlls.len());
        assert!(windows.len() > 1 && nlls.len() == windows.len() * (CONTEXT / 2 - 1));
        // Logits are f32: half a unit in the last place of 3.
        assert!((found.perplexity() - mean.exp()).abs() < 1e-6 * mean.exp());
        let error = mean.exp() * (variance / (count - 1.0)).sqrt();
        assert!((found.standard_error() - error).abs() < 1e-6 * error);
        let all: Vec<usize> = (0..found.len()).collect();
        assert_eq!(found.figures(&all), [found.perplexity()]);
    }

    #[test]
    fn a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() {
        let mut model = Bigram { sharpness: 0.0, context: 512, ..Bigram::default() };
        let windows = windows(&model);
        let found = Perplexity::measure(&mut model, &windows, &mut |_, _| {}).unwrap();
        assert!((found.perplexity() - 8.0).abs() < 1e-12);
        assert!(found.standard_error() < 1e-6);
    }

    #[test]
    fn progress_ends_with_all_windows() {
        let mut model = Bigram { context: 512, ..Bigram::default() };
        let windows = windows(&model);
        let mut heard = Vec::new();
        let mut progress = |done, all| heard.push((done, all));
        Perplexity::measure(&mut model, &windows, &mut progress).unwrap();
        assert_eq!(heard.last(), Some(&(windows.len(), windows.len())));
        assert_eq!(heard.len(), windows.len());
    }
}
