//! Confidence intervals by the bootstrap: records are drawn anew, with replacement, as many as
//! there are, and the figures computed of what was drawn; the interval lies between the 2.5th and
//! the 97.5th percentile of many such draws (Efron & Tibshirani, *An Introduction to the
//! Bootstrap*, ch. 13).
//!
//! Differences are paired: both models' figures come from the same draws, so that what makes a
//! text hard for both cancels.

use serde::{Deserialize, Serialize};

/// Records, and the figures that are made of them.
pub trait Sample {
    /// The figures' names.
    const FIGURES: &'static [&'static str];

    /// Number of records: chunks or items.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The figures of the records drawn, one or more, in the order of [`Sample::FIGURES`].
    fn figures(&self, drawn: &[usize]) -> Vec<f64>;
}

/// How intervals are made; the same seed gives the same draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Draws.
    pub resamples: usize,
    /// Their seed.
    pub seed: u64,
}

/// A figure with its interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The figure's name.
    pub figure: String,
    /// Of all records.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
    /// Records.
    pub n: usize,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 10_000, seed: 0 }
    }
}

impl Bootstrap {
    /// The share of draws that lies within an interval.
    pub const CONFIDENCE: f64 = 0.95;

    /// Every figure of a sample.
    pub fn estimates<S: Sample>(&self, sample: &S) -> Vec<Estimate> {
        self.intervals(S::FIGURES, sample.len(), |drawn| sample.figures(drawn))
    }

    /// Every figure of `sample` less that of `reference`, on the same records.
    ///
    /// # Panics
    /// If one has more records than the other.
    pub fn differences<S: Sample>(&self, sample: &S, reference: &S) -> Vec<Estimate> {
        assert_eq!(sample.len(), reference.len(), "records are compared in pairs");
        self.intervals(S::FIGURES, sample.len(), |drawn| {
            let pairs = sample.figures(drawn).into_iter().zip(reference.figures(drawn));
            pairs.map(|(ours, theirs)| ours - theirs).collect()
        })
    }

    fn intervals(
        &self,
        names: &[&str],
        n: usize,
        figures: impl Fn(&[usize]) -> Vec<f64>,
    ) -> Vec<Estimate> {
        if n == 0 {
            return Vec::new();
        }
        let mut drawn: Vec<usize> = (0..n).collect();
        let values = figures(&drawn);
        let mut random = SplitMix64 { state: self.seed };
        let mut draws = vec![Vec::with_capacity(self.resamples); names.len()];
        for _ in 0..self.resamples {
            drawn.iter_mut().for_each(|index| *index = random.below(n));
            for (draws, figure) in draws.iter_mut().zip(figures(&drawn)) {
                draws.push(figure);
            }
        }
        let tail = (1.0 - Self::CONFIDENCE) / 2.0;
        let estimates = names.iter().zip(values).zip(&mut draws);
        estimates
            .map(|((&figure, value), draws)| {
                draws.sort_by(f64::total_cmp);
                let end = |share| percentile(draws, share).unwrap_or(value);
                let (low, high) = (end(tail), end(1.0 - tail));
                Estimate { figure: figure.to_owned(), value, low, high, n }
            })
            .collect()
    }
}

/// The value that a share of `sorted` lies below, between two neighbours in proportion; `None` if
/// there are no values.
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share.clamp(0.0, 1.0) * last as f64;
    let below = (place as usize).min(last);
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    Some(low + (place - below as f64) * (high - low))
}

/// Steele, Lea & Flood, "Fast splittable pseudorandom number generators" (2014).
struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`, each as likely as the others to within n / 2⁶⁴.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}
