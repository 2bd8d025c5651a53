//! Attention over one chunk of the cache: as AVX2's, with sixteen positions or elements a vector.

use std::arch::x86_64::{
    __m512, __mmask16, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T1, _mm_loadu_si128,
    _mm_prefetch, _mm256_loadu_si256, _mm512_add_epi32, _mm512_add_ps, _mm512_castsi512_ps,
    _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_cvtps_epi32, _mm512_fmadd_ps,
    _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_mask_blend_ps, _mm512_maskz_mov_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_roundscale_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::super::super::attention::Tile;
use super::super::super::scalar::{exponential, reduce_positions};
use super::super::super::{BLOCK, CHUNK, Cached, Element, POSITIONS, Queries, Total};
use super::super::avx2::attention as avx2;

/// Blocks ahead whose keys are asked for.
const AHEAD: usize = 4;
/// Queries of a tile in prefill; while decoding there are as many as heads share keys.
const MANY: usize = 8;
/// Lanes of a vector.
const WIDE: usize = 16;
/// Elements of values that are taken together; smaller heads are AVX2's.
const WIDEST: usize = 4 * WIDE;
const _: () = assert!(WIDE == POSITIONS);

/// An element of the cache that this instruction set widens sixteen at a time.
trait Load: Element {
    /// Bytes of an element in two records, with its share of their scales.
    const STRIDE: usize = 2 * if Self::SCALED { 17 } else { WIDE * size_of::<Self>() };

    /// # Safety
    /// The CPU must have AVX-512F.
    unsafe fn load(from: &[Self; WIDE]) -> __m512;

    /// Sixteen scales in as many bytes.
    ///
    /// # Safety
    /// The CPU must have AVX-512F.
    unsafe fn scales(_: &[Self; 2 * WIDE]) -> __m512 {
        unreachable!("elements that are not codes have no scales")
    }
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

impl Load for i8 {
    #[inline(always)]
    unsafe fn load(from: &[Self; WIDE]) -> __m512 {
        // SAFETY: the caller's; 16 bytes are readable and the load needs no alignment.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    unsafe fn scales(from: &[Self; 2 * WIDE]) -> __m512 {
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

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
pub fn attend_f16(queries: Queries<'_>, cached: Cached<'_, u16>) {
    match queries.head_dim() {
        WIDEST.. => attend(queries, cached),
        _ => avx2::attend_f16(queries, cached),
    }
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
pub fn attend_q8_0(queries: Queries<'_>, cached: Cached<'_, i8>) {
    match queries.head_dim() {
        WIDEST.. => attend(queries, cached),
        _ => avx2::attend_q8_0(queries, cached),
    }
}

/// For heads of at least [`WIDEST`] elements.
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
    for b in (0..furthest.div_ceil(POSITIONS)).step_by(2) {
        scores::<Q, T>(queries, cached, b, weights);
    }
    for ((weights, &seen), total) in weights.iter_mut().zip(seen).zip(totals) {
        *total = softmax(weights, seen as usize, furthest, scale);
    }
    let mut from = 0;
    while from < head_dim {
        // The last vectors may overlap those before: the same sums once more.
        mix::<Q, N, T>(weights, cached.values, furthest, from.min(head_dim - N * WIDE), mixed);
        from += N * WIDE;
    }
}

/// Scores of the positions of two blocks from block `b`; where that is the last, of one.
#[target_feature(enable = "avx512f")]
#[inline]
fn scores<const Q: usize, T: Load>(
    queries: &[f32],
    cached: Cached<'_, T>,
    b: usize,
    weights: &mut [[f32; CHUNK]],
) {
    let head_dim = queries.len() / Q;
    assert!(queries.len() == Q * head_dim);
    let (record, elements) = (T::record(head_dim), head_dim * WIDE);
    // What comes is asked for ahead, for the hardware alone stops at each page: the keys of
    // later blocks, and the values of these, which take as many bytes. Any address may be named.
    let ahead = [
        cached.keys.as_ptr().wrapping_add((b + AHEAD) * record).cast::<i8>(),
        cached.values.as_ptr().wrapping_add(b * record).cast(),
    ];
    let last = cached.keys.len() / record - 1;
    let records = [b, last.min(b + 1)].map(|b| &cached.keys[b * record..][..record]);
    let blocks = records.map(|record| record[..elements].as_chunks::<WIDE>().0);
    let mut acc = [[_mm512_setzero_ps(); 2]; Q];
    if T::SCALED {
        let scales = records.map(|record| record[elements..].as_chunks::<{ 2 * WIDE }>().0);
        for (n, from) in (0..head_dim).step_by(BLOCK).enumerate() {
            let blocks = blocks.map(|block| &block[from..from + BLOCK]);
            let ahead = ahead.map(|ahead| ahead.wrapping_add(from * T::STRIDE));
            let sums = products::<Q, T>(&queries[from..], head_dim, blocks, ahead);
            for i in 0..2 {
                // SAFETY: this function has the features that the load needs.
                let scale = unsafe { T::scales(&scales[i][n]) };
                for q in 0..Q {
                    acc[q][i] = _mm512_fmadd_ps(sums[q][i], scale, acc[q][i]);
                }
            }
        }
    } else {
        acc = products::<Q, T>(queries, head_dim, blocks, ahead);
    }
    for q in 0..Q {
        let out = weights[q][b * WIDE..].as_chunks_mut::<WIDE>().0;
        for (acc, out) in acc[q].into_iter().zip(out) {
            store(acc, out);
        }
    }
}

/// The sums of some elements of two blocks of keys times those of the queries; `each` is called with
/// every element.
#[target_feature(enable = "avx512f")]
#[inline]
fn products<const Q: usize, T: Load>(
    queries: &[f32],
    head_dim: usize,
    blocks: [&[[T; WIDE]]; 2],
    ahead: [*const i8; 2],
) -> [[__m512; 2]; Q] {
    // Lengths that the compiler can see, so that the loop checks none.
    let count = blocks[0].len();
    let blocks = blocks.map(|block| &block[..count]);
    assert!(count <= head_dim && queries.len() >= (Q - 1) * head_dim + count);
    let mut acc = [[_mm512_setzero_ps(); 2]; Q];
    #[expect(clippy::needless_range_loop, reason = "d also counts the elements of the queries")]
    for d in 0..count {
        // Not for many queries, of which another tile has mostly been here.
        if Q < MANY {
            for ahead in ahead {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(d * T::STRIDE));
            }
        }
        let mut keys = [_mm512_setzero_ps(); 2];
        for i in 0..2 {
            // SAFETY: this function has the features that the load needs.
            keys[i] = unsafe { T::load(&blocks[i][d]) };
        }
        for (q, acc) in acc.iter_mut().enumerate() {
            // SAFETY: q < Q and d < count, and so many elements there are by the assertion; the
            // compiler sees only the first.
            let element = _mm512_set1_ps(unsafe { *queries.get_unchecked(q * head_dim + d) });
            for i in 0..2 {
                acc[i] = _mm512_fmadd_ps(element, keys[i], acc[i]);
            }
        }
    }
    acc
}

/// Turns the first `seen` scores into weights, and the rest up to `furthest` into zeros.
#[target_feature(enable = "avx512f")]
#[inline(never)]
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

/// `mixed[q][from..from + 16 N] = Σ_p weights[q][p] · values[p][from..]` over the first positions.
#[target_feature(enable = "avx512f")]
#[inline]
fn mix<const Q: usize, const N: usize, T: Load>(
    weights: &[[f32; CHUNK]],
    values: &[T],
    positions: usize,
    from: usize,
    mixed: &mut [f32],
) {
    let head_dim = mixed.len() / Q;
    let weights: &[[f32; CHUNK]; Q] = weights.first_chunk().expect("a row of weights a query");
    let mut acc = [[_mm512_setzero_ps(); N]; Q];
    // Positions that are taken in one loop: with scales those of a record.
    let (group, record) = match T::SCALED {
        true => (WIDE, T::record(head_dim)),
        false => (CHUNK, CHUNK * head_dim),
    };
    // What follows in memory are the keys of the next head.
    let next = values.as_ptr_range().end.cast::<i8>();
    for (g, values) in values.chunks(record).enumerate().take(CHUNK / group) {
        // The weights times the scales of each block of 32 elements.
        let mut scaled = [[[0.0; WIDE]; Q]; N];
        if T::SCALED {
            let scales = values[group * head_dim..].as_chunks::<{ 2 * WIDE }>().0;
            for (n, scaled) in scaled.iter_mut().enumerate().take(N.div_ceil(2)) {
                // SAFETY: this function has the features that the loads need.
                let scale = unsafe { T::scales(&scales[from / BLOCK + n]) };
                for q in 0..Q {
                    // SAFETY: likewise.
                    let weights = unsafe { f32::load(&weights[q].as_chunks().0[g]) };
                    store(_mm512_mul_ps(weights, scale), &mut scaled[q]);
                }
            }
        }
        let values = values.chunks_exact(head_dim);
        for (p, values) in values.enumerate().take(group.min(positions - g * group)) {
            if Q < MANY {
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(64 * (g * group + p)));
            }
            let chunks = values[from..from + N * WIDE].as_chunks::<WIDE>().0;
            let mut values = [_mm512_setzero_ps(); N];
            for i in 0..N {
                // SAFETY: this function has the features that the load needs.
                values[i] = unsafe { T::load(&chunks[i]) };
            }
            for q in 0..Q {
                for i in 0..N {
                    let factor = match T::SCALED {
                        true => scaled[i / 2][q][p % WIDE],
                        false => weights[q][p % CHUNK],
                    };
                    acc[q][i] = _mm512_fmadd_ps(_mm512_set1_ps(factor), values[i], acc[q][i]);
                }
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
