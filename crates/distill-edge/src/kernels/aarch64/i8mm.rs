//! `smmla`: products of quantised rows with pairs of tokens, eight products a lane and
//! instruction. Those with one token are `sdot`'s, and the rest is NEON's.
//!
//! The instruction multiplies two rows by two tokens over eight columns:
//!
//! ```text
//! [r0·t0  r0·t1  r1·t0  r1·t1]
//! ```
//! Of two registers of 4 rows × 4 columns, interleaving the 32-bit lanes makes two of 2 rows × 8
//! columns; of two sums, taking every other lane makes one for each token.

#![allow(unsafe_code)]

use std::arch::aarch64::{
    int8x8_t, int8x16_t, int32x4_t, vcombine_s8, vdupq_n_s8, vdupq_n_s32, vld1_s8,
    vreinterpretq_s8_s32, vreinterpretq_s32_s8, vuzp1q_s32, vuzp2q_s32, vzip1q_s32, vzip2q_s32,
};
use std::arch::{asm, is_aarch64_feature_detected};
use std::hint::black_box;

use super::super::{BLOCK, Block, Kernels};
use super::product::products;
use super::{dotprod, neon};

/// The table, where the CPU has the instructions.
pub fn table() -> Option<&'static Kernels> {
    let runs = is_aarch64_feature_detected!("i8mm") && dotprod::table().is_some();
    runs.then_some(&KERNELS)
}

static KERNELS: Kernels = Kernels {
    name: "i8mm",
    // SAFETY (all): the table is private to `table`, which hands it out only after it has found
    // the instruction sets that the functions are compiled for.
    product_q4_0: |w, x, columns, y, stride| unsafe { product_q4_0(w, x, columns, y, stride) },
    product_q8_0: |w, x, columns, y, stride| unsafe { product_q8_0(w, x, columns, y, stride) },
    int8_peak: |rounds| unsafe { int8_peak(rounds) },
    ..neon::KERNELS
};

products!("neon,dotprod,i8mm", 8, sums);

/// Adds the 2 × 2 products of two rows of eight bytes by two others.
/// (`vmmlaq_s32`, which is not stable.)
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn multiply(sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    let mut out = sums;
    // SAFETY: computes on registers alone, with an instruction that this function may use.
    unsafe {
        asm!(
            "smmla {out:v}.4s, {w:v}.16b, {a:v}.16b",
            out = inout(vreg) out,
            w = in(vreg) w,
            a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// Four rows' sums of each token.
#[target_feature(enable = "neon,dotprod,i8mm")]
#[inline]
fn sums<const RUN: usize, const RUNS: usize, const T: usize>(
    codes: &[[int8x16_t; RUN]; RUNS],
    x: &[Block; T],
    start: [i32; T],
) -> [int32x4_t; T] {
    if T == 1 {
        return dotprod::sums(codes, x, start);
    }
    let mut sums = [vdupq_n_s32(0); T];
    for (sums, start) in sums.as_chunks_mut::<2>().0.iter_mut().zip(start.as_chunks::<2>().0) {
        *sums = [vzip1q_s32(vdupq_n_s32(start[0]), vdupq_n_s32(start[1])); 2];
    }
    for (step, pair) in codes.as_flattened().as_chunks::<2>().0.iter().enumerate() {
        let (first, second) = (vreinterpretq_s32_s8(pair[0]), vreinterpretq_s32_s8(pair[1]));
        let upper = vreinterpretq_s8_s32(vzip1q_s32(first, second));
        let lower = vreinterpretq_s8_s32(vzip2q_s32(first, second));
        for (sums, x) in sums.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0) {
            let a = vcombine_s8(eight(&x[0].codes, step), eight(&x[1].codes, step));
            *sums = [multiply(sums[0], upper, a), multiply(sums[1], lower, a)];
        }
    }
    for pair in sums.as_chunks_mut::<2>().0 {
        *pair = [vuzp1q_s32(pair[0], pair[1]), vuzp2q_s32(pair[0], pair[1])];
    }
    sums
}

/// Activations 8 i … 8 i + 7.
#[target_feature(enable = "neon")]
#[inline]
fn eight(codes: &[i8; BLOCK], i: usize) -> int8x8_t {
    // SAFETY: 8 bytes are readable; the load needs no alignment.
    unsafe { vld1_s8(codes.as_chunks::<8>().0[i].as_ptr()) }
}

/// Sixteen independent sums of 32 products each.
#[target_feature(enable = "neon,i8mm")]
fn int8_peak(rounds: usize) -> usize {
    const SUMS: usize = 16;
    let (w, a) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(5)));
    let mut totals = [vdupq_n_s32(0); SUMS];
    for _ in 0..rounds {
        for total in &mut totals {
            *total = multiply(*total, w, a);
        }
    }
    black_box(totals);
    2 * 32 * SUMS
}
