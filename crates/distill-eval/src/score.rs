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

/// What is known of a teacher at some positions.
#[derive(Clone, Debug, PartialEq)]
pub enum Reference {
    /// Its logits, row-major `[positions, vocab]`, over the model's vocabulary.
    Logits(Vec<f32>),
    /// Of each position its likeliest tokens, in order, with ln p; empty where nothing is known, and then
    /// nothing is compared. The KL is that of two coarser distributions, with all other tokens as one
    /// on both sides: it never exceeds the whole.
    Top(Vec<Vec<(u32, f32)>>),
}

impl Reference {
    /// KL(teacher ‖ model) at a row, and whether both prefer the same token. `norm` is ln Σ e^z of the
    /// model's logits.
    fn compare(&self, row: usize, model: &[f32], norm: f64) -> Option<(f64, bool)> {
        match self {
            Self::Logits(teacher) => {
                let teacher = &teacher[row * model.len()..(row + 1) * model.len()];
                Some((kl(teacher, model), top(teacher) == top(model)))
            }
            Self::Top(rows) => {
                let said = &rows[row];
                let (first, _) = said.first()?;
                Some((kl_of_top(said, model, norm), *first as usize == top(model)))
            }
        }
    }
}

impl Score {
    /// Adds positions. `logits` are row-major `[positions, vocab]`; positions whose mask is false are
    /// left out.
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn add(
        &mut self,
        logits: &[f32],
        teacher: Option<&Reference>,
        labels: &[u32],
        mask: &[bool],
    ) {
        let vocab = logits.len() / labels.len().max(1);
        assert_eq!(logits.len(), vocab * labels.len());
        assert!(teacher.is_none_or(|teacher| match teacher {
            Reference::Logits(theirs) => theirs.len() == logits.len(),
            Reference::Top(rows) => rows.len() == labels.len(),
        }));
        let rows: Vec<(f64, Option<(f64, bool)>)> = (0..labels.len())
            .into_par_iter()
            .filter(|&row| mask[row])
            .map(|row| {
                let model = &logits[row * vocab..(row + 1) * vocab];
                let norm = log_sum_exp(model);
                let nll = norm - f64::from(model[labels[row] as usize]);
                (nll, teacher.and_then(|teacher| teacher.compare(row, model, norm)))
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

/// KL of some tokens of p and one bucket of all others from the same of q = e^(model − norm).
fn kl_of_top(said: &[(u32, f32)], model: &[f32], norm: f64) -> f64 {
    // So small a bucket adds nothing, and has a logarithm.
    const LEAST: f64 = 1e-9;
    let (mut sum, mut p_named) = (0.0, 0.0);
    let mut named: Vec<u32> = said.iter().map(|entry| entry.0).collect();
    for &(token, log_p) in said {
        let (log_p, log_q) = (f64::from(log_p), f64::from(model[token as usize]) - norm);
        sum += log_p.exp() * (log_p - log_q);
        p_named += log_p.exp();
    }
    named.sort_unstable();
    let others =
        model.iter().enumerate().filter(|(i, _)| named.binary_search(&(*i as u32)).is_err());
    let q: f64 = others.map(|(_, &z)| (f64::from(z) - norm).exp()).sum();
    let (p, q) = ((1.0 - p_named).max(LEAST), q.max(LEAST));
    let sum = sum + p * (p / q).ln();
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
        let teacher = Reference::Logits(vec![0.0, 9.0, 0.0, 9.0]);
        score.add(&logits, Some(&teacher), &[1, 1], &[true, false]);
        assert_eq!(score.tokens(), 1);
        assert_eq!(score.same_top(), Some(1.0));
        assert!(score.kl().expect("teacher") < 1e-12);
    }

    #[test]
    fn against_the_likeliest_tokens_all_others_are_one() {
        let (p, q) = ([0.5_f64, 0.3, 0.15, 0.05], [0.4_f64, 0.2, 0.35, 0.05]);
        let logits: Vec<f32> = q.iter().map(|q| q.ln() as f32 + 3.0).collect();
        let said = |k: usize| (0..k as u32).map(|i| (i, p[i as usize].ln() as f32)).collect();
        let kl = |k: usize| {
            let mut score = Score::default();
            let teacher = Reference::Top(vec![said(k), Vec::new()]);
            let both = [logits.clone(), logits.clone()].concat();
            score.add(&both, Some(&teacher), &[0, 0], &[true, true]);
            assert_eq!((score.tokens(), score.same_top()), (2, Some(1.0)), "one is compared");
            score.kl().expect("one is compared")
        };
        let term = |p: f64, q: f64| p * (p / q).ln();
        let two = term(0.5, 0.4) + term(0.3, 0.2) + term(0.2, 0.4);
        let all: f64 = p.iter().zip(q).map(|(&p, q)| term(p, q)).sum();
        assert!((kl(2) - two).abs() < 1e-6, "{} {two}", kl(2));
        assert!((kl(4) - all).abs() < 1e-6 && two < all, "{} {all} {two}", kl(4));
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
