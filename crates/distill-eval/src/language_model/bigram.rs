//! A model small enough to compute by hand, for tests: the next token depends on the last alone.

use std::ops::Range;

use super::{LanguageModel, TILE};
use crate::EvalError;

/// Text is cut into the longest of these, from the left. `^` begins a text; as plain text it is `c`.
const TOKENS: [&str; 8] = ["a", "b", "c", "ab", " ", " a", "d", "^"];
const BEGIN: u32 = 7;

/// `logits[last][next] = sharpness · ((3 last + 5 next) mod 7)`.
#[derive(Clone, Debug)]
pub(crate) struct Bigram {
    pub sharpness: f64,
    /// Whether texts are given a `^`.
    pub begins: bool,
    pub context: usize,
}

impl Default for Bigram {
    fn default() -> Self {
        Self { sharpness: 0.5, begins: false, context: 64 }
    }
}

impl Bigram {
    pub fn logit(&self, last: u32, next: u32) -> f64 {
        self.sharpness * f64::from((3 * last + 5 * next) % 7)
    }

    /// ln q(next | last), from all eight logits.
    pub fn log_prob(&self, last: u32, next: u32) -> f64 {
        let sum: f64 = (0..8).map(|token| self.logit(last, token).exp()).sum();
        self.logit(last, next) - sum.ln()
    }
}

impl LanguageModel for Bigram {
    fn through(&self) -> String {
        "by hand".into()
    }

    fn vocab_size(&self) -> usize {
        TOKENS.len()
    }

    fn context(&self) -> usize {
        self.context
    }

    fn begin(&self) -> Option<u32> {
        self.begins.then_some(BEGIN)
    }

    fn prefix(&self) -> Option<u32> {
        Some(BEGIN)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        let (mut rest, mut ids) = (text, Vec::new());
        while !rest.is_empty() {
            let fits = (0..8).filter(|&id| rest.starts_with(TOKENS[id as usize]));
            let longest = fits.max_by_key(|&id: &u32| TOKENS[id as usize].len());
            let id = longest.expect("only known characters");
            ids.push(id);
            rest = &rest[TOKENS[id as usize].len()..];
        }
        Ok(ids)
    }

    fn encode_plain(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        self.encode(&text.replace('^', "c"))
    }

    fn logits(
        &mut self,
        tokens: &[u32],
        positions: Range<usize>,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EvalError> {
        assert!(positions.end <= tokens.len() && positions.end <= self.context);
        for start in positions.clone().step_by(TILE) {
            let tile = &tokens[start..(start + TILE).min(positions.end)];
            let rows = tile.iter().flat_map(|&last| (0..8).map(move |next| (last, next)));
            let logits: Vec<f32> = rows.map(|(last, next)| self.logit(last, next) as f32).collect();
            each(start, &logits);
        }
        Ok(())
    }
}
