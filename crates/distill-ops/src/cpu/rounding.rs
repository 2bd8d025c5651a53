//! The grids of `distill-quant` over many blocks, on all threads. The rule of a block's scale and of
//! a code are its own; what stands here goes through a block in registers, and is tested equal to
//! the scalar form bit for bit.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use distill_quant::{BLOCK, f16, q4_0, q8_0};
use rayon::prelude::*;

use super::scratch::filled;
use super::vector::{LANES, simd};

/// Elements that a thread takes at a time, whole blocks.
const CHUNK: usize = 1 << 12;
const _: () = assert!(CHUNK.is_multiple_of(BLOCK));

/// A grid, and what is rounded to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// 4 bits.
    Q4_0,
    /// 8 bits, the scale in f16.
    Q8_0,
    /// 8 bits, the scale in f32: activations.
    Q8_0Activations,
}

/// The values that the codes of `x` stand for. Whole blocks, which follow each other.
///
/// # Panics
/// If the blocks are not whole.
pub fn rounded(grid: Grid, x: &[f32]) -> Vec<f32> {
    // SAFETY: every element is written.
    unsafe { filled(x.len(), |out| each_block(grid, x, out)) }
}

/// The same into `out`, of the same length.
///
/// # Panics
/// If the lengths differ or the blocks are not whole.
pub fn round(grid: Grid, x: &[f32], out: &mut [f32]) {
    let slots = std::ptr::from_mut(out) as *mut [MaybeUninit<f32>];
    // SAFETY: the same elements; only values are written to them.
    each_block(grid, x, unsafe { &mut *slots });
}

fn each_block(grid: Grid, x: &[f32], out: &mut [MaybeUninit<f32>]) {
    assert!(x.len().is_multiple_of(BLOCK) && out.len() == x.len());
    let chunks = out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    chunks.for_each(|(out, x)| match grid {
        Grid::Q4_0 => q4_0_blocks(x, out),
        Grid::Q8_0 => q8_0_blocks(x, out),
        Grid::Q8_0Activations => activation_blocks(x, out),
    });
}

/// Sets a gradient to 0 where Q4_0 clamps the weight.
pub fn straight_through_q4_0(weights: &[f32], gradient: &mut [f32]) {
    gradient
        .par_chunks_mut(CHUNK)
        .zip(weights.par_chunks(CHUNK))
        .for_each(|(gradient, weights)| straight_through_blocks(weights, gradient));
}

/// Rounds to Q4_0 with a given scale for each block, into `out` of the same length.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn round_scaled(x: &[f32], scales: &[f32], out: &mut [f32]) {
    assert!(x.len() == scales.len() * BLOCK && out.len() == x.len());
    let parts = x.par_chunks(CHUNK).zip(scales.par_chunks(CHUNK / BLOCK));
    out.par_chunks_mut(CHUNK)
        .zip(parts)
        .for_each(|(out, (x, scales))| scaled_blocks(x, scales, out));
}

/// [`q4_0::straight_through_scaled`] of every block: gradients in place, those of the scales into
/// `of_scales`.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn straight_through_scaled(
    weights: &[f32],
    scales: &[f32],
    gradient: &mut [f32],
    of_scales: &mut [f32],
) {
    assert!(weights.len() == scales.len() * BLOCK && gradient.len() == weights.len());
    assert_eq!(of_scales.len(), scales.len());
    let parts = weights.par_chunks(CHUNK).zip(scales.par_chunks(CHUNK / BLOCK));
    let out = gradient.par_chunks_mut(CHUNK).zip(of_scales.par_chunks_mut(CHUNK / BLOCK));
    out.zip(parts).for_each(|((gradient, of_scales), (weights, scales))| {
        straight_through_scaled_blocks(weights, scales, gradient, of_scales);
    });
}

/// The largest and the smallest element.
#[inline(always)]
fn extremes(block: &[f32; BLOCK]) -> (f32, f32) {
    let (first, second) = block.split_at(LANES);
    let (mut high, mut low) = ([0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        let (a, b) = (first[lane], second[lane]);
        high[lane] = if a > b { a } else { b };
        low[lane] = if a < b { a } else { b };
    }
    let mut lanes = LANES;
    while lanes > 1 {
        lanes /= 2;
        for lane in 0..lanes {
            let (a, b) = (high[lane], high[lane + lanes]);
            high[lane] = if a > b { a } else { b };
            let (a, b) = (low[lane], low[lane + lanes]);
            low[lane] = if a < b { a } else { b };
        }
    }
    (high[0], low[0])
}

#[inline(always)]
fn largest_magnitude(block: &[f32; BLOCK]) -> f32 {
    let (high, low) = extremes(block);
    // Of a block of −0 too it is +0.
    (if high > -low { high } else { -low }).abs()
}

simd! {
    fn q4_0_blocks<'a>(x: &'a [f32], out: &'a mut [MaybeUninit<f32>]) -> () {
        for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
            let (high, low) = extremes(x);
            // A zero block: the reciprocal 0 gives code 8.
            let (d, reciprocal) = q4_0::scale_of_extremes(high, low).unwrap_or((0, 0.0));
            let d = f16::to_f32(d);
            for (x, out) in x.iter().zip(out) {
                out.write((q4_0::position(*x, reciprocal).clamp(0.0, 15.0).trunc() - 8.0) * d);
            }
        }
    }

    fn scaled_blocks<'a>(x: &'a [f32], scales: &'a [f32], out: &'a mut [f32]) -> () {
        let blocks = x.as_chunks::<BLOCK>().0.iter().zip(scales);
        for ((x, &scale), out) in blocks.zip(out.as_chunks_mut::<BLOCK>().0) {
            let (d, reciprocal) = q4_0::given_scale(scale).unwrap_or((0, 0.0));
            let d = f16::to_f32(d);
            for (x, out) in x.iter().zip(out) {
                *out = (q4_0::position(*x, reciprocal).clamp(0.0, 15.0).trunc() - 8.0) * d;
            }
        }
    }

    fn straight_through_scaled_blocks<'a>(
        weights: &'a [f32],
        scales: &'a [f32],
        gradient: &'a mut [f32],
        of_scales: &'a mut [f32],
    ) -> () {
        let blocks = weights.as_chunks::<BLOCK>().0.iter().zip(scales);
        let out = gradient.as_chunks_mut::<BLOCK>().0.iter_mut().zip(of_scales);
        for ((x, &scale), (gradient, of_scale)) in blocks.zip(out) {
            let (_, reciprocal) = q4_0::given_scale(scale).unwrap_or((0, 0.0));
            let mut lanes = [0.0; BLOCK];
            for ((x, gradient), lane) in x.iter().zip(gradient).zip(&mut lanes) {
                let position = q4_0::position(*x, reciprocal);
                let inside = (0.0..16.0).contains(&position);
                let code = position.clamp(0.0, 15.0).trunc() - 8.0;
                // 0 of a zero block, whose code is 0 too.
                let slope = if inside { code - x * reciprocal } else { code };
                *lane = *gradient * slope;
                *gradient = if inside { *gradient } else { 0.0 };
            }
            let mut count = BLOCK;
            while count > 1 {
                count /= 2;
                for lane in 0..count {
                    lanes[lane] += lanes[lane + count];
                }
            }
            *of_scale = lanes[0];
        }
    }

    fn q8_0_blocks<'a>(x: &'a [f32], out: &'a mut [MaybeUninit<f32>]) -> () {
        for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
            let unrounded = largest_magnitude(x) / 127.0;
            let (d, reciprocal) = q8_0::scale_of_unrounded(unrounded).unwrap_or((0, 0.0));
            let d = f16::to_f32(d);
            for (x, out) in x.iter().zip(out) {
                out.write(q8_0::rounded(*x, reciprocal) * d);
            }
        }
    }

    fn activation_blocks<'a>(x: &'a [f32], out: &'a mut [MaybeUninit<f32>]) -> () {
        for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
            let d = largest_magnitude(x) / 127.0;
            let (d, reciprocal) = if d < f32::MIN_POSITIVE { (0.0, 0.0) } else { (d, 1.0 / d) };
            for (x, out) in x.iter().zip(out) {
                out.write(q8_0::rounded(*x, reciprocal) * d);
            }
        }
    }

    fn straight_through_blocks<'a>(weights: &'a [f32], gradient: &'a mut [f32]) -> () {
        let blocks = weights.as_chunks::<BLOCK>().0.iter();
        for (x, gradient) in blocks.zip(gradient.as_chunks_mut::<BLOCK>().0) {
            let (high, low) = extremes(x);
            let (_, reciprocal) = q4_0::scale_of_extremes(high, low).unwrap_or((0, 0.0));
            for (x, gradient) in x.iter().zip(gradient) {
                let inside = q4_0::position(*x, reciprocal) < 16.0;
                *gradient = if inside { *gradient } else { 0.0 };
            }
        }
    }
}
