//! The specification: plain Rust, every order of accumulation spelled out.

use distill_quant::{f16, q4_0, q8_0};

use super::{BLOCK, Codes, Kernels, LANES, Q4_0_BYTES, Q8_0_BYTES};

pub(super) static KERNELS: Kernels = Kernels {
    name: "scalar",
    dequantize_q4_0: q4_0::dequantize,
    dequantize_q8_0: q8_0::dequantize,
    dequantize_f16: f16::dequantize,
    to_f16,
    quantize_activations,
    matmul_f32,
    matmul_q4_0_q8_0: matmul_quantized::<Q4_0_BYTES, Q4_0>,
    matmul_q8_0_q8_0: matmul_quantized::<Q8_0_BYTES, Q8_0>,
    attend_f32: attend::<f32>,
    attend_f16: attend::<u16>,
    rms_norm,
    silu_mul,
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

pub(super) fn quantize_activations(values: &[f32], codes: &mut [i8], scales: &mut [f32]) {
    let blocks = values.as_chunks::<BLOCK>().0.iter();
    for ((block, codes), scale) in blocks.zip(codes.as_chunks_mut::<BLOCK>().0).zip(scales) {
        (*scale, *codes) = q8_0::quantize_activation(block);
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

/// A block of integer codes with a binary16 scale.
trait Grid<const BYTES: usize> {
    fn scale(block: &[u8; BYTES]) -> f32 {
        f16::to_f32(u16::from_le_bytes([block[0], block[1]]))
    }
    fn codes(block: &[u8; BYTES]) -> [i32; BLOCK];
}

enum Q4_0 {}
enum Q8_0 {}

impl Grid<Q4_0_BYTES> for Q4_0 {
    fn codes(block: &[u8; Q4_0_BYTES]) -> [i32; BLOCK] {
        std::array::from_fn(|i| {
            let byte = block[2 + i % 16];
            i32::from(if i < 16 { byte & 15 } else { byte >> 4 }) - 8
        })
    }
}

impl Grid<Q8_0_BYTES> for Q8_0 {
    fn codes(block: &[u8; Q8_0_BYTES]) -> [i32; BLOCK] {
        std::array::from_fn(|i| i32::from(block[2 + i] as i8))
    }
}

/// For each block, lane l sums the integer products of elements 4l..4l+4 exactly; the sum times
/// (weight scale · activation scale) is added to the lane, fused.
fn matmul_quantized<const BYTES: usize, G: Grid<BYTES>>(
    w: &[u8],
    x: Codes<'_>,
    columns: usize,
    y: &mut [f32],
    stride: usize,
) {
    let blocks = columns / BLOCK;
    for (r, w) in w.as_chunks::<BYTES>().0.chunks_exact(blocks).enumerate() {
        for (t, codes) in x.codes.chunks_exact(columns).enumerate() {
            let mut lanes = [0.0_f32; LANES];
            for (b, (w, a)) in w.iter().zip(codes.as_chunks::<BLOCK>().0).enumerate() {
                let scale = G::scale(w) * x.scales[t * blocks + b];
                let w = G::codes(w);
                for (l, lane) in lanes.iter_mut().enumerate() {
                    let sum: i32 = (4 * l..4 * l + 4).map(|i| w[i] * i32::from(a[i])).sum();
                    *lane = (sum as f32).mul_add(scale, *lane);
                }
            }
            y[t * stride + r] = reduce(lanes);
        }
    }
}

/// An element of the KV cache.
pub(super) trait Cached: Copy {
    fn value(self) -> f32;
}

impl Cached for f32 {
    fn value(self) -> f32 {
        self
    }
}

impl Cached for u16 {
    fn value(self) -> f32 {
        f16::to_f32(self)
    }
}

fn attend<T: Cached>(q: &[f32], k: &[T], v: &[T], scale: f32, scores: &mut [f32], out: &mut [f32]) {
    let head_dim = q.len();
    let mut max = f32::NEG_INFINITY;
    for (score, k) in scores.iter_mut().zip(k.chunks_exact(head_dim)) {
        *score = dot(q, k.iter().map(|k| k.value())) * scale;
        max = max.max(*score);
    }
    let mut lanes = [0.0_f32; LANES];
    for (p, score) in scores.iter_mut().enumerate() {
        *score = exp(*score - max);
        lanes[p % LANES] += *score;
    }
    let normalise = 1.0 / reduce(lanes);
    out.fill(0.0);
    for (&weight, v) in scores.iter().zip(v.chunks_exact(head_dim)) {
        for (out, v) in out.iter_mut().zip(v) {
            *out = weight.mul_add(v.value(), *out);
        }
    }
    for out in out {
        *out *= normalise;
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

/// The constants of [`exp`].
pub(super) mod exponential {
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

    #[test]
    fn exp_is_within_two_ulp_of_float64() {
        let mut worst = 0.0_f64;
        for i in -87_000..88_000 {
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
        let columns = 96;
        let values: Vec<f32> =
            (0..3 * columns).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
        let (mut codes, mut scales) = (vec![0; columns], vec![0.0; columns / BLOCK]);
        quantize_activations(&values[..columns], &mut codes, &mut scales);
        let x = Codes { codes: &codes, scales: &scales };
        let mut bytes = vec![0; 3 * columns / BLOCK * Q4_0_BYTES];
        q4_0::quantize_row(&values, &mut bytes);
        let mut w = vec![0.0; 3 * columns];
        q4_0::dequantize(&bytes, &mut w);
        let mut y = [0.0; 3];
        (KERNELS.matmul_q4_0_q8_0)(&bytes, x, columns, &mut y, 3);
        for r in 0..3 {
            let want: f64 = (0..columns)
                .map(|c| {
                    f64::from(w[r * columns + c])
                        * f64::from(codes[c])
                        * f64::from(scales[c / BLOCK])
                })
                .sum();
            assert!((f64::from(y[r]) - want).abs() < 1e-4, "{} {want}", y[r]);
        }
    }

    #[test]
    fn attention_is_a_softmax_average_in_float64() {
        let (head_dim, positions) = (20, 11);
        let value = |i: usize| ((i * 29 % 53) as f32 - 26.0) / 11.0;
        let q: Vec<f32> = (0..head_dim).map(value).collect();
        let k: Vec<f32> = (0..positions * head_dim).map(|i| value(i + 5)).collect();
        let v: Vec<f32> = (0..positions * head_dim).map(|i| value(i + 9)).collect();
        let (mut scores, mut out) = (vec![0.0; positions], vec![0.0; head_dim]);
        attend(&q, &k, &v, 0.3, &mut scores, &mut out);
        let weights: Vec<f64> = (0..positions)
            .map(|p| {
                (0..head_dim).map(|d| f64::from(q[d]) * f64::from(k[p * head_dim + d])).sum::<f64>()
                    * 0.3
            })
            .map(f64::exp)
            .collect();
        for d in 0..head_dim {
            let want: f64 =
                (0..positions).map(|p| weights[p] * f64::from(v[p * head_dim + d])).sum::<f64>()
                    / weights.iter().sum::<f64>();
            assert!((f64::from(out[d]) - want).abs() < 1e-5);
        }
    }
}
