//! Perplexity, KL to the teacher, agreement on the top token: one place, so that the training
//! graph, the quantised graph and the runtime are measured by the same code.

use rayon::prelude::*;

/// Sums over positions, in f64. All figures are means over the valid positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    tokens: usize,
    /// Σ −ln q(label).
    negative_log_likelihood: f64,
    /// Positions at which a teacher was heard.
    compared: usize,
    /// Σ KL(teacher ‖ model).
    kl: f64,
    /// Positions at which both prefer the same token.
    same_top: usize,
}

impl Score {
    /// Adds positions. `logits` and `teacher` are row-major `[positions, vocab]` over the same
    /// vocabulary; positions whose mask is false are left out.
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn add(&mut self, logits: &[f32], teacher: Option<&[f32]>, labels: &[u32], mask: &[bool]) {
        let vocab = logits.len() / labels.len().max(1);
        assert_eq!(logits.len(), vocab * labels.len());
        assert!(teacher.is_none_or(|t| t.len() == logits.len()));
        let rows: Vec<(f64, Option<(f64, bool)>)> = (0..labels.len())
            .into_par_iter()
            .filter(|&row| mask[row])
            .map(|row| {
                let model = &logits[row * vocab..(row + 1) * vocab];
                let norm = log_sum_exp(model);
                let nll = norm - f64::from(model[labels[row] as usize]);
                let against = teacher.map(|teacher| {
                    let teacher = &teacher[row * vocab..(row + 1) * vocab];
                    (kl(teacher, model), top(teacher) == top(model))
                });
                (nll, against)
            })
            .collect();
        for (nll, against) in rows {
            self.tokens += 1;
            self.negative_log_likelihood += nll;
            if let Some((kl, same)) = against {
                self.compared += 1;
                self.kl += kl;
                self.same_top += usize::from(same);
            }
        }
    }

    /// Valid positions.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Mean −ln q(label), nats.
    pub fn loss(&self) -> f64 {
        self.negative_log_likelihood / self.tokens.max(1) as f64
    }

    /// exp of the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Mean KL(teacher ‖ model), nats; `None` without a teacher.
    pub fn kl(&self) -> Option<f64> {
        (self.compared > 0).then(|| self.kl / self.compared as f64)
    }

    /// Share of positions with the same top token; `None` without a teacher.
    pub fn same_top(&self) -> Option<f64> {
        (self.compared > 0).then(|| self.same_top as f64 / self.compared as f64)
    }
}

/// KL(softmax(p) ‖ softmax(q)) in nats, from two rows of logits.
pub fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (norm_p, norm_q) = (log_sum_exp(p), log_sum_exp(q));
    let term = |(&p, &q): (&f32, &f32)| {
        let (log_p, log_q) = (f64::from(p) - norm_p, f64::from(q) - norm_q);
        log_p.exp() * (log_p - log_q)
    };
    let sum: f64 = p.iter().zip(q).map(term).sum();
    // Rounding may leave a little less than nothing; a NaN must stay one.
    if sum < 0.0 { 0.0 } else { sum }
}

/// Index of the largest logit; the lowest index wins a tie.
pub fn top(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = index;
        }
    }
    best
}

/// ln Σ exp(logit).
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    largest + logits.iter().map(|&z| (f64::from(z) - largest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_logits_have_the_perplexity_of_the_vocabulary() {
        let mut score = Score::default();
        score.add(&[0.5; 8], None, &[1, 3], &[true, true]);
        assert!((score.perplexity() - 4.0).abs() < 1e-12);
        assert_eq!((score.kl(), score.tokens()), (None, 2));
    }

    #[test]
    fn masked_positions_do_not_count() {
        let mut score = Score::default();
        let logits = [0.0, 9.0, 9.0, 0.0];
        score.add(&logits, Some(&[0.0, 9.0, 0.0, 9.0]), &[1, 1], &[true, false]);
        assert_eq!(score.tokens(), 1);
        assert_eq!(score.same_top(), Some(1.0));
        assert!(score.kl().expect("teacher") < 1e-12);
    }

    #[test]
    fn a_nan_logit_makes_the_kl_a_nan_and_not_a_zero() {
        assert!(kl(&[0.0, 1.0], &[f32::NAN, 1.0]).is_nan());
    }

    #[test]
    fn kl_of_two_known_distributions_is_the_hand_computed_one() {
        let logits = |p: [f32; 2]| p.map(f32::ln);
        let expected = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
        assert!((kl(&logits([0.25, 0.75]), &logits([0.5, 0.5])) - expected).abs() < 1e-7);
    }
}
