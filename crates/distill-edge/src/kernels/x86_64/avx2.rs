//! AVX2, FMA and F16C: the table, products of floats, and element-wise functions.

#![allow(unsafe_code)]

pub(super) mod attention;
mod product;

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m256, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm_storeu_si128,
    _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_cvtps_ph, _mm256_div_ps, _mm256_extractf128_ps,
    _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_ps, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_packs_epi16, _mm256_packs_epi32,
    _mm256_permutevar8x32_epi32, _mm256_round_ps, _mm256_set_epi32, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_slli_epi32, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_ps,
};

use distill_quant::f16;

use super::super::cover::cover;
use super::super::scalar::{self, exponential, reduce, rms_scale};
use super::super::{BLOCK, Block, Kernels, LANES};

/// The table, where the CPU has the instructions.
pub fn table() -> Option<&'static Kernels> {
    let runs = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    runs.then_some(&KERNELS)
}

pub(super) static KERNELS: Kernels = Kernels {
    name: "avx2",
    // SAFETY (all): the table is handed out only after `table` (or that of a larger instruction
    // set, which implies it) has found the three instruction sets the functions are compiled for.
    dequantize_f16: |bytes, values| unsafe { dequantize_f16(bytes, values) },
    to_f16: |values, bits| unsafe { to_f16(values, bits) },
    quantize_activations: |values, blocks, step| unsafe {
        quantize_activations(values, blocks, step)
    },
    matmul_f32: |w, x, columns, y, stride| unsafe { matmul_f32(w, x, columns, y, stride) },
    product_q4_0: |w, x, columns, y, stride| unsafe {
        product::product_q4_0(w, x, columns, y, stride)
    },
    product_q8_0: |w, x, columns, y, stride| unsafe {
        product::product_q8_0(w, x, columns, y, stride)
    },
    attend_f32: |queries, cached| unsafe { attention::attend_f32(queries, cached) },
    attend_f16: |queries, cached| unsafe { attention::attend_f16(queries, cached) },
    attend_q8_0: |queries, cached| unsafe { attention::attend_q8_0(queries, cached) },
    rms_norm: |x, weight, eps, out| unsafe { rms_norm(x, weight, eps, out) },
    silu_mul: |gate, up| unsafe { silu_mul(gate, up) },
    int8_peak: |rounds| unsafe { product::int8_peak(rounds) },
    read_all: |bytes| unsafe { product::read_all(bytes) },
};

// ---- Loads and stores: arrays in, so that the lengths are in the types. ----

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_f32(from: &[f32; LANES]) -> __m256 {
    // SAFETY: eight f32 are readable; the load needs no alignment.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store_f32(value: __m256, to: &mut [f32; LANES]) {
    // SAFETY: eight f32 are writable; the store needs no alignment.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn lanes(value: __m256) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    store_f32(value, &mut out);
    out
}

/// `reduce` of the specification, in registers: the same additions.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum(value: __m256) -> f32 {
    use std::arch::x86_64::{_mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_shuffle_ps};
    let halves = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
    let pairs = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
    _mm_cvtss_f32(_mm_add_ss(pairs, _mm_shuffle_ps::<1>(pairs, pairs)))
}

/// The largest of eight numbers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn max(value: __m256) -> f32 {
    use std::arch::x86_64::{_mm_cvtss_f32, _mm_max_ps, _mm_max_ss, _mm_movehl_ps, _mm_shuffle_ps};
    let halves = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
    let pairs = _mm_max_ps(halves, _mm_movehl_ps(halves, halves));
    _mm_cvtss_f32(_mm_max_ss(pairs, _mm_shuffle_ps::<1>(pairs, pairs)))
}

// ---- Conversions ----

#[target_feature(enable = "avx2,fma,f16c")]
fn dequantize_f16(bytes: &[u8], values: &mut [f32]) {
    let (blocks, tail) = bytes.as_chunks::<{ 2 * LANES }>();
    let (out, out_tail) = values.as_chunks_mut::<LANES>();
    for (block, out) in blocks.iter().zip(out) {
        // SAFETY: 16 bytes are readable; the load needs no alignment.
        store_f32(_mm256_cvtph_ps(unsafe { _mm_loadu_si128(block.as_ptr().cast()) }), out);
    }
    f16::dequantize(tail, out_tail);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn to_f16(values: &[f32], bits: &mut [u16]) {
    let (blocks, tail) = values.as_chunks::<LANES>();
    let (out, out_tail) = bits.as_chunks_mut::<LANES>();
    for (block, out) in blocks.iter().zip(out) {
        let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(load_f32(block));
        // SAFETY: 16 bytes are writable; the store needs no alignment.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), half) };
    }
    for (value, bits) in tail.iter().zip(out_tail) {
        *bits = f16::from_f32(*value);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_activations(values: &[f32], blocks: &mut [Block], step: usize) {
    let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFF_FFFF));
    // packs works within 128-bit halves; this puts the eight groups of four back in order.
    let order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
    let ones = (_mm256_set1_epi8(1), _mm256_set1_epi16(1));
    for (values, block) in values.as_chunks::<BLOCK>().0.iter().zip(blocks.iter_mut().step_by(step))
    {
        let mut x = [_mm256_setzero_ps(); 4];
        let mut largest = _mm256_setzero_ps();
        for (x, part) in x.iter_mut().zip(values.as_chunks::<LANES>().0) {
            *x = load_f32(part);
            largest = _mm256_max_ps(_mm256_and_ps(*x, magnitude), largest);
        }
        let d = max(largest) / 127.0;
        if d < f32::MIN_POSITIVE {
            *block = Block::default();
            continue;
        }
        block.scale = d;
        let reciprocal = _mm256_set1_ps(1.0 / d);
        let mut i = [_mm256_setzero_si256(); 4];
        for (i, x) in i.iter_mut().zip(x) {
            *i = _mm256_cvtps_epi32(_mm256_mul_ps(x, reciprocal));
        }
        let packed =
            _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
        let sums = _mm256_madd_epi16(_mm256_maddubs_epi16(ones.0, packed), ones.1);
        let mut eight = [0_i32; LANES];
        // SAFETY: 32 bytes are writable; the store needs no alignment.
        unsafe { _mm256_storeu_si256(eight.as_mut_ptr().cast(), sums) };
        block.offset = -8 * eight.iter().sum::<i32>();
        // SAFETY: 32 bytes are writable; the store needs no alignment.
        unsafe {
            _mm256_storeu_si256(
                block.codes.as_mut_ptr().cast(),
                _mm256_permutevar8x32_epi32(packed, order),
            )
        };
    }
}

// ---- Products ----

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn tile_f32<const R: usize, const T: usize>(w: [&[f32]; R], x: [&[f32]; T]) -> [[f32; T]; R] {
    let whole = w[0].len() / LANES;
    let w_chunks = w.map(|w| &w.as_chunks::<LANES>().0[..whole]);
    let x_chunks = x.map(|x| &x.as_chunks::<LANES>().0[..whole]);
    let mut acc = [[_mm256_setzero_ps(); T]; R];
    for c in 0..whole {
        let mut w = [_mm256_setzero_ps(); R];
        for r in 0..R {
            w[r] = load_f32(&w_chunks[r][c]);
        }
        for t in 0..T {
            let x = load_f32(&x_chunks[t][c]);
            for r in 0..R {
                acc[r][t] = _mm256_fmadd_ps(w[r], x, acc[r][t]);
            }
        }
    }
    let mut out = [[0.0; T]; R];
    for r in 0..R {
        for t in 0..T {
            out[r][t] = finish_dot(acc[r][t], &w[r][whole * LANES..], &x[t][whole * LANES..]);
        }
    }
    out
}

/// Adds the products of the last, incomplete group to its lanes and reduces.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn finish_dot(acc: __m256, a: &[f32], b: &[f32]) -> f32 {
    if a.is_empty() {
        return sum(acc);
    }
    let mut l = lanes(acc);
    for ((lane, a), b) in l.iter_mut().zip(a).zip(b) {
        *lane = a.mul_add(*b, *lane);
    }
    reduce(l)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn matmul_f32(w: &[f32], x: &[f32], columns: usize, y: &mut [f32], stride: usize) {
    let row = |r: usize| &w[r * columns..(r + 1) * columns];
    let token = |t: usize| &x[t * columns..(t + 1) * columns];
    cover!(w.len() / columns, x.len() / columns, y, stride, tile_f32, row, token);
}

// ---- Element-wise ----

/// Eight of the specification's `exp`: the same operations.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn exp(x: __m256) -> __m256 {
    use exponential::{LEAST, LN_2_HIGH, LN_2_LOW, MOST, TAYLOR};
    // Of a NaN and a number these give the second operand: NaN stays NaN.
    let x = _mm256_max_ps(_mm256_set1_ps(LEAST), x);
    let x = _mm256_min_ps(_mm256_set1_ps(MOST), x);
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN_2_HIGH), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN_2_LOW), r);
    let mut e = _mm256_set1_ps(TAYLOR[0]);
    for coefficient in &TAYLOR[1..] {
        e = _mm256_fmadd_ps(e, r, _mm256_set1_ps(*coefficient));
    }
    let exponent =
        _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
    _mm256_mul_ps(e, _mm256_castsi256_ps(exponent))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = rms_scale(tile_f32([x], [x])[0][0], x.len(), eps);
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn silu_mul(gate: &mut [f32], up: &[f32]) {
    let (gates, gate_tail) = gate.as_chunks_mut::<LANES>();
    let (ups, up_tail) = up.as_chunks::<LANES>();
    let one = _mm256_set1_ps(1.0);
    for (gate, up) in gates.iter_mut().zip(ups) {
        let g = load_f32(gate);
        let e = exp(_mm256_sub_ps(_mm256_set1_ps(-0.0), g));
        store_f32(_mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(one, e)), load_f32(up)), gate);
    }
    scalar::silu_mul(gate_tail, up_tail);
}
