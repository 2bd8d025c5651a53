//! Products of quantised rows.
//!
//! ```text
//! for each half of a group (8 rows) and tile of T tokens:
//!   acc[t] = 0                                                   8 f32 lanes, one a row
//!   for each record:
//!     Q4_0: sum[t] = Σ_j maddubs(low nibbles, a₄ⱼ) + maddubs(high nibbles, a₁₆₊₄ⱼ)     16 bit
//!           sum[t] = madd(sum[t], 1) + offset
//!     Q8_0: sum[t] = Σ_j madd(maddubs(|w|, sign(a₄ⱼ, w)), 1)                            32 bit
//!     acc[t] += cvt(sum[t]) · (weight scales · activation scale)
//! ```
//! Four activations are broadcast to all eight rows. `maddubs` multiplies unsigned by signed
//! bytes and adds pairs in 16 bits. A record's 16 products of a nibble and an activation stay
//! below 16·15·127 = 30,480 in a lane, so they are added up in 16 bits; 8-bit pairs reach
//! 2·128·127 = 32,512, so they are widened at once.
//!
//! With one token (decode) both halves are taken together, because the weights come from memory
//! and a record is one run of bytes.

use std::arch::asm;
use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_abs_epi8, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_sign_epi8, _mm256_srli_epi16,
};
use std::hint::black_box;

use super::super::super::{BLOCK, Block, Codes, LANES, SIDE_BY_SIDE};
use super::store_f32;
use distill_quant::packed::{Q4_0_RECORD, Q8_0_RECORD, ROWS, SCALES};

/// Tokens of a tile: with as many sums they fill the registers.
const TILE: usize = 4;
/// Bytes ahead of the current record that are asked for: the first tile, in decoding the only one,
/// reads every weight from memory, and the hardware alone stops at each page.
const AHEAD: usize = 2048;

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load(record: &[u8], at: usize) -> __m256i {
    let bytes: &[u8; 32] = record[at..].first_chunk().expect("inside the record");
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// The scales of eight rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scales(record: &[u8], half: usize) -> __m256 {
    let bytes: &[u8; 16] = record[16 * half..].first_chunk().expect("inside the record");
    // SAFETY: 16 bytes are readable; the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// Four activation codes in every lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn broadcast(codes: &[i8; BLOCK], at: usize) -> __m256i {
    let four = &codes.as_chunks::<4>().0[at / 4];
    _mm256_set1_epi32(i32::from_le_bytes(four.map(|code| code as u8)))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn prefetch<const BYTES: usize>(record: &[u8; BYTES]) {
    for line in 0..BYTES.div_ceil(64) {
        // A prefetch may name any address, even one that is not mapped.
        _mm_prefetch::<_MM_HINT_T0>(record.as_ptr().wrapping_add(AHEAD + 64 * line).cast());
    }
}

/// The sums of eight rows with T tokens over a record.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum_q4_0<const T: usize>(
    record: &[u8; Q4_0_RECORD],
    half: usize,
    x: &[Block; T],
) -> [__m256i; T] {
    let nibble = _mm256_set1_epi8(15);
    let mut sums = [_mm256_setzero_si256(); T];
    for step in 0..4 {
        let packed = load(record, SCALES + 64 * step + 32 * half);
        let low = _mm256_and_si256(packed, nibble);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), nibble);
        for t in 0..T {
            let codes = &x[t].codes;
            let pairs = _mm256_add_epi16(
                _mm256_maddubs_epi16(low, broadcast(codes, 4 * step)),
                _mm256_maddubs_epi16(high, broadcast(codes, 16 + 4 * step)),
            );
            sums[t] = _mm256_add_epi16(sums[t], pairs);
        }
    }
    for t in 0..T {
        let sum = _mm256_madd_epi16(sums[t], _mm256_set1_epi16(1));
        sums[t] = _mm256_add_epi32(sum, _mm256_set1_epi32(x[t].offset));
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum_q8_0<const T: usize>(
    record: &[u8; Q8_0_RECORD],
    half: usize,
    x: &[Block; T],
) -> [__m256i; T] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); T];
    for step in 0..8 {
        let w = load(record, SCALES + 64 * step + 32 * half);
        let magnitude = _mm256_abs_epi8(w);
        for t in 0..T {
            let a = _mm256_sign_epi8(broadcast(&x[t].codes, 4 * step), w);
            let pairs = _mm256_maddubs_epi16(magnitude, a);
            sums[t] = _mm256_add_epi32(sums[t], _mm256_madd_epi16(pairs, ones));
        }
    }
    sums
}

macro_rules! product {
    ($product:ident, $tile:ident, $sum:ident, $record:ident) => {
        #[target_feature(enable = "avx2,fma,f16c")]
        pub fn $product(w: &[u8], x: Codes<'_>, columns: usize, y: &mut [f32], stride: usize) {
            let blocks = columns / BLOCK;
            let groups = || w.as_chunks::<$record>().0.chunks_exact(blocks).enumerate();
            if x.tokens == 1 {
                let (tile, _) = x.blocks.as_chunks();
                for (g, group) in groups() {
                    let halves = $tile::<2, 1, 1>([0, 1], group, tile, 0, true);
                    let y = y[g * ROWS..][..ROWS].as_chunks_mut::<LANES>().0;
                    for (y, [rows]) in y.iter_mut().zip(halves) {
                        *y = rows;
                    }
                }
                return;
            }
            for (i, tile) in x.tiles::<SIDE_BY_SIDE>(blocks).enumerate() {
                for from in (i * SIDE_BY_SIDE..x.tokens).step_by(TILE).take(SIDE_BY_SIDE / TILE) {
                    for (g, group) in groups() {
                        for half in 0..2 {
                            let [all] = $tile::<1, TILE, SIDE_BY_SIDE>(
                                [half],
                                group,
                                tile,
                                from % SIDE_BY_SIDE,
                                from == 0 && half == 0,
                            );
                            for (t, rows) in (from..x.tokens).zip(&all) {
                                let from = t * stride + g * ROWS + LANES * half;
                                y[from..from + LANES].copy_from_slice(rows);
                            }
                        }
                    }
                }
            }
        }

        /// T tokens, the first of them `from`, of the W side by side. `fetch`: whether the weights
        /// are not in the cache yet.
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline]
        fn $tile<const H: usize, const T: usize, const W: usize>(
            halves: [usize; H],
            group: &[[u8; $record]],
            x: &[[Block; W]],
            from: usize,
            fetch: bool,
        ) -> [[[f32; LANES]; T]; H] {
            let mut acc = [[_mm256_setzero_ps(); T]; H];
            for (record, x) in group.iter().zip(x) {
                if fetch {
                    prefetch(record);
                }
                let x: &[Block; T] =
                    x[from..].first_chunk().expect("a tile divides those side by side");
                for h in 0..H {
                    let sums = $sum(record, halves[h], x);
                    let scales = scales(record, halves[h]);
                    for t in 0..T {
                        let scale = _mm256_mul_ps(scales, _mm256_set1_ps(x[t].scale));
                        acc[h][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[t]), scale, acc[h][t]);
                    }
                }
            }
            let mut rows = [[[0.0; LANES]; T]; H];
            for h in 0..H {
                for t in 0..T {
                    store_f32(acc[h][t], &mut rows[h][t]);
                }
            }
            rows
        }
    };
}

product!(product_q4_0, tile_q4_0, sum_q4_0, Q4_0_RECORD);
product!(product_q8_0, tile_q8_0, sum_q8_0, Q8_0_RECORD);

/// Six independent sums of 32 products each, widened to 32 bits at once; more would not fit into the
/// registers with their operands.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn int8_peak(rounds: usize) -> usize {
    const SUMS: usize = 6;
    let ones = _mm256_set1_epi16(1);
    let mut w = _mm256_set1_epi8(3);
    let activations = black_box([_mm256_set1_epi8(5); SUMS]);
    let mut totals = [_mm256_setzero_si256(); SUMS];
    for _ in 0..rounds {
        // SAFETY: no instruction at all; it only makes the operand opaque, or the compiler would
        // compute a round once.
        unsafe { asm!("/* {0} */", inout(ymm_reg) w, options(pure, nomem, nostack)) };
        for (total, a) in totals.iter_mut().zip(activations) {
            let pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), ones);
            *total = _mm256_add_epi32(*total, pairs);
        }
    }
    black_box(totals);
    2 * 32 * SUMS
}

/// Four independent streams of whole registers, asked for ahead as the products do.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn read_all(bytes: &[u8]) {
    let mut all = [_mm256_setzero_si256(); 4];
    for chunk in bytes.as_chunks::<128>().0 {
        prefetch(chunk);
        for (i, all) in all.iter_mut().enumerate() {
            *all = _mm256_add_epi32(*all, load(chunk, 32 * i));
        }
    }
    black_box(all);
}
