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
    float32x4_t, uint32x4_t, vaddq_f32, vandq_u32, vbslq_f32, vcltq_u32, vdupq_n_f32, vdupq_n_u32,
    vfmaq_n_f32, vld1q_u32, vmaxq_f32, vmaxvq_f32, vmulq_n_f32, vreinterpretq_f32_u32,
    vreinterpretq_u32_f32, vsubq_f32,
};

use super::super::super::attention::Tile;
use super::super::super::scalar::{Element, reduce_positions};
use super::super::super::{CHUNK, Cached, LANES, POSITIONS, Queries, Total};
use super::{Eight, exp, load_f16, load_f32, store_f32, zero};

/// An element of the cache that this instruction set widens eight at a time.
trait Load: Element {
    /// # Safety
    /// The CPU must have NEON.
    unsafe fn load(from: &[Self; LANES]) -> Eight;
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

#[target_feature(enable = "neon")]
pub fn attend_f32(queries: Queries<'_>, cached: Cached<'_, f32>) {
    attend(queries, cached);
}

#[target_feature(enable = "neon")]
pub fn attend_f16(queries: Queries<'_>, cached: Cached<'_, u16>) {
    attend(queries, cached);
}

#[target_feature(enable = "neon")]
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
    // Lengths that the compiler can see, so that the loop checks none.
    let query = query.map(|query| &query[..head_dim]);
    let blocks = keys.chunks_exact(head_dim * POSITIONS).take(positions.div_ceil(POSITIONS));
    for (b, block) in blocks.enumerate() {
        let mut acc = [[zero(); 2]; Q];
        for (d, keys) in block.as_chunks::<POSITIONS>().0.iter().enumerate() {
            let keys = load(keys);
            for q in 0..Q {
                acc[q] = add_scaled(acc[q], keys, query[q][d]);
            }
        }
        for q in 0..Q {
            store(acc[q], &mut weights[q][b * POSITIONS..][..POSITIONS]);
        }
    }
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
#[inline]
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
    let weights: [&[f32]; Q] = std::array::from_fn(|q| &weights[q][..positions]);
    let mut from = 0;
    while from + 2 * LANES <= head_dim {
        let mut acc = [[zero(); 2]; Q];
        for (p, values) in values.chunks_exact(head_dim).take(positions).enumerate() {
            let values = load(values[from..].first_chunk().expect("inside the head"));
            for q in 0..Q {
                acc[q] = add_scaled(acc[q], values, weights[q][p]);
            }
        }
        for q in 0..Q {
            store(acc[q], &mut mixed[q * head_dim + from..][..2 * LANES]);
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
