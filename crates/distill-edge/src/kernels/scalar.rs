//! The specification: plain Rust, every order of accumulation spelled out.
//!
//! - A product along float rows keeps lane `i % 8` and ends with [`reduce`].
//! - A product of quantised blocks is summed exactly, as integers; its float times (weight scale ·
//!   activation scale) is added to the row's sum, fused, block after block.
//! - A score is summed over the head's elements in order, fused. In a chunk of positions, the
//!   weight e^(score − largest) of position p is added to lane `p % 16`, and the weighted values
//!   position after position, fused. Chunks are merged in order by [`merge`].
//! - Where the cache holds codes, each block of 32 elements is summed so on its own, and its sum
//!   times its scale is added to the score, fused, block after block. The weight times the block's
//!   scale, rounded, is what a value's codes are multiplied by.

use std::hint::black_box;

use distill_quant::{f16, q8_0};

use super::{
    BLOCK, Block, CHUNK, Cached, Codes, Element, Kernels, LANES, POSITIONS, Queries, Total,
};
use distill_quant::packed::{self, Packed, ROWS};

pub(super) static KERNELS: Kernels = Kernels {
    name: "scalar",
    dequantize_f16: f16::dequantize,
    to_f16,
    quantize_activations,
    matmul_f32,
    product_q4_0: |w, x, columns, y, stride| product(Packed::Q4_0, w, x, columns, y, stride),
    product_q8_0: |w, x, columns, y, stride| product(Packed::Q8_0, w, x, columns, y, stride),
    attend_f32: attend::<f32>,
    attend_f16: attend::<u16>,
    attend_q8_0: attend::<i8>,
    rms_norm,
    silu_mul,
    int8_peak,
    read_all,
};

/// The end of every lane-wise sum.
pub(super) fn reduce(l: [f32; LANES]) -> f32 {
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

fn to_f16(values: &[f32], bits: &mut [u16]) {
    for (value, bits) in values.iter().zip(bits) {
        *bits = f16::from_f32(*value);
    }
}

fn quantize_activations(values: &[f32], blocks: &mut [Block], step: usize) {
    for (values, block) in values.as_chunks::<BLOCK>().0.iter().zip(blocks.iter_mut().step_by(step))
    {
        let (scale, codes) = q8_0::quantize_activation(values);
        let offset = -8 * codes.iter().map(|&code| i32::from(code)).sum::<i32>();
        *block = Block { scale, offset, codes };
    }
}

/// Lane `i % 8` sums its products in order, fused.
fn dot(a: &[f32], b: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        lanes[i % LANES] = a.mul_add(b, lanes[i % LANES]);
    }
    reduce(lanes)
}

fn matmul_f32(w: &[f32], x: &[f32], columns: usize, y: &mut [f32], stride: usize) {
    for (r, w) in w.chunks_exact(columns).enumerate() {
        for (t, x) in x.chunks_exact(columns).enumerate() {
            y[t * stride + r] = dot(w, x.iter().copied());
        }
    }
}

fn product(grid: Packed, w: &[u8], x: Codes<'_>, columns: usize, y: &mut [f32], stride: usize) {
    let blocks = columns / BLOCK;
    for (g, group) in w.chunks_exact(grid.group_bytes(columns)).enumerate() {
        for t in 0..x.tokens {
            let mut rows = [0.0_f32; ROWS];
            for (b, record) in group.chunks_exact(group.len() / blocks).enumerate() {
                let a = x.block(t, b);
                for (r, row) in rows.iter_mut().enumerate() {
                    let w = grid.codes(record, r);
                    let sum: i32 =
                        w.iter().zip(a.codes).map(|(w, a)| i32::from(*w) * i32::from(a)).sum();
                    let scale = packed::scale(record, r) * a.scale;
                    *row = (sum as f32).mul_add(scale, *row);
                }
            }
            y[t * stride + g * ROWS..][..ROWS].copy_from_slice(&rows);
        }
    }
}

pub(super) fn attend<T: Element>(queries: Queries<'_>, cached: Cached<'_, T>) {
    let head_dim = queries.head_dim();
    let (record, elements) = (T::record(head_dim), POSITIONS * head_dim);
    let block = if T::SCALED { BLOCK } else { head_dim };
    // The scale of a block of a position.
    let scale = |records: &[T], p: usize, b: usize| {
        let scales = &records[p / POSITIONS * record + elements..];
        T::scale(scales.as_chunks::<2>().0[b * POSITIONS + p % POSITIONS])
    };
    for (i, query) in queries.queries.chunks_exact(head_dim).enumerate() {
        let seen = queries.seen[i] as usize;
        let weights = &mut queries.weights[i * CHUNK..][..seen];
        let mut largest = f32::NEG_INFINITY;
        for (p, weight) in weights.iter_mut().enumerate() {
            let keys = &cached.keys[p / POSITIONS * record..][..elements];
            let mut keys = keys[p % POSITIONS..].iter().step_by(POSITIONS);
            let mut score = 0.0_f32;
            for (b, query) in query.chunks(block).enumerate() {
                let mut sum = 0.0_f32;
                for (q, k) in query.iter().zip(&mut keys) {
                    sum = q.mul_add(k.value(), sum);
                }
                score = match T::SCALED {
                    true => sum.mul_add(scale(cached.keys, p, b), score),
                    false => sum,
                };
            }
            *weight = score * queries.scale;
            largest = largest.max(*weight);
        }
        let mut lanes = [0.0_f32; POSITIONS];
        for (p, weight) in weights.iter_mut().enumerate() {
            *weight = exp(*weight - largest);
            lanes[p % POSITIONS] += *weight;
        }
        queries.totals[i] = Total { largest, sum: reduce_positions(lanes) };
        let mixed = &mut queries.mixed[i * head_dim..][..head_dim];
        mixed.fill(0.0);
        for (p, weight) in weights.iter().enumerate() {
            let values = &cached.values[p / POSITIONS * record + p % POSITIONS * head_dim..];
            let values = values[..head_dim].chunks(block);
            for (b, (mixed, values)) in mixed.chunks_mut(block).zip(values).enumerate() {
                let factor = match T::SCALED {
                    true => weight * scale(cached.values, p, b),
                    false => *weight,
                };
                for (mixed, value) in mixed.iter_mut().zip(values) {
                    *mixed = factor.mul_add(value.value(), *mixed);
                }
            }
        }
    }
}

/// The end of a sum over positions: the lanes' upper half onto the lower, then [`reduce`].
pub(super) fn reduce_positions(lanes: [f32; POSITIONS]) -> f32 {
    reduce(std::array::from_fn(|i| lanes[i] + lanes[i + LANES]))
}

/// Adds what another chunk of positions gave, `(total, mixed)`, to what earlier ones gave.
pub(crate) fn merge(onto: &mut Total, mixed: &mut [f32], total: Total, more: &[f32]) {
    let largest = onto.largest.max(total.largest);
    let (old, new) = (exp(onto.largest - largest), exp(total.largest - largest));
    *onto = Total { largest, sum: onto.sum * old + total.sum * new };
    for (mixed, more) in mixed.iter_mut().zip(more) {
        *mixed = *mixed * old + *more * new;
    }
}

fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = rms_scale(dot(x, x.iter().copied()), x.len(), eps);
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

/// `1 / sqrt(sum_of_squares / n + eps)`.
pub(super) fn rms_scale(sum_of_squares: f32, n: usize, eps: f32) -> f32 {
    1.0 / (sum_of_squares / n as f32 + eps).sqrt()
}

pub(super) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// A round is one block of one row and one token.
fn int8_peak(rounds: usize) -> usize {
    let (w, a) = (black_box([3_i8; BLOCK]), black_box([5_i8; BLOCK]));
    let mut total = 0_i32;
    for _ in 0..rounds {
        let products = black_box(&w).iter().zip(&a).map(|(w, a)| i32::from(*w) * i32::from(*a));
        total = total.wrapping_add(products.sum());
    }
    black_box(total);
    2 * BLOCK
}

fn read_all(bytes: &[u8]) {
    let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    black_box(words.fold(0, |all, word| all ^ word));
}

/// The constants of [`exp`].
pub(crate) mod exponential {
    /// Below, the result would be denormal: e^−87.3 ≈ 1.2e-38.
    pub const LEAST: f32 = -87.3;
    /// Above, 2^n would not be finite: e^88.3 ≈ 2.2e38.
    pub const MOST: f32 = 88.3;
    /// ln 2 in two parts; the first has 9 significant bits, so n · HIGH is exact.
    pub const LN_2_HIGH: f32 = 0.693_359_4;
    pub const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Taylor coefficients of e^r from r⁷ down to r⁰. For |r| ≤ ln 2 / 2 the first one left out
    /// is below 6e-9.
    pub const TAYLOR: [f32; 8] =
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
}

/// e^x within 2 ulp, clamped to 1.2e-38..2.2e38: x = n ln 2 + r, e^x = 2^n e^r.
pub(super) fn exp(x: f32) -> f32 {
    use exponential::{LEAST, LN_2_HIGH, LN_2_LOW, MOST, TAYLOR};
    // NaN stays NaN.
    let x = x.clamp(LEAST, MOST);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut e = TAYLOR[0];
    for coefficient in &TAYLOR[1..] {
        e = e.mul_add(r, *coefficient);
    }
    e * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use distill_quant::q4_0;

    #[test]
    fn exp_is_within_two_ulp_of_float64() {
        let mut worst = 0.0_f64;
        for i in (-87_000..88_000).step_by(if cfg!(miri) { 997 } else { 1 }) {
            let x = i as f32 * 1e-3 + 1.234e-4;
            let want = f64::from(x).exp();
            let ulp = f64::from((want as f32).next_up() - want as f32);
            worst = worst.max((f64::from(exp(x)) - want).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst} ulp");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) > 0.0 && exp(-1e9) < 1.3e-38 && exp(1e9).is_finite());
    }

    #[test]
    fn quantised_products_equal_float64_on_dequantised_values() {
        let (rows, columns) = (21, 96);
        let values: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
        let mut blocks = vec![Block::default(); columns / BLOCK];
        quantize_activations(&values[..columns], &mut blocks, 1);
        let x = Codes { tokens: 1, blocks: &blocks };
        let mut bytes = vec![0; rows * blocks.len() * q4_0::BYTES];
        q4_0::quantize_row(&values, &mut bytes);
        let mut w = vec![0.0; rows * columns];
        q4_0::dequantize(&bytes, &mut w);
        let mut groups = vec![0; 2 * Packed::Q4_0.group_bytes(columns)];
        let row_bytes = bytes.len() / rows;
        for (rows, group) in bytes
            .chunks(ROWS * row_bytes)
            .zip(groups.chunks_exact_mut(Packed::Q4_0.group_bytes(columns)))
        {
            Packed::Q4_0.pack(rows, columns, group);
        }
        let mut y = [f32::NAN; 2 * ROWS];
        (KERNELS.product_q4_0)(&groups, x, columns, &mut y, 2 * ROWS);
        for (r, y) in y.iter().enumerate() {
            let want: f64 = match r < rows {
                true => (0..columns)
                    .map(|c| {
                        f64::from(w[r * columns + c])
                            * f64::from(blocks[c / BLOCK].codes[c % BLOCK])
                            * f64::from(blocks[c / BLOCK].scale)
                    })
                    .sum(),
                false => 0.0,
            };
            assert!((f64::from(*y) - want).abs() < 1e-4, "{r}: {y} {want}");
        }
    }

    /// What attention of one query over more than a chunk gives, against float64. `keys` makes the
    /// records of some positions of `[position, head_dim]` values, and `values` likewise; `stored`
    /// is what a value becomes.
    fn chunks_of_attention_merge_into_a_softmax_average<T: Element>(
        head_dim: usize,
        keys: impl Fn(&[f32]) -> Vec<T>,
        values: impl Fn(&[f32]) -> Vec<T>,
        stored: impl Fn(&[f32]) -> Vec<f32>,
    ) {
        let positions = CHUNK + 27;
        let value = |i: usize| ((i * 29 % 53) as f32 - 26.0) / 11.0;
        let q: Vec<f32> = (0..head_dim).map(value).collect();
        let k: Vec<f32> = (0..positions * head_dim).map(|i| value(i + 5)).collect();
        let v: Vec<f32> = (0..positions * head_dim).map(|i| value(i + 9)).collect();
        let mut result: Option<(Total, Vec<f32>)> = None;
        for first in [0, CHUNK] {
            let seen = CHUNK.min(positions - first);
            let range = first * head_dim..(first + seen) * head_dim;
            let (mut weights, mut totals) = (vec![0.0; CHUNK], [Total::default()]);
            let mut mixed = vec![0.0; head_dim];
            attend(
                Queries {
                    queries: &q,
                    seen: &[seen as u32],
                    scale: 0.3,
                    weights: &mut weights,
                    totals: &mut totals,
                    mixed: &mut mixed,
                },
                Cached { keys: &keys(&k[range.clone()]), values: &values(&v[range]) },
            );
            match &mut result {
                None => result = Some((totals[0], mixed)),
                Some((total, sum)) => merge(total, sum, totals[0], &mixed),
            }
        }
        let (total, mixed) = result.unwrap();
        let (k, v) = (stored(&k), stored(&v));
        let weights: Vec<f64> = k
            .chunks(head_dim)
            .map(|k| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>())
            .map(|score| (0.3 * score).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..head_dim {
            let want: f64 =
                (0..positions).map(|p| weights[p] * f64::from(v[p * head_dim + d])).sum::<f64>()
                    / sum;
            let got = f64::from(mixed[d] / total.sum);
            assert!((got - want).abs() < 1e-5, "{d}: {got} {want}");
        }
    }

    /// `[positions, head_dim]` as blocks of `[head_dim, 16]`, filled with zeros.
    fn side_by_side<T: Copy + Default>(values: &[T], head_dim: usize) -> Vec<T> {
        let blocks = values.len().div_ceil(POSITIONS * head_dim);
        let at = |i: usize| {
            let (block, d, lane) =
                (i / (POSITIONS * head_dim), i / POSITIONS % head_dim, i % POSITIONS);
            values.get((block * POSITIONS + lane) * head_dim + d).copied().unwrap_or_default()
        };
        (0..blocks * POSITIONS * head_dim).map(at).collect()
    }

    #[test]
    fn chunks_of_attention_merge_into_a_softmax_average_in_float64() {
        let head_dim = 20;
        chunks_of_attention_merge_into_a_softmax_average(
            head_dim,
            |k| side_by_side(k, head_dim),
            <[f32]>::to_vec,
            <[f32]>::to_vec,
        );
    }

    #[test]
    fn attention_over_codes_is_a_softmax_average_of_what_they_stand_for_in_float64() {
        let head_dim = if cfg!(miri) { 32 } else { 96 };
        let quantize = |values: &[f32]| -> Vec<q8_0::BlockQ8_0> {
            values.as_chunks().0.iter().map(q8_0::BlockQ8_0::quantize).collect()
        };
        // Codes, in the order that `arrange` gives those of 16 positions, and scales.
        let records = |values: &[f32], arrange: &dyn Fn(&[i8]) -> Vec<i8>| -> Vec<i8> {
            let record = |values: &[f32]| {
                let blocks = quantize(values);
                let codes: Vec<i8> = blocks.iter().flat_map(|block| block.qs).collect();
                let mut record = arrange(&codes);
                record.resize(POSITIONS * head_dim, 0);
                let scales: Vec<u16> = blocks.iter().map(|block| block.d).collect();
                let scales = side_by_side(&scales, head_dim / BLOCK);
                record.extend(scales.iter().flat_map(|d| d.to_le_bytes()).map(u8::cast_signed));
                record
            };
            values.chunks(POSITIONS * head_dim).flat_map(record).collect()
        };
        chunks_of_attention_merge_into_a_softmax_average(
            head_dim,
            |k| records(k, &|codes| side_by_side(codes, head_dim)),
            |v| records(v, &<[i8]>::to_vec),
            |values| quantize(values).iter().flat_map(q8_0::BlockQ8_0::dequantize).collect(),
        );
    }
}
