//! `sdot`: products of quantised rows, four products a lane and instruction. The rest is NEON's.

#![allow(unsafe_code)]

use std::arch::aarch64::{int8x16_t, int32x4_t, vdupq_n_s8, vdupq_n_s32, vld1q_s8};
use std::arch::{asm, is_aarch64_feature_detected};
use std::hint::black_box;

use super::super::{Block, Kernels};
use super::neon;
use super::product::products;

/// The table, where the CPU has the instructions.
pub fn table() -> Option<&'static Kernels> {
    is_aarch64_feature_detected!("dotprod").then_some(&KERNELS)
}

static KERNELS: Kernels = Kernels {
    name: "dotprod",
    // SAFETY (all): the table is private to `table`, which hands it out only after it has found
    // the instruction set that the functions are compiled for.
    product_q4_0: |w, x, columns, y, stride| unsafe { product_q4_0(w, x, columns, y, stride) },
    product_q8_0: |w, x, columns, y, stride| unsafe { product_q8_0(w, x, columns, y, stride) },
    int8_peak: |rounds| unsafe { int8_peak(rounds) },
    ..neon::KERNELS
};

products!("neon,dotprod", 8, sums);

/// Adds to lane r the products of bytes 4 r … 4 r + 3 of `w` and 4 LANE … 4 LANE + 3 of `a`.
/// (`vdotq_laneq_s32`, which is not stable.)
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot<const LANE: i32>(sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    let mut out = sum;
    // SAFETY: computes on registers alone, with an instruction that this function may use.
    unsafe {
        asm!(
            "sdot {out:v}.4s, {w:v}.16b, {a:v}.4b[{lane}]",
            out = inout(vreg) out,
            w = in(vreg) w,
            a = in(vreg) a,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// Four rows' sums of each token. Sixteen activations lie in a register, and the instruction
/// broadcasts four of them.
#[target_feature(enable = "neon,dotprod")]
#[inline]
pub fn sums<const RUN: usize, const RUNS: usize, const T: usize>(
    codes: &[[int8x16_t; RUN]; RUNS],
    x: &[Block; T],
    start: [i32; T],
) -> [int32x4_t; T] {
    let mut sums = [vdupq_n_s32(0); T];
    for t in 0..T {
        sums[t] = vdupq_n_s32(start[t]);
    }
    for (half, codes) in codes.as_flattened().as_chunks::<4>().0.iter().enumerate() {
        let mut sixteen = [vdupq_n_s8(0); T];
        for t in 0..T {
            let a = &x[t].codes.as_chunks::<16>().0[half];
            // SAFETY: 16 bytes are readable; the load needs no alignment.
            sixteen[t] = unsafe { vld1q_s8(a.as_ptr()) };
        }
        step::<0, T>(&mut sums, codes[0], &sixteen);
        step::<1, T>(&mut sums, codes[1], &sixteen);
        step::<2, T>(&mut sums, codes[2], &sixteen);
        step::<3, T>(&mut sums, codes[3], &sixteen);
    }
    sums
}

#[target_feature(enable = "neon,dotprod")]
#[inline]
fn step<const LANE: i32, const T: usize>(
    sums: &mut [int32x4_t; T],
    codes: int8x16_t,
    a: &[int8x16_t; T],
) {
    for t in 0..T {
        sums[t] = dot::<LANE>(sums[t], codes, a[t]);
    }
}

/// Sixteen independent sums of 16 products each.
#[target_feature(enable = "neon,dotprod")]
fn int8_peak(rounds: usize) -> usize {
    const SUMS: usize = 16;
    let (w, a) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(5)));
    let mut totals = [vdupq_n_s32(0); SUMS];
    for _ in 0..rounds {
        for total in &mut totals {
            *total = dot::<0>(*total, w, a);
        }
    }
    black_box(totals);
    2 * 16 * SUMS
}
