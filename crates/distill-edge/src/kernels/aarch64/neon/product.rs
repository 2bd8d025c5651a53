//! How base NEON sums the products of quantised rows.
//!
//! ```text
//! for each run of codes:
//!   p    = Σ codes · broadcast a       8 + 8 i16 lanes, two for each row's 4 columns
//!   sum += pairs of p                  4 + 4 i32 lanes
//! sum    = pairs of sum                4 i32 lanes, one a row
//! ```

use std::arch::aarch64::{
    int8x16_t, int16x8_t, int32x4_t, vaddq_s32, vdupq_n_s8, vdupq_n_s16, vdupq_n_s32, vdupq_n_u8,
    veorq_u8, vget_low_s8, vld1q_u8, vmlal_high_s8, vmlal_s8, vpadalq_s16, vpaddq_s32,
    vreinterpretq_s8_s32,
};
use std::hint::black_box;

use super::super::super::{BLOCK, Block};
use super::super::product::products;

// Not four tokens: broadcast activations and 16-bit sums take registers too.
products!("neon", 2, sums);

/// Four rows' sums of each token.
#[target_feature(enable = "neon")]
#[inline]
fn sums<const RUN: usize, const RUNS: usize, const T: usize>(
    codes: &[[int8x16_t; RUN]; RUNS],
    x: &[Block; T],
    start: [i32; T],
) -> [int32x4_t; T] {
    let mut sums = [[vdupq_n_s32(0); 2]; T];
    for (r, run) in codes.iter().enumerate() {
        for t in 0..T {
            let mut products = [vdupq_n_s16(0); 2];
            for (k, codes) in run.iter().enumerate() {
                products = multiply(products, *codes, broadcast(&x[t].codes, RUN * r + k));
            }
            sums[t] = widen(sums[t], products);
        }
    }
    let mut rows = [vdupq_n_s32(0); T];
    for t in 0..T {
        rows[t] = vaddq_s32(vpaddq_s32(sums[t][0], sums[t][1]), vdupq_n_s32(start[t]));
    }
    rows
}

/// Activations 4 k … 4 k + 3, four times.
#[target_feature(enable = "neon")]
#[inline]
fn broadcast(a: &[i8; BLOCK], k: usize) -> int8x16_t {
    let four = a.as_chunks::<4>().0[k];
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(four.map(|code| code as u8))))
}

/// Adds 16 products.
#[target_feature(enable = "neon")]
#[inline]
fn multiply(sums: [int16x8_t; 2], w: int8x16_t, a: int8x16_t) -> [int16x8_t; 2] {
    [vmlal_s8(sums[0], vget_low_s8(w), vget_low_s8(a)), vmlal_high_s8(sums[1], w, a)]
}

/// Adds neighbours, widened.
#[target_feature(enable = "neon")]
#[inline]
fn widen(sums: [int32x4_t; 2], products: [int16x8_t; 2]) -> [int32x4_t; 2] {
    [vpadalq_s16(sums[0], products[0]), vpadalq_s16(sums[1], products[1])]
}

/// Eight independent sums of 32 products each, as Q8_0's.
#[target_feature(enable = "neon")]
pub fn int8_peak(rounds: usize) -> usize {
    const SUMS: usize = 8;
    let (w, a) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(5)));
    let mut totals = [[vdupq_n_s32(0); 2]; SUMS];
    for _ in 0..rounds {
        // Opaque, or the compiler would compute a round once.
        let w = black_box(w);
        for total in &mut totals {
            let products = multiply(multiply([vdupq_n_s16(0); 2], w, a), w, a);
            *total = widen(*total, products);
        }
    }
    black_box(totals);
    2 * 32 * SUMS
}

/// Four independent streams of whole registers.
#[target_feature(enable = "neon")]
pub fn read_all(bytes: &[u8]) {
    let mut all = [vdupq_n_u8(0); 4];
    for chunk in bytes.as_chunks::<64>().0 {
        for (all, part) in all.iter_mut().zip(chunk.as_chunks::<16>().0) {
            // SAFETY: 16 bytes are readable; the load needs no alignment.
            *all = veorq_u8(*all, unsafe { vld1q_u8(part.as_ptr()) });
        }
    }
    black_box(all);
}
