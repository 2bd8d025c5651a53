//! Attention over one chunk of the cache.
//!
//! ```text
//! scores   tile of Q queries × 16 positions:  for d: key lanes (16 positions) · broadcast q[d]
//! softmax  each query: scale, largest, e^(score − largest), lane sums
//! values   tile of Q queries × 16 elements:   for p: value lanes (16 elements) · broadcast w[p]
//! ```
//! Each tile keeps Q · 4 accumulators in registers and loads (and widens) a key or value once for
//! all its queries. Queries of a tile may see different numbers of positions: scores beyond are
//! computed and thrown away, weights beyond are zero, which adds nothing.

use std::arch::aarch64::{
    float32x4_t, uint32x4_t, vaddq_f32, vandq_u32, vbslq_f32, vcltq_u32, vcvtq_f32_s32,
    vdupq_n_f32, vdupq_n_u32, vfmaq_n_f32, vget_low_s16, vld1_s8, vld1q_s8, vld1q_u32, vmaxq_f32,
    vmaxvq_f32, vmovl_high_s16, vmovl_s8, vmovl_s16, vmulq_f32, vmulq_n_f32, vreinterpretq_f32_u32,
    vreinterpretq_u16_s8, vreinterpretq_u32_f32, vsubq_f32,
};

use super::super::super::attention::Tile;
use super::super::super::scalar::{self, reduce_positions};
use super::super::super::{BLOCK, CHUNK, Cached, Element, LANES, POSITIONS, Queries, Total};
use super::{Eight, exp, fma, load_f16, load_f32, store_f32, widen, zero};

/// An element of the cache that this instruction set widens eight at a time.
trait Load: Element {
    /// # Safety
    /// The CPU must have NEON.
    unsafe fn load(from: &[Self; LANES]) -> Eight;

    /// Eight scales in as many bytes.
    ///
    /// # Safety
    /// The CPU must have NEON.
    unsafe fn scales(_: &[Self; 2 * LANES]) -> Eight {
        unreachable!("elements that are not codes have no scales")
    }
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load(from: &[Self; LANES]) -> Eight {
        // SAFETY: the caller's.
        unsafe { load_f32(from) }
    }
}

impl Load for u16 {
    #[inline(always)]
    unsafe fn load(from: &[Self; LANES]) -> Eight {
        // SAFETY: the caller's.
        unsafe { load_f16(from) }
    }
}

impl Load for i8 {
    #[inline(always)]
    unsafe fn load(from: &[Self; LANES]) -> Eight {
        // SAFETY: the caller's; 8 bytes are readable and the load needs no alignment.
        unsafe {
            let codes = vmovl_s8(vld1_s8(from.as_ptr()));
            let [low, high] = [vmovl_s16(vget_low_s16(codes)), vmovl_high_s16(codes)];
            [vcvtq_f32_s32(low), vcvtq_f32_s32(high)]
        }
    }

    #[inline(always)]
    unsafe fn scales(from: &[Self; 2 * LANES]) -> Eight {
        // SAFETY: the caller's; 16 bytes are readable and the load needs no alignment.
        unsafe { widen(vreinterpretq_u16_s8(vld1q_s8(from.as_ptr()))) }
    }
}

#[target_feature(enable = "neon")]
pub fn attend_f32(queries: Queries<'_>, cached: Cached<'_, f32>) {
    attend(queries, cached);
}

#[target_feature(enable = "neon")]
pub fn attend_f16(queries: Queries<'_>, cached: Cached<'_, u16>) {
    attend(queries, cached);
}

#[target_feature(enable = "neon")]
pub fn attend_q8_0(queries: Queries<'_>, cached: Cached<'_, i8>) {
    attend(queries, cached);
}

#[target_feature(enable = "neon")]
#[inline]
fn attend<T: Load>(queries: Queries<'_>, cached: Cached<'_, T>) {
    let (head_dim, scale) = (queries.head_dim(), queries.scale);
    if head_dim < 2 * LANES {
        return scalar::attend(queries, cached);
    }
    queries.by_tiles(&[4, 3, 2, 1], |tile| match tile.seen.len() {
        1 => attend_tile::<1, T>(tile, head_dim, scale, cached),
        2 => attend_tile::<2, T>(tile, head_dim, scale, cached),
        3 => attend_tile::<3, T>(tile, head_dim, scale, cached),
        _ => attend_tile::<4, T>(tile, head_dim, scale, cached),
    });
}

#[target_feature(enable = "neon")]
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

/// Sixteen lanes.
type Sixteen = [Eight; 2];

#[target_feature(enable = "neon")]
#[inline]
fn load<T: Load>(from: &[T; 2 * LANES]) -> Sixteen {
    let [low, high] = from.as_chunks::<LANES>().0 else { unreachable!("two halves") };
    // SAFETY: this function has the features that the loads need.
    unsafe { [T::load(low), T::load(high)] }
}

/// Sixteen scales in as many bytes.
#[target_feature(enable = "neon")]
#[inline]
fn scales<T: Load>(from: &[T; 4 * LANES]) -> Sixteen {
    let [low, high] = from.as_chunks::<{ 2 * LANES }>().0 else { unreachable!("two halves") };
    // SAFETY: this function has the features that the loads need.
    unsafe { [T::scales(low), T::scales(high)] }
}

#[target_feature(enable = "neon")]
#[inline]
fn store(value: Sixteen, to: &mut [f32]) {
    for (value, to) in value.into_iter().zip(to.as_chunks_mut::<LANES>().0) {
        store_f32(value, to);
    }
}

/// `acc + x · n`, fused.
#[target_feature(enable = "neon")]
#[inline]
fn add_scaled(acc: Sixteen, x: Sixteen, n: f32) -> Sixteen {
    let half = |i: usize| [vfmaq_n_f32(acc[i][0], x[i][0], n), vfmaq_n_f32(acc[i][1], x[i][1], n)];
    [half(0), half(1)]
}

/// Scores of whole blocks of 16 positions, as many as cover `positions`.
#[target_feature(enable = "neon")]
#[inline]
fn scores<const Q: usize, T: Load>(
    queries: &[f32],
    keys: &[T],
    positions: usize,
    head_dim: usize,
    weights: &mut [[f32; CHUNK]],
) {
    let query: [&[f32]; Q] = std::array::from_fn(|q| &queries[q * head_dim..][..head_dim]);
    let records = keys.chunks_exact(T::record(head_dim)).take(positions.div_ceil(POSITIONS));
    for (b, record) in records.enumerate() {
        let (block, all_scales) = record.split_at(head_dim * POSITIONS);
        let mut acc = [[zero(); 2]; Q];
        if T::SCALED {
            let blocks = block.chunks_exact(BLOCK * POSITIONS);
            let all_scales = all_scales.as_chunks::<{ 4 * LANES }>().0;
            for (n, (block, from)) in blocks.zip(all_scales).enumerate() {
                let sums = products(query.map(|query| &query[n * BLOCK..][..BLOCK]), block);
                let scale = scales(from);
                for q in 0..Q {
                    for i in 0..2 {
                        acc[q][i] = fma(acc[q][i], sums[q][i], scale[i]);
                    }
                }
            }
        } else {
            acc = products(query, block);
        }
        for q in 0..Q {
            store(acc[q], &mut weights[q][b * POSITIONS..][..POSITIONS]);
        }
    }
}

/// The sums of some elements of sixteen keys times those of the queries.
#[target_feature(enable = "neon")]
#[inline]
fn products<const Q: usize, T: Load>(query: [&[f32]; Q], keys: &[T]) -> [Sixteen; Q] {
    // Lengths that the compiler can see, so that the loop checks none.
    let keys = keys.as_chunks::<POSITIONS>().0;
    let query = query.map(|query| &query[..keys.len()]);
    let mut acc = [[zero(); 2]; Q];
    for (d, keys) in keys.iter().enumerate() {
        let keys = load(keys);
        for q in 0..Q {
            acc[q] = add_scaled(acc[q], keys, query[q][d]);
        }
    }
    acc
}

/// Which of eight positions are among the first `seen`.
#[target_feature(enable = "neon")]
#[inline]
fn are_seen(seen: usize) -> [uint32x4_t; 2] {
    const INDEX: [u32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7];
    // SAFETY: eight u32 are readable; the loads need no alignment.
    let index = unsafe { [vld1q_u32(INDEX.as_ptr()), vld1q_u32(INDEX.as_ptr().add(4))] };
    index.map(|index| vcltq_u32(index, vdupq_n_u32(seen.min(LANES) as u32)))
}

/// Turns the first `seen` scores into weights, and the rest up to `furthest` into zeros.
#[target_feature(enable = "neon")]
#[inline(never)]
fn softmax(weights: &mut [f32; CHUNK], seen: usize, furthest: usize, scale: f32) -> Total {
    let vectors = &mut weights.as_chunks_mut::<LANES>().0[..furthest.div_ceil(LANES)];
    let lowest = vdupq_n_f32(f32::NEG_INFINITY);
    let mut largest = lowest;
    for (v, vector) in vectors.iter_mut().enumerate() {
        let score = load_f32(vector).map(|score| vmulq_n_f32(score, scale));
        store_f32(score, vector);
        let is_seen = are_seen(seen.saturating_sub(v * LANES));
        for (is_seen, score) in is_seen.into_iter().zip(score) {
            largest = vmaxq_f32(largest, vbslq_f32(is_seen, score, lowest));
        }
    }
    let largest = vmaxvq_f32(largest);
    let mut sums = [zero(); 2];
    for (v, vector) in vectors.iter_mut().enumerate() {
        let is_seen = are_seen(seen.saturating_sub(v * LANES));
        let score = load_f32(vector);
        let weight = |i: usize| -> float32x4_t {
            let weight = exp(vsubq_f32(score[i], vdupq_n_f32(largest)));
            vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(weight), is_seen[i]))
        };
        let weight = [weight(0), weight(1)];
        store_f32(weight, vector);
        let sums = &mut sums[v % 2];
        *sums = [vaddq_f32(sums[0], weight[0]), vaddq_f32(sums[1], weight[1])];
    }
    let mut all = [0.0; POSITIONS];
    store(sums, &mut all);
    Total { largest, sum: reduce_positions(all) }
}

/// `mixed[q] = Σ_p weights[q][p] · values[p]`.
#[target_feature(enable = "neon")]
#[inline]
fn mix<const Q: usize, T: Load>(
    weights: &[[f32; CHUNK]],
    values: &[T],
    positions: usize,
    head_dim: usize,
    mixed: &mut [f32],
) {
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
        let mut acc = [[zero(); 2]; Q];
        for (g, values) in values.chunks(record).enumerate().take(positions.div_ceil(group)) {
            // The weights times the scales of the block of 32 elements.
            let mut scaled = [[0.0; POSITIONS]; Q];
            if T::SCALED {
                let all_scales = values[group * head_dim..].as_chunks::<{ 4 * LANES }>().0;
                let scale = scales(&all_scales[start / BLOCK]);
                for q in 0..Q {
                    let weights = load(&weights[q].as_chunks().0[g]);
                    let times = |i: usize| -> Eight {
                        std::array::from_fn(|j| vmulq_f32(weights[i][j], scale[i][j]))
                    };
                    store([times(0), times(1)], &mut scaled[q]);
                }
            }
            let values = values.chunks_exact(head_dim);
            for (p, values) in values.enumerate().take(group.min(positions - g * group)) {
                let values = load(values[start..].first_chunk().expect("inside the head"));
                for q in 0..Q {
                    let factor = match T::SCALED {
                        true => scaled[q][p % POSITIONS],
                        false => weights[q][p % CHUNK],
                    };
                    acc[q] = add_scaled(acc[q], values, factor);
                }
            }
        }
        for q in 0..Q {
            store(acc[q], &mut mixed[q * head_dim + start..][..2 * LANES]);
        }
        from += 2 * LANES;
    }
}
