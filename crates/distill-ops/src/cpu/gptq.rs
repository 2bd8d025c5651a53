//! Finished weights onto the Q4_0 grid: the search of a block's scale, and GPTQ's feedback of errors.
//!
//! Both give masters and scales, not codes: rounded with its scale (`distill_quant::q4_0`), a master
//! has the code that was chosen, and training goes on from it.

use distill_quant::{BLOCK, q4_0};
use rayon::prelude::*;

use super::vector::simd;

/// Candidates of a scale on either side of zero.
const CANDIDATES: usize = 40;
/// The first reaches so far beyond the largest weight (8/7 of it are reached on the shorter side), and each
/// that follows less.
const WIDEST: f32 = 1.2;
const STEP: f32 = 0.02;

/// Rows that take a step together, so that the factor is read once for all.
const ROWS: usize = 16;

/// The scales of some rows of weights `[rows, columns]` that leave the least Σ hₖ·(wₖ − ŵₖ)² in each
/// block; `importance` is h, `[columns]`, of the row.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn search(weights: &[f32], importance: &[f32]) -> Vec<f32> {
    let columns = importance.len();
    assert!(columns.is_multiple_of(BLOCK) && weights.len().is_multiple_of(columns));
    let importance = importance.as_chunks::<BLOCK>().0;
    let mut scales = vec![0.0; weights.len() / BLOCK];
    let rows = weights.par_chunks(columns).zip(scales.par_chunks_mut(columns / BLOCK));
    rows.for_each(|(row, scales)| {
        for ((block, h), scale) in row.as_chunks::<BLOCK>().0.iter().zip(importance).zip(scales) {
            *scale = best_scale(block, h);
        }
    });
    scales
}

/// GPTQ (Frantar et al. 2023, algorithm 1) on the Q4_0 grid.
///
/// `weights` is `[rows, columns]`; `factor` is R of H⁻¹ = RᵀR, upper triangular `[columns, columns]`,
/// where H = Σ x·xᵀ over the layer's inputs x. Column after column, the error of rounding wₖ, divided
/// by Rₖₖ and times Rₖⱼ, is taken from the columns j > k of its row. The scale of a block is searched
/// when its first column is reached, on what the row has become, with the weights 1/Rₖₖ² that errors
/// have in the objective.
///
/// Weights become what they are when they are rounded. Returned are the scales, `[rows, columns / 32]`.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn gptq(weights: &mut [f32], factor: &[f32], columns: usize) -> Vec<f32> {
    assert!(columns.is_multiple_of(BLOCK) && weights.len().is_multiple_of(columns));
    assert_eq!(factor.len(), columns * columns);
    let importance: Vec<f32> = (0..columns).map(|k| factor[k * columns + k].powi(-2)).collect();
    let mut scales = vec![0.0; weights.len() / BLOCK];
    let tiles = weights.par_chunks_mut(ROWS * columns);
    tiles.zip(scales.par_chunks_mut(ROWS * columns / BLOCK)).for_each(|(rows, scales)| {
        let blocks = columns / BLOCK;
        for k in 0..columns {
            let first = k - k % BLOCK;
            if k == first {
                let h = importance[k..].first_chunk().expect("whole blocks");
                for (row, scales) in rows.chunks(columns).zip(scales.chunks_mut(blocks)) {
                    let block = row[k..].first_chunk().expect("whole blocks");
                    scales[k / BLOCK] = best_scale(block, h);
                }
            }
            let of_k = &factor[k * columns..(k + 1) * columns];
            for (row, scales) in rows.chunks_mut(columns).zip(scales.chunks(blocks)) {
                let error = (row[k] - rounded(row[k], scales[k / BLOCK])) / of_k[k];
                subtract(error, &of_k[k + 1..], &mut row[k + 1..]);
            }
        }
    });
    scales
}

/// The value of a weight on its block's grid.
fn rounded(x: f32, scale: f32) -> f32 {
    let Some((d, reciprocal)) = q4_0::given_scale(scale) else { return 0.0 };
    let code = q4_0::position(x, reciprocal).clamp(0.0, 15.0).trunc() - 8.0;
    code * distill_quant::f16::to_f32(d)
}

simd! {
    /// y −= by · x.
    fn subtract<'a>(by: f32, x: &'a [f32], y: &'a mut [f32]) -> () {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x.mul_add(-by, *y);
        }
    }

    /// The scale of a block with the least Σ h·(w − ŵ)²: of candidates around the largest weight, of
    /// both signs, each replaced by the scale that is best for its codes.
    ///
    /// With codes c that is Σ h·w·c / Σ h·c², and what it takes from the error of all zeros is
    /// (Σ h·w·c)² / Σ h·c²; codes that are nearest to it then can only be better.
    fn best_scale<'a>(block: &'a [f32; BLOCK], h: &'a [f32; BLOCK]) -> f32 {
        let mut largest = 0.0_f32;
        for x in block {
            largest = if x.abs() > largest { x.abs() } else { largest };
        }
        let (mut best, mut most) = (0.0, 0.0);
        for candidate in 0..2 * CANDIDATES {
            let reach = WIDEST - STEP * (candidate / 2) as f32;
            let sign = if candidate % 2 == 0 { 1.0 } else { -1.0 };
            let (gain, refined) = judge(block, h, sign * reach * largest / 8.0);
            (best, most) = if gain > most { (refined, gain) } else { (best, most) };
        }
        for _ in 0..2 {
            let (gain, refined) = judge(block, h, best);
            (best, most) = if gain > most { (refined, gain) } else { (best, most) };
        }
        best
    }
}

/// For the codes that a scale gives: what the best scale for them takes from the error, and that scale.
#[inline(always)]
fn judge(block: &[f32; BLOCK], h: &[f32; BLOCK], scale: f32) -> (f32, f32) {
    let reciprocal = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (mut crosses, mut squares) = ([0.0; BLOCK], [0.0; BLOCK]);
    for i in 0..BLOCK {
        let code = q4_0::position(block[i], reciprocal).clamp(0.0, 15.0).trunc() - 8.0;
        crosses[i] = h[i] * block[i] * code;
        squares[i] = h[i] * code * code;
    }
    let mut count = BLOCK;
    while count > 1 {
        count /= 2;
        for i in 0..count {
            crosses[i] += crosses[i + count];
            squares[i] += squares[i + count];
        }
    }
    if squares[0] > 0.0 {
        (crosses[0] * crosses[0] / squares[0], crosses[0] / squares[0])
    } else {
        (0.0, scale)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cpu::cholesky::inverse_factor;

    /// Numbers that look random, in −1 … 1.
    pub fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
        };
        (0..n).map(|_| next() * next().abs()).collect()
    }

    fn error(weights: &[f32], rounded: &[f32], h: &[f32]) -> f64 {
        let squares = weights.iter().zip(rounded).zip(h.iter().cycle());
        squares.map(|((w, r), h)| f64::from(*h) * f64::from(w - r).powi(2)).sum()
    }

    /// What weights and scales are on the grid, by the rule that ships.
    pub fn with_scales(weights: &[f32], scales: &[f32]) -> Vec<f32> {
        let blocks = weights.as_chunks::<BLOCK>().0.iter().zip(scales);
        blocks.flat_map(|(b, &s)| q4_0::BlockQ4_0::quantize_scaled(b, s).dequantize()).collect()
    }

    #[test]
    fn a_searched_scale_is_never_worse_than_the_rule_and_near_the_best_of_all() {
        let weights = noise(64 * BLOCK, 7);
        let h: Vec<f32> = noise(2 * BLOCK, 8).iter().map(|x| x.abs() + 0.1).collect();
        let scales = search(&weights, &h);
        for (i, block) in weights.as_chunks::<BLOCK>().0.iter().enumerate() {
            let h = &h[i % 2 * BLOCK..][..BLOCK];
            let of = |scale: f32| {
                error(block, &q4_0::BlockQ4_0::quantize_scaled(block, scale).dequantize(), h)
            };
            let found = of(scales[i]);
            let by_rule = error(block, &q4_0::BlockQ4_0::quantize(block).dequantize(), h);
            assert!(found <= by_rule * 1.000_001, "{found} {by_rule}");
            let largest = block.iter().fold(0f32, |m, x| m.max(x.abs()));
            let every = (-3000..3000).map(|i| i as f32 / 3000.0 * largest / 4.0);
            let best = every.map(of).fold(f64::INFINITY, f64::min);
            assert!(found <= best * 1.15, "{found} {best}");
        }
        let all = |values: &[f32]| error(&weights, values, &h);
        let by_rule: Vec<f32> = weights
            .as_chunks::<BLOCK>()
            .0
            .iter()
            .flat_map(|b| q4_0::BlockQ4_0::quantize(b).dequantize())
            .collect();
        let (ours, theirs) = (all(&with_scales(&weights, &scales)), all(&by_rule));
        assert!(ours < 0.9 * theirs, "{ours} {theirs}");
    }

    #[test]
    fn blocks_of_zeros_and_of_one_value_have_scales() {
        let mut weights = vec![0.0; 2 * BLOCK];
        weights[BLOCK + 3] = -0.75;
        let scales = search(&weights, &[1.0; 2 * BLOCK]);
        assert_eq!(scales[0], 0.0);
        // As near as binary16 has the scale.
        let error = with_scales(&weights, &scales)[BLOCK + 3] + 0.75;
        assert!(error.abs() <= 0.75 * 2f32.powi(-11), "{error}");
    }

    /// The definition, in float64: each step solves for the columns that are left.
    #[test]
    fn fed_back_errors_are_those_that_the_inverse_of_the_rest_gives() {
        let (rows, columns, samples) = (5, 2 * BLOCK, 300);
        let inputs = noise(samples * columns, 3);
        let mut h = vec![0.0; columns * columns];
        for x in inputs.chunks(columns) {
            for i in 0..columns {
                for j in 0..columns {
                    // Neighbours that know of each other.
                    let of = |i: usize| f64::from(x[i] + 0.5 * x[(i + 1) % columns]);
                    h[i * columns + j] += of(i) * of(j);
                }
            }
        }
        for i in 0..columns {
            h[i * columns + i] += 0.5;
        }
        let weights = noise(rows * columns, 5);
        let factor = inverse_factor(&h, columns).unwrap();
        let factor: Vec<f32> = factor.iter().map(|&x| x as f32).collect();
        let mut masters = weights.clone();
        let scales = gptq(&mut masters, &factor, columns);
        let rounded = with_scales(&masters, &scales);

        // With the first k columns rounded, the best for the rest is w − (w₁ − ŵ₁)·H₁₂·H₂₂⁻¹, which is
        // what each master must be.
        for k in [1, BLOCK, columns - 1] {
            let rest = columns - k;
            let block: Vec<f64> =
                (0..rest * rest).map(|i| h[(k + i / rest) * columns + k + i % rest]).collect();
            let r = inverse_factor(&block, rest).unwrap();
            let inverse = |i: usize, j: usize| -> f64 {
                (0..rest).map(|m| r[m * rest + i] * r[m * rest + j]).sum()
            };
            for row in 0..rows {
                let at = |j: usize| row * columns + j;
                let pulled: Vec<f64> = (0..rest)
                    .map(|j| {
                        let error = |i: usize| f64::from(weights[at(i)] - rounded[at(i)]);
                        (0..k).map(|i| error(i) * h[i * columns + k + j]).sum()
                    })
                    .collect();
                let best: f64 = f64::from(weights[at(k)])
                    + (0..rest).map(|j| pulled[j] * inverse(j, 0)).sum::<f64>();
                let found = f64::from(masters[at(k)]);
                assert!((found - best).abs() < 1e-4, "column {k}: {found} {best}");
            }
        }

        // And the layer's output is nearer than with searched scales alone.
        let output_error = |values: &[f32]| -> f64 {
            let mut total = 0.0;
            for row in 0..rows {
                let e =
                    |i: usize| f64::from(weights[row * columns + i] - values[row * columns + i]);
                for i in 0..columns {
                    for j in 0..columns {
                        total += e(i) * h[i * columns + j] * e(j);
                    }
                }
            }
            total
        };
        let searched = with_scales(&weights, &search(&weights, &vec![1.0; columns]));
        let (ours, theirs) = (output_error(&rounded), output_error(&searched));
        assert!(ours < 0.9 * theirs, "{ours} {theirs}");
    }
}
