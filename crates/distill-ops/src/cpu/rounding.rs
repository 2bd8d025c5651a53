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
