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
mod tests;
