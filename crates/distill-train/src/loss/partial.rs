//! Losses against a teacher that speaks of some tokens of each position.
//!
//! **The likeliest tokens.** What is left of probability 1 is one bucket, in which the student's other
//! tokens lie too, and the divergence is that of these two coarser distributions. It never exceeds the
//! whole one, is 0 for a student that agrees, and renormalises neither side: a student that learns the
//! teacher's top-k divided by their sum is over-confident.
//!
//! **Samples.** With w an unbiased estimate of p, −Σ w ln q has the gradient q Σw − w, whose mean over
//! draws is that of forward KL, q − p (Anshumann et al. 2025). Its value is the forward KL and the
//! teacher's entropy together.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData, activation};
use distill_teacher::{Kind, Signal};

use super::{Distillation, Divergence, TokenLoss};

/// Least probability of a bucket, so that its logarithm exists. That of the fused operator.
const LEAST: f64 = 1e-9;
/// What takes a token out of a sum of exponentials.
const OUT: f64 = -1e30;

/// The loss of some tokens, from the positions of `signal` that begin at `start`; the student's `logits`
/// are `[tokens, vocab]`. Where the teacher has said nothing, loss and gradient are 0.
///
/// # Panics
/// If samples are to be held against by anything but forward KL; a recipe has been refused for that.
pub fn partial(
    logits: Tensor<2>,
    signal: &Signal,
    start: usize,
    options: &Distillation,
) -> TokenLoss {
    let t = options.temperature;
    let logits = if t == 1.0 { logits } else { logits.div_scalar(t) };
    let log_q = activation::log_softmax(logits, 1);
    let named = Named::new(signal, start, &log_q);
    let (value, gradient) = match signal.kind() {
        Kind::TopK => top(log_q, &named, options.divergence),
        Kind::Sampled => {
            assert_eq!(options.divergence, Divergence::ForwardKl, "samples are for forward KL");
            sampled(log_q, &named)
        }
    };
    let squared = if options.scale_by_temperature_squared { t * t } else { 1.0 };
    let [tokens, _] = value.dims();
    TokenLoss {
        value: value.mul_scalar(squared).reshape([tokens]),
        gradient: gradient.mul_scalar(squared / t),
    }
}

/// The tokens that the teacher speaks of, padded to as many everywhere, `[tokens, most]`.
struct Named {
    ids: Tensor<2, Int>,
    values: Tensor<2>,
    /// 1 for a token, 0 for padding.
    is: Tensor<2>,
    /// The student's ln q of each.
    log_q: Tensor<2>,
    /// 1 where the teacher has said something, `[tokens, 1]`.
    heard: Tensor<2>,
}

impl Named {
    fn new(signal: &Signal, start: usize, log_q: &Tensor<2>) -> Self {
        let ([rows, _], device) = (log_q.dims(), log_q.device());
        let row = |row: usize| signal.at(start + row);
        let most = (0..rows).map(|r| row(r).0.len()).max().unwrap_or(0).max(1);
        let (mut ids, mut values) = (vec![0_i32; rows * most], vec![0.0_f32; rows * most]);
        let (mut is, mut heard) = (values.clone(), vec![0.0_f32; rows]);
        for r in 0..rows {
            let (tokens, of) = row(r);
            heard[r] = f32::from(u8::from(!tokens.is_empty()));
            for (i, (&token, &value)) in tokens.iter().zip(of).enumerate() {
                ids[r * most + i] = token as i32;
                values[r * most + i] = value;
                is[r * most + i] = 1.0;
            }
        }
        let floats = |data, width| Tensor::from_data(TensorData::new(data, [rows, width]), &device);
        let ids = Tensor::from_data(TensorData::new(ids, [rows, most]), &device);
        Self {
            values: floats(values, most),
            is: floats(is, most),
            log_q: log_q.clone().gather(1, ids.clone()),
            heard: floats(heard, 1),
            ids,
        }
    }

    /// Zeros but for these values of the tokens, `[tokens, vocab]`.
    fn scatter(&self, values: Tensor<2>, like: &Tensor<2>) -> Tensor<2> {
        let values = values * self.is.clone();
        like.zeros_like().scatter(1, self.ids.clone(), values, IndexingUpdateOp::Add)
    }
}

/// q ψ of a divergence φ with ψ = ∂φ/∂q, and φ, at one token or bucket.
fn terms(divergence: Divergence, log_p: Tensor<2>, log_q: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let (p, q) = (log_p.clone().exp(), log_q.clone().exp());
    match divergence {
        Divergence::ForwardKl => (p.clone() * (log_p - log_q), p.neg()),
        Divergence::ReverseKl => {
            let value = q * (log_q - log_p);
            (value.clone(), value)
        }
        Divergence::Jsd { beta } => {
            let mixture = p.clone().mul_scalar(beta) + q.clone().mul_scalar(1.0 - beta);
            let log_m = mixture.clamp_min(f32::MIN_POSITIVE).log();
            let slope = (q * (log_q - log_m.clone())).div_scalar(beta);
            ((p * (log_p - log_m)).div_scalar(1.0 - beta) + slope.clone(), slope)
        }
    }
}

fn top(log_q: Tensor<2>, named: &Named, divergence: Divergence) -> (Tensor<2>, Tensor<2>) {
    let sum = |x: Tensor<2>| x.sum_dim(1);
    let p = named.values.clone().exp() * named.is.clone();
    let log_p_bucket = (sum(p).neg() + 1.0).clamp_min(LEAST).log();
    let out = Tensor::full(named.is.dims(), OUT, &log_q.device());
    let others = (log_q.clone() + named.scatter(out, &log_q)).exp();
    let q_bucket = sum(others).clamp_min(LEAST);
    let (value, slope) = terms(divergence, named.values.clone(), named.log_q.clone());
    let (value, slope) = (value * named.is.clone(), slope * named.is.clone());
    let (bucket_value, bucket_slope) = terms(divergence, log_p_bucket, q_bucket.clone().log());
    let total = (sum(value) + bucket_value) * named.heard.clone();
    let mean = sum(slope.clone()) + bucket_slope.clone();
    // Of a token in the bucket, ψ is the bucket's.
    let of_bucket = bucket_slope / q_bucket;
    let own = slope - named.log_q.clone().exp() * of_bucket.clone();
    let gradient = log_q.clone().exp() * (of_bucket - mean) + named.scatter(own, &log_q);
    (total, gradient * named.heard.clone())
}

fn sampled(log_q: Tensor<2>, named: &Named) -> (Tensor<2>, Tensor<2>) {
    let weights = named.values.clone();
    let value = (weights.clone() * named.log_q.clone()).sum_dim(1).neg();
    let total = weights.clone().sum_dim(1);
    let gradient = log_q.clone().exp() * total - named.scatter(weights, &log_q);
    (value, gradient)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use distill_ops::cpu::loss::{Row, Target, rows};
    use distill_teacher::{Choice, Spec, choose};
    use rayon::prelude::*;

    use super::*;

    const TOKENS: usize = 4;
    const VOCABULARY: usize = 29;

    fn logits(seed: f32) -> Vec<f32> {
        (0..TOKENS * VOCABULARY).map(|i| 3.0 * (i as f32 * 1.7 + seed).sin()).collect()
    }

    /// What a teacher says of some tokens; of the third position nothing.
    fn signal(choice: Choice, temperature: f64) -> Signal {
        let spec = Spec { choice, temperature };
        let mut signal = Signal::new(choice.kind());
        for (row, logits) in logits(1.1).chunks(VOCABULARY).enumerate() {
            let said = choose(logits, &spec, 5, row as u64);
            signal.push(if row == 2 { Vec::new() } else { said });
        }
        signal
    }

    fn in_tensors(signal: &Signal, options: &Distillation) -> (Vec<f32>, Vec<f32>) {
        let device = Device::flex();
        let student = TensorData::new(logits(0.3), [TOKENS, VOCABULARY]);
        let loss = partial(Tensor::from_data(student, &device), signal, 0, options);
        let values = loss.value.into_data().try_into_vec().expect("f32");
        (values, loss.gradient.into_data().try_into_vec().expect("f32"))
    }

    /// The same by the fused operator, whose own tests hold it against float64.
    fn fused(signal: &Signal, options: &Distillation) -> (Vec<f64>, Vec<f32>) {
        let mut student = logits(0.3);
        let options = Distillation { cross_entropy: 0.0, ..*options }.fused();
        let mut values = Vec::new();
        for (i, logits) in student.chunks_mut(VOCABULARY).enumerate() {
            let (tokens, of) = signal.at(i);
            let target = match signal.kind() {
                Kind::TopK => Target::Top { tokens, log_probabilities: of },
                Kind::Sampled => Target::Sampled { tokens, weights: of },
            };
            let row = Row { logits, target, label: 0, share: 1.0 };
            values.push(rows(vec![row].into_par_iter(), options).divergence);
        }
        (values, student)
    }

    #[test]
    fn tensors_and_the_fused_operator_agree() {
        let forward = (Divergence::ForwardKl, Choice::Sampled { draws: 9, power: 0.8 });
        let divergences =
            [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::Jsd { beta: 0.3 }];
        let top = divergences.map(|divergence| (divergence, Choice::TopK { k: 5 }));
        for (divergence, choice) in top.into_iter().chain([forward]) {
            for temperature in [1.0, 2.0] {
                let options = Distillation {
                    divergence,
                    temperature,
                    scale_by_temperature_squared: true,
                    cross_entropy: 0.0,
                };
                let signal = signal(choice, temperature);
                let ((values, gradient), (expected, expected_gradient)) =
                    (in_tensors(&signal, &options), fused(&signal, &options));
                for (found, expected) in values.iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error < 1e-5 * (1.0 + expected.abs()), "{found} {expected}");
                }
                for (found, expected) in gradient.iter().zip(&expected_gradient) {
                    assert!((found - expected).abs() < 2e-6, "{options:?} {found} {expected}");
                }
                let silent = &gradient[2 * VOCABULARY..3 * VOCABULARY];
                assert!(values[2] == 0.0 && silent.iter().all(|&g| g == 0.0));
            }
        }
    }

    #[test]
    fn all_tokens_named_is_the_whole_divergence() {
        let options = Distillation {
            divergence: Divergence::ForwardKl,
            temperature: 1.0,
            scale_by_temperature_squared: true,
            cross_entropy: 0.0,
        };
        let device = Device::flex();
        let tensor = |seed| {
            let data = TensorData::new(logits(seed), [TOKENS, VOCABULARY]);
            Tensor::<2>::from_data(data, &device)
        };
        let whole = super::super::divergence(tensor(0.3), tensor(1.1), &options);
        let whole: Vec<f32> = whole.value.into_data().try_into_vec().expect("f32");
        let (values, _) = in_tensors(&signal(Choice::TopK { k: VOCABULARY }, 1.0), &options);
        let (coarse, _) = in_tensors(&signal(Choice::TopK { k: 4 }, 1.0), &options);
        for row in [0, 1, 3] {
            assert!((values[row] - whole[row]).abs() < 1e-5);
            assert!(coarse[row] < whole[row] && coarse[row] > 0.0);
        }
    }

    #[test]
    fn the_mean_sampled_gradient_is_the_dense_one() {
        let options = Distillation {
            divergence: Divergence::ForwardKl,
            temperature: 1.0,
            scale_by_temperature_squared: true,
            cross_entropy: 0.0,
        };
        let draws = 20_000;
        let softmax = |row: &[f32]| -> Vec<f64> {
            let exp: Vec<f64> = row.iter().map(|&z| f64::from(z).exp()).collect();
            let sum: f64 = exp.iter().sum();
            exp.iter().map(|e| e / sum).collect()
        };
        let (student, teacher) = (logits(0.3), logits(1.1));
        let (q, p) = (softmax(&student[..VOCABULARY]), softmax(&teacher[..VOCABULARY]));
        let spec = Spec { choice: Choice::Sampled { draws: 12, power: 0.9 }, temperature: 1.0 };
        let (mut sums, mut squares) = (vec![0.0; VOCABULARY], vec![0.0; VOCABULARY]);
        for seed in 0..draws {
            let said = choose(&teacher[..VOCABULARY], &spec, seed, 0);
            let (tokens, weights): (Vec<u32>, Vec<f32>) = said.into_iter().unzip();
            let mut gradient = student[..VOCABULARY].to_vec();
            let target = Target::Sampled { tokens: &tokens, weights: &weights };
            let row = Row { logits: &mut gradient, target, label: 0, share: 1.0 };
            rows(vec![row].into_par_iter(), options.fused());
            for (i, &g) in gradient.iter().enumerate() {
                sums[i] += f64::from(g);
                squares[i] += f64::from(g).powi(2);
            }
        }
        let n = draws as f64;
        for i in 0..VOCABULARY {
            let mean = sums[i] / n;
            let error = ((squares[i] / n - mean * mean).max(0.0) / n).sqrt();
            let dense = q[i] - p[i];
            // Of 29 tokens one may well lie beyond 2 errors; with this seed none lies beyond 3.
            assert!((mean - dense).abs() < 3.0 * error + 1e-7, "{i}: {mean} {dense} {error}");
        }
    }
}
