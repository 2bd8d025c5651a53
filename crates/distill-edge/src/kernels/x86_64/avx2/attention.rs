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
    __m256, _CMP_LT_OQ, _MM_HINT_T1, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch, _mm256_add_ps,
    _mm256_and_ps, _mm256_blendv_ps, _mm256_cmp_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_max_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setr_ps,
    _mm256_setzero_ps, _mm256_sub_ps,
};

use super::super::super::attention::Tile;
use super::super::super::scalar::{self, reduce_positions};
use super::super::super::{BLOCK, CHUNK, Cached, Element, LANES, POSITIONS, Queries, Total};
use super::{exp, lanes, load_f32, store_f32};

/// Blocks ahead whose keys are asked for.
const AHEAD: usize = 4;

/// An element of the cache that this instruction set widens eight at a time.
trait Load: Element {
    /// Bytes of an element in a record, with its share of their scales.
    const STRIDE: usize = if Self::SCALED { 17 } else { POSITIONS * size_of::<Self>() };

    /// # Safety
    /// The CPU must have AVX2, FMA and F16C.
    unsafe fn load(from: &[Self; LANES]) -> __m256;

    /// Eight scales in as many bytes.
    ///
    /// # Safety
    /// The CPU must have AVX2, FMA and F16C.
    unsafe fn scales(_: &[Self; 2 * LANES]) -> __m256 {
        unreachable!("elements that are not codes have no scales")
    }
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

impl Load for i8 {
    #[inline(always)]
    unsafe fn load(from: &[Self; LANES]) -> __m256 {
        // SAFETY: the caller's; 8 bytes are readable and the load needs no alignment.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    unsafe fn scales(from: &[Self; 2 * LANES]) -> __m256 {
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
pub fn attend_q8_0(queries: Queries<'_>, cached: Cached<'_, i8>) {
    attend(queries, cached);
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn attend<T: Load>(queries: Queries<'_>, cached: Cached<'_, T>) {
    let (head_dim, scale) = (queries.head_dim(), queries.scale);
    if head_dim < 2 * LANES {
        return scalar::attend(queries, cached);
    }
    let mut first = true;
    queries.by_tiles(&[4, 3, 2, 1], |tile| {
        match tile.seen.len() {
            1 => attend_tile::<1, T>(tile, head_dim, scale, cached, first),
            2 => attend_tile::<2, T>(tile, head_dim, scale, cached, first),
            3 => attend_tile::<3, T>(tile, head_dim, scale, cached, first),
            _ => attend_tile::<4, T>(tile, head_dim, scale, cached, first),
        }
        first = false;
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn attend_tile<const Q: usize, T: Load>(
    tile: Tile<'_>,
    head_dim: usize,
    scale: f32,
    cached: Cached<'_, T>,
    first: bool,
) {
    let Tile { queries, seen, weights, totals, mixed, furthest, .. } = tile;
    scores::<Q, T>(queries, cached, furthest, head_dim, weights, first);
    for ((weights, &seen), total) in weights.iter_mut().zip(seen).zip(totals) {
        *total = softmax(weights, seen as usize, furthest, scale);
    }
    mix::<Q, T>(weights, cached.values, furthest, head_dim, mixed, first);
}

/// Scores of whole blocks of 16 positions, as many as cover `positions`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scores<const Q: usize, T: Load>(
    queries: &[f32],
    Cached { keys, values }: Cached<'_, T>,
    positions: usize,
    head_dim: usize,
    weights: &mut [[f32; CHUNK]],
    first: bool,
) {
    let query: [&[f32]; Q] = std::array::from_fn(|q| &queries[q * head_dim..][..head_dim]);
    let records = keys.chunks_exact(T::record(head_dim)).take(positions.div_ceil(POSITIONS));
    for (b, record) in records.enumerate() {
        // What comes is asked for ahead, once for all tiles, for the hardware alone stops at each
        // page: the keys of later blocks, and the values of these, which take as many bytes. Any
        // address may be named.
        let ahead = match first {
            true => [
                record.as_ptr().wrapping_add(AHEAD * record.len()).cast::<i8>(),
                values.as_ptr().wrapping_add(b * record.len()).cast(),
            ],
            // What is here already costs nothing.
            false => [record.as_ptr().cast(); 2],
        };
        let (block, scales) = record.split_at(head_dim * POSITIONS);
        let mut acc = [[_mm256_setzero_ps(); 2]; Q];
        if T::SCALED {
            let scales = scales.as_chunks::<{ 2 * LANES }>().0.chunks_exact(2);
            let blocks = block.chunks_exact(BLOCK * POSITIONS);
            for (n, (block, scales)) in blocks.zip(scales).enumerate() {
                let ahead = ahead.map(|ahead| ahead.wrapping_add(n * BLOCK * T::STRIDE));
                let query = query.map(|query| &query[n * BLOCK..][..BLOCK]);
                let sums = products(query, block, ahead);
                for i in 0..2 {
                    // SAFETY: this function has the features that the load needs.
                    let scale = unsafe { T::scales(&scales[i]) };
                    for q in 0..Q {
                        acc[q][i] = _mm256_fmadd_ps(sums[q][i], scale, acc[q][i]);
                    }
                }
            }
        } else {
            acc = products(query, block, ahead);
        }
        for q in 0..Q {
            let out = weights[q][b * POSITIONS..][..POSITIONS].as_chunks_mut::<LANES>().0;
            store_f32(acc[q][0], &mut out[0]);
            store_f32(acc[q][1], &mut out[1]);
        }
    }
}

/// The sums of some elements of sixteen keys times those of the queries.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn products<const Q: usize, T: Load>(
    query: [&[f32]; Q],
    keys: &[T],
    ahead: [*const i8; 2],
) -> [[__m256; 2]; Q] {
    // Lengths that the compiler can see, so that the loop checks none.
    let count = keys.len() / POSITIONS;
    let query = query.map(|query| &query[..count]);
    let mut acc = [[_mm256_setzero_ps(); 2]; Q];
    for (d, keys) in keys.as_chunks::<LANES>().0.chunks_exact(2).take(count).enumerate() {
        for ahead in ahead {
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(d * T::STRIDE));
        }
        // SAFETY: this function has the features that the load needs.
        let keys = unsafe { [T::load(&keys[0]), T::load(&keys[1])] };
        for q in 0..Q {
            let element = _mm256_set1_ps(query[q][d]);
            acc[q][0] = _mm256_fmadd_ps(element, keys[0], acc[q][0]);
            acc[q][1] = _mm256_fmadd_ps(element, keys[1], acc[q][1]);
        }
    }
    acc
}

/// Turns the first `seen` scores into weights, and the rest up to `furthest` into zeros.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
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
    first: bool,
) {
    // What follows in memory are the keys of the next head; what is here already costs nothing.
    let ends = values.as_ptr_range();
    let mut next = if first { ends.end } else { ends.start }.cast::<i8>();
    let weights: &[[f32; CHUNK]; Q] = weights.first_chunk().expect("a row of weights a query");
    // Positions that are taken in one loop: with scales those of a record.
    let (group, record) = match T::SCALED {
        true => (POSITIONS, T::record(head_dim)),
        false => (CHUNK, CHUNK * head_dim),
    };
    let mut from = 0;
    while from < head_dim {
        // The last vectors may overlap those before: the same sums once more.
        let start = from.min(head_dim - 2 * LANES);
        let mut acc = [[_mm256_setzero_ps(); 2]; Q];
        for (g, values) in values.chunks(record).enumerate().take(positions.div_ceil(group)) {
            // The weights times the scales of the block of 32 elements.
            let mut scaled = [[0.0; POSITIONS]; Q];
            if T::SCALED {
                let scales = &values[group * head_dim + start / BLOCK * 2 * POSITIONS..];
                let scales = &scales.as_chunks::<{ 2 * LANES }>().0[..2];
                // SAFETY: this function has the features that the loads need.
                let scales = unsafe { [T::scales(&scales[0]), T::scales(&scales[1])] };
                for q in 0..Q {
                    let weights = &weights[q].as_chunks::<LANES>().0[2 * g..2 * g + 2];
                    let out = scaled[q].as_chunks_mut::<LANES>().0;
                    for i in 0..2 {
                        store_f32(_mm256_mul_ps(load_f32(&weights[i]), scales[i]), &mut out[i]);
                    }
                }
            }
            let values = values.chunks_exact(head_dim);
            for (p, values) in values.enumerate().take(group.min(positions - g * group)) {
                _mm_prefetch::<_MM_HINT_T1>(next);
                next = next.wrapping_add(2 * LANES);
                let values = values[start..start + 2 * LANES].as_chunks::<LANES>().0;
                // SAFETY: this function has the features that the load needs.
                let values = unsafe { [T::load(&values[0]), T::load(&values[1])] };
                for q in 0..Q {
                    let factor = _mm256_set1_ps(match T::SCALED {
                        true => scaled[q][p % POSITIONS],
                        false => weights[q][p % CHUNK],
                    });
                    acc[q][0] = _mm256_fmadd_ps(factor, values[0], acc[q][0]);
                    acc[q][1] = _mm256_fmadd_ps(factor, values[1], acc[q][1]);
                }
            }
        }
        for q in 0..Q {
            let out = mixed[q * head_dim + start..][..2 * LANES].as_chunks_mut::<LANES>().0;
            store_f32(acc[q][0], &mut out[0]);
            store_f32(acc[q][1], &mut out[1]);
        }
        from += 2 * LANES;
    }
}
