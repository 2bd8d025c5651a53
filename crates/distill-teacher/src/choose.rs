//! From a teacher's logits to what is kept of them.

use distill_data::SplitMix64;

use crate::signal::{Choice, Spec};

/// Some tokens of a row of logits with what the teacher says of them, as `spec` asks.
///
/// `seed` and `stream` decide what is drawn: the same row drawn again gives the same tokens.
///
/// # Panics
/// If there are no logits.
#[must_use]
pub fn choose(logits: &[f32], spec: &Spec, seed: u64, stream: u64) -> Vec<(u32, f32)> {
    match spec.choice {
        Choice::TopK { k } => top(logits, k, spec.temperature),
        Choice::Sampled { draws, power } => {
            sample(logits, draws, power, spec.temperature, &mut SplitMix64::new(seed, stream))
        }
    }
}

/// ln Σ e^(z/T).
pub(crate) fn log_sum(logits: &[f32], temperature: f64) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = 1.0 / temperature;
    let largest = f64::from(largest) * scale;
    let sum: f64 = logits.iter().map(|&z| (f64::from(z) * scale - largest).exp()).sum();
    largest + sum.ln()
}

/// The `k` most likely tokens with ln p, the likeliest first; of equals, the smaller token.
#[must_use]
pub fn top(logits: &[f32], k: usize, temperature: f64) -> Vec<(u32, f32)> {
    let norm = log_sum(logits, temperature);
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_rank =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if k < order.len() {
        order.select_nth_unstable_by(k, by_rank);
        order.truncate(k);
    }
    order.sort_unstable_by(by_rank);
    let log_p = |token: u32| (f64::from(logits[token as usize]) / temperature - norm) as f32;
    order.into_iter().map(|token| (token, log_p(token))).collect()
}

/// `draws` tokens of q ∝ p^`power`, each token once with count · (p/q) / `draws`, an unbiased estimate of
/// p (Anshumann et al., "Sparse Logit Sampling", 2025).
///
/// The draws are systematic: one number decides all, and every token comes up as often as q says,
/// rounded up or down. Their mean is that of independent draws, and their variance is smaller (Madow,
/// 1949).
#[must_use]
pub fn sample(
    logits: &[f32],
    draws: u32,
    power: f64,
    temperature: f64,
    random: &mut SplitMix64,
) -> Vec<(u32, f32)> {
    let (norm, norm_q) = (log_sum(logits, temperature), log_sum(logits, temperature / power));
    let offset = random.unit();
    let (mut mass, mut drawn) = (0.0, 0_u32);
    let mut chosen = Vec::new();
    for (token, &z) in logits.iter().enumerate() {
        let z = f64::from(z) / temperature;
        let log_q = power * z - norm_q;
        mass += log_q.exp();
        // Draws that lie below the mass so far; the last token takes what rounding has left over.
        let below = if token + 1 == logits.len() {
            draws
        } else {
            ((mass * f64::from(draws) - offset).ceil().max(0.0) as u32).min(draws)
        };
        if below > drawn {
            let share = f64::from(below - drawn) / f64::from(draws);
            chosen.push((token as u32, (share * (z - norm - log_q).exp()) as f32));
            drawn = below;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: usize = 50;

    fn logits() -> Vec<f32> {
        (0..VOCABULARY).map(|i| 4.0 * (i as f32 * 1.7 + 0.3).sin()).collect()
    }

    fn probabilities(temperature: f64) -> Vec<f64> {
        let exp: Vec<f64> = logits().iter().map(|&z| (f64::from(z) / temperature).exp()).collect();
        let sum: f64 = exp.iter().sum();
        exp.iter().map(|e| e / sum).collect()
    }

    #[test]
    fn the_likeliest_tokens_come_first_with_their_log_probabilities() {
        for temperature in [1.0, 2.0] {
            let p = probabilities(temperature);
            let found = top(&logits(), 7, temperature);
            let mut order: Vec<usize> = (0..VOCABULARY).collect();
            order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
            for ((token, log_p), &expected) in found.iter().zip(&order) {
                assert_eq!(*token as usize, expected);
                assert!((f64::from(*log_p) - p[expected].ln()).abs() < 1e-5);
            }
            assert_eq!(found.len(), 7);
        }
        assert_eq!(top(&logits(), 1000, 1.0).len(), VOCABULARY);
        assert_eq!(top(&[1.0; 9], 3, 1.0).iter().map(|e| e.0).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn the_mean_of_many_samples_is_the_distribution() {
        let repeats = 20_000;
        for (power, temperature) in [(1.0, 1.0), (0.7, 1.0), (1.2, 1.0), (1.0, 2.0)] {
            let p = probabilities(temperature);
            let q: Vec<f64> = p.iter().map(|p| p.powf(power)).collect();
            let total: f64 = q.iter().sum();
            let mut sums = vec![0.0; VOCABULARY];
            for seed in 0..repeats {
                let mut random = SplitMix64::new(seed, 1);
                for (token, weight) in sample(&logits(), 12, power, temperature, &mut random) {
                    sums[token as usize] += f64::from(weight);
                }
            }
            for token in 0..VOCABULARY {
                let mean = sums[token] / repeats as f64;
                // A token comes up as often as expected, rounded up or down.
                let expected = 12.0 * q[token] / total;
                let up = expected.fract();
                let error = p[token] / expected * (up * (1.0 - up) / repeats as f64).sqrt();
                // 50 tokens at four settings: 4.5 errors are met by chance once in 700 tries.
                let found = (mean - p[token]).abs();
                assert!(found < 4.5 * error + 1e-7, "{token}, {power}: {mean} {}", p[token]);
            }
        }
    }

    #[test]
    fn draws_from_the_teacher_itself_are_counts() {
        let mut random = SplitMix64::new(3, 0);
        let found = sample(&logits(), 50, 1.0, 1.0, &mut random);
        let counts: Vec<f64> = found.iter().map(|(_, w)| f64::from(*w) * 50.0).collect();
        assert!(counts.iter().all(|count| (count - count.round()).abs() < 1e-4 && *count > 0.5));
        assert_eq!(counts.iter().map(|count| count.round()).sum::<f64>(), 50.0);
        assert!(found.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn a_number_just_below_one_loses_no_draw() {
        // All mass on one token, wherever it stands.
        for hot in [0, VOCABULARY / 2, VOCABULARY - 1] {
            let mut logits = vec![-40.0; VOCABULARY];
            logits[hot] = 40.0;
            for seed in 0..200 {
                let found = sample(&logits, 50, 1.0, 1.0, &mut SplitMix64::new(seed, 0));
                let total: f32 = found.iter().map(|e| e.1).sum();
                assert!((total - 1.0).abs() < 1e-5 && found.iter().any(|e| e.0 == hot as u32));
            }
        }
    }
}
