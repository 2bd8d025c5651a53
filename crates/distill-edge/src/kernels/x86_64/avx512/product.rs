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

use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_si512,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_slli_epi32, _mm512_srli_epi16, _mm512_storeu_ps, _mm512_xor_si512,
};
use std::hint::black_box;

use super::super::super::{BLOCK, Block, Codes, SIDE_BY_SIDE};
use distill_quant::packed::{Q4_0_RECORD, Q8_0_RECORD, ROWS, SCALES};

/// Bytes ahead of the current record that are asked for: the first tile, in decoding the only one,
/// reads every weight from memory, and the hardware alone stops at each page.
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

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn prefetch<const BYTES: usize>(record: &[u8; BYTES]) {
    for line in 0..BYTES.div_ceil(64) {
        // A prefetch may name any address, even one that is not mapped.
        _mm_prefetch::<_MM_HINT_T0>(record.as_ptr().wrapping_add(AHEAD + 64 * line).cast());
    }
}

/// The sums of 16 rows with T tokens over a record. Steps are spelled out, since the compiler would
/// rather loop over them.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn sum_q4_0<const T: usize>(record: &[u8; Q4_0_RECORD], x: &[Block; T]) -> [__m512i; T] {
    let sums = offsets(x);
    let sums = step_q4_0::<0, 16, T>(sums, record, x);
    let sums = step_q4_0::<4, 20, T>(sums, record, x);
    let sums = step_q4_0::<8, 24, T>(sums, record, x);
    step_q4_0::<12, 28, T>(sums, record, x)
}

/// Adds columns LOW … LOW + 3 and HIGH … HIGH + 3, which share bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn step_q4_0<const LOW: usize, const HIGH: usize, const T: usize>(
    sums: [__m512i; T],
    record: &[u8; Q4_0_RECORD],
    x: &[Block; T],
) -> [__m512i; T] {
    let nibble = _mm512_set1_epi8(15);
    let packed = load(record, SCALES + 16 * LOW);
    let sums = add::<LOW, T>(sums, _mm512_and_si512(packed, nibble), x);
    add::<HIGH, T>(sums, _mm512_and_si512(_mm512_srli_epi16::<4>(packed), nibble), x)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn sum_q8_0<const T: usize>(record: &[u8; Q8_0_RECORD], x: &[Block; T]) -> [__m512i; T] {
    let mut sums = offsets(x);
    for sum in &mut sums {
        *sum = _mm512_slli_epi32::<4>(*sum);
    }
    let sums = step_q8_0::<0, T>(sums, record, x);
    let sums = step_q8_0::<4, T>(sums, record, x);
    let sums = step_q8_0::<8, T>(sums, record, x);
    let sums = step_q8_0::<12, T>(sums, record, x);
    let sums = step_q8_0::<16, T>(sums, record, x);
    let sums = step_q8_0::<20, T>(sums, record, x);
    let sums = step_q8_0::<24, T>(sums, record, x);
    step_q8_0::<28, T>(sums, record, x)
}

/// Adds columns AT … AT + 3.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn step_q8_0<const AT: usize, const T: usize>(
    sums: [__m512i; T],
    record: &[u8; Q8_0_RECORD],
    x: &[Block; T],
) -> [__m512i; T] {
    let w = _mm512_xor_si512(load(record, SCALES + 16 * AT), _mm512_set1_epi8(-128));
    add::<AT, T>(sums, w, x)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn offsets<const T: usize>(x: &[Block; T]) -> [__m512i; T] {
    let mut sums = [_mm512_setzero_si512(); T];
    for t in 0..T {
        sums[t] = _mm512_set1_epi32(x[t].offset);
    }
    sums
}

/// Adds the products of columns AT … AT + 3 with every token. The instruction broadcasts from
/// memory itself; left to the compiler, loads of neighbours become shuffles.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn add<const AT: usize, const T: usize>(
    mut sums: [__m512i; T],
    w: __m512i,
    x: &[Block; T],
) -> [__m512i; T] {
    const { assert!(AT + 4 <= BLOCK) };
    for t in 0..T {
        // SAFETY: reads four bytes of the block's codes; this function has the feature.
        unsafe {
            asm!(
                "vpdpbusd {sum}, {w}, dword ptr [{codes} + {at}]{{1to16}}",
                sum = inout(zmm_reg) sums[t],
                w = in(zmm_reg) w,
                codes = in(reg) x[t].codes.as_ptr(),
                at = const AT,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
    }
    sums
}

/// The scales of 16 rows times a token's.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn times_scale(scales: __m512, x: &Block) -> __m512 {
    let out;
    // SAFETY: reads the block's scale; this function has the feature.
    unsafe {
        asm!(
            "vmulps {out}, {scales}, dword ptr [{scale}]{{1to16}}",
            out = lateout(zmm_reg) out,
            scales = in(zmm_reg) scales,
            scale = in(reg) &raw const x.scale,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    out
}

macro_rules! product {
    ($product:ident, $all:ident, $tile:ident, $sum:ident, $record:ident) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        pub fn $product(w: &[u8], x: Codes<'_>, columns: usize, y: &mut [f32], stride: usize) {
            match x.tokens {
                1 => $all::<1>(w, x, columns, y, stride),
                _ => $all::<SIDE_BY_SIDE>(w, x, columns, y, stride),
            }
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn $all<const T: usize>(
            w: &[u8],
            x: Codes<'_>,
            columns: usize,
            y: &mut [f32],
            stride: usize,
        ) {
            let blocks = columns / BLOCK;
            for (i, tile) in x.tiles::<T>(blocks).enumerate() {
                let groups = w.as_chunks::<$record>().0.chunks_exact(blocks);
                for (g, group) in groups.enumerate() {
                    let all = $tile(group, tile, i == 0);
                    for (t, rows) in (i * T..x.tokens).zip(&all) {
                        y[t * stride + g * ROWS..][..ROWS].copy_from_slice(rows);
                    }
                }
            }
        }

        /// `fetch`: whether the weights are not in the cache yet.
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        #[inline]
        fn $tile<const T: usize>(
            group: &[[u8; $record]],
            x: &[[Block; T]],
            fetch: bool,
        ) -> [[f32; ROWS]; T] {
            let mut acc = [_mm512_setzero_ps(); T];
            for (record, x) in group.iter().zip(x) {
                if fetch {
                    prefetch(record);
                }
                let sums = $sum(record, x);
                let scales = scales(record);
                for t in 0..T {
                    let sum = _mm512_cvtepi32_ps(sums[t]);
                    acc[t] = _mm512_fmadd_ps(sum, times_scale(scales, &x[t]), acc[t]);
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

product!(product_q4_0, all_q4_0, tile_q4_0, sum_q4_0, Q4_0_RECORD);
product!(product_q8_0, all_q8_0, tile_q8_0, sum_q8_0, Q8_0_RECORD);

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
