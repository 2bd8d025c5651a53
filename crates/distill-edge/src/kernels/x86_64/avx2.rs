//! AVX2, FMA and F16C.
//!
//! # The quantised product
//! ```text
//! for each tile of R rows × T tokens:
//!   acc[r][t] = 0 (8 f32 lanes)
//!   for each block of 32 columns:
//!     w[r] = the row's codes as 32 signed bytes; |w[r]|; f32 scale      (once per tile of tokens)
//!     for each token: acc[r][t] += cvt(Σ₄ |w| · sign(a, w)) · (scale_w · scale_a)
//!   y[t][r] = reduce(acc[r][t])
//! ```
//! `maddubs` multiplies unsigned by signed bytes, hence |w| and the sign moved to a: pairs stay
//! below 2·128·127 < 2¹⁵, so nothing saturates and the lane's four products are exact.
//!
//! The tile is 2 × 4 where there are tokens enough (prefill) and 4 × 1 otherwise (decode). Every
//! (row, token) has one accumulator that runs over the columns in order, whatever the tile.

#![allow(unsafe_code)]

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0,
    _mm_and_si128, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_loadu_si128, _mm_prefetch, _mm_set1_epi8,
    _mm_srli_epi16, _mm_storeu_si128, _mm256_abs_epi8, _mm256_add_epi32, _mm256_add_ps,
    _mm256_and_ps, _mm256_broadcastss_ps, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_cvtps_ph,
    _mm256_div_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_ps, _mm256_min_ps,
    _mm256_mul_ps, _mm256_packs_epi16, _mm256_packs_epi32, _mm256_permutevar8x32_epi32,
    _mm256_round_ps, _mm256_set_epi32, _mm256_set_m128i, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8,
    _mm256_slli_epi32, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_epi8, _mm256_sub_ps,
};

use distill_quant::f16;

use super::super::scalar::{self, exponential, reduce, rms_scale};
use super::super::{BLOCK, Codes, Kernels, LANES, Q4_0_BYTES, Q8_0_BYTES};

/// The table, where the CPU has the instructions.
pub(in super::super) fn table() -> Option<&'static Kernels> {
    let runs = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    runs.then_some(&KERNELS)
}

static KERNELS: Kernels = Kernels {
    name: "avx2",
    // SAFETY (all): the table is private to `table`, which hands it out only after it has found
    // the three instruction sets that the functions are compiled for.
    dequantize_q4_0: |bytes, values| unsafe { dequantize_q4_0(bytes, values) },
    dequantize_q8_0: |bytes, values| unsafe { dequantize_q8_0(bytes, values) },
    dequantize_f16: |bytes, values| unsafe { dequantize_f16(bytes, values) },
    to_f16: |values, bits| unsafe { to_f16(values, bits) },
    quantize_activations: |values, codes, scales| unsafe {
        quantize_activations(values, codes, scales)
    },
    matmul_f32: |w, x, columns, y, stride| unsafe { matmul_f32(w, x, columns, y, stride) },
    matmul_q4_0_q8_0: |w, x, columns, y, stride| unsafe { matmul_q4_0(w, x, columns, y, stride) },
    matmul_q8_0_q8_0: |w, x, columns, y, stride| unsafe { matmul_q8_0(w, x, columns, y, stride) },
    attend_f32: |q, k, v, scale, scores, out| unsafe { attend_f32(q, k, v, scale, scores, out) },
    attend_f16: |q, k, v, scale, scores, out| unsafe { attend_f16(q, k, v, scale, scores, out) },
    rms_norm: |x, weight, eps, out| unsafe { rms_norm(x, weight, eps, out) },
    silu_mul: |gate, up| unsafe { silu_mul(gate, up) },
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
fn load_f16(from: &[u16; LANES]) -> __m256 {
    // SAFETY: 16 bytes are readable; the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.as_ptr().cast()) })
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

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_i8(from: &[i8; BLOCK]) -> __m256i {
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// The block's binary16 scale (its first two bytes) in all lanes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn block_scale(low: u8, high: u8) -> __m256 {
    let bits = _mm_cvtsi32_si128(i32::from(u16::from_le_bytes([low, high])));
    _mm256_broadcastss_ps(_mm_cvtph_ps(bits))
}

/// 32 codes − 8 as signed bytes, in element order: low nibbles, then high ones.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn codes_q4_0(block: &[u8; Q4_0_BYTES]) -> __m256i {
    // SAFETY: bytes 2..18 of the 18 are readable; the load needs no alignment.
    let packed: __m128i = unsafe { _mm_loadu_si128(block.as_ptr().add(2).cast()) };
    let nibble = _mm_set1_epi8(15);
    let low = _mm_and_si128(packed, nibble);
    let high = _mm_and_si128(_mm_srli_epi16::<4>(packed), nibble);
    _mm256_sub_epi8(_mm256_set_m128i(high, low), _mm256_set1_epi8(8))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn codes_q8_0(block: &[u8; Q8_0_BYTES]) -> __m256i {
    // SAFETY: bytes 2..34 of the 34 are readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(block.as_ptr().add(2).cast()) }
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

// ---- Dequantising and quantising ----

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn write_scaled(codes: __m256i, scale: __m256, out: &mut [f32; BLOCK]) {
    let mut bytes = [0_i8; BLOCK];
    // SAFETY: 32 bytes are writable; the store needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), codes) };
    for (codes, out) in bytes.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        let eight = _mm_cvtsi64(i64::from_le_bytes(codes.map(|c| c as u8)));
        store_f32(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), scale), out);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn _mm_cvtsi64(value: i64) -> __m128i {
    std::arch::x86_64::_mm_cvtsi64_si128(value)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dequantize_q4_0(bytes: &[u8], values: &mut [f32]) {
    for (block, out) in
        bytes.as_chunks::<Q4_0_BYTES>().0.iter().zip(values.as_chunks_mut::<BLOCK>().0)
    {
        write_scaled(codes_q4_0(block), block_scale(block[0], block[1]), out);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dequantize_q8_0(bytes: &[u8], values: &mut [f32]) {
    for (block, out) in
        bytes.as_chunks::<Q8_0_BYTES>().0.iter().zip(values.as_chunks_mut::<BLOCK>().0)
    {
        write_scaled(codes_q8_0(block), block_scale(block[0], block[1]), out);
    }
}

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
fn quantize_activations(values: &[f32], codes: &mut [i8], scales: &mut [f32]) {
    let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFF_FFFF));
    // packs works within 128-bit halves; this puts the eight groups of four back in order.
    let order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
    let blocks = values.as_chunks::<BLOCK>().0.iter();
    for ((block, codes), scale) in blocks.zip(codes.as_chunks_mut::<BLOCK>().0).zip(scales) {
        let parts = block.as_chunks::<LANES>().0;
        let x =
            [load_f32(&parts[0]), load_f32(&parts[1]), load_f32(&parts[2]), load_f32(&parts[3])];
        let a = x.map(|x| _mm256_and_ps(x, magnitude));
        let largest = lanes(_mm256_max_ps(_mm256_max_ps(a[0], a[1]), _mm256_max_ps(a[2], a[3])));
        let d = largest.iter().fold(0.0_f32, |m, &v| m.max(v)) / 127.0;
        if d < f32::MIN_POSITIVE {
            *scale = 0.0;
            codes.fill(0);
            continue;
        }
        *scale = d;
        let reciprocal = _mm256_set1_ps(1.0 / d);
        let i = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, reciprocal)));
        let packed =
            _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
        // SAFETY: 32 bytes are writable; the store needs no alignment.
        unsafe {
            _mm256_storeu_si256(
                codes.as_mut_ptr().cast(),
                _mm256_permutevar8x32_epi32(packed, order),
            )
        };
    }
}

// ---- Products ----

/// Writes a tile: `y[(t + j) * stride + r + i] = acc[i][j]`.
macro_rules! write_tile {
    ($tile:expr, $y:expr, $stride:expr, $r:expr, $t:expr) => {
        for (i, row) in $tile.into_iter().enumerate() {
            for (j, value) in row.into_iter().enumerate() {
                $y[($t + j) * $stride + $r + i] = value;
            }
        }
    };
}

/// Covers [rows, tokens] with tiles of 2 × 4, 4 × 1 and 1 × 1.
macro_rules! cover {
    ($rows:expr, $tokens:expr, $y:expr, $stride:expr, $tile:ident, $row:expr, $token:expr) => {{
        let (rows, tokens) = ($rows, $tokens);
        let quads = tokens / 4 * 4;
        let mut r = 0;
        while r < rows {
            let pair = r + 2 <= rows;
            for t in (0..quads).step_by(4) {
                let x = [$token(t), $token(t + 1), $token(t + 2), $token(t + 3)];
                if pair {
                    write_tile!($tile::<2, 4>([$row(r), $row(r + 1)], x), $y, $stride, r, t);
                } else {
                    write_tile!($tile::<1, 4>([$row(r)], x), $y, $stride, r, t);
                }
            }
            r += 2;
        }
        for t in quads..tokens {
            let mut r = 0;
            while r + 4 <= rows {
                let w = [$row(r), $row(r + 1), $row(r + 2), $row(r + 3)];
                write_tile!($tile::<4, 1>(w, [$token(t)]), $y, $stride, r, t);
                r += 4;
            }
            while r < rows {
                write_tile!($tile::<1, 1>([$row(r)], [$token(t)]), $y, $stride, r, t);
                r += 1;
            }
        }
    }};
}

/// Asks for the cache lines of one step of the next tile, whose rows follow this tile's: decoding
/// reads every weight once, and the hardware alone fetches too late.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn prefetch(tile: *const i8, offset: usize, bytes: usize) {
    let from = tile.wrapping_add(offset);
    for line in 0..bytes.div_ceil(64) {
        // A prefetch may name any address, even one that is not mapped.
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(64 * line));
    }
}

/// One token's codes and scales, by block.
type Token<'a> = (&'a [[i8; BLOCK]], &'a [f32]);

macro_rules! quantized_product {
    ($matmul:ident, $tile:ident, $bytes:ident, $codes:ident) => {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline]
        fn $tile<const R: usize, const T: usize>(
            w: [&[[u8; $bytes]]; R],
            x: [Token<'_>; T],
        ) -> [[f32; T]; R] {
            let blocks = w[0].len();
            let w = w.map(|w| &w[..blocks]);
            let x = x.map(|(codes, scales)| (&codes[..blocks], &scales[..blocks]));
            let ones = _mm256_set1_epi16(1);
            let zero = _mm256_setzero_si256();
            let mut acc = [[_mm256_setzero_ps(); T]; R];
            for b in 0..blocks {
                prefetch(w[0].as_ptr().cast(), (blocks + b) * R * $bytes, R * $bytes);
                let (mut codes, mut magnitudes, mut scales) =
                    ([zero; R], [zero; R], [_mm256_setzero_ps(); R]);
                for r in 0..R {
                    codes[r] = $codes(&w[r][b]);
                    magnitudes[r] = _mm256_abs_epi8(codes[r]);
                    scales[r] = block_scale(w[r][b][0], w[r][b][1]);
                }
                for t in 0..T {
                    let a = load_i8(&x[t].0[b]);
                    let a_scale = _mm256_set1_ps(x[t].1[b]);
                    for r in 0..R {
                        let pairs =
                            _mm256_maddubs_epi16(magnitudes[r], _mm256_sign_epi8(a, codes[r]));
                        let fours = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
                        acc[r][t] =
                            _mm256_fmadd_ps(fours, _mm256_mul_ps(scales[r], a_scale), acc[r][t]);
                    }
                }
            }
            let mut out = [[0.0; T]; R];
            for r in 0..R {
                for t in 0..T {
                    out[r][t] = sum(acc[r][t]);
                }
            }
            out
        }

        #[target_feature(enable = "avx2,fma,f16c")]
        fn $matmul(w: &[u8], x: Codes<'_>, columns: usize, y: &mut [f32], stride: usize) {
            let blocks = columns / BLOCK;
            let w = w.as_chunks::<$bytes>().0;
            let codes = x.codes.as_chunks::<BLOCK>().0;
            let row = |r: usize| &w[r * blocks..(r + 1) * blocks];
            let token = |t: usize| {
                (&codes[t * blocks..(t + 1) * blocks], &x.scales[t * blocks..(t + 1) * blocks])
            };
            cover!(w.len() / blocks, codes.len() / blocks, y, stride, $tile, row, token);
        }
    };
}

quantized_product!(matmul_q4_0, tile_q4_0, Q4_0_BYTES, codes_q4_0);
quantized_product!(matmul_q8_0, tile_q8_0, Q8_0_BYTES, codes_q8_0);

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

// ---- Attention ----

macro_rules! attention {
    ($attend:ident, $average:ident, $element:ty, $load:ident, $value:expr) => {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn $attend(
            q: &[f32],
            k: &[$element],
            v: &[$element],
            scale: f32,
            scores: &mut [f32],
            out: &mut [f32],
        ) {
            let head_dim = q.len();
            let (q_chunks, q_tail) = q.as_chunks::<LANES>();
            let mut max = f32::NEG_INFINITY;
            for (score, k) in scores.iter_mut().zip(k.chunks_exact(head_dim)) {
                let (k_chunks, k_tail) = k.as_chunks::<LANES>();
                let mut acc = _mm256_setzero_ps();
                for (q, k) in q_chunks.iter().zip(k_chunks) {
                    acc = _mm256_fmadd_ps(load_f32(q), $load(k), acc);
                }
                let mut tail = [0.0; LANES];
                for (tail, k) in tail.iter_mut().zip(k_tail) {
                    *tail = $value(*k);
                }
                *score = finish_dot(acc, q_tail, &tail[..q_tail.len()]) * scale;
                max = max.max(*score);
            }
            let normalise = 1.0 / exp_all(scores, max);
            let mut from = 0;
            while from + 8 * LANES <= head_dim {
                $average::<8>(scores, v, head_dim, from, normalise, out);
                from += 8 * LANES;
            }
            while from + LANES <= head_dim {
                $average::<1>(scores, v, head_dim, from, normalise, out);
                from += LANES;
            }
            for d in from..head_dim {
                let mut sum = 0.0_f32;
                for (weight, v) in scores.iter().zip(v.chunks_exact(head_dim)) {
                    sum = weight.mul_add($value(v[d]), sum);
                }
                out[d] = sum * normalise;
            }
        }

        /// `out[from..from + 8 N] = Σ_p scores[p] · v[p, from..] · normalise`, kept in N registers.
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline]
        fn $average<const N: usize>(
            scores: &[f32],
            v: &[$element],
            head_dim: usize,
            from: usize,
            normalise: f32,
            out: &mut [f32],
        ) {
            let mut acc = [_mm256_setzero_ps(); N];
            for (weight, v) in scores.iter().zip(v.chunks_exact(head_dim)) {
                let weight = _mm256_set1_ps(*weight);
                let v = &v.as_chunks::<LANES>().0[from / LANES..from / LANES + N];
                for i in 0..N {
                    acc[i] = _mm256_fmadd_ps(weight, $load(&v[i]), acc[i]);
                }
            }
            let out = &mut out.as_chunks_mut::<LANES>().0[from / LANES..from / LANES + N];
            for i in 0..N {
                store_f32(_mm256_mul_ps(acc[i], _mm256_set1_ps(normalise)), &mut out[i]);
            }
        }
    };
}

attention!(attend_f32, average_f32, f32, load_f32, |x: f32| x);
attention!(attend_f16, average_f16, u16, load_f16, f16::to_f32);

/// Replaces each score by e^(score − max) and returns their sum, by lanes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn exp_all(scores: &mut [f32], max: f32) -> f32 {
    let (chunks, tail) = scores.as_chunks_mut::<LANES>();
    let mut total = _mm256_setzero_ps();
    for chunk in chunks {
        let e = exp(_mm256_sub_ps(load_f32(chunk), _mm256_set1_ps(max)));
        store_f32(e, chunk);
        total = _mm256_add_ps(total, e);
    }
    let mut total = lanes(total);
    for (score, lane) in tail.iter_mut().zip(&mut total) {
        *score = scalar::exp(*score - max);
        *lane += *score;
    }
    reduce(total)
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

#[cfg(test)]
mod tests {
    use super::*;
    use distill_quant::{q4_0, q8_0};

    /// Values of very different sizes, with zeros, the same for the same seed.
    fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..n)
            .map(|i| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let unit = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
                if i % 97 == 13 { 0.0 } else { unit * [1.0, 3.0, 0.1][i / 32 % 3] }
            })
            .collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    fn avx2() -> &'static Kernels {
        table().expect("this test needs a CPU with AVX2, FMA and F16C")
    }

    const LENGTHS: [usize; 12] = [1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 128, 200];

    #[test]
    fn float_products_equal_the_specification_bit_for_bit_at_every_shape() {
        for columns in LENGTHS {
            for (rows, tokens) in [(1, 1), (2, 4), (3, 5), (4, 1), (5, 3), (7, 9), (8, 8)] {
                let (w, x) = (values(rows * columns, 1), values(tokens * columns, 2));
                let stride = rows + 3;
                let (mut want, mut got) = (vec![7.0; tokens * stride], vec![7.0; tokens * stride]);
                (scalar::KERNELS.matmul_f32)(&w, &x, columns, &mut want, stride);
                (avx2().matmul_f32)(&w, &x, columns, &mut got, stride);
                assert_eq!(bits(&got), bits(&want), "{rows} × {tokens} × {columns}");
            }
        }
    }

    #[test]
    fn integer_products_equal_the_specification_bit_for_bit_at_every_shape() {
        for blocks in [1, 2, 3, 7, 18, 48] {
            let columns = blocks * BLOCK;
            for (rows, tokens) in [(1, 1), (2, 4), (3, 5), (4, 1), (5, 3), (7, 9)] {
                let mut x = values(tokens * columns, 3);
                x[..BLOCK].fill(0.0);
                let (mut codes, mut scales) = (vec![0; x.len()], vec![0.0; x.len() / BLOCK]);
                scalar::quantize_activations(&x, &mut codes, &mut scales);
                let x = Codes { codes: &codes, scales: &scales };
                let w = values(rows * columns, 4);
                let mut q4 = vec![0; w.len() / BLOCK * Q4_0_BYTES];
                let mut q8 = vec![0; w.len() / BLOCK * Q8_0_BYTES];
                q4_0::quantize_row(&w, &mut q4);
                q8_0::quantize_row(&w, &mut q8);
                let stride = rows + 1;
                let (mut want, mut got) = (vec![7.0; tokens * stride], vec![7.0; tokens * stride]);
                (scalar::KERNELS.matmul_q4_0_q8_0)(&q4, x, columns, &mut want, stride);
                (avx2().matmul_q4_0_q8_0)(&q4, x, columns, &mut got, stride);
                assert_eq!(bits(&got), bits(&want), "q4_0 {rows} × {tokens} × {columns}");
                (scalar::KERNELS.matmul_q8_0_q8_0)(&q8, x, columns, &mut want, stride);
                (avx2().matmul_q8_0_q8_0)(&q8, x, columns, &mut got, stride);
                assert_eq!(bits(&got), bits(&want), "q8_0 {rows} × {tokens} × {columns}");
            }
        }
    }

    #[test]
    fn the_largest_codes_do_not_overflow() {
        // −128 never comes from our quantiser, but a file may hold it.
        for weight in [-128_i8, 127] {
            for activation in [-127_i8, 127] {
                let mut block = vec![0, 0x3C];
                block.extend([weight as u8; BLOCK]);
                let x = Codes { codes: &[activation; BLOCK], scales: &[1.0] };
                let mut y = [0.0];
                (avx2().matmul_q8_0_q8_0)(&block, x, BLOCK, &mut y, 1);
                assert_eq!(y[0], 32.0 * f32::from(weight) * f32::from(activation));
            }
        }
    }

    #[test]
    fn dequantising_equals_the_specification_for_every_byte() {
        let bytes: Vec<u8> = (0..18 * 34 * 4).map(|i| (i * 7 % 256) as u8).collect();
        let finite = |mut bytes: Vec<u8>, block: usize| {
            // A scale of exponent 31 would be infinite or NaN.
            bytes.iter_mut().skip(1).step_by(block).for_each(|high| *high &= 0xBB);
            bytes
        };
        let check =
            |fast: fn(&[u8], &mut [f32]), plain: fn(&[u8], &mut [f32]), bytes: &[u8], n: usize| {
                let (mut want, mut got) = (vec![0.0; n], vec![0.0; n]);
                plain(bytes, &mut want);
                fast(bytes, &mut got);
                assert_eq!(bits(&got), bits(&want));
            };
        let q4 = finite(bytes.clone(), 18);
        check(avx2().dequantize_q4_0, q4_0::dequantize, &q4, q4.len() / 18 * 32);
        let q8 = finite(bytes, 34);
        check(avx2().dequantize_q8_0, q8_0::dequantize, &q8, q8.len() / 34 * 32);
        let halves: Vec<u8> =
            (0..=u16::MAX).filter(|b| b & 0x7C00 != 0x7C00).flat_map(u16::to_le_bytes).collect();
        check(avx2().dequantize_f16, f16::dequantize, &halves[2..], halves.len() / 2 - 1);
    }

    #[test]
    fn narrowing_to_binary16_equals_the_specification() {
        let mut x = values(1003, 5);
        x.extend([65504.0, 65519.9, 65520.0, -1e30, 1e-8, 5.97e-8, -0.0, 6.1e-5]);
        let (mut want, mut got) = (vec![0; x.len()], vec![0; x.len()]);
        (scalar::KERNELS.to_f16)(&x, &mut want);
        (avx2().to_f16)(&x, &mut got);
        assert_eq!(got, want);
    }

    #[test]
    fn activation_quantising_equals_the_specification_bit_for_bit() {
        let mut x = values(32 * 50, 6);
        x[..32].fill(0.0);
        x[32..64].fill(1e-39);
        x[64..96].fill(-3.0e38);
        // Ties: with an absmax of 127 the scale is 1, and halves round to even.
        for (i, x) in x[96..128].iter_mut().enumerate() {
            *x = if i == 5 { -127.0 } else { i as f32 - 15.5 };
        }
        let (mut codes, mut scales) = (vec![1; x.len()], vec![1.0; x.len() / BLOCK]);
        let (mut want_codes, mut want_scales) = (codes.clone(), scales.clone());
        scalar::quantize_activations(&x, &mut want_codes, &mut want_scales);
        (avx2().quantize_activations)(&x, &mut codes, &mut scales);
        assert_eq!((codes, bits(&scales)), (want_codes, bits(&want_scales)));
    }

    #[test]
    fn attention_equals_the_specification_bit_for_bit() {
        for head_dim in [4, 8, 20, 64, 72, 128, 136] {
            for positions in [1, 3, 8, 9, 40] {
                let q = values(head_dim, 7);
                let (k, v) = (values(positions * head_dim, 8), values(positions * head_dim, 9));
                let run = |kernels: &Kernels| {
                    let (mut scores, mut out) = (vec![0.0; positions], vec![0.0; head_dim]);
                    (kernels.attend_f32)(&q, &k, &v, 0.5, &mut scores, &mut out);
                    let (mut k16, mut v16) = (vec![0; k.len()], vec![0; v.len()]);
                    (kernels.to_f16)(&k, &mut k16);
                    (kernels.to_f16)(&v, &mut v16);
                    let mut out16 = vec![0.0; head_dim];
                    (kernels.attend_f16)(&q, &k16, &v16, 0.5, &mut scores, &mut out16);
                    (bits(&out), bits(&out16))
                };
                assert_eq!(run(avx2()), run(&scalar::KERNELS), "{head_dim} × {positions}");
            }
        }
    }

    #[test]
    fn norm_and_silu_equal_the_specification_bit_for_bit() {
        for n in LENGTHS {
            let (x, w) = (values(n, 10), values(n, 11));
            let run = |kernels: &Kernels| {
                let mut out = vec![0.0; n];
                (kernels.rms_norm)(&x, &w, 1e-5, &mut out);
                let mut gate: Vec<f32> = x.iter().map(|x| x * 40.0).collect();
                (kernels.silu_mul)(&mut gate, &w);
                (bits(&out), bits(&gate))
            };
            assert_eq!(run(avx2()), run(&scalar::KERNELS), "{n}");
        }
    }
}
