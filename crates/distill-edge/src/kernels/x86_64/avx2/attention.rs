//! Attention over one chunk of the cache.
//!
//! ```text
//! scores   tile of Q queries × 16 positions:  for d: key lanes (16 positions) · broadcast q[d]
//! softmax  each query: scale, largest, e^(score − largest), lane sums
//! values   tile of Q queries × 16 elements:   for p: value lanes (16 elements) · broadcast w[p]
//! ```
//! Each tile keeps Q · 2 accumulators in registers and loads (and widens) a key or value once for
//! all its queries. Queries of a tile may see different numbers of positions: scores beyond are
//! computed and thrown away, weights beyond are zero, which adds nothing.

use std::arch::x86_64::{
    __m256, _CMP_LT_OQ, _mm_loadu_si128, _mm256_add_ps, _mm256_and_ps, _mm256_blendv_ps,
    _mm256_cmp_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_max_ps, _mm256_mul_ps, _mm256_set1_ps,
    _mm256_setr_ps, _mm256_setzero_ps, _mm256_sub_ps,
};

use super::super::super::attention::Tile;
use super::super::super::scalar::{Element, reduce_positions};
use super::super::super::{CHUNK, Cached, LANES, POSITIONS, Queries, Total};
use super::{exp, lanes, load_f32, store_f32};

/// An element of the cache that this instruction set widens eight at a time.
trait Load: Element {
    /// # Safety
    /// The CPU must have AVX2, FMA and F16C.
    unsafe fn load(from: &[Self; LANES]) -> __m256;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load(from: &[Self; LANES]) -> __m256 {
        // SAFETY: the caller's.
        unsafe { load_f32(from) }
    }
}

impl Load for u16 {
    #[inline(always)]
    unsafe fn load(from: &[Self; LANES]) -> __m256 {
        // SAFETY: the caller's; 16 bytes are readable and the load needs no alignment.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn attend_f32(queries: Queries<'_>, cached: Cached<'_, f32>) {
    attend(queries, cached);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn attend_f16(queries: Queries<'_>, cached: Cached<'_, u16>) {
    attend(queries, cached);
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn attend<T: Load>(queries: Queries<'_>, cached: Cached<'_, T>) {
    let (head_dim, scale) = (queries.head_dim(), queries.scale);
    queries.by_tiles(&[4, 3, 2, 1], |tile| match tile.seen.len() {
        1 => attend_tile::<1, T>(tile, head_dim, scale, cached),
        2 => attend_tile::<2, T>(tile, head_dim, scale, cached),
        3 => attend_tile::<3, T>(tile, head_dim, scale, cached),
        _ => attend_tile::<4, T>(tile, head_dim, scale, cached),
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn attend_tile<const Q: usize, T: Load>(
    tile: Tile<'_>,
    head_dim: usize,
    scale: f32,
    cached: Cached<'_, T>,
) {
    let Tile { queries, seen, weights, totals, mixed, furthest, .. } = tile;
    scores::<Q, T>(queries, cached.keys, furthest, head_dim, weights);
    for ((weights, &seen), total) in weights.iter_mut().zip(seen).zip(totals) {
        *total = softmax(weights, seen as usize, furthest, scale);
    }
    mix::<Q, T>(weights, cached.values, furthest, head_dim, mixed);
}

/// Scores of whole blocks of 16 positions, as many as cover `positions`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scores<const Q: usize, T: Load>(
    queries: &[f32],
    keys: &[T],
    positions: usize,
    head_dim: usize,
    weights: &mut [[f32; CHUNK]],
) {
    let query: [&[f32]; Q] = std::array::from_fn(|q| &queries[q * head_dim..][..head_dim]);
    let query = query.map(|query| &query[..head_dim]);
    let blocks = keys.chunks_exact(head_dim * POSITIONS).take(positions.div_ceil(POSITIONS));
    for (b, block) in blocks.enumerate() {
        let mut acc = [[_mm256_setzero_ps(); 2]; Q];
        for (d, keys) in block.as_chunks::<LANES>().0.chunks_exact(2).enumerate() {
            // SAFETY: this function has the features that the load needs.
            let keys = unsafe { [T::load(&keys[0]), T::load(&keys[1])] };
            for q in 0..Q {
                let element = _mm256_set1_ps(query[q][d]);
                acc[q][0] = _mm256_fmadd_ps(element, keys[0], acc[q][0]);
                acc[q][1] = _mm256_fmadd_ps(element, keys[1], acc[q][1]);
            }
        }
        for q in 0..Q {
            let out = weights[q][b * POSITIONS..][..POSITIONS].as_chunks_mut::<LANES>().0;
            store_f32(acc[q][0], &mut out[0]);
            store_f32(acc[q][1], &mut out[1]);
        }
    }
}

/// Turns the first `seen` scores into weights, and the rest up to `furthest` into zeros.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn softmax(weights: &mut [f32; CHUNK], seen: usize, furthest: usize, scale: f32) -> Total {
    let scale = _mm256_set1_ps(scale);
    let vectors = &mut weights.as_chunks_mut::<LANES>().0[..furthest.div_ceil(LANES)];
    let index = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
    let is_seen = |v: usize| {
        let left = _mm256_set1_ps(seen as f32 - (v * LANES) as f32);
        _mm256_cmp_ps::<_CMP_LT_OQ>(index, left)
    };
    let lowest = _mm256_set1_ps(f32::NEG_INFINITY);
    let mut largest = lowest;
    for (v, vector) in vectors.iter_mut().enumerate() {
        let score = _mm256_mul_ps(load_f32(vector), scale);
        store_f32(score, vector);
        largest = _mm256_max_ps(largest, _mm256_blendv_ps(lowest, score, is_seen(v)));
    }
    let largest = lanes(largest).iter().fold(f32::NEG_INFINITY, |most, &score| most.max(score));
    let mut sums = [_mm256_setzero_ps(); 2];
    for (v, vector) in vectors.iter_mut().enumerate() {
        let weight = exp(_mm256_sub_ps(load_f32(vector), _mm256_set1_ps(largest)));
        let weight = _mm256_and_ps(weight, is_seen(v));
        store_f32(weight, vector);
        sums[v % 2] = _mm256_add_ps(sums[v % 2], weight);
    }
    let mut all = [0.0; POSITIONS];
    for (all, sums) in all.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
        store_f32(sums, all);
    }
    Total { largest, sum: reduce_positions(all) }
}

/// `mixed[q] = Σ_p weights[q][p] · values[p]`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn mix<const Q: usize, T: Load>(
    weights: &[[f32; CHUNK]],
    values: &[T],
    positions: usize,
    head_dim: usize,
    mixed: &mut [f32],
) {
    let weights: [&[f32]; Q] = std::array::from_fn(|q| &weights[q][..positions]);
    let mut from = 0;
    while from + 2 * LANES <= head_dim {
        let mut acc = [[_mm256_setzero_ps(); 2]; Q];
        for (p, values) in values.chunks_exact(head_dim).take(positions).enumerate() {
            let values = values[from..from + 2 * LANES].as_chunks::<LANES>().0;
            // SAFETY: this function has the features that the load needs.
            let values = unsafe { [T::load(&values[0]), T::load(&values[1])] };
            for q in 0..Q {
                let weight = _mm256_set1_ps(weights[q][p]);
                acc[q][0] = _mm256_fmadd_ps(weight, values[0], acc[q][0]);
                acc[q][1] = _mm256_fmadd_ps(weight, values[1], acc[q][1]);
            }
        }
        for q in 0..Q {
            let out = mixed[q * head_dim + from..][..2 * LANES].as_chunks_mut::<LANES>().0;
            store_f32(acc[q][0], &mut out[0]);
            store_f32(acc[q][1], &mut out[1]);
        }
        from += 2 * LANES;
    }
    for d in from..head_dim {
        for q in 0..Q {
            let mut sum = 0.0_f32;
            for (weight, values) in weights[q].iter().zip(values.chunks_exact(head_dim)) {
                sum = weight.mul_add(values[d].value(), sum);
            }
            mixed[q * head_dim + d] = sum;
        }
    }
}
