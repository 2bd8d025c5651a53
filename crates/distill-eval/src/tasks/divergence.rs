//! How far a model's predictions are from a reference's, token by token, in the windows of
//! [`Perplexity`]: what `llama-perplexity --kl-divergence` measures.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::perplexity::{self, Perplexity};
use super::{Progress, Windows};
use crate::bootstrap::{Sample, percentile};
use crate::language_model::TILE;
use crate::score::{kl, top};
use crate::{EvalError, LanguageModel};

/// A record a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// In the order of the text.
    pub chunks: Vec<Chunk>,
}

/// The scored positions of a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// KL(reference ‖ model) at every position, nats.
    pub kl: Vec<f64>,
    /// Positions at which both prefer the same token.
    pub same_top: usize,
}

/// All that is learnt of two models on one text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compared {
    /// Of the model.
    pub model: Perplexity,
    /// Of the reference.
    pub reference: Perplexity,
    /// Of the model from the reference.
    pub divergence: Divergence,
}

impl Divergence {
    /// Reads every window with both models, one tile of positions after the other.
    ///
    /// # Errors
    /// [`EvalError::Vocabularies`] if there is no token to compare with each token; what a model
    /// fails with.
    pub fn measure(
        model: &mut dyn LanguageModel,
        reference: &mut dyn LanguageModel,
        windows: &Windows,
        progress: &mut Progress<'_>,
    ) -> Result<Compared, EvalError> {
        let (vocab, expected) = (model.vocab_size(), reference.vocab_size());
        if vocab != expected {
            return Err(EvalError::Vocabularies { model: vocab, reference: expected });
        }
        let positions = windows.positions();
        let mut compared = Compared::default();
        let mut theirs = Vec::with_capacity(TILE * vocab);
        for window in windows.iter() {
            let mut ours_nll = perplexity::Chunk::default();
            let mut theirs_nll = perplexity::Chunk::default();
            let mut chunk = Chunk::default();
            for start in positions.clone().step_by(TILE) {
                let tile = start..(start + TILE).min(positions.end);
                theirs.clear();
                reference.logits(&window, tile.clone(), &mut |first, logits| {
                    theirs_nll.add(logits, vocab, &window[first + 1..]);
                    theirs.extend_from_slice(logits);
                })?;
                model.logits(&window, tile.clone(), &mut |first, logits| {
                    ours_nll.add(logits, vocab, &window[first + 1..]);
                    chunk.add(logits, &theirs[(first - start) * vocab..], vocab);
                })?;
            }
            compared.model.chunks.push(ours_nll);
            compared.reference.chunks.push(theirs_nll);
            compared.divergence.chunks.push(chunk);
            progress(compared.divergence.chunks.len(), windows.len());
        }
        Ok(compared)
    }

    /// What these records would be of the reference itself.
    pub fn of_the_reference(&self) -> Self {
        let chunks = self
            .chunks
            .iter()
            .map(|chunk| Chunk { kl: vec![0.0; chunk.kl.len()], same_top: chunk.kl.len() });
        Self { chunks: chunks.collect() }
    }

    /// The KL that a share of all positions lies below, for each of `shares`.
    pub fn percentiles(&self, shares: &[f64]) -> Vec<f64> {
        let mut all: Vec<f64> =
            self.chunks.iter().flat_map(|chunk| chunk.kl.iter().copied()).collect();
        all.sort_by(f64::total_cmp);
        shares.iter().filter_map(|&share| percentile(&all, share)).collect()
    }
}

impl Chunk {
    /// Adds a tile of the model's logits `[rows, vocab]`, and the reference's, or more of them.
    fn add(&mut self, model: &[f32], reference: &[f32], vocab: usize) {
        let rows: Vec<(f64, bool)> = model
            .par_chunks_exact(vocab)
            .zip(reference.par_chunks_exact(vocab))
            .map(|(ours, theirs)| (kl(theirs, ours), top(theirs) == top(ours)))
            .collect();
        for (kl, same) in rows {
            self.kl.push(kl);
            self.same_top += usize::from(same);
        }
    }
}

impl Sample for Divergence {
    fn names(&self) -> &'static [&'static str] {
        &["kl", "same_top"]
    }

    fn less_is_better(&self) -> &'static [bool] {
        &[true, false]
    }

    fn len(&self) -> usize {
        self.chunks.len()
    }

    fn figures(&self, drawn: &[usize]) -> Vec<f64> {
        let (mut positions, mut kl, mut same) = (0, 0.0, 0);
        for chunk in drawn.iter().map(|&index| &self.chunks[index]) {
            positions += chunk.kl.len();
            kl += chunk.kl.iter().sum::<f64>();
            same += chunk.same_top;
        }
        vec![kl / positions as f64, same as f64 / positions as f64]
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::language_model::bigram::Bigram;

    /// Long enough for several tiles a window.
    fn windows() -> Windows {
        let model = Bigram { context: 512, ..Bigram::default() };
        let text: String = (0..700).map(|i| ["a", "b", "c", "d", " "][i * i % 17 % 5]).collect();
        Windows::cut(&model, Path::new(""), &text, 300, 60).unwrap()
    }

    fn measure(sharpness: f64, reference: f64) -> Compared {
        let model = |sharpness| Bigram { sharpness, context: 512, ..Bigram::default() };
        let (mut model, mut reference) = (model(sharpness), model(reference));
        Divergence::measure(&mut model, &mut reference, &windows(), &mut |_, _| {}).unwrap()
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let compared = measure(0.5, 0.5);
        let found = compared.divergence.figures(&[0, 1]);
        assert!(found[0] < 1e-12 && found[1] == 1.0, "{found:?}");
        assert_eq!(compared.model, compared.reference);
    }

    #[test]
    fn divergence_is_what_the_probabilities_give_and_perplexities_are_as_measured_alone() {
        let compared = measure(0.2, 0.7);
        let (model, reference) = (
            Bigram { sharpness: 0.2, context: 512, ..Bigram::default() },
            Bigram { sharpness: 0.7, context: 512, ..Bigram::default() },
        );
        let kl = |last| -> f64 {
            let term = |next| {
                let log_p = reference.log_prob(last, next);
                log_p.exp() * (log_p - model.log_prob(last, next))
            };
            (0..8).map(term).sum()
        };
        let windows = windows();
        for (chunk, window) in compared.divergence.chunks.iter().zip(windows.iter()) {
            assert_eq!(chunk.kl.len(), 149);
            assert_eq!(chunk.same_top, 149, "a sharper bigram prefers the same");
            for (found, &last) in chunk.kl.iter().zip(&window[150..]) {
                assert!((found - kl(last)).abs() < 1e-6, "{found} {}", kl(last));
            }
        }
        let alone = |model: &Bigram| {
            Perplexity::measure(&mut model.clone(), &windows, &mut |_, _| {}).unwrap()
        };
        assert_eq!(compared.model, alone(&model));
        assert_eq!(compared.reference, alone(&reference));
    }

    #[test]
    fn percentiles_are_of_all_positions() {
        let chunk = |kl: &[f64]| Chunk { kl: kl.to_vec(), same_top: 0 };
        let found = Divergence { chunks: vec![chunk(&[4.0, 0.0]), chunk(&[1.0, 2.0, 3.0])] };
        assert_eq!(found.percentiles(&[0.0, 0.5, 0.625, 1.0]), [0.0, 2.0, 2.5, 4.0]);
        assert_eq!(found.figures(&[0, 1]), [2.0, 0.0]);
        assert_eq!(found.figures(&[0, 0]), [2.0, 0.0]);
        assert!(Divergence::default().percentiles(&[0.5]).is_empty());
    }
}
