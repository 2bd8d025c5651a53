//! Divergences between the teacher's distribution and the student's, with their gradients.
//!
//! Each is summed over the vocabulary and left unreduced over tokens: the caller divides by
//! the valid tokens of the whole accumulation window. The gradients are written out instead of
//! recorded, so that logits need no autodiff graph and can be made and dropped in tiles.
//!
//! With p the teacher and q the student at temperature T, z the student's logits:
//!
//! | loss | value | ∂/∂z, times T |
//! |---|---|---|
//! | forward KL | Σ p (ln p − ln q) | q − p |
//! | reverse KL | Σ q (ln q − ln p) | q (ln q − ln p − value) |
//! | JSD(β) | KL(p‖m)/(1−β) + KL(q‖m)/β, m = βp + (1−β)q | q (g − Σ q g), g = ln(q/m)/β |
//!
//! JSD(β) is that of generalised knowledge distillation (Agarwal et al. 2024, eq. 1) divided by
//! β(1−β), so that it tends to forward KL for β → 0 and to reverse KL for β → 1.
//!
//! A teacher that speaks of some tokens only has [`partial`] losses.

pub mod partial;

use burn::tensor::{IndexingUpdateOp, Int, Tensor, activation};
use distill_ops::cpu::loss as fused;

/// What the student is pulled towards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// KL(teacher ‖ student).
    ForwardKl,
    /// KL(student ‖ teacher).
    ReverseKl,
    /// Generalised Jensen–Shannon divergence.
    Jsd {
        /// Weight of the teacher in the mixture, inside (0, 1).
        beta: f64,
    },
}

/// The distillation part of a loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// The divergence.
    pub divergence: Divergence,
    /// Softens both distributions: softmax(z / T).
    pub temperature: f64,
    /// Multiplies value and gradient by T², which keeps the gradient's size as T grows
    /// (Hinton et al. 2015, §2).
    pub scale_by_temperature_squared: bool,
    /// Weight w of the cross-entropy in (1 − w)·D + w·CE.
    pub cross_entropy: f64,
}

/// Options of the fused operator where there is no teacher.
pub(crate) const CROSS_ENTROPY: fused::Options = fused::Options {
    divergence: fused::Divergence::ForwardKl,
    temperature: 1.0,
    scale: 1.0,
    cross_entropy: 1.0,
    logit_scale: 1.0,
    soft_cap: None,
};

impl Distillation {
    /// The same for the fused operator.
    pub(crate) fn fused(&self) -> fused::Options {
        let divergence = match self.divergence {
            Divergence::ForwardKl => fused::Divergence::ForwardKl,
            Divergence::ReverseKl => fused::Divergence::ReverseKl,
            Divergence::Jsd { beta } => fused::Divergence::Jsd { beta: beta as f32 },
        };
        let t = self.temperature as f32;
        fused::Options {
            divergence,
            temperature: t,
            scale: if self.scale_by_temperature_squared { t * t } else { 1.0 },
            cross_entropy: self.cross_entropy as f32,
            logit_scale: 1.0,
            soft_cap: None,
        }
    }
}

/// Loss of each token, and its gradient.
#[derive(Clone, Debug)]
pub struct TokenLoss {
    /// `[tokens]`.
    pub value: Tensor<1>,
    /// ∂value/∂logits, `[tokens, vocab]`.
    pub gradient: Tensor<2>,
}

/// −ln q(label) of each token. `logits` is `[tokens, vocab]`, `labels` `[tokens]`.
pub fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> TokenLoss {
    let [tokens, _] = logits.dims();
    let log_probs = activation::log_softmax(logits, 1);
    let labels = labels.reshape([tokens, 1]);
    let value = log_probs.clone().gather(1, labels.clone()).neg().reshape([tokens]);
    let minus_one = Tensor::full([tokens, 1], -1.0, &log_probs.device());
    let gradient = log_probs.exp().scatter(1, labels, minus_one, IndexingUpdateOp::Add);
    TokenLoss { value, gradient }
}

/// The divergence of each token. Both logits are `[tokens, vocab]` over the same vocabulary.
pub fn divergence(student: Tensor<2>, teacher: Tensor<2>, options: &Distillation) -> TokenLoss {
    let [tokens, _] = student.dims();
    let soften = |logits: Tensor<2>| {
        let logits = if options.temperature == 1.0 {
            logits
        } else {
            logits.div_scalar(options.temperature)
        };
        activation::log_softmax(logits, 1)
    };
    let (log_q, log_p) = (soften(student), soften(teacher));
    let q = log_q.clone().exp();
    let (value, gradient) = match options.divergence {
        Divergence::ForwardKl => {
            let p = log_p.clone().exp();
            let value = (p.clone() * (log_p - log_q)).sum_dim(1);
            (value, q - p)
        }
        Divergence::ReverseKl => {
            let ratio = log_q - log_p;
            let value = (q.clone() * ratio.clone()).sum_dim(1);
            (value.clone(), q * (ratio - value))
        }
        Divergence::Jsd { beta } => {
            let p = log_p.clone().exp();
            let mixture = p.clone().mul_scalar(beta) + q.clone().mul_scalar(1.0 - beta);
            // p and q may both underflow; their terms are then 0 whatever the logarithm is.
            let log_m = mixture.clamp_min(f32::MIN_POSITIVE).log();
            let student_ratio = log_q - log_m.clone();
            let value = (p * (log_p - log_m)).sum_dim(1).div_scalar(1.0 - beta)
                + (q.clone() * student_ratio.clone()).sum_dim(1).div_scalar(beta);
            let slope = student_ratio.div_scalar(beta);
            let mean = (q.clone() * slope.clone()).sum_dim(1);
            (value, q * (slope - mean))
        }
    };
    let t = options.temperature;
    let squared = if options.scale_by_temperature_squared { t * t } else { 1.0 };
    let scale = |x: Tensor<2>, by: f64| if by == 1.0 { x } else { x.mul_scalar(by) };
    TokenLoss {
        value: scale(value, squared).reshape([tokens]),
        gradient: scale(gradient, squared / t),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    const TOKENS: usize = 3;
    const VOCAB: usize = 7;

    fn logits(seed: f64) -> Vec<f64> {
        (0..TOKENS * VOCAB).map(|i| 3.0 * ((i as f64) * 1.7 + seed).sin()).collect()
    }

    fn tensor(values: &[f64]) -> Tensor<2> {
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        Tensor::from_data(TensorData::new(values, [TOKENS, VOCAB]), &Device::flex())
    }

    fn softmax(row: &[f64], t: f64) -> Vec<f64> {
        let exp: Vec<f64> = row.iter().map(|z| (z / t).exp()).collect();
        let sum: f64 = exp.iter().sum();
        exp.iter().map(|e| e / sum).collect()
    }

    fn kl(p: &[f64], q: &[f64]) -> f64 {
        p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
    }

    /// The textbook definitions, in f64.
    fn reference(student: &[f64], teacher: &[f64], options: &Distillation) -> f64 {
        let t = options.temperature;
        let (q, p) = (softmax(student, t), softmax(teacher, t));
        let value = match options.divergence {
            Divergence::ForwardKl => kl(&p, &q),
            Divergence::ReverseKl => kl(&q, &p),
            Divergence::Jsd { beta } => {
                let m: Vec<f64> =
                    p.iter().zip(&q).map(|(p, q)| beta * p + (1.0 - beta) * q).collect();
                (beta * kl(&p, &m) + (1.0 - beta) * kl(&q, &m)) / (beta * (1.0 - beta))
            }
        };
        if options.scale_by_temperature_squared { value * t * t } else { value }
    }

    fn every_setting() -> impl Iterator<Item = Distillation> {
        let divergences = [
            Divergence::ForwardKl,
            Divergence::ReverseKl,
            Divergence::Jsd { beta: 0.1 },
            Divergence::Jsd { beta: 0.5 },
            Divergence::Jsd { beta: 0.9 },
        ];
        divergences.into_iter().flat_map(|divergence| {
            [(1.0, true), (2.0, true), (2.0, false)].map(|(temperature, squared)| Distillation {
                divergence,
                temperature,
                scale_by_temperature_squared: squared,
                cross_entropy: 0.0,
            })
        })
    }

    #[test]
    fn values_equal_the_float64_definition() {
        let (student, teacher) = (logits(0.3), logits(1.1));
        for options in every_setting() {
            let loss = divergence(tensor(&student), tensor(&teacher), &options);
            let values: Vec<f32> = loss.value.into_data().try_into_vec().expect("f32");
            for (token, &value) in values.iter().enumerate() {
                let row = token * VOCAB..(token + 1) * VOCAB;
                let expected = reference(&student[row.clone()], &teacher[row], &options);
                let error = (f64::from(value) - expected).abs();
                assert!(error < 1e-5 * (1.0 + expected), "{options:?}: {value} {expected}");
            }
        }
    }

    #[test]
    fn gradients_equal_central_differences_in_float64() {
        let (student, teacher) = (logits(0.3), logits(1.1));
        let step = 1e-5;
        for options in every_setting() {
            let loss = divergence(tensor(&student), tensor(&teacher), &options);
            let gradient: Vec<f32> = loss.gradient.into_data().try_into_vec().expect("f32");
            for (i, &found) in gradient.iter().enumerate() {
                let row = i / VOCAB * VOCAB..(i / VOCAB + 1) * VOCAB;
                let at = |delta: f64| {
                    let mut moved = student.clone();
                    moved[i] += delta;
                    reference(&moved[row.clone()], &teacher[row.clone()], &options)
                };
                let expected = (at(step) - at(-step)) / (2.0 * step);
                let error = (f64::from(found) - expected).abs();
                assert!(error < 2e-5, "{options:?} at {i}: {found} {expected}");
            }
        }
    }

    #[test]
    fn every_divergence_is_zero_with_zero_gradient_at_a_match() {
        for options in every_setting() {
            let loss = divergence(tensor(&logits(0.3)), tensor(&logits(0.3)), &options);
            for tensor in [loss.value, loss.gradient.reshape([TOKENS * VOCAB])] {
                let values: Vec<f32> = tensor.into_data().try_into_vec().expect("f32");
                assert!(values.iter().all(|v| v.abs() < 1e-5), "{options:?}: {values:?}");
            }
        }
    }

    #[test]
    fn jsd_meets_forward_and_reverse_kl_at_its_ends() {
        let (student, teacher) = (logits(0.3), logits(1.1));
        let at = |divergence| {
            let options = Distillation {
                divergence,
                temperature: 1.0,
                scale_by_temperature_squared: true,
                cross_entropy: 0.0,
            };
            reference(&student[..VOCAB], &teacher[..VOCAB], &options)
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-3 * b, "{a} {b}");
        near(at(Divergence::Jsd { beta: 1e-6 }), at(Divergence::ForwardKl));
        near(at(Divergence::Jsd { beta: 1.0 - 1e-6 }), at(Divergence::ReverseKl));
    }

    #[test]
    fn cross_entropy_and_its_gradient_equal_the_float64_definition() {
        let student = logits(0.3);
        let labels = [2, 0, 6];
        let device = Device::flex();
        let label_tensor =
            Tensor::<1, Int>::from_data(TensorData::new(labels.to_vec(), [3]), &device);
        let loss = cross_entropy(tensor(&student), label_tensor);
        let values: Vec<f32> = loss.value.into_data().try_into_vec().expect("f32");
        let gradient: Vec<f32> = loss.gradient.into_data().try_into_vec().expect("f32");
        for (token, &label) in labels.iter().enumerate() {
            let q = softmax(&student[token * VOCAB..(token + 1) * VOCAB], 1.0);
            let label = label as usize;
            assert!((f64::from(values[token]) + q[label].ln()).abs() < 1e-5);
            for (column, q) in q.iter().enumerate() {
                let expected = q - f64::from(u8::from(column == label));
                let found = f64::from(gradient[token * VOCAB + column]);
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
        }
    }
}
