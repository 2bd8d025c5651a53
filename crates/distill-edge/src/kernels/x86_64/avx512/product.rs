//! Products of quantised rows.
//!
//! ```text
//! for each group (16 rows) and tile of T tokens:
//!   acc[t] = 0                                                   16 f32 lanes, one a row
//!   for each record:
//!     Q4_0: sum[t] = offset;       sum[t] += low nibbles · a₄ⱼ + high nibbles · a₁₆₊₄ⱼ
//!     Q8_0: sum[t] = 16 · offset;  sum[t] += (w + 128) · a₄ⱼ
//!     acc[t] += cvt(sum[t]) · (weight scales · activation scale)
//! ```
//! `dpbusd` adds four products of unsigned and signed bytes to each 32-bit lane. The unsigned
//! weights are too large by 8 or 128, which the offset takes back.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_si512,
    _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_slli_epi32, _mm512_srli_epi16, _mm512_storeu_ps, _mm512_xor_si512,
};
use std::hint::black_box;

use super::super::super::codes::Token;
use super::super::super::{BLOCK, Codes};
use distill_quant::packed::{Q4_0_RECORD, Q8_0_RECORD, ROWS, SCALES};

/// Tokens of a tile: with as many sums they fill the registers.
const TILE: usize = 8;
/// Bytes ahead of the current record that are asked for: decoding reads every weight once, and
/// the hardware alone stops at each page.
const AHEAD: usize = 2048;

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn load(record: &[u8], at: usize) -> __m512i {
    let bytes: &[u8; 64] = record[at..].first_chunk().expect("inside the record");
    // SAFETY: 64 bytes are readable; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn scales(record: &[u8]) -> __m512 {
    let bytes: &[u8; 32] = record.first_chunk().expect("inside the record");
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}

/// Four activation codes in every lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn broadcast(codes: &[i8; BLOCK], at: usize) -> __m512i {
    let four = &codes.as_chunks::<4>().0[at / 4];
    _mm512_set1_epi32(i32::from_le_bytes(four.map(|code| code as u8)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn prefetch<const BYTES: usize>(record: &[u8; BYTES]) {
    for line in 0..BYTES.div_ceil(64) {
        // A prefetch may name any address, even one that is not mapped.
        _mm_prefetch::<_MM_HINT_T0>(record.as_ptr().wrapping_add(AHEAD + 64 * line).cast());
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn sum_q4_0<const T: usize>(
    record: &[u8; Q4_0_RECORD],
    b: usize,
    x: &[Token<'_>; T],
) -> [__m512i; T] {
    let nibble = _mm512_set1_epi8(15);
    let mut sums = [_mm512_set1_epi32(0); T];
    for t in 0..T {
        sums[t] = _mm512_set1_epi32(x[t].offsets[b]);
    }
    for j in 0..4 {
        let packed = load(record, SCALES + 64 * j);
        let low = _mm512_and_si512(packed, nibble);
        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), nibble);
        for t in 0..T {
            let codes = &x[t].codes[b];
            sums[t] = _mm512_dpbusd_epi32(sums[t], low, broadcast(codes, 4 * j));
            sums[t] = _mm512_dpbusd_epi32(sums[t], high, broadcast(codes, 16 + 4 * j));
        }
    }
    sums
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn sum_q8_0<const T: usize>(
    record: &[u8; Q8_0_RECORD],
    b: usize,
    x: &[Token<'_>; T],
) -> [__m512i; T] {
    let sign = _mm512_set1_epi8(-128);
    let mut sums = [_mm512_set1_epi32(0); T];
    for t in 0..T {
        sums[t] = _mm512_slli_epi32::<4>(_mm512_set1_epi32(x[t].offsets[b]));
    }
    for j in 0..8 {
        let w = _mm512_xor_si512(load(record, SCALES + 64 * j), sign);
        for t in 0..T {
            sums[t] = _mm512_dpbusd_epi32(sums[t], w, broadcast(&x[t].codes[b], 4 * j));
        }
    }
    sums
}

macro_rules! product {
    ($product:ident, $tile:ident, $sum:ident, $record:ident) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        pub fn $product(w: &[u8], x: Codes<'_>, columns: usize, y: &mut [f32], stride: usize) {
            let blocks = columns / BLOCK;
            let groups = w.as_chunks::<$record>().0.chunks_exact(blocks);
            let tokens = x.codes.len() / columns;
            let whole = tokens / TILE * TILE;
            for (g, group) in groups.enumerate() {
                for t in (0..whole).step_by(TILE) {
                    let tile: [_; TILE] = std::array::from_fn(|i| Token::new(&x, t + i, blocks));
                    for (i, rows) in $tile(group, &tile).into_iter().enumerate() {
                        y[(t + i) * stride + g * ROWS..][..ROWS].copy_from_slice(&rows);
                    }
                }
                for t in whole..tokens {
                    let [rows] = $tile(group, &[Token::new(&x, t, blocks)]);
                    y[t * stride + g * ROWS..][..ROWS].copy_from_slice(&rows);
                }
            }
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        #[inline]
        fn $tile<const T: usize>(group: &[[u8; $record]], x: &[Token<'_>; T]) -> [[f32; ROWS]; T] {
            x.iter().for_each(|x| x.assert_blocks(group.len()));
            let mut acc = [_mm512_setzero_ps(); T];
            for (b, record) in group.iter().enumerate() {
                prefetch(record);
                let sums = $sum(record, b, x);
                let scales = scales(record);
                for t in 0..T {
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x[t].scales[b]));
                    acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[t]), scale, acc[t]);
                }
            }
            let mut rows = [[0.0; ROWS]; T];
            for t in 0..T {
                // SAFETY: 16 f32 are writable; the store needs no alignment.
                unsafe { _mm512_storeu_ps(rows[t].as_mut_ptr(), acc[t]) };
            }
            rows
        }
    };
}

product!(product_q4_0, tile_q4_0, sum_q4_0, Q4_0_RECORD);
product!(product_q8_0, tile_q8_0, sum_q8_0, Q8_0_RECORD);

/// Sixteen independent sums of 64 products each.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub fn int8_peak(rounds: usize) -> usize {
    const SUMS: usize = 16;
    let (w, a) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
    let mut totals = [_mm512_set1_epi32(0); SUMS];
    for _ in 0..rounds {
        for total in &mut totals {
            *total = _mm512_dpbusd_epi32(*total, w, a);
        }
    }
    black_box(totals);
    2 * 64 * SUMS
}
