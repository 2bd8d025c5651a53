//! Losses on rows of logits and their gradients, in place: a row of student logits becomes ∂loss/∂logits.
//!
//! With p the teacher's distribution, q = softmax(z/T) the student's, a divergence Σ φ(p, q) and
//! ψ = ∂φ/∂q, the chain rule through the softmax gives, for every divergence alike,
//!
//! ```text
//! T · ∂/∂zⱼ = qⱼψⱼ − qⱼ Σᵢ qᵢψᵢ
//! ```
//!
//! | divergence | φ | qψ, but for multiples of q |
//! |---|---|---|
//! | forward KL | p ln(p/q) | −p |
//! | reverse KL | q ln(q/p) | q ln(q/p) |
//! | JSD(β), m = βp + (1−β)q | p ln(p/m)/(1−β) + q ln(q/m)/β | q ln(q/m)/β |
//! | skewed forward KL, m = αp + (1−α)q | p ln(p/m) | −(1−α) pq/m |
//! | skewed reverse KL, m = (1−α)p + αq | q ln(q/m) | q (ln(q/m) − αq/m) |
//! | total variation | ½ abs(p − q) | ½ q sign(q − p) |
//!
//! A teacher that names only some tokens gives a distribution over these and one bucket for all
//! others; a token of the bucket then has the bucket's ψ.
//!
//! JSD(β) is that of generalised knowledge distillation (Agarwal et al. 2024) divided by β(1−β);
//! the skewed divergences are DistiLLM's (Ko et al. 2024).

use rayon::prelude::*;

use super::vector::{BLOCK, LANES, exp, ln, max, simd, sum_exp};

/// What the student is pulled towards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// KL(p ‖ q).
    ForwardKl,
    /// KL(q ‖ p).
    ReverseKl,
    /// Generalised Jensen–Shannon divergence.
    Jsd {
        /// The teacher's weight in the mixture, inside (0, 1).
        beta: f32,
    },
    /// KL(p ‖ αp + (1−α)q).
    SkewedForwardKl {
        /// The teacher's weight in the mixture, inside [0, 1).
        alpha: f32,
    },
    /// KL(q ‖ (1−α)p + αq).
    SkewedReverseKl {
        /// The student's weight in the mixture, inside [0, 1).
        alpha: f32,
    },
    /// ½ Σ |p − q|.
    TotalVariation,
}

/// How logits become a loss: (1 − w)·D + w·CE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// D.
    pub divergence: Divergence,
    /// T: both distributions are softmax(z/T) in D; CE is at T = 1.
    pub temperature: f32,
    /// Multiplies D, e.g. T².
    pub scale: f32,
    /// w.
    pub cross_entropy: f32,
    /// Multiplies the student's raw logits, before a soft cap: 1 / Granite's `logits_scaling`,
    /// Cohere's `logit_scale`; 1 for most models.
    pub logit_scale: f32,
    /// z = cap·tanh(scale·raw/cap) of the student's raw logits, if there is a cap.
    pub soft_cap: Option<f32>,
}

/// What the teacher says of a row.
#[derive(Debug)]
pub enum Target<'a> {
    /// Nothing: the loss is CE alone.
    None,
    /// Logits of all tokens; overwritten.
    Logits(&'a mut [f32]),
    /// ln p of some tokens, and what is left of probability 1 as one bucket, in which the student's
    /// other tokens lie too.
    Top {
        /// The tokens, each once.
        tokens: &'a [u32],
        /// ln p of each, at temperature T.
        log_probabilities: &'a [f32],
    },
    /// Unbiased estimates of p, zero but for these tokens: forward KL up to the teacher's entropy.
    Sampled {
        /// The tokens, each once.
        tokens: &'a [u32],
        /// The estimates.
        weights: &'a [f32],
    },
}

/// The losses of a row, or of many together, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// D, scaled.
    pub divergence: f64,
    /// CE.
    pub cross_entropy: f64,
}

/// A token of the student.
#[derive(Debug)]
pub struct Row<'a> {
    /// In: raw logits. Out: ∂loss/∂raw times `share`.
    pub logits: &'a mut [f32],
    /// The teacher's view.
    pub target: Target<'a>,
    /// The next token.
    pub label: usize,
    /// Multiplies the gradient: 1 / valid tokens, 0 for a token that does not count.
    pub share: f32,
}

/// Losses and gradients of many rows, on all threads. The sum is over rows with a share, in order.
pub fn rows<'a>(rows: impl IndexedParallelIterator<Item = Row<'a>>, options: Options) -> Sums {
    let all: Vec<Sums> = rows.map(|row| self::row(row, options)).collect();
    all.iter().fold(Sums::default(), |total, row| Sums {
        divergence: total.divergence + row.divergence,
        cross_entropy: total.cross_entropy + row.cross_entropy,
    })
}

fn row(row: Row<'_>, options: Options) -> Sums {
    if row.share == 0.0 {
        row.logits.fill(0.0);
        return Sums::default();
    }
    match options.divergence {
        Divergence::ForwardKl => row_of(row, options, ForwardKl),
        Divergence::ReverseKl => row_of(row, options, ReverseKl),
        Divergence::Jsd { beta } => row_of(row, options, Jsd(beta)),
        Divergence::SkewedForwardKl { alpha } => row_of(row, options, SkewedForwardKl(alpha)),
        Divergence::SkewedReverseKl { alpha } => row_of(row, options, SkewedReverseKl(alpha)),
        Divergence::TotalVariation => row_of(row, options, TotalVariation),
    }
}

/// The two distributions at one token or bucket.
#[derive(Clone, Copy)]
struct At {
    p: f32,
    q: f32,
    log_p: f32,
    log_q: f32,
}

impl At {
    #[inline(always)]
    fn new(log_p: f32, log_q: f32) -> Self {
        Self { p: exp(log_p), q: exp(log_q), log_p, log_q }
    }

    /// a·p + b·q; where both underflow, the terms it stands in are 0 whatever it is.
    #[inline(always)]
    fn mixture(self, a: f32, b: f32) -> f32 {
        (a * self.p + b * self.q).max(f32::MIN_POSITIVE)
    }
}

/// φ and qψ of a divergence.
trait Terms: Copy {
    fn value(self, at: At) -> f32;
    fn slope(self, at: At) -> f32;
}

#[derive(Clone, Copy)]
struct ForwardKl;

impl Terms for ForwardKl {
    #[inline(always)]
    fn value(self, at: At) -> f32 {
        at.p * (at.log_p - at.log_q)
    }
    #[inline(always)]
    fn slope(self, at: At) -> f32 {
        -at.p
    }
}

#[derive(Clone, Copy)]
struct ReverseKl;

impl Terms for ReverseKl {
    #[inline(always)]
    fn value(self, at: At) -> f32 {
        at.q * (at.log_q - at.log_p)
    }
    #[inline(always)]
    fn slope(self, at: At) -> f32 {
        self.value(at)
    }
}

#[derive(Clone, Copy)]
struct Jsd(f32);

impl Terms for Jsd {
    #[inline(always)]
    fn value(self, at: At) -> f32 {
        let log_m = ln(at.mixture(self.0, 1.0 - self.0));
        at.p * (at.log_p - log_m) / (1.0 - self.0) + at.q * (at.log_q - log_m) / self.0
    }
    #[inline(always)]
    fn slope(self, at: At) -> f32 {
        at.q * (at.log_q - ln(at.mixture(self.0, 1.0 - self.0))) / self.0
    }
}

#[derive(Clone, Copy)]
struct SkewedForwardKl(f32);

impl Terms for SkewedForwardKl {
    #[inline(always)]
    fn value(self, at: At) -> f32 {
        at.p * (at.log_p - ln(at.mixture(self.0, 1.0 - self.0)))
    }
    #[inline(always)]
    fn slope(self, at: At) -> f32 {
        (self.0 - 1.0) * at.p * at.q / at.mixture(self.0, 1.0 - self.0)
    }
}

#[derive(Clone, Copy)]
struct SkewedReverseKl(f32);

impl Terms for SkewedReverseKl {
    #[inline(always)]
    fn value(self, at: At) -> f32 {
        at.q * (at.log_q - ln(at.mixture(1.0 - self.0, self.0)))
    }
    #[inline(always)]
    fn slope(self, at: At) -> f32 {
        let m = at.mixture(1.0 - self.0, self.0);
        at.q * (at.log_q - ln(m) - self.0 * at.q / m)
    }
}

#[derive(Clone, Copy)]
struct TotalVariation;

impl Terms for TotalVariation {
    #[inline(always)]
    fn value(self, at: At) -> f32 {
        0.5 * (at.p - at.q).abs()
    }
    #[inline(always)]
    fn slope(self, at: At) -> f32 {
        let sign = f32::from(u8::from(at.q > at.p)) - f32::from(u8::from(at.q < at.p));
        0.5 * at.q * sign
    }
}

/// The least probability of a bucket, so that its logarithm exists.
const LEAST: f64 = 1e-9;

simd! {
    fn row_of<'a, K: Terms>(row: Row<'a>, options: Options, terms: K) -> Sums {
        let Row { logits: z, target, label, share } = row;
        if options.logit_scale != 1.0 {
            for z in z.iter_mut() {
                *z *= options.logit_scale;
            }
        }
        if let Some(cap) = options.soft_cap {
            z.iter_mut().for_each(|z| *z = cap * tanh(*z / cap));
        }
        let student = Student::new(z, &target, share, options);
        let z_label = z[label];
        let divergence = match target {
            Target::None => {
                z.iter_mut().for_each(|z| *z = student.gradient(*z, 0.0, 0.0));
                0.0
            }
            Target::Logits(y) => whole(z, &mut y[..z.len()], student, terms),
            Target::Top { tokens, log_probabilities } => {
                top(z, tokens, log_probabilities, student, terms)
            }
            Target::Sampled { tokens, weights } => sampled(z, tokens, weights, student),
        };
        z[label] -= student.hard * student.slope_of_raw(z_label);
        Sums {
            divergence: divergence * f64::from(options.scale),
            cross_entropy: f64::from(student.log_sum - z_label),
        }
    }
}

/// What a row's gradient is made of besides the teacher.
#[derive(Clone, Copy)]
struct Student {
    temperature: f32,
    /// ln Σ e^z.
    log_sum: f32,
    /// ln Σ e^(z/T).
    log_sum_t: f32,
    /// Multiplies the gradient of CE.
    hard: f32,
    /// Multiplies that of D, 1/T included.
    soft: f32,
    logit_scale: f32,
    soft_cap: Option<f32>,
}

impl Student {
    #[inline(always)]
    fn new(z: &[f32], target: &Target<'_>, share: f32, options: Options) -> Self {
        let t = options.temperature;
        let weight = if matches!(target, Target::None) { 1.0 } else { options.cross_entropy };
        let log_sum = log_sum(z, 1.0);
        Self {
            temperature: t,
            log_sum,
            log_sum_t: if t == 1.0 { log_sum } else { self::log_sum(z, 1.0 / t) },
            hard: share * weight,
            soft: share * (1.0 - weight) * options.scale / t,
            logit_scale: options.logit_scale,
            soft_cap: options.soft_cap,
        }
    }

    #[inline(always)]
    fn log_q(&self, z: f32) -> f32 {
        z / self.temperature - self.log_sum_t
    }

    /// ∂z/∂raw.
    #[inline(always)]
    fn slope_of_raw(&self, z: f32) -> f32 {
        match self.soft_cap {
            None => self.logit_scale,
            Some(cap) => self.logit_scale * (1.0 - (z / cap) * (z / cap)),
        }
    }

    /// A token's gradient but for the label's −1, from qψ and q Σ qψ.
    #[inline(always)]
    fn gradient(&self, z: f32, slope: f32, mean: f32) -> f32 {
        let likelihood = if self.hard == 0.0 { 0.0 } else { self.hard * exp(z - self.log_sum) };
        (self.soft * (slope - mean) + likelihood) * self.slope_of_raw(z)
    }
}

/// D from the teacher's logits of all tokens; `z` becomes the gradient, `y` ln p.
#[inline(always)]
fn whole<K: Terms>(z: &mut [f32], y: &mut [f32], student: Student, terms: K) -> f64 {
    let t = student.temperature;
    let log_sum = log_sum(y, 1.0 / t);
    y.iter_mut().for_each(|y| *y = *y / t - log_sum);
    let mut totals = [0.0_f64; 2];
    for (z, y) in z.chunks(BLOCK).zip(y.chunks(BLOCK)) {
        let (mut values, mut slopes) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        let ((z, z_rest), (y, y_rest)) = (z.as_chunks::<LANES>(), y.as_chunks::<LANES>());
        for (z, y) in z.iter().zip(y) {
            for lane in 0..LANES {
                let at = At::new(y[lane], student.log_q(z[lane]));
                values[lane] += terms.value(at);
                slopes[lane] += terms.slope(at);
            }
        }
        for (z, y) in z_rest.iter().zip(y_rest) {
            let at = At::new(*y, student.log_q(*z));
            values[0] += terms.value(at);
            slopes[0] += terms.slope(at);
        }
        for (total, lanes) in totals.iter_mut().zip([values, slopes]) {
            *total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        }
    }
    let mean = totals[1] as f32;
    for (z, y) in z.iter_mut().zip(y) {
        let at = At::new(*y, student.log_q(*z));
        *z = student.gradient(*z, terms.slope(at), at.q * mean);
    }
    totals[0]
}

/// D from some tokens and a bucket; `z` becomes the gradient.
#[inline(always)]
fn top<K: Terms>(z: &mut [f32], tokens: &[u32], log_p: &[f32], student: Student, terms: K) -> f64 {
    let kept: Vec<f32> = tokens.iter().map(|&token| z[token as usize]).collect();
    tokens.iter().for_each(|&token| z[token as usize] = f32::NEG_INFINITY);
    let named: f64 = log_p.iter().map(|&log_p| f64::from(log_p).exp()).sum();
    let others = log_sum(z, 1.0 / student.temperature) - student.log_sum_t;
    let bucket = At::new((1.0 - named).max(LEAST).ln() as f32, others.max(LEAST.ln() as f32));
    let all = || {
        let named = kept.iter().zip(log_p).map(|(&z, &log_p)| At::new(log_p, student.log_q(z)));
        named.chain([bucket])
    };
    let value = all().map(|at| f64::from(terms.value(at))).sum();
    let mean = all().map(|at| f64::from(terms.slope(at))).sum::<f64>() as f32;
    let of_bucket = terms.slope(bucket) / bucket.q;
    for z in z.iter_mut() {
        let q = exp(student.log_q(*z));
        *z = student.gradient(*z, q * of_bucket, q * mean);
    }
    for ((&token, &kept), at) in tokens.iter().zip(&kept).zip(all()) {
        z[token as usize] = student.gradient(kept, terms.slope(at), at.q * mean);
    }
    value
}

/// −Σ w ln q; `z` becomes the gradient.
#[inline(always)]
fn sampled(z: &mut [f32], tokens: &[u32], weights: &[f32], student: Student) -> f64 {
    let named = || tokens.iter().map(|&token| token as usize).zip(weights);
    let value = named().map(|(token, &w)| f64::from(-w * student.log_q(z[token]))).sum();
    let slopes: Vec<f32> =
        named().map(|(token, w)| w * student.soft * student.slope_of_raw(z[token])).collect();
    let total: f32 = weights.iter().sum();
    for z in z.iter_mut() {
        let q = exp(student.log_q(*z));
        *z = student.gradient(*z, q * total, 0.0);
    }
    for ((token, _), slope) in named().zip(slopes) {
        z[token] -= slope;
    }
    value
}

/// ln Σ e^(x · by).
#[inline(always)]
fn log_sum(x: &[f32], by: f32) -> f32 {
    let largest = max(x);
    largest * by + sum_exp(x, largest, by).ln() as f32
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    ((1.0 - e) / (1.0 + e)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: usize = 37;
    const LABEL: usize = 5;
    const ALL: [Divergence; 6] = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd { beta: 0.3 },
        Divergence::SkewedForwardKl { alpha: 0.1 },
        Divergence::SkewedReverseKl { alpha: 0.1 },
        Divergence::TotalVariation,
    ];

    fn logits(seed: f64, size: f64) -> Vec<f64> {
        (0..VOCABULARY).map(|i| size * (i as f64 * 1.7 + seed).sin()).collect()
    }

    fn softmax(z: &[f64], t: f64) -> Vec<f64> {
        let sum: f64 = z.iter().map(|z| (z / t).exp()).sum();
        z.iter().map(|z| (z / t).exp() / sum).collect()
    }

    fn divergence(kind: Divergence, p: &[f64], q: &[f64]) -> f64 {
        let kl = |a: f64, b: f64| a * (a / b).ln();
        let pairs = p.iter().zip(q).map(|(&p, &q)| (p, q));
        pairs
            .map(|(p, q)| match kind {
                Divergence::ForwardKl => kl(p, q),
                Divergence::ReverseKl => kl(q, p),
                Divergence::Jsd { beta } => {
                    let beta = f64::from(beta);
                    let m = beta * p + (1.0 - beta) * q;
                    kl(p, m) / (1.0 - beta) + kl(q, m) / beta
                }
                Divergence::SkewedForwardKl { alpha } => {
                    kl(p, f64::from(alpha) * p + (1.0 - f64::from(alpha)) * q)
                }
                Divergence::SkewedReverseKl { alpha } => {
                    kl(q, (1.0 - f64::from(alpha)) * p + f64::from(alpha) * q)
                }
                Divergence::TotalVariation => 0.5 * (p - q).abs(),
            })
            .sum()
    }

    /// Loss of raw logits in float64, with any divergence of the student's distribution.
    fn reference(raw: &[f64], options: &Options, d: &dyn Fn(&[f64]) -> f64, weight: f64) -> f64 {
        let scaled = raw.iter().map(|z| f64::from(options.logit_scale) * z);
        let z: Vec<f64> = match options.soft_cap.map(f64::from) {
            None => scaled.collect(),
            Some(cap) => scaled.map(|z| cap * (z / cap).tanh()).collect(),
        };
        let q = softmax(&z, f64::from(options.temperature));
        let likelihood = softmax(&z, 1.0)[LABEL];
        (1.0 - weight) * f64::from(options.scale) * d(&q) - weight * likelihood.ln()
    }

    /// Holds a row's loss and gradient against float64, the gradient by central differences.
    fn check(
        raw: &[f64],
        options: Options,
        target: Target<'_>,
        d: &dyn Fn(&[f64]) -> f64,
        what: &str,
    ) {
        let weight = match target {
            Target::None => 1.0,
            _ => f64::from(options.cross_entropy),
        };
        let share = 0.25;
        let mut z: Vec<f32> = raw.iter().map(|&z| z as f32).collect();
        let sums = row(Row { logits: &mut z, target, label: LABEL, share }, options);
        let found = (1.0 - weight) * sums.divergence + weight * sums.cross_entropy;
        let want = reference(raw, &options, d, weight);
        assert!((found - want).abs() <= 1e-5 * want.abs().max(0.1), "{what}: {found} {want}");
        let step = 1e-5;
        let slopes: Vec<f64> = (0..raw.len())
            .map(|i| {
                let at = |by: f64| {
                    let mut raw = raw.to_vec();
                    raw[i] += by;
                    reference(&raw, &options, d, weight)
                };
                f64::from(share) * (at(step) - at(-step)) / (2.0 * step)
            })
            .collect();
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut z.iter().zip(&slopes).map(|(z, s)| f64::from(*z) - s));
        let size = norm(&mut slopes.iter().copied());
        assert!(error <= 1e-5 * size + 1e-9, "{what}: error {error} of a gradient of {size}");
    }

    fn options(divergence: Divergence) -> [Options; 6] {
        let plain = Options {
            divergence,
            temperature: 1.0,
            scale: 1.0,
            cross_entropy: 0.0,
            logit_scale: 1.0,
            soft_cap: None,
        };
        [
            plain,
            Options { temperature: 2.0, scale: 4.0, ..plain },
            Options { temperature: 2.0, cross_entropy: 0.3, ..plain },
            Options { cross_entropy: 0.5, soft_cap: Some(4.0), ..plain },
            Options { temperature: 2.0, cross_entropy: 0.5, logit_scale: 0.125, ..plain },
            Options { cross_entropy: 0.3, logit_scale: 3.0, soft_cap: Some(5.0), ..plain },
        ]
    }

    #[test]
    fn every_divergence_from_whole_logits_equals_float64() {
        for kind in ALL {
            for options in options(kind) {
                for size in [0.5, 3.0, 9.0] {
                    let (raw, y) = (logits(0.3, size), logits(1.1, 3.0));
                    let p = softmax(&y, f64::from(options.temperature));
                    let mut y: Vec<f32> = y.iter().map(|&y| y as f32).collect();
                    let d = |q: &[f64]| divergence(kind, &p, q);
                    check(&raw, options, Target::Logits(&mut y), &d, &format!("{options:?}"));
                }
            }
        }
    }

    #[test]
    fn cross_entropy_alone_equals_float64() {
        for options in options(Divergence::ForwardKl) {
            check(&logits(0.3, 3.0), options, Target::None, &|_| 0.0, "cross-entropy");
        }
    }

    #[test]
    fn every_divergence_from_some_tokens_and_a_bucket_equals_float64() {
        let tokens = [3_u32, 5, 20, 36];
        for kind in ALL {
            for options in options(kind) {
                let p = softmax(&logits(1.1, 3.0), f64::from(options.temperature));
                let log_probabilities = tokens.map(|token| p[token as usize].ln() as f32);
                let buckets = |x: &[f64]| -> Vec<f64> {
                    let named: Vec<f64> = tokens.iter().map(|&t| x[t as usize]).collect();
                    let rest = 1.0 - named.iter().sum::<f64>();
                    named.into_iter().chain([rest]).collect()
                };
                let d = |q: &[f64]| divergence(kind, &buckets(&p), &buckets(q));
                let target = Target::Top { tokens: &tokens, log_probabilities: &log_probabilities };
                check(&logits(0.3, 3.0), options, target, &d, &format!("top {options:?}"));
            }
        }
    }

    #[test]
    fn sampled_targets_equal_float64() {
        let (tokens, weights) = ([3_u32, 5, 20], [0.5_f32, 0.3, 0.4]);
        for options in options(Divergence::ForwardKl) {
            let d = |q: &[f64]| {
                -tokens
                    .iter()
                    .zip(weights)
                    .map(|(&t, w)| f64::from(w) * q[t as usize].ln())
                    .sum::<f64>()
            };
            let target = Target::Sampled { tokens: &tokens, weights: &weights };
            check(&logits(0.3, 3.0), options, target, &d, "sampled");
        }
    }

    #[test]
    fn a_token_that_does_not_count_has_neither_loss_nor_gradient() {
        let mut z = vec![f32::NAN; VOCABULARY];
        let mut y = vec![1.0; VOCABULARY];
        let target = Target::Logits(&mut y);
        let row = Row { logits: &mut z, target, label: LABEL, share: 0.0 };
        assert_eq!(super::row(row, options(Divergence::ForwardKl)[0]), Sums::default());
        assert_eq!(z, vec![0.0; VOCABULARY]);
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for kind in ALL {
            let mut z: Vec<f32> =
                (0..VOCABULARY).map(|i| if i == 0 { 3e4 } else { -3e4 }).collect();
            let mut y: Vec<f32> =
                (0..VOCABULARY).map(|i| if i == 1 { 3e4 } else { -3e4 }).collect();
            let target = Target::Logits(&mut y);
            let row = Row { logits: &mut z, target, label: LABEL, share: 1.0 };
            let sums = super::row(row, options(kind)[0]);
            assert!(sums.divergence.is_finite() && sums.divergence > 0.5, "{kind:?} {sums:?}");
            assert!(z.iter().all(|z| z.is_finite()), "{kind:?} {z:?}");
        }
    }
}
