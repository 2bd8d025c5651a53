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
    fn names(&self) -> &'static [&'static str];

    /// Whether less of a figure is better, in the order of the names.
    fn less_is_better(&self) -> &'static [bool];

    /// Number of records: chunks or items.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The figures of the records drawn, one or more, in the order of [`Sample::names`].
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
    pub fn estimates<S: Sample + ?Sized>(&self, sample: &S) -> Vec<Estimate> {
        self.intervals(sample.names(), sample.len(), |drawn| sample.figures(drawn))
    }

    /// Every figure of `sample` less that of `reference`, on the same records.
    ///
    /// # Panics
    /// If one has more records than the other.
    pub fn differences<S: Sample + ?Sized>(&self, sample: &S, reference: &S) -> Vec<Estimate> {
        assert_eq!(sample.len(), reference.len(), "records are compared in pairs");
        self.intervals(sample.names(), sample.len(), |drawn| {
            let pairs = sample.figures(drawn).into_iter().zip(reference.figures(drawn));
            pairs.map(|(ours, theirs)| ours - theirs).collect()
        })
    }

    /// Which share of the way from `rounded` back to `full` every figure of `sample` has gone,
    /// (rounded − sample) / (rounded − full), all three on the same records: 1 is all of what
    /// rounding cost. `None` where the interval of that cost does not lie above zero, or has no width: a
    /// share of a loss that may not be there would be noise. Where a few draws have no such loss, the
    /// interval may have no end, and there is none either.
    ///
    /// # Panics
    /// If one has more records than another.
    pub fn recovered<S: Sample + ?Sized>(
        &self,
        sample: &S,
        rounded: &S,
        full: &S,
    ) -> Vec<Option<Estimate>> {
        let cost = self.differences(rounded, full);
        assert_eq!(sample.len(), full.len(), "records are compared in pairs");
        let shares = self.intervals(sample.names(), sample.len(), |drawn| {
            let (ours, rounded, full) =
                (sample.figures(drawn), rounded.figures(drawn), full.figures(drawn));
            let of =
                |((ours, rounded), full): ((f64, f64), f64)| (rounded - ours) / (rounded - full);
            ours.into_iter().zip(rounded).zip(full).map(of).collect()
        });
        let known = |((share, cost), &less): ((Estimate, Estimate), &bool)| {
            let lost = if less { cost.low > 0.0 } else { cost.high < 0.0 };
            let finite = share.low.is_finite() && share.high.is_finite();
            (lost && finite && cost.low < cost.high).then_some(share)
        };
        shares.into_iter().zip(cost).zip(sample.less_is_better()).map(known).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Values(Vec<f64>);

    impl Sample for Values {
        fn names(&self) -> &'static [&'static str] {
            &["mean", "largest"]
        }

        fn less_is_better(&self) -> &'static [bool] {
            &[true, true]
        }

        fn len(&self) -> usize {
            self.0.len()
        }

        fn figures(&self, drawn: &[usize]) -> Vec<f64> {
            let values = || drawn.iter().map(|&index| self.0[index]);
            vec![values().sum::<f64>() / drawn.len() as f64, values().fold(f64::MIN, f64::max)]
        }
    }

    fn values(count: usize, seed: u64) -> Values {
        let mut random = SplitMix64 { state: seed };
        Values((0..count).map(|_| random.below(1000) as f64).collect())
    }

    #[test]
    fn the_generator_is_split_mix() {
        let mut random = SplitMix64 { state: 1_234_567 };
        // The published first outputs of this seed.
        let first =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(std::array::from_fn(|_| random.next()), first);
    }

    #[test]
    fn indices_are_drawn_evenly() {
        let mut random = SplitMix64 { state: 0 };
        let mut counts = [0_u32; 7];
        (0..70_000).for_each(|_| counts[random.below(7)] += 1);
        // Five standard deviations of a binomial: 5 · √(70000 · 1/7 · 6/7).
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 463), "{counts:?}");
    }

    #[test]
    fn the_interval_of_a_mean_is_that_of_the_normal_distribution() {
        let sample = values(400, 1);
        let [mean, _] = &Bootstrap::default().estimates(&sample)[..] else { panic!("two figures") };
        let expected = sample.0.iter().sum::<f64>() / 400.0;
        let variance = sample.0.iter().map(|v| (v - expected).powi(2)).sum::<f64>() / 400.0;
        let half = 1.96 * (variance / 400.0).sqrt();
        assert_eq!((mean.value, mean.n), (expected, 400));
        // The quantile's own error, √(0.025 · 0.975 / 10000) / 0.058 of a deviation, thrice.
        assert!((mean.high - expected - half).abs() < 0.05 * half, "{mean:?}");
        assert!((expected - mean.low - half).abs() < 0.05 * half, "{mean:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_interval_and_another_another() {
        let sample = values(50, 2);
        let of = |seed| Bootstrap { resamples: 100, seed }.estimates(&sample);
        assert_eq!(of(3), of(3));
        assert_ne!(of(3)[0].low, of(4)[0].low);
    }

    #[test]
    fn paired_differences_are_free_of_what_both_share() {
        let theirs = values(100, 3);
        let ours = Values(theirs.0.iter().map(|value| value + 2.0).collect());
        let [mean, largest] = &Bootstrap::default().differences(&ours, &theirs)[..] else {
            panic!("two figures")
        };
        for difference in [mean, largest] {
            for end in [difference.value, difference.low, difference.high] {
                assert!((end - 2.0).abs() < 1e-9, "{difference:?}");
            }
        }
    }

    #[test]
    fn the_share_recovered_is_that_of_the_means_and_pairs_cancel_what_is_shared() {
        let full = values(100, 4);
        let times = |by: f64| Values(full.0.iter().map(|value| value * by).collect());
        let bootstrap = Bootstrap { resamples: 500, seed: 0 };
        let found = bootstrap.recovered(&times(1.25), &times(2.0), &full);
        for share in found {
            let share = share.expect("rounding has a cost");
            for end in [share.value, share.low, share.high] {
                assert!((end - 0.75).abs() < 1e-9, "{share:?}");
            }
        }
        // Of no loss there is no share, and of a gain neither.
        assert_eq!(bootstrap.recovered(&times(1.25), &full, &full), [None, None]);
        assert_eq!(bootstrap.recovered(&times(1.25), &times(0.5), &full), [None, None]);
        let plus = |by: f64| Values(full.0.iter().map(|value| value + by).collect());
        let noisy = values(100, 5);
        assert_eq!(bootstrap.recovered(&plus(1.0), &noisy, &full)[0], None);
    }

    #[test]
    fn one_record_has_an_interval_without_width_and_none_has_no_figure() {
        let one = Bootstrap::default().estimates(&Values(vec![5.0]));
        assert_eq!((one[0].low, one[0].value, one[0].high), (5.0, 5.0, 5.0));
        assert_eq!(Bootstrap::default().estimates(&Values(Vec::new())), []);
    }

    #[test]
    fn percentiles_lie_between_neighbours_in_proportion() {
        let values = [1.0, 2.0, 4.0];
        let found = [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| percentile(&values, share));
        assert_eq!(found, [1.0, 1.5, 2.0, 3.0, 4.0].map(Some));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
