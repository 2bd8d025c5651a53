//! Attention over one chunk of the cache: as AVX2's, with sixteen positions or elements a vector.

use std::arch::x86_64::{
    __m512, __mmask16, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T1, _mm_prefetch,
    _mm256_loadu_si256, _mm512_add_epi32, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtph_ps,
    _mm512_cvtps_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_mask_blend_ps,
    _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_roundscale_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
    _mm512_sub_ps,
};

use super::super::super::attention::Tile;
use super::super::super::scalar::{Element, exponential, reduce_positions};
use super::super::super::{CHUNK, Cached, POSITIONS, Queries, Total};

/// Blocks ahead whose keys are asked for.
const AHEAD: usize = 4;
/// Queries of a tile in prefill; while decoding there are as many as heads share keys.
const MANY: usize = 8;
/// Lanes of a vector.
const WIDE: usize = 16;
const _: () = assert!(WIDE == POSITIONS);

/// An element of the cache that this instruction set widens sixteen at a time.
trait Load: Element {
    /// # Safety
    /// The CPU must have AVX-512F.
    unsafe fn load(from: &[Self; WIDE]) -> __m512;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load(from: &[Self; WIDE]) -> __m512 {
        // SAFETY: the caller's; 64 bytes are readable and the load needs no alignment.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
}

impl Load for u16 {
    #[inline(always)]
    unsafe fn load(from: &[Self; WIDE]) -> __m512 {
        // SAFETY: the caller's; 32 bytes are readable and the load needs no alignment.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(value: __m512, to: &mut [f32; WIDE]) {
    // SAFETY: 16 f32 are writable; the store needs no alignment.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn lanes(value: __m512) -> [f32; WIDE] {
    let mut out = [0.0; WIDE];
    store(value, &mut out);
    out
}

#[target_feature(enable = "avx512f")]
pub fn attend_f16(queries: Queries<'_>, cached: Cached<'_, u16>) {
    attend(queries, cached);
}

#[target_feature(enable = "avx512f")]
#[inline]
fn attend<T: Load>(queries: Queries<'_>, cached: Cached<'_, T>) {
    let (head_dim, scale) = (queries.head_dim(), queries.scale);
    queries.by_tiles(&[MANY, 4, 3, 2, 1], |tile| match tile.seen.len() {
        MANY => attend_tile::<MANY, 2, T>(tile, head_dim, scale, cached),
        4 => attend_tile::<4, 4, T>(tile, head_dim, scale, cached),
        3 => attend_tile::<3, 4, T>(tile, head_dim, scale, cached),
        2 => attend_tile::<2, 4, T>(tile, head_dim, scale, cached),
        _ => attend_tile::<1, 4, T>(tile, head_dim, scale, cached),
    });
}

#[target_feature(enable = "avx512f")]
#[inline]
fn attend_tile<const Q: usize, const N: usize, T: Load>(
    tile: Tile<'_>,
    head_dim: usize,
    scale: f32,
    cached: Cached<'_, T>,
) {
    let Tile { queries, seen, weights, totals, mixed, furthest } = tile;
    // Pairs of blocks, so that there are sums enough to hide the latency of one.
    let blocks = furthest.div_ceil(POSITIONS);
    let pairs = blocks / 2 * 2;
    for b in (0..pairs).step_by(2) {
        scores::<Q, 2, T>(queries, cached, b, weights);
    }
    if pairs < blocks {
        scores::<Q, 1, T>(queries, cached, pairs, weights);
    }
    for ((weights, &seen), total) in weights.iter_mut().zip(seen).zip(totals) {
        *total = softmax(weights, seen as usize, furthest, scale);
    }
    let values = &cached.values[..furthest * head_dim];
    let mut from = 0;
    while from + N * WIDE <= head_dim {
        mix::<Q, N, T>(weights, values, from, head_dim, mixed);
        from += N * WIDE;
    }
    while from + WIDE <= head_dim {
        mix::<Q, 1, T>(weights, values, from, head_dim, mixed);
        from += WIDE;
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

/// Scores of the positions of B blocks from block `b`.
#[target_feature(enable = "avx512f")]
#[inline]
fn scores<const Q: usize, const B: usize, T: Load>(
    queries: &[f32],
    cached: Cached<'_, T>,
    b: usize,
    weights: &mut [[f32; CHUNK]],
) {
    let head_dim = queries.len() / Q;
    assert!(queries.len() == Q * head_dim);
    let keys = cached.keys;
    let block = head_dim * WIDE;
    let next = keys.as_ptr().wrapping_add((b + AHEAD) * block).cast::<i8>();
    let values = cached.values.as_ptr().wrapping_add(b * block).cast::<i8>();
    // Lengths that the compiler can see, so that the loop checks none.
    let blocks: [&[[T; WIDE]]; B] = std::array::from_fn(|i| {
        keys[(b + i) * head_dim * WIDE..][..head_dim * WIDE].as_chunks::<WIDE>().0
    });
    let mut acc = [[_mm512_setzero_ps(); B]; Q];
    #[expect(clippy::needless_range_loop, reason = "d also counts the elements of the queries")]
    for d in 0..head_dim {
        let mut keys = [_mm512_setzero_ps(); B];
        // What comes is asked for ahead, for the hardware alone stops at each page: the keys of
        // later blocks, and the values of these, which take as many bytes. Any address may be named.
        let bytes = size_of::<T>() * WIDE * B;
        // Not for many queries, of which another tile has mostly been here.
        if Q < MANY {
            for line in (d * bytes..(d + 1) * bytes).step_by(64) {
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line));
                _mm_prefetch::<_MM_HINT_T1>(values.wrapping_add(line));
            }
        }
        for i in 0..B {
            // SAFETY: this function has the features that the load needs.
            keys[i] = unsafe { T::load(&blocks[i][d]) };
        }
        for (q, acc) in acc.iter_mut().enumerate() {
            // SAFETY: d < head_dim and q < Q, and there are Q · head_dim elements; the compiler sees
            // only the first.
            let element = _mm512_set1_ps(unsafe { *queries.get_unchecked(q * head_dim + d) });
            for i in 0..B {
                acc[i] = _mm512_fmadd_ps(element, keys[i], acc[i]);
            }
        }
    }
    for q in 0..Q {
        let out = weights[q][b * WIDE..].as_chunks_mut::<WIDE>().0;
        for i in 0..B {
            store(acc[q][i], &mut out[i]);
        }
    }
}

/// Turns the first `seen` scores into weights, and the rest up to `furthest` into zeros.
#[target_feature(enable = "avx512f")]
#[inline]
fn softmax(weights: &mut [f32; CHUNK], seen: usize, furthest: usize, scale: f32) -> Total {
    let scale = _mm512_set1_ps(scale);
    let vectors = &mut weights.as_chunks_mut::<WIDE>().0[..furthest.div_ceil(WIDE)];
    let is_seen = |v: usize| -> __mmask16 {
        let left = seen.saturating_sub(v * WIDE).min(WIDE);
        ((1_u32 << left) - 1) as __mmask16
    };
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut largest = lowest;
    for (v, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: this function has the features that the load needs.
        let score = _mm512_mul_ps(unsafe { f32::load(vector) }, scale);
        store(score, vector);
        largest = _mm512_max_ps(largest, _mm512_mask_blend_ps(is_seen(v), lowest, score));
    }
    let largest = lanes(largest).iter().fold(f32::NEG_INFINITY, |most, &score| most.max(score));
    let mut sum = _mm512_setzero_ps();
    for (v, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: as above.
        let score = unsafe { f32::load(vector) };
        let weight = exp(_mm512_sub_ps(score, _mm512_set1_ps(largest)));
        let weight = _mm512_maskz_mov_ps(is_seen(v), weight);
        store(weight, vector);
        sum = _mm512_add_ps(sum, weight);
    }
    Total { largest, sum: reduce_positions(lanes(sum)) }
}

/// `mixed[q][from..from + 16 N] = Σ_p weights[q][p] · values[p][from..]`.
#[target_feature(enable = "avx512f")]
#[inline]
fn mix<const Q: usize, const N: usize, T: Load>(
    weights: &[[f32; CHUNK]],
    values: &[T],
    from: usize,
    head_dim: usize,
    mixed: &mut [f32],
) {
    let weights: &[[f32; CHUNK]; Q] = weights.first_chunk().expect("a row of weights a query");
    let mut acc = [[_mm512_setzero_ps(); N]; Q];
    // What follows in memory are the keys of the next head.
    let next = values.as_ptr_range().end.cast::<i8>();
    for (p, values) in values.chunks_exact(head_dim).enumerate().take(CHUNK) {
        if Q < MANY {
            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(64 * p));
        }
        let chunks = values[from..from + N * WIDE].as_chunks::<WIDE>().0;
        let mut values = [_mm512_setzero_ps(); N];
        for i in 0..N {
            // SAFETY: this function has the features that the load needs.
            values[i] = unsafe { T::load(&chunks[i]) };
        }
        for q in 0..Q {
            let weight = _mm512_set1_ps(weights[q][p % CHUNK]);
            for i in 0..N {
                acc[q][i] = _mm512_fmadd_ps(weight, values[i], acc[q][i]);
            }
        }
    }
    for q in 0..Q {
        let out = mixed[q * head_dim + from..][..N * WIDE].as_chunks_mut::<WIDE>().0;
        for i in 0..N {
            store(acc[q][i], &mut out[i]);
        }
    }
}

/// Sixteen of the specification's `exp`: the same operations.
#[target_feature(enable = "avx512f")]
#[inline]
fn exp(x: __m512) -> __m512 {
    use exponential::{LEAST, LN_2_HIGH, LN_2_LOW, MOST, TAYLOR};
    // Of a NaN and a number these give the second operand: NaN stays NaN.
    let x = _mm512_max_ps(_mm512_set1_ps(LEAST), x);
    let x = _mm512_min_ps(_mm512_set1_ps(MOST), x);
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
        _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)),
    );
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN_2_HIGH), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN_2_LOW), r);
    let mut e = _mm512_set1_ps(TAYLOR[0]);
    for coefficient in &TAYLOR[1..] {
        e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(*coefficient));
    }
    let exponent =
        _mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)));
    _mm512_mul_ps(e, _mm512_castsi512_ps(exponent))
}
