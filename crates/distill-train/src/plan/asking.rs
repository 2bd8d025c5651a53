//! What a teacher that is asked beforehand will be asked.

use distill_recipe::{Recipe, TeacherSignal};
use serde::Serialize;

use crate::teach::budget;

/// Bytes of a token that a signal speaks of, and bytes of a draw: the quickstart's 2.6 and 0.8
/// (docs/LOG.md), and a quarter more for ids of larger vocabularies, which nobody has measured.
const TOP_K_BYTES: f64 = 3.3;
const DRAW_BYTES: f64 = 1.0;

/// What is asked, once.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Asking {
    /// Tokens that are sent at most: what a cache has already is not asked again.
    pub tokens: u64,
    /// What they cost, in the currency of the recipe's price.
    pub cost: Option<f64>,
    /// The most tokens that the recipe allows.
    pub budget: Option<u64>,
    /// Bytes of the cache.
    pub bytes: u64,
}

impl Asking {
    /// That of a recipe whose text has so many tokens, all of them.
    pub(super) fn of(recipe: &Recipe, text_tokens: u64) -> Option<Self> {
        let teacher = recipe.teacher.as_ref()?;
        let each = match teacher.signal? {
            TeacherSignal::TopK { top_k } => TOP_K_BYTES * top_k as f64,
            TeacherSignal::Sampled { draws, .. } => DRAW_BYTES * f64::from(draws),
        };
        let train = &recipe.train;
        let length = recipe.data.sequence_length as u64;
        let steps = (train.steps * train.gradient_accumulation * train.batch_size) as u64;
        let trained_on = (text_tokens as f64 * (1.0 - recipe.data.held_out)) as u64;
        // A sequence that comes again is known by then.
        let trained = (steps * length).min(trained_on.max(length));
        let held_out = (recipe.eval.sequences as u64 * length).min(text_tokens - trained_on);
        let tokens = trained + held_out;
        let remote = teacher.remote();
        let price = remote.and_then(|remote| remote.price_per_million_tokens);
        Some(Self {
            tokens,
            cost: price.map(|price| price * tokens as f64 / 1e6),
            budget: remote.and_then(budget),
            bytes: (each * tokens as f64) as u64,
        })
    }
}
